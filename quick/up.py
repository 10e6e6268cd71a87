"""Running `up`: a tunnel that a wg-quick file describes, from its start to its end.

fork the helper · lock the state directory · give up privileges · repair what a killed tunnel left · answer at the
control socket · PreUp · open the port · look names up · make the interface · set the peers · addresses, DNS, routes,
rules · PostUp; then carry traffic until stopped, with changes to the file applied meanwhile; then PreDown ·
SaveConfig · undo every change · PostDown
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rustguard_py import conf, engine
from rustguard_py.daemon import dns, memif, outside, places, runtime
from rustguard_py.daemon.confinement import confine
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.keeper import Keeper, KeptInterface
from rustguard_py.daemon.ledger import Ledger, Left
from rustguard_py.daemon.overseer import oversee
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.tasks import Tasks
from rustguard_py.daemon.vouched import forget, is_known, known_of, lines_of, vouch
from rustguard_py.data_path import DataPath
from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.model.keys import generate_private_key
from rustguard_py.model.printable import printable
from rustguard_py.model.sudo import as_root
from rustguard_py.quick import conf_files, hooks, peers, routing, save_config
from rustguard_py.quick.control import QuickControl
from rustguard_py.quick.helper import Helper
from rustguard_py.quick.running import Life, Running, check_memif, choose_scheme, wanted_steps
from rustguard_py.quick.tunnel import PlainTunnel
from rustguard_py.quick.wg_answers import KilledAnswers, WgAnswers
from rustguard_py.state import kept_offloads, paths
from rustguard_py.state.document import Document
from rustguard_py.system import memif_socket
from rustguard_py.system.interface import Echo
from rustguard_py.tunnel import Tunnel


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The command line of `up`; only `up` reads it.

    Attributes:
        file: The wg-quick file, resolved.
        interface: Its name.
        directory: State directory, where timestamps are kept; identifies the daemon.
        data_path: The engine to use and its options.
        group: Group allowed to use the control socket, besides root.
        trust: Whether hooks run even if other users can change the file.
        sandbox: Whether the process gives up for good what a tunnel doesn't need, and a helper runs the hooks.
    """

    file: Path
    interface: str
    directory: Path
    data_path: DataPath
    group: str | None = None
    trust: bool = False
    sandbox: bool = False


async def up(options: UpOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Bring a tunnel up, and carry traffic until stopped.

    Args:
        options: The command line.
        voice: Prints what happens.
        ready: Called once when the tunnel is up.

    Raises:
        RustGuardError: It can't start, the data plane broke, or a hook failed.
    """
    config = conf_files.load_to_run(options.file, trust=options.trust)
    async with AsyncExitStack() as stack:
        helper = _start_helper(stack, options, config) if options.sandbox else None
        down = paths.down_command(options.interface, options.directory)
        life = Life(options.interface, options.file, voice, down=down, trust=options.trust, helper=helper)
        runtime.stop_on_signals(life.stop)
        chosen = engine.choose(options.data_path)
        check_memif(config, chosen)
        document = Document.open(options.directory)
        stack.callback(document.close)
        chosen = engine.choose(_with_kept_offloads(options))
        Ledger.bring_home(options.directory)
        forget(options.directory)
        vouch(options.directory, options.interface, lines_of(config.hooks))
        sandbox = confine(
            stack, options.directory, chosen, options.group, wanted=options.sandbox, reads=[options.file]
        )
        try:
            await repair(options.directory, options.interface, voice.change, life.runner)
            if_taken = (
                f"Is it wg-quick's (`wg-quick down {life.interface}`)? If not, rename the file and so the interface."
            )
            runtime.check_interface(life.interface, chosen, if_taken)
            if config.dns or config.search:
                dns.manager()
            reached = [each for peer in config.peers for each in peer.allowed_ips]
            chosen = chosen.answering(reached, config.addresses)
            program = Program("tunnel", options.directory, life.interface, chosen, now(), sandbox)
            await runtime.answer(stack, options.directory, QuickControl(life).handlers(), options.group)
            stack.push_async_callback(life.announce_the_end)
            await _run(life, program, config, ready)
        except asyncio.CancelledError:
            raise RustGuardError(f"Stopped before {life.interface} was up; every change is undone.") from None


def _with_kept_offloads(options: UpOptions) -> DataPath:
    """Keep the offloads of the command line; return the data path with the kept ones, unless others are given."""
    kept = kept_offloads.load(options.directory)
    if (wanted := options.data_path.to_keep(kept)) != kept:
        kept_offloads.save(options.directory, wanted)
    return options.data_path.with_kept(wanted)


def _start_helper(stack: AsyncExitStack, options: UpOptions, config: conf.Config) -> Helper:
    """Fork the helper, and let it do what this process will not be able to."""
    helper = Helper.start(
        options.file, options.interface, options.directory, config.hooks, trust=options.trust, save=config.save
    )
    stack.callback(helper.close)
    outside.use(helper.step)
    stack.callback(outside.use, None)
    return helper


async def repair(directory: Path, interface: str, echo: Echo, runner: hooks.Runner | None = None) -> bool:
    """Undo what a killed tunnel left, running its PreDown and PostDown too. The caller holds the directory's lock.

    Args:
        directory: The state directory.
        interface: The interface that the command names.
        echo: Called with one line per change.
        runner: Runs the hooks; None for this process.

    Returns:
        Whether there was anything to undo.

    Raises:
        StateError: What was left says that it is of another interface, with which nobody started a tunnel here.
        RustGuardError: Something couldn't be undone, or a hook failed or wasn't run.
    """
    found = [ledger for path in paths.undo_files(directory) if (ledger := Ledger.load(path)) is not None]
    if not found:
        return False
    ledger = found[0]
    left = ledger.left
    if left.interface != interface and not is_known(directory, left.interface):
        raise StateError(
            f"{directory} has what a killed tunnel {left.interface} left, but nothing shows that it had that name.",
            f"If it did: {as_root(paths.down_command(left.interface, directory))}",
        )
    known, strange = known_of(directory, left.interface, left.hooks)
    echo(f"[!] {left.interface} was killed: undoing what it left.")
    async with AsyncExitStack() as stack:
        await runtime.answer_wg(stack, left.interface, KilledAnswers(left.mark))
        failed = await hooks.run_all(known.pre_down, left.interface, echo, runner)
        ledger.undo(echo)
        runtime.remove_leftovers(None, directory)
        places.withdraw(directory)
        if left.memif:
            memif_socket.remove_dead(Path(left.memif))
        failed += await hooks.run_all(known.post_down, left.interface, echo, runner)
    failed += [f"`{printable(each)}` was not run: nothing shows that it is of the tunnel's file." for each in strange]
    if failed:
        raise RustGuardError(
            " ".join(failed), "Everything else is undone. Undo by hand what these commands would have undone."
        )
    return True


async def _run(life: Life, program: Program, config: conf.Config, ready: Callable[[], None]) -> None:
    """Start, carry traffic, end; every change is undone, whatever happens."""
    async with AsyncExitStack() as stack:
        try:
            running = await _start(stack, life, program, config)
            life.is_up(running)
            life.voice.say(f"{life.interface} is up, engine {program.engine.name}, UDP port {running.port}.")
            ready()
            async with _overseen(life, running):
                fault = await _until_stopped(running)
            life.voice.manager.stopping()
        except BaseException:
            life.running = None
            raise
        await _end(life, running)
    # PostDown runs only for a tunnel that was up, because only then PostUp ran too.
    life.failed += await hooks.run_all(running.config.hooks.post_down, life.interface, life.echo, life.runner)
    if fault is not None:
        raise fault
    if life.failed:
        raise RustGuardError(" ".join(life.failed), "Everything else is undone. Correct those lines of the file.")


async def _start(stack: AsyncExitStack, life: Life, program: Program, config: conf.Config) -> Running:
    interface, echo = life.interface, life.echo
    used = program.engine.memif
    listened = str(used.socket) if used is not None and used.server else ""
    ledger = Ledger(paths.undo_file(program.directory), Left(interface, config.hooks, memif=listened))
    ledger.save()
    stack.callback(ledger.undo, echo)
    await hooks.run(config.hooks.pre_up, interface, echo, life.runner)
    sockets = runtime.bind(stack, config.listen_port or 0)
    port = int(sockets[0].getsockname()[1])
    scheme = choose_scheme(config, program.engine)
    found = await peers.look_up(config.peers, must=bool(scheme.priorities), say=life.voice.say)
    mtu = routing.find_mtu(config, [ends[0][0] for peer in config.peers if (ends := peers.endpoints(peer, found))])
    # Undone in this order at the end: the ledger's changes, the plane, the interface.
    # Until a hook sets a key, a random one takes its place: no peer knows it, so nothing is answered.
    private_key = config.private_key or generate_private_key()
    tunnel, timestamps = runtime.make_tunnel(stack, program, private_key, sockets, mtu)
    if program.engine.memif is not None:
        memif.introduce(life.voice, program.engine.memif, config.addresses, mtu)
    else:
        stack.callback(echo, f"[#] ip link delete dev {interface}")
        kind = "link add {} type wireguard" if program.engine.in_kernel else "tuntap add mode tun name {}"
        echo(f"[#] ip {kind.format(interface)}")
    stack.callback(ledger.undo, echo)
    tunnel.plane.set_fwmark(scheme.mark)
    ledger.left = replace(ledger.left, mark=scheme.mark)
    ledger.save()
    plain = PlainTunnel(tunnel, timestamps, config.private_key)
    stack.push_async_callback(plain.close)
    for peer in config.peers:
        plain.set_peer(peers.peer_config(peer, found), *peers.name_and_addresses(peer, found))
    running = Running(program, plain, config, scheme, ledger, port, mtu, mtu)
    running.set_mtu(mtu, echo)
    ledger.become(wanted_steps(program, config, scheme), echo)
    plain.begin()
    kept = [] if program.engine.memif is not None else [KeptInterface(tunnel, running.setup)]
    running.keeper = Keeper(kept, lambda: ledger.done, life.voice.change, life.changing)
    if isinstance(tunnel, Tunnel):
        await runtime.answer_wg(stack, interface, WgAnswers(life, running, tunnel))
    await hooks.run(config.hooks.post_up, interface, echo, life.runner)
    running.adopt()
    if kept:
        await running.keeper.begin(stack)
    return running


@asynccontextmanager
async def _overseen(life: Life, running: Running) -> AsyncIterator[None]:
    """Tell the service manager that the tunnel is up, and how it does meanwhile."""

    def describe() -> str:
        return f"{life.interface}: {counted(len(running.config.peers), 'peer')}, UDP port {running.port}"

    life.voice.manager.ready(describe())
    tasks = Tasks()
    tasks.spawn(oversee(life.voice.manager, [running.plain.tunnel], describe))
    try:
        yield
    finally:
        await tasks.close()


async def _until_stopped(running: Running) -> RustGuardError | None:
    """Wait for the end; return the fault of the data plane if it broke."""
    try:
        await runtime.until_stopped(running.plain.tunnel)
    except RustGuardError as fault:
        return fault
    return None


async def _end(life: Life, running: Running) -> None:
    """Run PreDown, and save the file if it asks for that."""
    life.ending = life.ending if life.ending is not None else []
    async with life.changing:
        life.failed += await hooks.run_all(running.config.hooks.pre_down, life.interface, life.echo, life.runner)
        if running.config.save:
            try:
                with suppress(RustGuardError):
                    running.adopt()
                now_set = replace(
                    running.config,
                    private_key=running.plain.private_key or running.config.private_key,
                    peers=running.peers(),
                )
                current = save_config.current(now_set, running.plain, life.interface, running.port)
                if life.helper is None:
                    conf_files.save(life.file, current)
                else:
                    await life.helper.save(current)
            except RustGuardError as error:
                life.failed.append(error.message)
        life.running = None
