"""What server and client do alike to start and to end; whatever is made, the exit stack undoes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from rustguard_py import netif
from rustguard_py.control import ControlServer, Handler
from rustguard_py.enroll.report import Program
from rustguard_py.enroll.timestamps import KeptTimestamps
from rustguard_py.enroll.voice import Voice
from rustguard_py.errors import RefusedError, RustGuardError
from rustguard_py.planes import offload, udp
from rustguard_py.planes.contract import Network
from rustguard_py.state import paths
from rustguard_py.state.identity import public_key
from rustguard_py.tunnel import Listeners, Tunnel
from rustguard_py.uapi_socket import UapiSocket, show

log = logging.getLogger(__name__)


def check_interface(name: str) -> None:
    """Refuse where no interface of that name can be made."""
    netif.require_tun()
    if netif.interface_exists(name):
        raise RefusedError(f"There is an interface {name} already.", "Choose another: --interface NAME")


def bind(stack: AsyncExitStack, port: int) -> list[socket.socket]:
    """Open a UDP port (0: any) in each family."""
    sockets = udp.bind(port)
    for each in sockets:
        stack.callback(each.close)
    return sockets


def make_tunnel(
    stack: AsyncExitStack,
    program: Program,
    private_key: bytes,
    sockets: Sequence[socket.socket],
    mtu: int,
) -> tuple[Tunnel, KeptTimestamps]:
    """Make an interface and a tunnel on it, with the timestamps kept in a state directory; nobody listens yet."""
    timestamps = KeptTimestamps(program.directory)
    stack.callback(timestamps.close)
    plane = program.engine.make_plane(public_key(private_key), program.interface, sockets, mtu)
    stack.callback(plane.close)
    tunnel = Tunnel.make(private_key, plane, timestamps, Listeners())
    stack.callback(tunnel.close)
    return tunnel, timestamps


def lay_out(
    stack: AsyncExitStack,
    voice: Voice,
    interface: str,
    mtu: int,
    addresses: Iterable[IPv4Interface | IPv6Interface],
    routes: Sequence[Network] = (),
) -> None:
    """Give the interface its addresses and routes, and bring it up."""
    segments = offload.wanted_gso_segments(mtu)
    layout = netif.Layout(interface, mtu, tuple(addresses), tuple(routes), gso_max_segs=segments)
    stack.callback(netif.set_up(layout, voice.change).undo, voice.change)


async def answer_wg(stack: AsyncExitStack, tunnel: Tunnel, interface: str, private_key: bytes, port: int) -> None:
    """Let wg(8) show a tunnel that has commands of its own, unless another program has the name there."""
    wg = UapiSocket(interface, lambda: show(tunnel, private_key, port), None)
    try:
        await wg.start()
    except RustGuardError as error:
        log.debug("wg(8) can't show %s: %s", interface, error.message)
        return
    stack.push_async_callback(wg.close)


async def answer(stack: AsyncExitStack, directory: Path, handlers: Mapping[str, Handler], group: str | None) -> None:
    """Answer at the control socket of a state directory."""
    control = ControlServer(paths.announce(directory), handlers, group)
    stack.callback(paths.withdraw, directory)
    await control.start()
    stack.push_async_callback(control.close)


def stop_on_signals(stopped: asyncio.Event) -> None:
    """Have SIGTERM, SIGINT and SIGHUP (the terminal was closed) set what ends the program in good order."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Ignored from the start is what `nohup` and a shell's `&` ask for.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)


async def until_stopped(tunnel: Tunnel) -> None:
    """Return when a signal came.

    Raises:
        RustGuardError: The data plane broke.
    """
    await tunnel.stopped.wait()
    if tunnel.fault is not None:
        raise tunnel.fault
