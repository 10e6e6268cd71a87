"""A tunnel while it is up, and its life from start to end: the state that up, reload and control share."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rustguard_py import conf
from rustguard_py.daemon import dns
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.keeper import Keeper
from rustguard_py.daemon.ledger import Ledger
from rustguard_py.daemon.memif import what_is_answered
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.steps import Address, Step
from rustguard_py.engine import Engine
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.planes import offload
from rustguard_py.planes.contract import AnsweringPlane
from rustguard_py.quick import routing
from rustguard_py.quick.helper import Helper
from rustguard_py.quick.hooks import Runner
from rustguard_py.quick.tunnel import PlainTunnel
from rustguard_py.system.interface import Echo, InterfaceSetup, set_up

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """A tunnel that is up, and its file as last applied.

    Attributes:
        program: Its directory, interface and engine.
        plain: The tunnel.
        config: That file.
        scheme: Mark and rules of its default routes.
        ledger: The changes made to the system.
        port: UDP port.
        mtu: MTU of the interface, bytes.
        first_mtu: MTU at the start, bytes.
        keeper: Puts back what other programs remove.
    """

    program: Program
    plain: PlainTunnel
    config: conf.Config
    scheme: routing.Scheme
    ledger: Ledger
    port: int
    mtu: int
    first_mtu: int
    keeper: Keeper = field(init=False)

    @property
    def interface(self) -> str:
        """Name of the interface."""
        return self.program.interface

    def peers(self) -> tuple[conf.PeerSection, ...]:
        """Return the peers as they are now: the file's, with what wg(8) changed."""
        known = {peer.public_key: peer for peer in self.config.peers}
        return tuple(
            replace(
                known.get(peer.config.public_key) or conf.PeerSection(peer.config.public_key),
                allowed_ips=peer.config.allowed_ips,
                preshared_key=peer.config.preshared_key,
                keepalive=peer.config.persistent_keepalive,
            )
            for peer in self.plain.tunnel.node
        )

    def adopt(self) -> None:
        """Take over what wg(8) changed in a tunnel of the kernel. Ours is asked for each change.

        Raises:
            RustGuardError: The interface is gone.
        """
        found = self.plain.tunnel.adopt()
        if found is None:
            return
        self.plain.adopted(found.private_key)
        self.port = found.port
        if found.mark == self.scheme.mark:
            return
        if self.scheme.priorities:
            log.warning(
                "the mark of %s stays %#x, because the rules of the default route are made for it",
                self.interface,
                self.scheme.mark,
            )
            self.plain.tunnel.plane.set_fwmark(self.scheme.mark)
        else:
            self.scheme = replace(self.scheme, mark=found.mark)

    def answer_on_link(self) -> str:
        """In Ethernet, let the memif answer for where the tunnel leads now.

        Returns:
            What is answered, if that has changed, else nothing.
        """
        reached = [network for peer in self.plain.tunnel.node for network in peer.config.allowed_ips]
        engine = self.program.engine.answering(reached, self.config.addresses)
        if engine.memif is None or engine.memif.ethernet is None or engine == self.program.engine:
            return ""
        self.program = replace(self.program, engine=engine)
        cast(AnsweringPlane, self.plain.tunnel.plane).answer_for(engine.memif.ethernet)
        return what_is_answered(engine.memif.ethernet)

    def set_mtu(self, mtu: int, echo: Echo) -> None:
        """Set the MTU of the interface and the tunnel, and bring the interface up."""
        self.mtu = mtu
        if self.program.engine.memif is None:
            set_up(self.setup(), echo)
        self.plain.tunnel.plane.set_mtu(mtu)

    def setup(self) -> InterfaceSetup:
        """Return the settings of the interface itself."""
        segments = None if self.program.engine.in_kernel else offload.wanted_gso_segments(self.mtu)
        return InterfaceSetup(self.interface, self.mtu, gso_max_segs=segments)


def check_memif(config: conf.Config, engine: Engine) -> None:
    """Check that a file asks for nothing that can't be kept with a memif in place of the interface.

    Raises:
        UsageError: It does.
    """
    if engine.memif is None:
        return
    if config.dns or config.search:
        raise UsageError(
            "The file has DNS, but with a memif this machine's names don't go through the tunnel.",
            "Remove the line, or leave out --memif.",
        )
    if isinstance(config.table, int):
        raise UsageError(
            "The file has a Table, but with a memif the other program has the routes.",
            "Remove the line or write: Table = off. Or leave out --memif.",
        )


def choose_scheme(config: conf.Config, engine: Engine, before: routing.Scheme | None = None) -> routing.Scheme:
    """Return the mark, and for default routes of this machine their rules; see `routing.choose_scheme`."""
    if engine.memif is not None:
        return routing.Scheme(config.fwmark or 0)
    return routing.choose_scheme(config, before)


def wanted_steps(program: Program, config: conf.Config, scheme: routing.Scheme) -> list[Step]:
    """Return the changes to the system that a file asks for, in the order to make them. A memif needs none."""
    if program.engine.memif is not None:
        return []
    interface = program.interface
    steps: list[Step] = [Address(interface, str(each)) for each in config.addresses]
    if config.dns or config.search:
        steps.append(dns.Dns(interface, tuple(map(str, config.dns)), config.search))
    return [*steps, *routing.plan(interface, config, scheme)]


class Life:
    """The life of one tunnel: it starts, is up, and ends. To be made in the task that runs it.

    Args:
        interface: Its name.
        file: Its wg-quick file, resolved.
        voice: Prints what happens.
        trust: Whether the file's hooks run even if other users can change it.
        helper: Runs the hooks if this process gives up what they may need, else None.
        down: The command that ends the tunnel.

    Attributes:
        running: The tunnel while it is up, else None.
        changing: Held while a reload or the end changes the tunnel.
        ending: Lines printed while it ends, for those who asked for the end; None before.
        failed: Sentences about what failed while it ended.
        started: Set when it is up.
        ended: Set when it has ended.
    """

    def __init__(
        self,
        interface: str,
        file: Path,
        voice: Voice,
        *,
        down: str,
        trust: bool = False,
        helper: Helper | None = None,
    ) -> None:
        self.interface = interface
        self.file = file
        self.voice = voice
        self.down = down
        self.trust = trust
        self.helper = helper
        self.running: Running | None = None
        self.changing = asyncio.Lock()
        self.ending: list[str] | None = None
        self.failed: list[str] = []
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._task = asyncio.current_task()
        self._was_up = False

    def is_up(self, running: Running) -> None:
        """Take note that the tunnel is up."""
        self.running = running
        self._was_up = True
        self.started.set()

    async def get_started(self) -> Running:
        """Return the tunnel. While it starts, wait for it.

        Raises:
            RefusedError: It is ending, or its start failed.
        """
        if not self._was_up and self.ending is None:
            ways = [asyncio.ensure_future(each.wait()) for each in (self.started, self.ended)]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
        if self.ended.is_set() and not self._was_up:
            raise RefusedError(f"{self.interface} didn't come up.", "Start it again to see why.")
        return self.get_running()

    @property
    def runner(self) -> Runner | None:
        """What runs the hooks, see `hooks.run`."""
        return None if self.helper is None else self.helper.run

    def get_running(self) -> Running:
        """Return the tunnel.

        Raises:
            RefusedError: It is starting or ending.
        """
        if self.running is None:
            raise RefusedError(f"{self.interface} is just starting or ending.", "Try again in a moment.")
        return self.running

    def stop(self) -> None:
        """End the tunnel in good order, also while it starts. Does nothing while it ends."""
        if self.running is not None:
            self.running.plain.tunnel.stopped.set()
        elif not self._was_up and self._task is not None:
            self._task.cancel()

    def echo(self, line: str) -> None:
        """Print a change to the system."""
        if self.ending is not None:
            self.ending.append(line)
        self.voice.change(line)

    async def announce_the_end(self) -> None:
        """Let those who asked for the end get their answer, before the control socket closes."""
        self.ended.set()
        # They wake in the loop's next turn, and write an answer that fits into a socket at once.
        for _ in range(3):
            await asyncio.sleep(0)
