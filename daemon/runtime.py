"""What server and client do alike to start and to end; whatever is made, the exit stack undoes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.control.server import ControlServer, Handler
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.daemon.uapi.socket import UapiSocket, show
from rustguard_py.engine import Engine
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.model.keys import public_key
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.planes import offload
from rustguard_py.state import paths
from rustguard_py.system import sockets as udp_sockets
from rustguard_py.system.interface import NAME_LIMIT, Layout, interface_exists, require_tun, set_up
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)


def check_interface(name: str, engine: Engine, if_taken: str = "Choose another: --interface NAME") -> None:
    """Check that an interface of this name can be made.

    Args:
        name: Of the interface.
        engine: The engine that will run it.
        if_taken: What to do if there is one of that name already, for the error.

    Raises:
        RustGuardError: It can't.
    """
    if not 0 < len(name.encode()) <= NAME_LIMIT:
        raise UsageError(f"{name!r} can't name an interface.", f"Use a name of 1 to {NAME_LIMIT} bytes.")
    if not engine.in_kernel:
        require_tun()
    if interface_exists(name):
        raise RefusedError(f"There is an interface {name} already.", if_taken)


def bind(stack: AsyncExitStack, port: int) -> list[socket.socket]:
    """Open a UDP port (0: any) in each family."""
    sockets = udp_sockets.bind(port)
    for each in sockets:
        stack.callback(each.close)
    return sockets


def make_tunnel(
    stack: AsyncExitStack,
    program: Program,
    private_key: bytes,
    sockets: Sequence[socket.socket],
    mtu: int,
    pairing: Sequence[socket.socket] = (),
    *,
    several: bool = False,
) -> tuple[AnyTunnel, KeptTimestamps]:
    """Make an interface and a tunnel on it, with the timestamps kept in a state directory; nobody listens yet.

    Args:
        stack: Undoes it.
        program: What runs.
        private_key: 32 bytes.
        sockets: Of the tunnel's port.
        mtu: Of the interface, bytes.
        pairing: Where enrollment is answered if the kernel has the tunnel's port.
        several: Whether others come beside it.
    """
    timestamps = KeptTimestamps(program.directory)
    stack.callback(timestamps.close)
    if program.engine.in_kernel:
        tunnel = make_kernel_tunnel(stack, program, program.interface, private_key, sockets, pairing, several=several)
        return tunnel, timestamps
    plane = program.engine.make_plane(public_key(private_key), program.interface, sockets, mtu)
    stack.callback(plane.close)
    own = Tunnel.make(private_key, plane, timestamps, Listeners())
    stack.callback(own.close)
    return own, timestamps


def make_kernel_tunnel(
    stack: AsyncExitStack,
    program: Program,
    interface: str,
    private_key: bytes,
    sockets: Sequence[socket.socket],
    pairing: Sequence[socket.socket] = (),
    *,
    several: bool,
) -> AnyTunnel:
    """Make an interface of the kernel's WireGuard and a tunnel on it; `make_tunnel` says what each argument is."""
    from rustguard_py.kernel import napi
    from rustguard_py.kernel.netlink import Device
    from rustguard_py.kernel.tunnel import KernelTunnel

    device = Device.make(interface, kernel_alias(program.directory))
    stack.callback(device.remove)
    notes = napi.settle(interface, device, wanted=program.engine.threaded_napi)
    tunnel = KernelTunnel(private_key, device, sockets, pairing, several=several, notes=notes)
    stack.callback(tunnel.close)
    return tunnel


def kernel_alias(directory: Path) -> str:
    """What the kernel's interface of a state directory is recognised by, beside its key."""
    return f"rustguard {directory.absolute()}".encode("ascii", "replace").decode()


def remove_leftovers(private_keys: Collection[bytes] | None, directory: Path) -> bool:
    """Remove the interfaces that a killed program of this state directory left: the kernel keeps its own.

    Args:
        private_keys: Only those of one of these keys (32 bytes each); None for any.
        directory: Whose lock the caller holds.

    Returns:
        Whether there was one.
    """
    from rustguard_py.kernel import netlink

    keys = None if private_keys is None else [public_key(each) for each in private_keys]
    return bool(netlink.remove_leftovers(keys, kernel_alias(directory)))


def lay_out(
    stack: AsyncExitStack,
    voice: Voice,
    interface: str,
    mtu: int,
    addresses: Iterable[IPv4Interface | IPv6Interface],
    routes: Sequence[Network] = (),
    *,
    in_kernel: bool = False,
) -> None:
    """Give the interface its addresses and routes, and bring it up."""
    segments = None if in_kernel else offload.wanted_gso_segments(mtu)
    layout = Layout(interface, mtu, tuple(addresses), tuple(routes), gso_max_segs=segments)
    stack.callback(set_up(layout, voice.change).undo, voice.change)


async def answer_wg(
    stack: AsyncExitStack, tunnel: AnyTunnel, interface: str, identity: Callable[[], tuple[bytes, int]]
) -> None:
    """Let wg(8) show a tunnel that has commands of its own, unless another program has the name there.

    Args:
        stack: Undoes it.
        tunnel: It.
        interface: Its name.
        identity: Gives the private key, 32 bytes, and the UDP port.
    """
    if not isinstance(tunnel, Tunnel):
        return  # wg(8) asks the kernel itself
    wg = UapiSocket(interface, lambda: show(tunnel, *identity()), None)
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


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM, SIGINT and SIGHUP (the terminal was closed), so that the program ends in good order."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Ignored from the start is what `nohup` and a shell's `&` ask for.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop)


async def until_stopped(tunnel: AnyTunnel) -> None:
    """Return when a signal came.

    Raises:
        RustGuardError: The data plane broke.
    """
    await tunnel.stopped.wait()
    if tunnel.fault is not None:
        raise tunnel.fault


async def until_all_stopped(stopped: asyncio.Event, tunnels: Sequence[AnyTunnel]) -> None:
    """Return when `stopped` is set; a tunnel that breaks ends nothing while another runs.

    Raises:
        RustGuardError: The last data plane broke.
    """
    stop = asyncio.ensure_future(stopped.wait())
    running = {asyncio.ensure_future(until_stopped(tunnel)) for tunnel in tunnels}
    try:
        while True:
            done, _ = await asyncio.wait({stop, *running}, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                return
            for task in done:
                running.discard(task)
                if not running or task.exception() is None:
                    task.result()
                    return
                log.error("a tunnel of several broke, the others go on: %s", task.exception())
    finally:
        for task in (stop, *running):
            task.cancel()
        await asyncio.gather(stop, *running, return_exceptions=True)
