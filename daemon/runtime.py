"""Steps that server and client share to start and to stop. The exit stack undoes everything that they make."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import TypeVar

from rustguard_py.daemon import memif, places
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.control.client import listens
from rustguard_py.daemon.control.server import ControlServer, Handler
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.daemon.uapi.fixed import FixedTunnel
from rustguard_py.daemon.uapi.socket import Answers, UapiSocket
from rustguard_py.daemon.uapi.socket import directory as wg_sockets
from rustguard_py.engine import Engine
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import NameTakenError, RustGuardError
from rustguard_py.model.keys import public_key
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.planes import offload
from rustguard_py.state import paths
from rustguard_py.system import sockets as udp_sockets
from rustguard_py.system.interface import (
    InterfaceSetup,
    check_interface_name,
    free_interface_name,
    interface_exists,
    require_tun,
    set_up,
)
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

Made = TypeVar("Made")
# How often to check that a socket is still there, seconds.
_LOOK = 1.0
# How many names are tried while other programs take them.
_NAME_TRIES = 200


def check_interface(name: str, engine: Engine, if_taken: str = "Choose another: --interface NAME") -> None:
    """Check that an interface of this name can be made.

    Args:
        name: The interface's name.
        engine: The engine that will run it.
        if_taken: The proposed fix if an interface of this name exists.

    Raises:
        RustGuardError: It can't be made.
    """
    check_interface_name(name)
    if engine.memif is None and not engine.in_kernel:
        require_tun()
    if interface_exists(name):
        raise NameTakenError(f"There is an interface {name} already.", if_taken)


async def with_free_name(
    stack: AsyncExitStack,
    asked: str | None,
    make: Callable[[AsyncExitStack, str], Made],
    taken: Collection[str] = (),
) -> Made:
    """Make something with an interface of the name asked for, or of the first free one.

    Another program may take a name between our look and our attempt. Then the next one is tried.

    Args:
        stack: Undoes what is made.
        asked: The name, or None for any.
        make: Takes a stack that undoes this attempt, and the name. Raises NameTakenError if there is such an
            interface.
        taken: Names that aren't free, besides those of interfaces.

    Raises:
        NameTakenError: The name asked for is taken.
    """
    for tries_left in reversed(range(_NAME_TRIES)):
        async with AsyncExitStack() as attempt:
            try:
                made = make(attempt, asked or free_interface_name(taken=taken))
            except NameTakenError:
                if asked is not None or not tries_left:
                    raise
            else:
                stack.push_async_exit(attempt.pop_all())
                return made
    raise AssertionError  # the last try returns or raises


def taken_names(engine: Engine) -> set[str]:
    """Return the names by which other programs answer wg(8). A memif isn't seen among the interfaces."""
    directory = wg_sockets() if engine.memif is not None else None
    return set() if directory is None else {each.stem for each in directory.glob("*.sock") if listens(each)}


def bind(stack: AsyncExitStack, port: int) -> list[socket.socket]:
    """Return sockets on a UDP port (0 for any), one per family."""
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
    """Make an interface and a tunnel on it, without listeners. Return the tunnel and the timestamps of its state.

    Args:
        stack: Undoes it.
        program: The running program.
        private_key: 32 bytes.
        sockets: Bound to the tunnel's port.
        mtu: The interface's MTU, bytes.
        pairing: Sockets for enrollment if the kernel has the tunnel's port.
        several: Whether this is one of several tunnels.
    """
    timestamps = KeptTimestamps(program.directory)
    stack.callback(timestamps.close)
    if program.engine.in_kernel:
        tunnel = make_kernel_tunnel(stack, program, program.interface, private_key, sockets, pairing, several=several)
        return tunnel, timestamps
    listener = memif.listen(stack, program.engine.memif)
    plane = program.engine.make_plane(
        public_key(private_key), program.interface, sockets, mtu, program.tun, listener=listener
    )
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
    """Return a tunnel on a new interface of the kernel's WireGuard. `make_tunnel` documents the arguments."""
    from rustguard_py.kernel import napi
    from rustguard_py.kernel.kernel_tunnel import KernelTunnel
    from rustguard_py.kernel.netlink import KernelInterface

    notes: list[str] = []

    def make() -> KernelInterface:
        device = KernelInterface.make(interface, kernel_alias(program.directory))
        try:
            notes[:] = napi.settle(interface, device, wanted=program.engine.threaded_napi)
        except BaseException:
            device.remove()
            raise
        return device

    device = make()
    stack.callback(device.remove)
    tunnel = KernelTunnel(private_key, device, sockets, pairing, several=several, notes=notes, make=make)
    stack.callback(tunnel.close)
    return tunnel


def kernel_alias(directory: Path) -> str:
    """Return the alias that marks the kernel's interface of a state directory."""
    return f"rustguard {directory.absolute()}".encode("ascii", "replace").decode()


def remove_leftovers(private_keys: Collection[bytes] | None, directory: Path) -> bool:
    """Remove the kernel's interfaces that a killed program of this state directory left behind.

    Args:
        private_keys: Only interfaces with one of these keys (32 bytes each); None for any.
        directory: The state directory, whose lock the caller holds.

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
) -> InterfaceSetup:
    """Give the interface its addresses and routes, bring it up, and return what it was given."""
    segments = None if in_kernel else offload.wanted_gso_segments(mtu)
    layout = InterfaceSetup(interface, mtu, tuple(addresses), tuple(routes), gso_max_segs=segments)
    stack.callback(set_up(layout, voice.change).undo, voice.change)
    return layout


async def answer_wg_fixed(
    stack: AsyncExitStack, tunnel: AnyTunnel, interface: str, private_key: bytes, port: int, hint: str
) -> None:
    """Answer wg(8) for a tunnel whose key, port and peers are changed by its own commands.

    Args:
        stack: Undoes it.
        tunnel: The tunnel. For the kernel's, wg(8) asks the kernel.
        interface: The interface's name.
        private_key: 32 bytes.
        port: The UDP port.
        hint: What changes the rest, for the log.
    """
    if isinstance(tunnel, Tunnel):
        await answer_wg(stack, interface, FixedTunnel(tunnel, private_key, port, hint))


async def answer_wg(stack: AsyncExitStack, interface: str, answers: Answers) -> None:
    """Answer wg(8) for a tunnel of ours, unless another program already answers for the interface's name.

    Args:
        stack: Undoes it.
        interface: The interface's name.
        answers: Shows and changes the tunnel.
    """
    wg = UapiSocket(interface, answers.show, answers.change)
    # First, because a signal may end the start halfway.
    stack.push_async_callback(wg.close)
    try:
        await wg.start()
    except RustGuardError as error:
        log.warning("wg(8) can't show %s: %s", interface, error.message)
        await wg.close()
        return
    await _keep_there(stack, f"wg(8)'s socket of {interface}", wg.is_there, wg.make_again)


async def answer(stack: AsyncExitStack, directory: Path, handlers: Mapping[str, Handler], group: str | None) -> None:
    """Start the control socket of a state directory. It is made again when somebody removes it."""
    control = ControlServer(places.announce(directory), handlers, group)
    stack.callback(places.withdraw, directory)
    await control.start()
    stack.push_async_callback(control.close)
    await _keep_there(
        stack, "the control socket", partial(_is_reachable, control, directory), partial(_reach, control, directory)
    )


def _is_reachable(control: ControlServer, directory: Path) -> bool:
    return paths.is_announced(directory) and control.is_there()


async def _reach(control: ControlServer, directory: Path) -> None:
    places.announce(directory)
    if not control.is_there():
        await control.start()


async def _keep_there(
    stack: AsyncExitStack, what: str, is_there: Callable[[], bool], make: Callable[[], Awaitable[None]]
) -> None:
    """Make a socket again whenever somebody removes it, until the stack ends."""

    async def watch() -> None:
        said = ""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                if is_there():
                    continue
                await make()
            except RustGuardError as error:
                if error.message != said:
                    log.warning("%s was removed, and can't be made again: %s", what, error.message)
                said = error.message
            else:
                said = ""
                log.warning("%s was removed by another program; made again", what)

    tasks = Tasks()
    stack.push_async_callback(tasks.close)
    tasks.spawn(watch())


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM, SIGINT and SIGHUP (the terminal was closed), so that the program ends in order."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # `nohup` and a shell's `&` start a program with signals ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # A signal at the last moment of the start: `wait_for` of Python 3.11 ignores a cancellation if what it waits
        # for is done just then.
        stop()


async def until_stopped(tunnel: AnyTunnel) -> None:
    """Wait until the tunnel stops.

    Raises:
        RustGuardError: The data plane broke.
    """
    await tunnel.stopped.wait()
    if tunnel.fault is not None:
        raise tunnel.fault


async def until_all_stopped(stopped: asyncio.Event, tunnels: Sequence[AnyTunnel]) -> None:
    """Wait until `stopped` is set. A tunnel that breaks doesn't end the program while another runs.

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
                log.error("one of several tunnels broke, the others go on: %s", task.exception())
    finally:
        for task in (stop, *running):
            task.cancel()
        await asyncio.gather(stop, *running, return_exceptions=True)
