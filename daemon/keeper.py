"""Keeps on the system what we set there: watches the kernel, and puts back what other programs remove.

netlink message or 30 s → a look at everything → `Reconciler` decides → what is missing is put back → log and status.

A link that an admin set down stays down, and has no routes meanwhile. When it comes up, they return. A link that was
renamed gets its name back: hooks, firewall rules, wg(8)'s socket and `down` know it by that name alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from rustguard_py.daemon import watched
from rustguard_py.daemon.reconciler import MOST, PERIOD, Reconciler, Record
from rustguard_py.daemon.steps import Address, Route, Step
from rustguard_py.daemon.watched import Thing
from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.tunnel import AnyTunnel
from rustguard_py.system import kernel_view
from rustguard_py.system.changes import ChangeWatch, Kind
from rustguard_py.system.file_watch import FileWatch
from rustguard_py.system.interface import Echo, InterfaceSetup, rename, set_up
from rustguard_py.system.kernel_view import View

log = logging.getLogger(__name__)

# Further things, by their descriptions: whether a view has each, and what puts it back.
More = Mapping[str, tuple[Callable[[View], bool], Callable[[], None]]]

# How our nftables tables are named.
TABLES = "rustguard-"
# Things named in one line of the log, and in the status.
_NAMED = 3
# How long the status shows what was put back, seconds.
_SHOWN = 600.0


@dataclass(slots=True)
class KeptInterface:
    """One interface and what it is given.

    Attributes:
        tunnel: Makes the interface again if it is gone.
        setup: Returns its name, MTU and limit of segments.
        index: Its number, 0 before the first look.
        was_up: Whether it was up at the last look.
        is_bare: Whether it was made again and not set up yet.
        changed_mtu: Our MTU, and the one that a hook set instead; None if no hook did.
    """

    tunnel: AnyTunnel
    setup: Callable[[], InterfaceSetup]
    index: int = 0
    was_up: bool = True
    is_bare: bool = False
    changed_mtu: tuple[int, int] | None = None

    def wanted(self) -> InterfaceSetup:
        """Return the settings to keep."""
        setup = self.setup()
        if self.changed_mtu is not None and self.changed_mtu[0] == setup.mtu:
            return replace(setup, mtu=self.changed_mtu[1])
        return setup

    def is_renamed(self) -> bool:
        """Return whether it has another name now. One that was moved to another namespace can't be seen any more."""
        try:
            return self.index != 0 and socket.if_indextoname(self.index) != self.setup().name
        except OSError:
            return False


@dataclass(slots=True)
class _Look:
    """What one look found.

    Attributes:
        missing: Things that are gone, in the order to put them back, by their descriptions.
        free: Descriptions of those that are put back however often they were before: the interface came up again.
    """

    missing: dict[str, Callable[[], object] | Thing] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)


class Keeper:
    """Watches for one daemon. `done` and the interfaces say what to keep.

    Args:
        interfaces: The interfaces.
        done: Returns the changes made to the system, with their memos.
        echo: Called with one line per change.
        lock: Held while the daemon itself changes the system.
        more: Further things to keep, by descriptions: whether each is there, and what puts it back.
    """

    def __init__(
        self,
        interfaces: Sequence[KeptInterface],
        done: Callable[[], Mapping[Step, str]],
        echo: Echo,
        lock: asyncio.Lock | None = None,
        more: More | None = None,
    ) -> None:
        self._interfaces = tuple(interfaces)
        self._done = done
        self._echo = echo
        self._lock = lock or asyncio.Lock()
        self._more = dict(more or {})
        self._reconciler = Reconciler(now())
        self._causes: dict[Kind | None, str | None] = {}
        self._looks: dict[Thing, str] = {}
        self._released: set[Thing] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._looking = False
        self._thorough = True
        self._watch: ChangeWatch | None = None
        self._files: FileWatch | None = None
        self._task: asyncio.Task[None] | None = None

    # -- its life -------------------------------------------------------------------------------------------

    async def begin(self, stack: AsyncExitStack) -> None:
        """Watch from now on; `stack` ends it. What a hook has already changed stays as the hook left it."""
        for each in self._interfaces:
            each.tunnel.listeners.lost = self._on_lost
        # First, so that nothing is missed that is removed right after what is taken as wanted was read.
        self._watch = ChangeWatch(self._on_change, table=TABLES)
        stack.callback(self._close_files)
        stack.push_async_callback(self.close)
        with suppress(OSError):
            await asyncio.to_thread(self.adopt)
        self._note_interfaces(kernel_view.read(self._names))
        self._watch_files()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop. A look that has begun is finished first, so nothing is put back after this."""
        self._closing = True
        self._wake.set()
        if self._watch is not None:
            self._watch.close()
        if self._task is not None:
            if not self._looking:
                self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for each in self._interfaces:
            each.tunnel.listeners.lost = None

    def adopt(self) -> None:
        """Take what the system has now as what is wanted: a hook may have changed what we set. Blocks."""
        view = kernel_view.read(self._names)
        for each in self._interfaces:
            setup = each.setup()
            if (link := view.links.get(setup.name)) is not None and link.mtu != setup.mtu:
                each.changed_mtu = setup.mtu, link.mtu
        self._released = {each for each in watched.things(self._done()) if not watched.holds(each, view)}
        self._find_missing(view, thorough=True, again=False)

    async def repair(self) -> list[str]:
        """Put back and return all that is missing now, however often it was removed. The caller holds the lock."""
        # What the file no longer asks for is not what a hook has changed.
        self._released.intersection_update(watched.things(self._done()))
        return await self._look(thorough=True, all_of_it=True)

    # -- reporting ------------------------------------------------------------------------------------------

    def warnings(self) -> list[str]:
        """Return what was put back lately and what is missing now, a sentence each."""
        at = now()
        records = self._reconciler.records
        # What is missing now comes first.
        recent = sorted(
            (each for each in records.items() if at - each[1].last < _SHOWN or _is_missing(each[1])),
            key=lambda each: (not _is_missing(each[1]), -each[1].last),
        )
        lines = [_warning(thing, record, at) for thing, record in recent[:_NAMED]]
        if len(recent) > _NAMED:
            lines.append(f"And {counted(len(recent) - _NAMED, 'more thing')}, removed and put back: see the log.")
        return lines

    # -- watching -------------------------------------------------------------------------------------------

    @property
    def _names(self) -> list[str]:
        return [each.setup().name for each in self._interfaces]

    def _on_change(self, kind: Kind | None, by: str | None) -> None:
        self._causes[kind] = by or self._causes.get(kind)
        self._thorough = self._thorough or kind in ("firewall", "file", None)
        self._reconciler.changed(now())
        self._wake.set()

    def _on_lost(self) -> None:
        self._reconciler.changed(now())
        self._wake.set()

    def _note_interfaces(self, view: View) -> None:
        for each in self._interfaces:
            if (link := view.links.get(each.setup().name)) is not None:
                each.index = link.index
        if self._watch is not None:
            self._watch.names = set(self._names)
            self._watch.indices = {each.index for each in self._interfaces}

    def _watch_files(self) -> None:
        """Watch the files that tell of the things we set, which a reload may have changed."""
        done = self._done()
        paths = watched.where(watched.memos(done, done))
        if paths and self._files is None:
            # Without this, the periodic look is left.
            with suppress(OSError):
                self._files = FileWatch(partial(self._on_change, "file", None))
        if self._files is not None:
            self._files.watch(paths)

    def _close_files(self) -> None:
        if self._files is not None:
            self._files.close()

    async def _run(self) -> None:
        while not self._closing:
            wait = self._reconciler.poll_timeout() - now()
            if wait > 0:
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)
                continue
            async with self._lock:
                # A look without a change before it is the periodic one.
                thorough = self._thorough or not self._causes
                self._thorough = False
                self._looking = True
                try:
                    await self._look(thorough=thorough)
                except Exception as error:
                    if isinstance(error, (OSError, RustGuardError)):
                        log.warning("the kernel can't be asked what it has: %s", error)
                    else:
                        log.exception("internal error")
                    self._reconciler.end_look((), now())
                finally:
                    self._looking = False

    async def _look(self, *, thorough: bool, all_of_it: bool = False) -> list[str]:
        causes, self._causes = self._causes, {}
        self._reconciler.begin_look(now())
        view = await asyncio.to_thread(kernel_view.read, self._names)
        # Under another name or in another namespace, it is still there for whoever moved it.
        lost = [each for each in self._interfaces if each.is_bare or not each.tunnel.has_interface()]
        gone = {f"the interface {each.setup().name}": each for each in lost}
        renamed = [each for each in self._interfaces if each not in lost and each.is_renamed()]
        gone |= {f"the interface name {each.setup().name}": each for each in renamed}
        made = self._make_again(gone, causes, all_of_it=all_of_it)
        if made:
            view = await asyncio.to_thread(kernel_view.read, self._names)
        for thing in gone.keys() - made:
            # Somebody else's interface may have the name.
            view.links.pop(gone[thing].setup().name, None)
        self._note_interfaces(view)
        look = await asyncio.to_thread(self._find_missing, view, thorough=thorough or bool(made), again=bool(made))
        done = await self._put_back(look, causes, all_of_it=all_of_it)
        self._reconciler.end_look({*gone, *look.missing} - made, now())
        self._watch_files()
        return [*sorted(made), *done]

    # -- interfaces -----------------------------------------------------------------------------------------

    def _make_again(
        self, gone: Mapping[str, KeptInterface], causes: Mapping[Kind | None, str | None], *, all_of_it: bool
    ) -> set[str]:
        """Make interfaces that another program removed, or name them again; return those that were made."""
        allowed = self._reconciler.decide(gone, now(), by=causes.get("link"))
        made = set()
        for thing in gone if all_of_it else allowed:
            kept = gone[thing]
            try:
                if kept.is_renamed():
                    rename(kept.index, kept.setup().name, self._echo)
                else:
                    self._make_interface(kept)
            except RustGuardError as error:
                self._refused(thing, error.message)
            else:
                self._reconciler.put_back(thing, None)
                made.add(thing)
        self._report(sorted(made))
        self._warn_of_waiting(gone)
        return made

    def _make_interface(self, kept: KeptInterface) -> None:
        if not kept.tunnel.has_interface():
            kept.tunnel.reattach()
            kept.is_bare = True
        set_up(kept.wanted(), self._echo)
        kept.is_bare = False

    def _find_missing(self, view: View, *, thorough: bool, again: bool) -> _Look:
        found, risen = _Look(), set()
        downs = self._watch.take_downs() if self._watch is not None else set()
        for each in self._interfaces:
            setup = each.wanted()
            link = view.links.get(setup.name)
            each.was_up, was_up = link is not None and link.up, each.was_up
            if link is None or not link.up:
                continue
            narrow = link.mtu != setup.mtu
            if narrow:
                found.missing[f"the MTU {setup.mtu} of {setup.name}"] = partial(set_up, setup, self._echo)
            # Below 1,280 bytes the kernel drops IPv6 addresses.
            if again or narrow or not was_up or link.index in downs:
                risen.add(setup.name)
        done, seen = self._done(), {}
        for thing, memo in watched.memos(done, watched.things(done)):
            if thing in self._released:
                continue
            gone = not watched.holds(thing, view)
            before = self._looks.get(thing)
            if not gone and (thorough or before is None) and (text := watched.look(thing, memo)) is not None:
                gone = before is not None and text != before
                before = text if before is None else before
            if before is not None:
                seen[thing] = before
            if gone:
                found.missing[watched.describe(thing)] = thing
                if getattr(thing, "interface", None) in risen:
                    found.free.add(watched.describe(thing))
        self._looks = seen
        for description, (is_there, restore) in self._more.items():
            # Our own change may have come between the look and this.
            if not is_there(view) and not is_there(kernel_view.read(self._names)):
                found.missing[description] = restore
        return found

    # -- putting back ---------------------------------------------------------------------------------------

    async def _put_back(self, look: _Look, causes: Mapping[Kind | None, str | None], *, all_of_it: bool) -> list[str]:
        mine = [each for each in look.missing if each not in look.free]
        kinds = {watched.kind(thing) for thing in look.missing.values() if not callable(thing)}
        by = next((name for kind, name in causes.items() if name and (kind in kinds or kind == "link")), None)
        allowed = set(self._reconciler.decide(mine, now(), by=by))
        wanted = [each for each in look.missing if all_of_it or each in allowed or each in look.free]
        todo = {each: look.missing[each] for each in wanted}
        refused = await asyncio.to_thread(self._do, todo) if todo else {}
        for each in wanted:
            if each in refused:
                self._refused(each, refused[each])
            else:
                self._reconciler.put_back(each, None)
        self._report([each for each in wanted if each not in refused and each not in look.free])
        self._warn_of_waiting(mine)
        return [each for each in wanted if each not in refused]

    def _do(self, wanted: Mapping[str, Callable[[], object] | Thing]) -> dict[str, str]:
        """Put things back; return why some were refused. Blocks."""
        refused: dict[str, str] = {}
        things: list[Thing] = []
        for description, thing in wanted.items():
            if not callable(thing):
                things.append(thing)
                continue
            try:
                thing()
            except RustGuardError as error:
                refused[description] = error.message
        done = self._done()
        pairs = watched.memos(done, things)
        failed = watched.put_back(pairs, self._echo)
        for each, memo in pairs:
            if each in self._looks and each not in failed and (text := watched.look(each, memo)) is not None:
                if (why := watched.why_not_back(each, self._looks[each], text)) is not None:
                    failed[each] = why
                    continue
                self._looks[each] = text
        return refused | {watched.describe(each): why for each, why in failed.items()}

    def _refused(self, thing: str, why: str) -> None:
        """Take note that a thing can't be put back. The same reason is logged once while the thing is missing."""
        record = self._reconciler.records.get(thing)
        if record is None or record.refused != why:
            log.warning("%s is gone and can't be put back: %s", thing, why)
        self._reconciler.put_back(thing, why)

    def _report(self, things: Sequence[str]) -> None:
        """Log what was put back, in one line."""
        if not things:
            return
        record = self._reconciler.records.get(things[0])
        log.warning("another program%s removed %s; put back", _by(record), _listed(things))

    def _warn_of_waiting(self, missing: Iterable[str]) -> None:
        waiting = [
            each
            for each in missing
            if (record := self._reconciler.records.get(each)) is not None
            and record.waits_until is not None
            and not record.warned
        ]
        for each in waiting:
            self._reconciler.records[each].warned = True
        if waiting:
            record = self._reconciler.records[waiting[0]]
            log.warning(
                "another program%s keeps removing %s; put back at most %d times in %g s. Find it, or end this tunnel",
                _by(record),
                _listed(waiting),
                MOST,
                PERIOD,
            )


def _is_missing(record: Record) -> bool:
    return record.waits_until is not None or record.refused is not None


def _warning(thing: str, record: Record, at: float) -> str:
    ago = f"{max(0.0, at - record.last):.0f} s ago"
    if record.refused is not None:
        return f"Another program{_by(record)} removed {thing}, and it can't be put back: {record.refused}"
    if record.waits_until is not None:
        clear = " Until then traffic may leave outside the tunnel." if "routing rule" in thing else ""
        wait = max(0.0, record.waits_until - at)
        return f"Another program{_by(record)} keeps removing {thing}; it is put back in {wait:.0f} s.{clear}"
    times = "once" if record.times == 1 else f"{record.times} times"
    return f"Another program{_by(record)} removed {thing}; put back {times}, last {ago}."


def _by(record: Record | None) -> str:
    return "" if record is None or record.by is None else f" ({record.by})"


def _listed(things: Sequence[str]) -> str:
    named = ", ".join(things[:_NAMED])
    return named if len(things) <= _NAMED else f"{named} and {len(things) - _NAMED} more"


async def keep(
    stack: AsyncExitStack,
    tunnels: Sequence[AnyTunnel],
    setups: Sequence[InterfaceSetup],
    echo: Echo,
    more: More | None = None,
) -> Keeper:
    """Keep interfaces as `system.interface.set_up` has set them up.

    Args:
        stack: Ends it.
        tunnels: One for each interface.
        setups: What each was given.
        echo: Called with one line per change.
        more: See `Keeper`.
    """
    steps: dict[Step, str] = {}
    for setup in setups:
        steps |= dict.fromkeys((Address(setup.name, str(each)) for each in setup.addresses), "")
        steps |= dict.fromkeys((Route(setup.name, str(each)) for each in setup.routes), "")
    # The interface's own settings; addresses and routes are put back one by one.
    bare = [replace(setup, addresses=(), routes=()) for setup in setups]
    kept = [KeptInterface(tunnel, partial(_always, setup)) for tunnel, setup in zip(tunnels, bare, strict=True)]
    keeper = Keeper(kept, lambda: steps, echo, more=more)
    await keeper.begin(stack)
    return keeper


def _always(setup: InterfaceSetup) -> InterfaceSetup:
    return setup
