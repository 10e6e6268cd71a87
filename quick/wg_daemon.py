"""`rustguard-wg`: a user-space WireGuard that wg(8) and wg-quick(8) set up, as they do wireguard-go.

It makes the interface and answers at wg(8)'s socket. Other programs set addresses and routes, and bring the interface
up. It ends when the interface or the socket is removed. Its UDP port stays in the network namespace in which it was
started, even if the interface is moved to another one.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.daemon.uapi.socket import DIRECTORY, LOOK, UapiSocket, given_listener
from rustguard_py.engine import Engine
from rustguard_py.model.errors import InUseError
from rustguard_py.model.printable import printable
from rustguard_py.planes import offload
from rustguard_py.planes.tun import Tun
from rustguard_py.quick.wg_device import WgDevice
from rustguard_py.quick.wg_vpp import VppLink, VppOptions
from rustguard_py.state.document import Document
from rustguard_py.state.paths import state_directory
from rustguard_py.system.interface import check_interface_name, with_netlink
from rustguard_py.system.netlink_library import IPRoute
from rustguard_py.system.netwatch import NetWatch
from rustguard_py.system.place import in_namespace

# MTU of an interface that we make, as wireguard-go's.
MTU = 1420
_SIOCGIFMTU = 0x8921


@dataclass(frozen=True, slots=True)
class WgOptions:
    """The command line of `rustguard-wg`; only `serve` reads it.

    Attributes:
        interface: Its name.
        directory: Where timestamps are kept.
        engine: One of our own engines.
        tun: Descriptor of an existing TUN device to use (WG_TUN_FD), or None to make one.
        uapi: Descriptor of an existing listening socket to use (WG_UAPI_FD), or None to make one.
        vpp: What is set up in VPP, at the other end of the engine's memif. None if others set it up.
    """

    interface: str
    directory: Path
    engine: Engine
    tun: int | None = None
    uapi: int | None = None
    vpp: VppOptions | None = None


def directory_of(interface: str) -> Path:
    """Return the state directory for an interface. Each network namespace may have an interface of that name."""
    return state_directory("client").parent / "wg" / in_namespace(interface)


def _open(options: WgOptions) -> Document:
    try:
        return Document.open(options.directory)
    except InUseError as error:
        raise InUseError(
            f"An interface {options.interface} of rustguard-wg is here already.",
            f"Choose another name. Or end it by removing its socket: rm {DIRECTORY}/{options.interface}.sock",
        ) from error


async def serve(options: WgOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Run until a signal comes, or the interface or the socket is removed.

    Args:
        options: The command line.
        voice: Prints what happens.
        ready: Called once wg(8) is answered.

    Raises:
        RustGuardError: It can't start.
    """
    async with AsyncExitStack() as stack:
        document = _open(options)
        stack.callback(document.close)
        timestamps = KeptTimestamps(options.directory)
        stack.callback(timestamps.close)
        queues: list[Tun] = []
        if options.engine.memif is not None:
            check_interface_name(options.interface)
        elif options.tun is not None:
            queues = [Tun.adopt(options.tun, voice.say)]
            stack.callback(queues[0].close)
        else:
            queues = _make_interface(stack, voice, options.interface, options.engine)
        name = queues[0].name if queues else options.interface
        device = WgDevice(options.engine, name, queues, (_mtu(name) if queues else None) or MTU, timestamps)
        stack.callback(device.close)
        # Before anything is set up elsewhere: a signal meanwhile ends in order too.
        runtime.stop_on_signals(device.stopped.set)
        tasks = Tasks()
        stack.push_async_callback(tasks.close)
        tasks.spawn(timestamps.keep_synced())
        if options.vpp is not None:
            link = VppLink(options.vpp, document, device, MTU, voice)
            stack.push_async_callback(link.close)
            await link.start()
        listener = None if options.uapi is None else given_listener(options.uapi)
        wg = UapiSocket(name, device.show, device.change, listener)
        stack.push_async_callback(wg.close)
        await wg.start()
        if queues:
            watch = NetWatch(lambda: _follow(device, name))
            stack.callback(watch.close)
        if not device.stopped.is_set():
            voice.say(f"{name} is ready, engine {options.engine.name}; set it up with wg(8).")
            ready()
        await _until_stopped(device, wg, voice)
        if device.fault is not None:
            voice.say(f"{name} is gone ({device.fault.message}).")


async def _until_stopped(device: WgDevice, wg: UapiSocket, voice: Voice) -> None:
    said = ""
    while not device.stopped.is_set() and wg.is_there():
        if (memif := device.memif()) != said:
            said = memif
            voice.say(printable(said))
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await device.stopped.wait()


def _make_interface(stack: AsyncExitStack, voice: Voice, interface: str, engine: Engine) -> list[Tun]:
    """Make the interface, and return its queues."""
    runtime.check_interface(interface, engine)
    queues = []
    for _ in range(engine.queues):
        tun = Tun(interface, voice.say, several=engine.queues > 1)
        stack.callback(tun.close)
        queues.append(tun)
    _prepare(queues[0].name)
    return queues


def _prepare(name: str) -> None:
    """Set WireGuard's MTU. The interface stays down, as wg-quick expects."""
    segments = offload.wanted_gso_segments(MTU)

    def work(netlink: IPRoute) -> None:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, mtu=MTU)
        # A kernel without this setting costs some throughput: now and then a superpacket needs a second message.
        with suppress(Exception):
            netlink.link("set", index=index, gso_max_segs=segments)

    with_netlink(work)


def _follow(device: WgDevice, name: str) -> None:
    """Follow a changed MTU. An interface that was moved to another namespace can't be seen any more."""
    mtu = _mtu(name)
    if mtu is not None:
        device.set_mtu(mtu)


def _mtu(name: str) -> int | None:
    request = struct.pack("16si20x", name.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        answer: bytes = fcntl.ioctl(asking.fileno(), _SIOCGIFMTU, request)
        return int(struct.unpack("16xi20x", answer)[0])
    return None
