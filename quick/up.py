"""A tunnel that a wg-quick file describes, from its start to its end.

lock · repair what a killed one left · answer at the control socket · PreUp · open the port · look names up · make the
interface · peers · addresses, DNS, routes, rules · PostUp; then carry traffic until told to stop, with changes to the
file taken while it runs; then PreDown · save · take everything back · PostDown
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rustguard_py import conf, engine
from rustguard_py.daemon import dns, runtime
from rustguard_py.daemon import status as report
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.control.server import Handler
from rustguard_py.daemon.ledger import Ledger, Left
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.steps import Address, Step
from rustguard_py.data_path import DataPath
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, Network
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError
from rustguard_py.model.peer import PeerConfig
from rustguard_py.planes import offload
from rustguard_py.quick import conf_files, hooks, routing, save_config
from rustguard_py.quick.device import Device
from rustguard_py.state import paths
from rustguard_py.state.document import Document
from rustguard_py.system.interface import Echo, InterfaceSetup, interface_exists, require_tun, set_up
from rustguard_py.system.resolve import has_route, resolve

# How long the start waits for peers' names, seconds. With a default route it must have them: once that is there, the
# way to the name server may lead through the tunnel.
PATIENCE, PATIENCE_FOR_A_DEFAULT_ROUTE = 2.0, 15.0
_RETRY = 0.5

Found = dict[conf.HostPort, list[Endpoint]]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `up` was told.

    Attributes:
        file: Resolved.
        interface: Its name.
        directory: Where timestamps are kept; says which daemon it is.
        data_path: What shall move the packets.
        group: Who beside root may use the control socket.
    """

    file: Path
    interface: str
    directory: Path
    data_path: DataPath
    group: str | None = None


async def up(options: UpOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Bring a tunnel up, and carry traffic until told to stop.

    Args:
        options: What to do.
        voice: How to talk.
        ready: Called once when it's up.

    Raises:
        RustGuardError: It can't be done, the data plane broke, or a hook failed.
    """
    config = conf_files.load(options.file)
    tunnel = _Up(options, config, voice)
    tunnel.stop_on_signals()
    async with AsyncExitStack() as stack:
        chosen = engine.choose(options.data_path)
        document = Document.open(options.directory)
        stack.callback(document.close)
        try:
            await repair(options.directory, voice.change)
            _check_interface(options.interface, chosen)
            if config.dns or config.search:
                dns.manager()
            program = Program("tunnel", options.directory, options.interface, chosen, now())
            await runtime.answer(stack, options.directory, tunnel.handlers(), options.group)
            stack.push_async_callback(tunnel.tell_the_end)
            await tunnel.run(program, ready)
        except asyncio.CancelledError:
            raise RustGuardError(f"Ended before {options.interface} was up; everything is taken back.") from None


async def repair(directory: Path, echo: Echo) -> bool:
    """Take back what a tunnel that was killed left, hooks included; False if there was nothing.

    To be called with the lock of its state directory held.
    """
    path = paths.undo_file(directory)
    ledger = Ledger.load(path)
    if ledger is None:
        return False
    left = ledger.left
    echo(f"[!] {left.interface} was killed: what it left is taken back.")
    await hooks.run_all(left.hooks.pre_down, left.interface, echo)
    ledger.undo(echo)
    runtime.remove_leftovers(None, directory)
    paths.withdraw(directory)
    await hooks.run_all(left.hooks.post_down, left.interface, echo)
    return True


class _Up:
    """One tunnel, its file, and what it has changed."""

    def __init__(self, options: UpOptions, config: conf.Config, voice: Voice) -> None:
        self._options = options
        self._config = config
        self._voice = voice
        self._interface = options.interface
        self._device: Device | None = None
        self._program: Program | None = None
        self._scheme = routing.Scheme(0)
        self._ledger = Ledger(paths.undo_file(options.directory), Left(options.interface, config.hooks))
        self._port = 0
        self._mtu = self._first_mtu = 0
        self._in_kernel = False
        self._changing = asyncio.Lock()
        self._task = asyncio.current_task()
        # What is said while it ends, for whoever asked for the end.
        self._ending: list[str] | None = None
        self._failed: list[str] = []
        self._ended = asyncio.Event()

    # -- from start to end ----------------------------------------------------------------------------------

    async def run(self, program: Program, ready: Callable[[], None]) -> None:
        """Start, carry traffic, end; whatever happens, everything is taken back."""
        async with AsyncExitStack() as stack:
            try:
                await self._start(program, stack)
                self._program = program
                self._voice.say(f"{self._interface} is up, engine {program.engine.name}, UDP port {self._port}.")
                ready()
                fault = await self._until_stopped()
            except BaseException:
                self._device = None
                raise
            await self._end()
        # Only of a tunnel that was up: its PostUp came too.
        self._failed += await hooks.run_all(self._config.hooks.post_down, self._interface, self._echo)
        if fault is not None:
            raise fault
        if self._failed:
            raise RustGuardError(" ".join(self._failed), "All else is taken back. Correct those lines of the file.")

    async def _start(self, program: Program, stack: AsyncExitStack) -> None:
        config, echo = self._config, self._echo
        self._ledger.save()
        stack.callback(self._ledger.undo, echo)
        await hooks.run(config.hooks.pre_up, self._interface, echo)
        sockets = runtime.bind(stack, config.listen_port or 0)
        self._port = sockets[0].getsockname()[1]
        found = await look_up(config.peers, must=bool(routing.default_versions(config)), say=self._voice.say)
        self._scheme = routing.choose_scheme(config)
        first = [ends[0][0] for peer in config.peers if (ends := _endpoints(peer, found))]
        self._mtu = self._first_mtu = routing.find_mtu(config, first)
        # Plane and interface go first at the end, the ledger's steps before them.
        tunnel, timestamps = runtime.make_tunnel(stack, program, config.private_key, sockets, self._mtu)
        stack.callback(self._say_that_it_goes)
        kind = "link add {} type wireguard" if program.engine.in_kernel else "tuntap add mode tun name {}"
        echo(f"[#] ip {kind.format(self._interface)}")
        stack.callback(self._ledger.undo, echo)
        tunnel.plane.set_fwmark(self._scheme.mark)
        self._device = device = Device(tunnel, timestamps)
        stack.push_async_callback(device.close)
        for peer in config.peers:
            device.set_peer(_peer_config(peer, found), *_name(peer, found))
        self._in_kernel = program.engine.in_kernel
        self._set_mtu(device, self._mtu)
        self._ledger.become(self._wanted(config, self._scheme), echo)
        device.begin()
        await runtime.answer_wg(stack, tunnel, self._interface, lambda: (self._config.private_key, self._port))
        await hooks.run(config.hooks.post_up, self._interface, echo)

    async def _until_stopped(self) -> RustGuardError | None:
        assert self._device is not None  # noqa: S101 - made at the start
        try:
            await runtime.until_stopped(self._device.tunnel)
        except RustGuardError as fault:
            return fault
        return None

    async def _end(self) -> None:
        self._ending = self._ending if self._ending is not None else []
        async with self._changing:
            self._failed += await hooks.run_all(self._config.hooks.pre_down, self._interface, self._echo)
            if self._config.save and self._device is not None:
                try:
                    conf_files.save(
                        self._options.file,
                        save_config.current(self._config, self._device, self._interface, self._port),
                    )
                except RustGuardError as error:
                    self._failed.append(error.message)
            self._device = None

    def _say_that_it_goes(self) -> None:
        self._echo(f"[#] ip link delete dev {self._interface}")

    def _echo(self, line: str) -> None:
        if self._ending is not None:
            self._ending.append(line)
        self._voice.change(line)

    def _set_mtu(self, device: Device, mtu: int) -> None:
        segments = None if self._in_kernel else offload.wanted_gso_segments(mtu)
        set_up(InterfaceSetup(self._interface, mtu, gso_max_segs=segments), self._echo)
        device.tunnel.plane.set_mtu(mtu)
        self._mtu = mtu

    def _wanted(self, config: conf.Config, scheme: routing.Scheme) -> list[Step]:
        steps: list[Step] = [Address(self._interface, str(each)) for each in config.addresses]
        if config.dns or config.search:
            steps.append(dns.Dns(self._interface, tuple(map(str, config.dns)), config.search))
        return [*steps, *routing.plan(self._interface, config, scheme)]

    # -- stopping -------------------------------------------------------------------------------------------

    def stop_on_signals(self) -> None:
        """Have SIGTERM, SIGINT and SIGHUP end it in good order, while it starts too."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Ignored from the start is what `nohup` and a shell's `&` ask for.
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        if self._program is not None and self._device is not None:
            self._device.tunnel.stopped.set()
        elif self._program is None and self._task is not None:
            self._task.cancel()

    async def tell_the_end(self) -> None:
        """Let those who asked for the end hear of it, before nobody answers any more."""
        self._ended.set()
        # They wake, and write what fits a socket at once, in the loop's next turn.
        for _ in range(3):
            await asyncio.sleep(0)

    # -- asked for ------------------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """What the control socket answers to, by method."""
        return {"status": self._status, "peers": self._peers, "reload": self._reload, "down": self._down}

    async def _down(self, _params: dict[str, Any]) -> dict[str, Any]:
        self._ending = self._ending if self._ending is not None else []
        self._stop()
        await self._ended.wait()
        return {"changes": self._ending, "failed": self._failed}

    async def _reload(self, params: dict[str, Any]) -> dict[str, Any]:
        """Take a changed file; what is the same stays, sessions too."""
        # No other file: its hooks are run as root, and the control socket may be open to a group.
        if params.get("file") != str(self._options.file):
            raise RefusedError(
                f"{self._interface} was brought up with {self._options.file}.",
                f"Change that file, or end it first: rustguard down {self._interface}",
            )
        config = conf_files.load(self._options.file)
        async with self._changing:
            device, _ = self._up()
            lines: list[str] = []
            await self._change(device, config, lines)
        return {"changes": lines}

    async def _change(self, device: Device, config: conf.Config, lines: list[str]) -> None:
        def echo(line: str) -> None:
            lines.append(line)
            self._voice.change(line)

        changes = conf.compare(self._config, config)
        mtu = config.mtu or (self._mtu if self._config.mtu is None else self._first_mtu)
        if config.dns or config.search:
            dns.manager()
        moved = [peer for peer in changes.peers if peer.public_key in changes.moved]
        found = await look_up(moved, must=False, say=self._voice.say)
        scheme = await asyncio.to_thread(routing.choose_scheme, config, self._scheme)
        device.tunnel.plane.set_fwmark(scheme.mark)
        try:
            await asyncio.to_thread(self._ledger.become, self._wanted(config, scheme), echo)
            self._set_port(device, config.listen_port, echo)
        except RustGuardError:
            await asyncio.to_thread(self._ledger.become, self._wanted(self._config, self._scheme), echo)
            device.tunnel.plane.set_fwmark(self._scheme.mark)
            raise
        if mtu != self._mtu:
            self._set_mtu(device, mtu)
            echo(f"[#] ip link set mtu {mtu} dev {self._interface}")
        if config.private_key != self._config.private_key:
            device.set_private_key(config.private_key)
            echo(f"[#] wg set {self._interface} private-key (hidden)")
        for key in changes.removed:
            device.remove_peer(key)
        for peer in changes.peers:
            _change_peer(device, peer, found, moved=peer.public_key in changes.moved)
        lines += [f"[#] peer {conf.short(key)} removed" for key in changes.removed]
        lines += [f"[#] peer {conf.short(peer.public_key)} set" for peer in changes.peers]
        self._config, self._scheme = config, scheme
        self._ledger.left = Left(self._interface, config.hooks)
        self._ledger.save()

    def _set_port(self, device: Device, port: int | None, echo: Echo) -> None:
        # No port means any: the one that it has is as good.
        if port is not None and port != self._port:
            self._port = device.set_port(port)
            echo(f"[#] wg set {self._interface} listen-port {port}")

    def _up(self) -> tuple[Device, Program]:
        if self._device is None or self._program is None:
            raise RefusedError(f"{self._interface} is just starting or ending.", "Try again in a moment.")
        return self._device, self._program

    def _peers(self, _params: dict[str, Any]) -> dict[str, Any]:
        device, _ = self._up()
        return report.peers([device.tunnel], map(_line, self._config.peers), now())

    def _status(self, _params: dict[str, Any]) -> dict[str, Any]:
        device, program = self._up()
        return {
            **report.common(program, [device.tunnel], now()),
            **self._peers({}),
            "name": None,
            "port": self._port,
            "addresses": [str(each) for each in self._config.addresses],
            "mtu": self._mtu,
            "pool": None,
            "window": None,
            "warnings": [],
            "file": str(self._options.file),
        }


def _check_interface(name: str, chosen: engine.Engine) -> None:
    """Refuse where no interface of that name can be made."""
    if not chosen.in_kernel:
        require_tun()
    if interface_exists(name):
        mend = (
            f"Is it wg-quick's (`wg-quick down {name}`)? Else give the file another name: the interface has it too."
        )
        raise RefusedError(f"There is an interface {name} already.", mend)


# -- peers --------------------------------------------------------------------------------------------------


async def look_up(peers: tuple[conf.PeerSection, ...] | list[conf.PeerSection], *, must: bool, say: Echo) -> Found:
    """Find the addresses of all peers that have names.

    Args:
        peers: Those of the file.
        must: Whether all have to be found, and be waited for longer.
        say: Told of it if that takes a while.

    Raises:
        UnansweredError: One wasn't found that must be.
    """
    names = dict.fromkeys(peer.endpoint for peer in peers if peer.endpoint is not None)
    found: Found = {}
    deadline = now() + (PATIENCE_FOR_A_DEFAULT_ROUTE if must else PATIENCE)
    for name in names:
        while name not in found:
            try:
                async with asyncio.timeout(max(0.1, deadline - now())):
                    found[name] = await resolve(name.host, name.port)
            except (UnansweredError, TimeoutError) as error:
                if now() + _RETRY < deadline:
                    await asyncio.sleep(_RETRY)
                    continue
                if must:
                    raise UnansweredError(
                        f"The name {name.host} can't be resolved, and with a default route through the tunnel it "
                        "could not be later.",
                        "Check the name and this machine's network, or write the peer's address in its place.",
                    ) from error
                say(f"The name {name.host} can't be resolved now; it's tried again.")
                break
    return found


def _endpoints(peer: conf.PeerSection, found: Found) -> list[Endpoint]:
    ends = [] if peer.endpoint is None else found.get(peer.endpoint, [])
    return [each for each in ends if has_route(each)] or ends


def _peer_config(peer: conf.PeerSection, found: Found) -> PeerConfig:
    endpoint = next(iter(_endpoints(peer, found)), None)
    return PeerConfig(peer.public_key, peer.allowed_ips, peer.preshared_key, endpoint, peer.keepalive)


def _name(peer: conf.PeerSection, found: Found) -> tuple[conf.HostPort | None, list[Endpoint]]:
    if peer.endpoint is None or not peer.endpoint.is_name:
        return None, []
    return peer.endpoint, found.get(peer.endpoint, [])


def _change_peer(device: Device, peer: conf.PeerSection, found: Found, *, moved: bool) -> None:
    config = _peer_config(peer, found)
    device.set_peer(config if moved else replace(config, endpoint=None), *_name(peer, found))


def _line(peer: conf.PeerSection) -> report.PeerLine:
    def first(version: int) -> str | None:
        return next((_bare(each) for each in peer.allowed_ips if each.version == version), None)

    known = None if peer.endpoint is None else str(peer.endpoint)
    name = peer.name or (peer.endpoint.host if peer.endpoint is not None else conf.short(peer.public_key))
    return report.PeerLine(name, peer.public_key, first(4), first(6), known, peer.keepalive)


def _bare(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
