"""The daemon's end of the helper of `join --rootless` (`rootless.process`).

The daemon itself stays where it is, with its UDP sockets. From the helper it gets descriptors, by SCM_RIGHTS: the
queues of the interface, the namespaces for `rustguard exec`, and each socket that is to be inside.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.limits import THREADS
from rustguard_py.model.sudo import as_root
from rustguard_py.rootless.names import Names
from rustguard_py.rootless.process import FAMILIES, KINDS, LONGEST
from rustguard_py.rootless.refusals import refused
from rustguard_py.system.interface import Echo, InterfaceSetup
from rustguard_py.system.own_python import import_path

# Of an environment, what a Python program needs to start. The rest is none of the helper's business.
_VARIABLES = ("PATH", "LANG", "LC_ALL", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE")
# Seconds for its start, on a machine that is slow and busy, and for its end.
_START_SECONDS, _END_SECONDS = 60.0, 2.0
# Requests that wait for an answer at once: the queue of the channel holds them all.
_AT_ONCE = 64
_MOST_DESCRIPTORS = 4
_FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
_KIND_NAMES = {number: name for name, number in KINDS.items()}


class Helper:
    """A running helper and the interface that it made. Requests need the running event loop.

    Attributes:
        interface: The interface's name inside.
        index: Its number inside.
        no_ipv6: Why there is no IPv6 inside, or None.
        queues: Descriptors of its queues; ours.
        user, network: Descriptors of the namespaces; ours.
        files: What programs inside see in the place of the machine's files, text by path. Empty before `set_up`.
        on_gone: Called with the error when the helper has ended by itself.
    """

    def __init__(self, channel: socket.socket, leash: int, process: subprocess.Popen[bytes], interface: str) -> None:
        self._channel = channel
        # The helper is killed when it is closed, see `system.leash`.
        self._leash = leash
        self._process = process
        self.interface = interface
        self.index = 0
        self.no_ipv6: str | None = None
        self.queues: list[int] = []
        self.user = self.network = -1
        self.files: dict[Path, str] = {}
        self.on_gone: Callable[[RustGuardError], None] = lambda _: None
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_gone = False

    @classmethod
    def start(cls, interface: str, queues: int) -> Helper:
        """Start the helper, before the daemon gives up what it needs for that. Blocks until the interface is there.

        Raises:
            RefusedError: This machine doesn't allow it. The message says what refuses, and what allows it.
            RustGuardError: It couldn't be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        its_leash, leash = os.pipe2(os.O_CLOEXEC)
        argv = [sys.executable, "-P", "-m", "rustguard_py.rootless.process"]
        try:
            process = subprocess.Popen(  # noqa: S603 - this program
                [*argv, str(theirs.fileno()), str(its_leash), interface, str(queues)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), its_leash],
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ} | import_path(),
                start_new_session=True,
            )
        except BlockingIOError as error:
            ours.close()
            os.close(leash)
            raise RustGuardError(THREADS.message, THREADS.fix) from error
        finally:
            theirs.close()
            os.close(its_leash)
        made = cls(ours, leash, process, interface)
        try:
            made._meet()
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """End the helper. The interface goes with the last of its queues."""
        self._is_gone = True
        if self._loop is not None:
            self._loop.remove_reader(self._channel)
            self._loop = None
        self._channel.close()
        for each in (*self.queues, self.user, self.network, self._leash):
            if each >= 0:
                os.close(each)
        self.queues, self.user, self.network, self._leash = [], -1, -1, -1
        self._fail(self._gone())
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def watch(self, on_gone: Callable[[RustGuardError], None]) -> None:
        """Call `on_gone` when the helper has ended by itself."""
        self.on_gone = on_gone
        if self._is_gone:
            on_gone(self._gone())

    # -- requests -------------------------------------------------------------------------------------------

    async def set_up(self, layout: InterfaceSetup, names: Names, echo: Echo) -> str:
        """Set the interface's MTU, addresses and routes, and what names mean inside. May be called once.

        Returns:
            A sentence on what doesn't work inside, or an empty text.

        Raises:
            RustGuardError: The kernel refused, or the helper is gone.
        """
        given = {
            "mtu": layout.mtu,
            "gso_max_segs": layout.gso_max_segs,
            "addresses": [str(each) for each in layout.addresses],
            "routes": [str(each) for each in layout.routes],
        }
        answer, _ = await self._ask(do="set_up", layout=given, names=names.to_json())
        for line in answer.get("lines", ()):
            echo(line)
        if "error" in answer:
            raise RustGuardError(*answer["error"])
        self.files = {Path(path): str(text) for path, text in answer["files"].items()}
        return str(answer["note"])

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        """Return a new socket inside the tunnel's network, non-blocking.

        Args:
            family: socket.AF_INET or socket.AF_INET6.
            kind: socket.SOCK_STREAM or socket.SOCK_DGRAM.

        Raises:
            OSError: The kernel refused, or the helper is gone (ENETDOWN).
        """
        answer, descriptors = await self._ask_inside(
            do="socket", family=_FAMILY_NAMES[family], kind=_KIND_NAMES[kind]
        )
        if not descriptors:
            number = int(answer["errno"])
            raise OSError(number, os.strerror(number))
        made = socket.socket(family, kind, fileno=descriptors[0])
        made.setblocking(False)
        return made

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
        """Return the addresses of a name in the tunnel, as pairs of a family and an address with the port.

        Raises:
            socket.gaierror: The name has no address, or no name server answers.
            OSError: The helper is gone (ENETDOWN).
        """
        # An address needs nobody to look it up.
        with suppress(socket.gaierror, UnicodeError):
            known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return [(int(family), address) for family, _, _, _, address in known]
        answer, _ = await self._ask_inside(do="resolve", host=host, port=port)
        if "addresses" in answer:
            return [(int(family), tuple(address)) for family, address in answer["addresses"]]
        raise socket.gaierror(*answer.get("lookup", (socket.EAI_NONAME, "the name isn't valid")))

    # -- the channel ----------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Take what the helper sends first."""
        self._channel.settimeout(_START_SECONDS)
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._channel, LONGEST, _MOST_DESCRIPTORS)
            except OSError as error:
                raise self._gone() from error
            if not message:
                raise self._gone()
            said = json.loads(message)
            if "refused" in said:
                raise refused(said["refused"], int(said["errno"]))
            if "queue" not in said:
                break
            self.queues += descriptors
        self.index, self.no_ipv6 = int(said["index"]), said["no_ipv6"]
        self.user, self.network = descriptors
        self._channel.setblocking(False)

    async def _ask_inside(self, **request: object) -> tuple[dict[str, Any], list[int]]:
        try:
            return await self._ask(**request)
        except RustGuardError as error:
            raise OSError(errno.ENETDOWN, error.message) from error

    async def _ask(self, **request: object) -> tuple[dict[str, Any], list[int]]:
        async with self._places:
            if self._is_gone:
                raise self._gone()
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self._channel, self._read)
            number = next(self._numbers)
            answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = self._loop.create_future()
            self._waiting[number] = answer
            try:
                await self._loop.sock_sendall(self._channel, json.dumps({"id": number, **request}).encode())
                return await answer
            except OSError as error:
                raise self._gone() from error
            except asyncio.CancelledError:
                if answer.done() and not answer.cancelled() and answer.exception() is None:
                    for each in answer.result()[1]:
                        os.close(each)
                raise
            finally:
                self._waiting.pop(number, None)

    def _read(self) -> None:
        while not self._is_gone:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._channel, LONGEST, _MOST_DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._ended()
                return
            answer: dict[str, Any] = json.loads(message)
            waiting = self._waiting.get(answer.get("id", 0))
            if waiting is None or waiting.done():
                # Whoever asked has gone away.
                for each in descriptors:
                    os.close(each)
            else:
                waiting.set_result((answer, descriptors))

    def _ended(self) -> None:
        self._is_gone = True
        if self._loop is not None:
            self._loop.remove_reader(self._channel)
            self._loop = None
        error = self._gone()
        self._fail(error)
        self.on_gone(error)

    def _fail(self, error: RustGuardError) -> None:
        for each in self._waiting.values():
            if not each.done():
                each.set_exception(error)

    def _gone(self) -> RustGuardError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        code = self._process.poll()
        if code is not None and code < 0:
            how = f"was killed (signal {-code}), perhaps because memory ran out"
        else:
            how = "has ended" if code is None else f"has ended (exit code {code})"
        return RustGuardError(
            f"The helper process of --rootless {how}.",
            f"Start again: {as_root('rustguard join')}",
        )
