"""`rustguard-wg` in wireguard-go-vpp's place: its environment and files, and VPP at the other end of the memif."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from rustguard_py.daemon.console import Voice
from rustguard_py.model.errors import RustGuardError, UsageError
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.model.memif import LONGEST_PATH, MemifOptions
from rustguard_py.quick.wg_device import WgDevice
from rustguard_py.state.document import Document
from rustguard_py.vpp import plan
from rustguard_py.vpp.binary_api import BinaryApi
from rustguard_py.vpp.settings import Places
from rustguard_py.vpp.vppctl import Vppctl
from rustguard_py.vpp.ways import Address, UnreachableError, Way
from rustguard_py.vpp.wiring import Wiring

# How often to check whether VPP still has our memif, while nobody is connected to it, seconds.
LOOK = 2.0


@dataclass(frozen=True, slots=True)
class VppOptions:
    """An interface's files, and where VPP is.

    Attributes:
        places: From the environment.
        plan: From the files.
    """

    places: Places
    plan: plan.Plan

    @property
    def memif(self) -> MemifOptions:
        """Our end of the memif. As with wireguard-go-vpp, VPP is the client."""
        wanted, interface = self.plan.wanted, self.plan.interface
        ethernet = EthernetOptions(wanted.own_mac, self.plan.bridge.gateway, interface.answered, interface.learnt)
        return MemifOptions(wanted.socket, wanted.uid, server=True, secret=wanted.secret, ethernet=ethernet)

    def way(self) -> Way:
        """Return the way to VPP. Method `none` installs no routes; the memif itself is made by the API."""
        bridge = self.plan.bridge
        return Vppctl(bridge.vppctl) if bridge.method == "vppctl" else BinaryApi(self.places.api)


def asked_for(interface: str, say: Callable[[str], None]) -> VppOptions | None:
    """Return what wireguard-go-vpp's environment and files ask for, or None if neither is there.

    Args:
        interface: The interface's name.
        say: Prints a line: why this mode was chosen, and each key of the files that isn't known.

    Raises:
        RustGuardError: A file is missing or wrong, or ranges overlap, or the sockets' directory can't be made.
    """
    places = Places.from_environment()
    why = places.why_this_mode(interface)
    if not why:
        return None
    say(f"{interface} is a memif of VPP, as with wireguard-go-vpp, because {why}.")
    options = VppOptions(places, plan.read(places, interface, say))
    socket = options.plan.wanted.socket
    if len(bytes(socket)) > LONGEST_PATH:
        raise UsageError(
            f"{socket} is too long for a socket's path, which has at most {LONGEST_PATH} bytes.",
            "Name a directory with a shorter path in VPP_MEMIF_SOCKET_DIR.",
        )
    try:
        socket.parent.mkdir(0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise RustGuardError(
            f"{socket.parent} can't be made: {error.strerror}.",
            "Make it and give it to yourself, or name another directory in VPP_MEMIF_SOCKET_DIR.",
        ) from error
    return options


class VppLink:
    """Keeps VPP set up for a device, from within the running loop.

    Args:
        options: What is set up.
        document: Keeps the record of it. It is loaded here.
        device: The memif.
        mtu: Of packets.
        voice: Prints what happens.
    """

    def __init__(self, options: VppOptions, document: Document, device: WgDevice, mtu: int, voice: Voice) -> None:
        self._wiring = Wiring(options.way(), options.plan.wanted, mtu, document.load(), document.save)
        self._device, self._voice = device, voice
        # One thread, so that one step is done at a time and the last of them takes everything back.
        self._thread = ThreadPoolExecutor(1, "rg-vpp")
        self._answered: list[Address] = []
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._trouble = ""
        self._set_up = False

    async def start(self) -> None:
        """Set everything up.

        Raises:
            RustGuardError: VPP doesn't answer, or refuses. Nothing stays then.
        """
        loop = asyncio.get_running_loop()
        # Set before it is so: what ends the wait (Ctrl-C) doesn't end the thread.
        self._set_up = True
        try:
            await loop.run_in_executor(self._thread, self._wiring.make)
        except RustGuardError:
            self._set_up = False
            raise
        if (fd := self._device.answered_fileno()) >= 0:
            loop.add_reader(fd, self._take)
        self._keeper = loop.create_task(self._keep())

    async def close(self) -> None:
        """Take everything back."""
        loop = asyncio.get_running_loop()
        if self._keeper is not None:
            loop.remove_reader(self._device.answered_fileno())
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._set_up:
            try:
                await loop.run_in_executor(self._thread, self._wiring.take_back)
            except RustGuardError as error:
                self._voice.say(f"{error.message} What was set up there is taken back at the next start.")
        self._thread.shutdown()

    def _take(self) -> None:
        self._answered += self._device.take_answered()
        self._changed.set()

    async def _keep(self) -> None:
        """Add neighbours as they are answered, and set VPP up again after its restart."""
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._changed.wait()
            self._changed.clear()
            answered, self._answered = self._answered, []
            try:
                if answered:
                    await loop.run_in_executor(self._thread, self._wiring.add_neighbours, answered)
                if not self._device.is_connected() and await loop.run_in_executor(self._thread, self._wiring.repair):
                    self._voice.say("VPP had lost the memif, most likely at its restart. It was set up again.")
                self._trouble = ""
            except RustGuardError as error:
                self._report(error)

    def _report(self, error: RustGuardError) -> None:
        """Print an error once, not again every two seconds."""
        if self._trouble != error.message:
            self._trouble = error.message
            again = " It is tried again." if isinstance(error, UnreachableError) else ""
            self._voice.say(f"{error.message}{again}")
