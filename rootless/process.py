"""What runs in the helper of `join --rootless`: it makes the interface, and takes few requests until the daemon ends.

A request and its answer are one message each, a JSON object. The daemon is trusted no more than needed:

| request | what it does |
|---|---|
| `set_up` | once: MTU, addresses, routes and names; then the right to mount is given up |
| `socket` | makes a TCP or UDP socket and hands it over, neither bound nor connected |
| `resolve` | looks a name up with the tunnel's name servers |

It is a program of its own, not a fork of the daemon: so it has none of the daemon's memory, with its keys and token.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Final, NoReturn

from rustguard_py.model.errors import RustGuardError
from rustguard_py.planes.tun import Tun
from rustguard_py.rootless import names, namespaces
from rustguard_py.rootless.names import Names
from rustguard_py.rootless.refusals import Step
from rustguard_py.sandbox import capabilities
from rustguard_py.sandbox.capabilities import Capability
from rustguard_py.system.interface import InterfaceSetup, set_up, why_no_ipv6, with_netlink
from rustguard_py.system.leash import signal_at_end
from rustguard_py.system.netlink_library import NetlinkError

# Bytes of the longest message.
LONGEST: Final = 1 << 16
FAMILIES: Final[dict[str, int]] = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
KINDS: Final[dict[str, int]] = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
# Look-ups at once; each may wait seconds for a name server.
_LOOK_UPS = 32
_LONGEST_NAME = 255
# The kernel makes it first in each network namespace.
_LOOPBACK = 1
_PING_GROUPS = Path("/proc/sys/net/ipv4/ping_group_range")
# A hangup of the terminal, Ctrl-C and the end of a service are for the daemon, whose end is ours.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _RefusedError(Exception):
    """The kernel refused a step."""

    def __init__(self, step: Step, error: OSError) -> None:
        super().__init__(step, error)
        self.step, self.number = step, error.errno or 0


def main(words: Sequence[str]) -> NoReturn:
    """Run the helper.

    Args:
        words: The descriptors of the channel to the daemon and of the leash, the interface's name, and its number of
            queues.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    channel, leash, interface, queues = socket.socket(fileno=int(words[0])), int(words[1]), words[2], int(words[3])
    # Even if it is stopped by then, it ends with the daemon.
    if not signal_at_end(leash, signal.SIGKILL):
        os._exit(0)
    try:
        tuns, rights = _enter(interface, queues)
    except _RefusedError as refusal:
        _send(channel, {"refused": refusal.step, "errno": refusal.number})
        os._exit(1)
    for tun in tuns:
        _send(channel, {"queue": tun.name}, tun.fd)
        tun.close()
    about = {"index": socket.if_nametoindex(interface), "no_ipv6": why_no_ipv6()}
    _send(channel, about, *rights)
    for each in rights:
        os.close(each)
    HelperProcess(channel, interface).serve()


def _enter(interface: str, queues: int) -> tuple[list[Tun], list[int]]:
    """Enter namespaces of our own and make the interface there. Return its queues, and the namespaces' files."""
    user, group = os.geteuid(), os.getegid()
    _try(Step.USER, lambda: namespaces.unshare(namespaces.NEW_USER))
    _try(Step.IDS, lambda: namespaces.map_own_ids(user, group))
    _try(Step.NETWORK, lambda: namespaces.unshare(namespaces.NEW_NETWORK))
    # Others of this user may look at us until here: the kernel gives no ID maps to a process that keeps them out.
    _try(Step.IDS, namespaces.keep_memory_private)
    kept = {Capability.NET_ADMIN, Capability.NET_BIND_SERVICE, Capability.SYS_ADMIN}
    _try(Step.IDS, lambda: capabilities.keep_only(kept))
    _try(Step.IDS, capabilities.gain_nothing)
    _try(Step.DEVICE, lambda: os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)))
    tuns: list[Tun] = []

    def make() -> None:
        tuns.extend(Tun(interface, lambda _: None, several=queues > 1) for _ in range(queues))
        try:
            with_netlink(lambda netlink: netlink.link("set", index=_LOOPBACK, state="up"))
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    _try(Step.INTERFACE, make)
    with suppress(OSError):
        _PING_GROUPS.write_text(f"{group} {group}")
    return tuns, [os.open(f"/proc/self/ns/{each}", os.O_RDONLY | os.O_CLOEXEC) for each in ("user", "net")]


def _try(step: Step, work: Callable[[], object]) -> None:
    try:
        work()
    except OSError as error:
        raise _RefusedError(step, error) from error
    except RustGuardError as error:
        cause = error.__cause__
        raise _RefusedError(step, cause if isinstance(cause, OSError) else OSError(0, error.message)) from error


class HelperProcess:
    """The helper's end.

    Args:
        channel: Connected to the daemon.
        interface: The interface's name.
    """

    def __init__(self, channel: socket.socket, interface: str) -> None:
        self._channel = channel
        self._interface = interface
        self._is_set_up = False
        self._look_ups = ThreadPoolExecutor(_LOOK_UPS, "look-up")

    def serve(self) -> NoReturn:
        """Answer requests until the daemon is gone."""
        while request := self._channel.recv(LONGEST):
            self.take(request)
        # Threads may still wait for name servers.
        os._exit(0)

    def take(self, message: bytes) -> None:
        """Do what a request asks for, and answer it."""
        request: dict[str, Any] = {}
        try:
            request = json.loads(message)
            match request:
                case {"do": "socket", "family": str(family), "kind": str(kind)}:
                    self._make_socket(request["id"], FAMILIES[family], KINDS[kind])
                case {"do": "resolve", "host": str(host), "port": int(port)}:
                    if not 0 < len(host) <= _LONGEST_NAME or "\0" in host or not 0 <= port < 1 << 16:
                        raise ValueError(host)  # noqa: TRY301 - answered as all that isn't a request of ours
                    self._look_ups.submit(self._resolve, request["id"], host, port)
                case {"do": "set_up", "names": dict(found), "layout": dict(layout)} if not self._is_set_up:
                    self._set_up(request["id"], _read_layout(self._interface, layout), Names.from_json(found))
                case _:
                    raise ValueError(request)  # noqa: TRY301 - the same
        except (KeyError, TypeError, ValueError, AttributeError):
            number = request.get("id") if isinstance(request, dict) else None
            self._answer(number, error=["The helper of --rootless doesn't know that request.", ""])

    def _make_socket(self, number: object, family: int, kind: int) -> None:
        try:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._answer(number, errno=error.errno)
            return
        with made:
            self._answer(number, made.fileno())

    def _resolve(self, number: object, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except socket.gaierror as error:
            self._answer(number, lookup=[error.errno, error.strerror])
        except (OSError, UnicodeError) as error:
            self._answer(number, lookup=[socket.EAI_FAIL, str(error)])
        else:
            self._answer(number, addresses=[[family, list(address)] for family, _, _, _, address in found])

    def _set_up(self, number: object, layout: InterfaceSetup, wanted: Names) -> None:
        self._is_set_up = True
        lines: list[str] = []
        try:
            set_up(layout, lines.append)
        except RustGuardError as error:
            self._answer(number, error=[error.message, error.fix], lines=lines)
            return
        files = wanted.files()
        note = ""
        try:
            namespaces.own_mounts()
            if missing := names.show(files):
                note = f"Names can't be resolved inside without {', '.join(missing)}."
        except OSError as error:
            note = f"Names can't be resolved inside, because mounts are refused there: {error.strerror}."
        capabilities.keep_only({Capability.NET_ADMIN, Capability.NET_BIND_SERVICE})
        self._answer(number, lines=lines, note=note, files={str(path): text for path, text in files.items()})

    def _answer(self, number: object, *descriptors: int, **members: object) -> None:
        _send(self._channel, {"id": number, **members}, *descriptors)


def _read_layout(interface: str, value: dict[str, Any]) -> InterfaceSetup:
    """Return the settings of a request, for our interface alone."""
    mtu, segments = value["mtu"], value["gso_max_segs"]
    if not 0 < int(mtu) < 1 << 16 or not (segments is None or 0 < int(segments) < 1 << 16):
        raise ValueError(value)
    return InterfaceSetup(
        interface,
        int(mtu),
        tuple(ip_interface(str(each)) for each in value["addresses"]),
        tuple(ip_network(str(each)) for each in value["routes"]),
        None if segments is None else int(segments),
    )


def _send(channel: socket.socket, message: dict[str, Any], *descriptors: int) -> None:
    try:
        socket.send_fds(channel, [json.dumps(message).encode()], descriptors)
    except OSError:
        # The daemon is gone.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
