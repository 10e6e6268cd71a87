"""What another program removes is put back: a keeper on a made-up system, under the virtual loop."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon import keeper, steps, watched
from rustguard_py.daemon.dns import Dns
from rustguard_py.daemon.keeper import Keeper, KeptInterface
from rustguard_py.daemon.reconciler import LOOK_EACH, MOST, PERIOD, SETTLE, TRY_AGAIN
from rustguard_py.daemon.steps import Address, Firewall, Route, Rule, Step
from rustguard_py.daemon.watched import Connected, Thing
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.tunnel import Listeners
from rustguard_py.system import kernel_view, netlink_batch
from rustguard_py.system.interface import RT_TABLE_MAIN, InterfaceSetup
from rustguard_py.system.kernel_view import Link, RuleSeen, View, network_of, split
from rustguard_py.system.netlink_library import NetlinkError
from support import virtual_loop

NAMES = Dns("wg0", ("10.9.0.53",), ())
ADDRESS, ROUTE, RULE = Address("wg0", "10.9.0.1/24"), Route("wg0", "10.8.0.0/16"), Rule(4, 101, 51820, 51820)
FIREWALL = Firewall("wg0", 4, ("10.9.0.1",), 51820)
SETUP = InterfaceSetup("wg0", 1420)
INDEX = 7


class System:
    """A kernel that has what was set, until a test takes it away.

    Attributes:
        has: What is there.
        refuses: Why it refuses everything, or empty.
        link: The interface, or None if it is gone.
        looks: When it was looked at.
        put_back: What was put back, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *wanted: Step) -> None:
        self.done: dict[Step, str] = dict.fromkeys(wanted, "")
        self.has: set[Thing] = set(watched.things(wanted))
        self.refuses = ""
        self.link: Link | None = Link(INDEX, True, 1420)
        self.looks: list[float] = []
        self.put_back: list[Thing | str] = []
        self.tables = {each: "as we set it" for each in wanted if isinstance(each, (Firewall, Dns))}
        self.downs: set[int] = set()
        self.name = "wg0"
        self.files_changed: Callable[[], None] = lambda: None
        self.changed: Callable[[Any, str | None], None] = lambda _kind, _by: None
        self.tunnel = SimpleNamespace(
            listeners=Listeners(), has_interface=lambda: self.link is not None, reattach=self._reattach
        )
        self.kept = KeptInterface(cast(Any, self.tunnel), lambda: SETUP)
        self.more: keeper.More = {}
        monkeypatch.setattr(kernel_view, "read", self._read)
        monkeypatch.setattr(keeper, "ChangeWatch", self._watch)
        monkeypatch.setattr(keeper, "FileWatch", self._watch_files)
        monkeypatch.setattr(keeper, "set_up", self._set_up)
        monkeypatch.setattr(keeper, "rename", self._rename)
        monkeypatch.setattr(socket, "if_indextoname", self._name_of)
        monkeypatch.setattr(watched, "put_back", self._put_back)
        monkeypatch.setattr(watched, "look", lambda thing, _: self.tables.get(thing))

    def _read(self, _names: object) -> View:
        self.looks.append(asyncio.get_running_loop().time())
        view = View()
        if self.link is not None and self.name == "wg0":
            view.links["wg0"] = self.link
        for each in self.has:
            match each:
                case Rule(version, priority, table, mark):
                    view.rules.add(RuleSeen(version, priority, table, mark, not mark))
                case Address(_, address) if self.link is not None:
                    view.addresses.setdefault(INDEX, set()).add(split(address))
                case Route(_, network, table) if self.link is not None:
                    view.routes[table, split(network)] = [frozenset({INDEX})]
                case Connected(_, address) if self.link is not None:
                    view.routes[RT_TABLE_MAIN, split(network_of(address))] = [frozenset({INDEX})]
        return view

    def _watch(self, changed: Callable[[Any, str | None], None], *, table: str) -> SimpleNamespace:
        assert FIREWALL._table.split()[1].startswith(table)
        self.changed = changed
        return SimpleNamespace(close=lambda: None, take_downs=self._take_downs, names=set(), indices=set())

    def _watch_files(self, changed: Callable[[], None]) -> SimpleNamespace:
        self.files_changed = changed
        return SimpleNamespace(watch=lambda _: None, close=lambda: None)

    def _name_of(self, index: int) -> str:
        if self.link is None or index != INDEX or not self.name:
            raise OSError(errno.ENXIO, "no such interface")
        return self.name

    def _rename(self, index: int, name: str, _echo: object) -> None:
        assert index == INDEX
        if self.refuses:
            raise RustGuardError(self.refuses)
        self.put_back.append(f"{self.name} is {name}")
        self.name = name

    def _take_downs(self) -> set[int]:
        downs, self.downs = self.downs, set()
        return downs

    def _set_up(self, setup: InterfaceSetup, _echo: object) -> None:
        if self.refuses:
            raise RustGuardError(self.refuses)
        self.put_back.append(f"{setup.name} with {setup.mtu}")
        self.link = Link(INDEX, True, setup.mtu)

    def _reattach(self) -> None:
        if self.refuses:
            raise RustGuardError(self.refuses)
        self.link = Link(INDEX, False, 1420)

    def _put_back(self, wanted: list[tuple[Thing, str]], _echo: object) -> dict[Thing, str]:
        if self.refuses:
            return {thing: self.refuses for thing, _ in wanted}
        self.put_back += [thing for thing, _ in wanted]
        self.has |= {thing for thing, _ in wanted}
        self.tables |= {thing: "as we set it" for thing, _ in wanted if isinstance(thing, (Firewall, Dns))}
        return {}

    def remove(self, *things: Thing, by: str | None = "networkd") -> None:
        """Remove things, as another program does, and let the kernel tell of it."""
        for each in things:
            self.has.discard(each)
            if isinstance(each, Firewall):
                self.tables[each] = ""
            self.changed(watched.kind(each), by)

    def take(self) -> list[Thing | str]:
        """Return what was put back since the last call."""
        taken, self.put_back = self.put_back, []
        return taken


def keep(
    monkeypatch: pytest.MonkeyPatch,
    test: Callable[[System, Keeper], Coroutine[Any, Any, None]],
    *wanted: Step,
    before: Callable[[System], None] = lambda _: None,
) -> None:
    """Run a test with a keeper of these steps; `before` changes the system as a hook does."""

    async def main() -> None:
        system = System(monkeypatch, *wanted)
        before(system)
        made = Keeper([system.kept], lambda: system.done, lambda _: None, more=system.more)
        async with AsyncExitStack() as stack:
            await made.begin(stack)
            await test(system, made)

    virtual_loop.run(monkeypatch, main)


def test_what_another_program_removes_is_put_back_soon_and_it_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.remove(ROUTE, RULE)
        await asyncio.sleep(0.5)
        assert system.take() == [ROUTE, RULE]
        assert made.warnings() == [
            f"Another program (networkd) removed {thing}; put back once, last 0 s ago."
            for thing in (
                "the route to 10.8.0.0/16 on wg0",
                "the IPv4 routing rule 101 that sends packets to table 51820",
            )
        ]
        # What came back is looked at no more often than the rest.
        looks = len(system.looks)
        await asyncio.sleep(10 * LOOK_EACH + 1)
        assert len(system.looks) - looks <= 11
        assert system.take() == []

    keep(monkeypatch, test, ADDRESS, ROUTE, RULE)
    assert [record.message for record in caplog.records] == [
        "another program (networkd) removed the route to 10.8.0.0/16 on wg0, "
        "the IPv4 routing rule 101 that sends packets to table 51820; put back"
    ]


def test_the_program_that_changed_something_else_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.has.discard(ROUTE)
        system.changed("rule", "firewalld")
        await asyncio.sleep(0.5)
        assert made.warnings() == [
            "Another program removed the route to 10.8.0.0/16 on wg0; put back once, last 0 s ago."
        ]

    keep(monkeypatch, test, ADDRESS, ROUTE, RULE)


def test_what_goes_without_a_message_is_found_by_the_periodic_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, _: Keeper) -> None:
        system.has.discard(ROUTE)
        system.tables[FIREWALL] = "flushed"
        await asyncio.sleep(LOOK_EACH - 1)
        assert system.take() == []
        await asyncio.sleep(2)
        assert system.take() == [ROUTE, FIREWALL]
        await asyncio.sleep(2 * LOOK_EACH)
        assert system.take() == []

    keep(monkeypatch, test, ROUTE, FIREWALL)


def test_a_table_is_put_back_when_it_looks_different(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, _: Keeper) -> None:
        system.remove(FIREWALL)
        await asyncio.sleep(SETTLE + 0.5)
        assert system.take() == [FIREWALL]
        # A change elsewhere is no reason to ask nft again.
        system.tables[FIREWALL] = "flushed"
        system.changed("route", None)
        await asyncio.sleep(SETTLE + 0.5)
        assert system.take() == []

    keep(monkeypatch, test, ROUTE, FIREWALL)


def test_name_servers_are_looked_at_when_their_files_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, _: Keeper) -> None:
        system.tables[NAMES] = ""
        system.files_changed()
        await asyncio.sleep(SETTLE + 0.5)
        assert system.take() == [NAMES]
        # A change elsewhere is no reason to ask resolvectl.
        system.tables[NAMES] = ""
        system.changed("route", None)
        await asyncio.sleep(SETTLE + 0.5)
        assert system.take() == []

    keep(monkeypatch, test, ROUTE, NAMES)


def test_name_servers_that_are_changed_again_during_a_look_come_back_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(system: System, _: Keeper) -> None:
        looked = watched.why_not_back

        def change_again(thing: Thing, wanted: str, found: str) -> str | None:
            """Another program comes after the last that this look sees."""
            monkeypatch.setattr(watched, "why_not_back", looked)
            loop.call_soon_threadsafe(system.files_changed)
            system.tables[NAMES] = ""
            return looked(thing, wanted, found)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(watched, "why_not_back", change_again)
        system.tables[NAMES] = ""
        system.files_changed()
        await asyncio.sleep(2)
        assert system.take() == [NAMES, NAMES]

    keep(monkeypatch, test, NAMES)


def test_name_servers_that_change_while_a_look_waits_for_the_daemon_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(system: System, made: Keeper) -> None:
        async with made._lock:
            system.remove(ROUTE)
            await asyncio.sleep(1)
            system.tables[NAMES] = ""
            system.files_changed()
            await asyncio.sleep(1)
        await asyncio.sleep(0)
        await asyncio.sleep(1)
        assert system.take() == [ROUTE, NAMES]

    # The first look is thorough anyway.
    async def later(system: System, made: Keeper) -> None:
        await asyncio.sleep(LOOK_EACH + 1)
        await test(system, made)

    keep(monkeypatch, later, ROUTE, NAMES)


def test_name_servers_that_do_not_come_back_are_said_to_be_missing_until_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(system: System, made: Keeper) -> None:
        monkeypatch.setattr(watched, "put_back", lambda *_: {})
        system.tables[NAMES] = ""
        system.files_changed()
        await asyncio.sleep(1)
        assert made.warnings() == [
            "Another program removed the name servers of wg0, and it can't be put back: "
            "another program still has charge of them."
        ]
        system.tables[NAMES] = "as we set it"
        system.files_changed()
        await asyncio.sleep(1)
        assert "can't" not in made.warnings()[0]

    keep(monkeypatch, test, NAMES)


@pytest.mark.parametrize("refused", [False, True])
def test_without_inotify_name_servers_are_looked_at_each_30_seconds(
    monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """With another file watch than the system's: a refused one, and one that misses everything."""

    def before(_system: System) -> None:
        def refuse(_changed: object) -> None:
            raise OSError(errno.EMFILE, "too many")

        if refused:
            monkeypatch.setattr(keeper, "FileWatch", refuse)

    async def test(system: System, _: Keeper) -> None:
        system.tables[NAMES] = ""
        await asyncio.sleep(LOOK_EACH - 1)
        assert system.take() == []
        await asyncio.sleep(2)
        assert system.take() == [NAMES]

    keep(monkeypatch, test, NAMES, before=before)


def test_what_a_hook_changed_before_we_began_stays_as_the_hook_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(system: System) -> None:
        system.has.discard(ROUTE)
        system.link = Link(INDEX, True, 1380)

    async def test(system: System, made: Keeper) -> None:
        await asyncio.sleep(2 * LOOK_EACH)
        assert system.take() == []
        # The MTU that the hook set is the one that is kept.
        system.link = Link(INDEX, True, 1500)
        system.changed("link", None)
        await asyncio.sleep(1)
        assert system.take() == ["wg0 with 1380"]
        assert made.warnings() == ["Another program removed the MTU 1380 of wg0; put back once, last 1 s ago."]
        # A changed file forgets what the hook did, if it asks for something else.
        del system.done[ROUTE]
        await made.repair()
        system.done[ROUTE] = ""
        assert await made.repair() == ["the route to 10.8.0.0/16 on wg0"]

    keep(monkeypatch, test, ADDRESS, ROUTE, before=hook)


def test_a_thing_that_is_removed_again_and_again_waits_and_the_warning_comes_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(system: System, made: Keeper) -> None:
        for _ in range(4 * MOST):
            system.remove(RULE)
            await asyncio.sleep(1)
        assert system.take() == [RULE] * MOST
        [warning] = made.warnings()
        assert warning.startswith("Another program (networkd) keeps removing the IPv4 routing rule 101")
        assert warning.endswith("it is put back in 36 s. Until then traffic may leave outside the tunnel.")
        # An admin who asks for it needn't wait.
        assert len(await made.repair()) == 1
        await asyncio.sleep(PERIOD)
        assert f"put back {MOST} times" in made.warnings()[0]

    keep(monkeypatch, test, RULE)
    assert sum("keeps removing" in record.message for record in caplog.records) == 1


def test_what_can_not_be_put_back_is_tried_again_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.refuses = "IPv6 is off."
        system.remove(ADDRESS)
        await asyncio.sleep(20)
        [warning] = made.warnings()
        assert warning.endswith("removed the address 10.9.0.1/24 on wg0, and it can't be put back: IPv6 is off.")
        system.refuses = ""
        await asyncio.sleep(10)
        assert system.take() == [ADDRESS]
        assert "can't" not in made.warnings()[0]

    keep(monkeypatch, test, ADDRESS)
    assert sum("can't be put back" in record.message for record in caplog.records) == 1


def test_warnings_are_about_the_last_minutes_with_what_is_missing_first_and_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routes = [Route("wg0", f"10.{number}.0.0/16") for number in range(5)]

    async def test(system: System, made: Keeper) -> None:
        system.refuses = "no."
        system.remove(RULE)
        await asyncio.sleep(1)
        system.refuses = ""
        system.changed = lambda _kind, _by: None
        for each in routes:
            made._reconciler.decide([watched.describe(each)], made._reconciler._looked + 1)
        first, *others = made.warnings()
        assert "can't be put back: no." in first
        assert len(others) == 3
        assert others[-1] == "And 3 more things, removed and put back: see the log."
        await asyncio.sleep(599)
        assert made.warnings() != []
        await asyncio.sleep(60)
        assert made.warnings() == []

    keep(monkeypatch, test, ADDRESS, RULE)


# -- the interface ------------------------------------------------------------------------------------------


def test_an_interface_that_was_renamed_gets_its_name_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.name, system.refuses = "home0", "another interface has that name."
        system.changed("link", "ip")
        await asyncio.sleep(1)
        # Until it has its name, nothing is put back on whatever has it now.
        assert system.take() == []
        assert made.warnings() == [
            "Another program (ip) removed the interface name wg0, and it can't be put back: "
            "another interface has that name."
        ]
        system.refuses = ""
        system.has.discard(ROUTE)
        await asyncio.sleep(TRY_AGAIN)
        assert system.take() == ["home0 is wg0", ROUTE]
        # In another namespace it can't be seen, and is left there.
        system.name = ""
        system.changed("link", "ip")
        await asyncio.sleep(LOOK_EACH)
        assert system.take() == []

    keep(monkeypatch, test, ADDRESS, ROUTE)


def test_an_interface_that_is_gone_is_made_again_with_all_it_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.link, system.has = None, {RULE}
        listeners = system.tunnel.listeners
        listeners.lost()
        await asyncio.sleep(1)
        assert system.take() == ["wg0 with 1420", ADDRESS, ROUTE]
        assert {ADDRESS, ROUTE, RULE} <= system.has
        assert [line.partition(";")[0] for line in made.warnings()] == ["Another program removed the interface wg0"]

    keep(monkeypatch, test, ADDRESS, ROUTE, RULE)
    assert [record.message for record in caplog.records] == ["another program removed the interface wg0; put back"]


def test_an_interface_that_can_not_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.refuses, system.link, system.has = "no TUN.", None, set()
        system.tunnel.listeners.lost()
        await asyncio.sleep(1)
        assert made.warnings() == ["Another program removed the interface wg0, and it can't be put back: no TUN."]
        system.refuses = ""
        await asyncio.sleep(6)
        assert ADDRESS in system.has

    keep(monkeypatch, test, ADDRESS)


def test_an_interface_that_is_down_is_left_alone_and_gets_its_routes_back_when_it_is_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(system: System, made: Keeper) -> None:
        for _ in range(2 * MOST):
            system.link = Link(INDEX, False, 1420)
            system.remove(ROUTE, by=None)
            await asyncio.sleep(1)
            assert system.take() == []
            system.link = Link(INDEX, True, 1420)
            system.changed("link", None)
            await asyncio.sleep(1)
            # That is not another program's doing, so it is neither counted nor reported.
            assert system.take() == [ROUTE]
        assert made.warnings() == []

    keep(monkeypatch, test, ADDRESS, ROUTE)
    assert caplog.records == []


def test_an_interface_that_was_down_for_a_moment_gets_its_routes_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        system.downs = {INDEX}
        system.remove(ROUTE, by=None)
        await asyncio.sleep(1)
        assert system.take() == [ROUTE]
        assert made.warnings() == []

    keep(monkeypatch, test, ADDRESS, ROUTE)


# -- its life -----------------------------------------------------------------------------------------------


def test_after_its_end_nothing_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        await made.close()
        assert system.tunnel.listeners.lost is None
        system.remove(ROUTE)
        await asyncio.sleep(2 * LOOK_EACH)
        assert system.take() == []

    keep(monkeypatch, test, ROUTE)


def test_while_the_daemon_changes_the_system_itself_nothing_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(system: System, made: Keeper) -> None:
        async with made._lock:
            system.remove(ROUTE)
            await asyncio.sleep(5)
            assert system.take() == []
        await asyncio.sleep(1)
        assert system.take() == [ROUTE]

    keep(monkeypatch, test, ROUTE)


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), RuntimeError("a fault of ours")])
def test_a_look_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def test(system: System, _: Keeper) -> None:
        def fail(_: object) -> View:
            raise error

        monkeypatch.setattr(kernel_view, "read", fail)
        system.remove(ROUTE)
        await asyncio.sleep(1)
        assert len(caplog.records) == 1
        monkeypatch.setattr(kernel_view, "read", system._read)
        await asyncio.sleep(LOOK_EACH + 1)
        assert system.take() == [ROUTE]

    keep(monkeypatch, test, ROUTE)


def test_further_things_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    there, restored = [True], []

    def restore() -> None:
        restored.append(True)
        if len(restored) == 1:
            raise RustGuardError("not yet.")
        there[0] = True

    def more(system: System) -> None:
        system.more = {"the offloads of eth0": (lambda _: there[0], restore)}

    async def test(system: System, made: Keeper) -> None:
        await asyncio.sleep(LOOK_EACH + 1)
        assert restored == []
        there[0] = False
        system.remove(ROUTE)
        await asyncio.sleep(1)
        assert system.take() == [ROUTE]
        assert any("the offloads of eth0, and it can't be put back: not yet." in each for each in made.warnings())
        await asyncio.sleep(10)
        assert there[0]
        assert len(restored) == 2

    keep(monkeypatch, test, ROUTE, before=more)


def test_an_enrolled_tunnel_keeps_its_addresses_and_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = replace(SETUP, addresses=(ip_interface("10.9.0.1/24"),), routes=(ip_network("10.8.0.0/16"),))

    async def main() -> None:
        system = System(monkeypatch, ADDRESS, ROUTE)
        async with AsyncExitStack() as stack:
            await keeper.keep(stack, [cast(Any, system.tunnel)], [setup], lambda _: None)
            system.remove(ADDRESS, ROUTE, Connected("wg0", "10.9.0.1/24"))
            await asyncio.sleep(1)
            assert {ADDRESS, ROUTE} <= system.has

    virtual_loop.run(monkeypatch, main)


# -- how it is put back -------------------------------------------------------------------------------------


class Netlink:
    """Takes what is asked of pyroute2."""

    def __init__(self) -> None:
        self.code = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def route(self, verb: str, **what: Any) -> None:
        self._take(f"route {verb}", what)

    def rule(self, verb: str, **what: Any) -> None:
        self._take(f"rule {verb}", what)

    def _take(self, verb: str, what: dict[str, Any]) -> None:
        self.asked.append((verb, what))
        if self.code:
            raise NetlinkError(self.code)


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> Netlink:
    made = Netlink()
    monkeypatch.setattr(watched, "with_netlink", lambda work: work(made))
    return made


def test_the_route_to_an_addresss_network_is_made_as_the_kernel_makes_it(netlink: Netlink) -> None:
    said: list[str] = []
    things: list[tuple[Thing, str]] = [(Connected("lo", "10.9.0.1/24"), ""), (Connected("lo", "fd09::1/64"), "")]
    assert watched.put_back(things, said.append) == {}
    (verb, first), (_, second) = netlink.asked
    assert verb == "route add"
    # linux/rtnetlink.h: RTPROT_KERNEL is 2, RT_SCOPE_LINK 253. IPv6 has the metric 256 instead of a scope.
    assert {name: first[name] for name in ("dst", "proto", "scope", "prefsrc")} == {
        "dst": "10.9.0.0/24",
        "proto": 2,
        "scope": 253,
        "prefsrc": "10.9.0.1",
    }
    assert {name: second[name] for name in ("dst", "proto", "priority")} == {
        "dst": "fd09::/64",
        "proto": 2,
        "priority": 256,
    }
    assert said == ["[#] ip -4 route add 10.9.0.0/24 dev lo", "[#] ip -6 route add fd09::/64 dev lo"]


def test_what_came_back_by_itself_is_not_refused_but_anything_else_is(netlink: Netlink) -> None:
    things: list[tuple[Thing, str]] = [(Connected("lo", "10.9.0.1/24"), ""), (RULE, "")]
    netlink.code = errno.EEXIST
    assert watched.put_back(things, lambda _: None) == {}
    netlink.code = errno.EPERM
    refused = watched.put_back([*things, (Connected("no-such-link", "10.9.0.1/24"), "")], lambda _: None)
    assert [type(each) for each in refused] == [Connected, Rule, Connected]
    assert all(refused.values())


def test_many_routes_are_put_back_at_once_and_one_by_one_if_one_is_refused(
    netlink: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def send(requests: list[object], *, stop: bool) -> list[int]:
        assert not stop
        batches.append(len(requests))
        bad = netlink_batch.route("10.1.0.0/16", 1, add=True)
        return [errno.EPERM if each == bad else 0 for each in requests]

    monkeypatch.setattr(netlink_batch, "send", send)
    monkeypatch.setattr(steps, "_index", lambda _: 1)
    routes = [Route("lo", f"10.{number}.0.0/16") for number in range(4)]
    refused = watched.put_back([(each, "") for each in routes if each != routes[1]], lambda _: None)
    assert (refused, batches) == ({}, [3])
    refused = watched.put_back([(each, "") for each in routes], lambda _: None)
    assert list(refused) == [routes[1]]
    assert batches == [3, 4, 1, 1, 1, 1]
    assert netlink.asked == []


@pytest.mark.parametrize(
    ("thing", "kind", "text"),
    [
        (ADDRESS, "address", "the address 10.9.0.1/24 on wg0"),
        (Connected("wg0", "10.9.0.1/24"), "route", "the route to 10.9.0.0/24 on wg0"),
        (ROUTE, "route", "the route to 10.8.0.0/16 on wg0"),
        (Route("wg0", "::/0", 7), "route", "the route to ::/0 on wg0 in table 7"),
        (RULE, "rule", "the IPv4 routing rule 101 that sends packets to table 51820"),
        (Rule(6, 100, 254, 0), "rule", "the IPv6 routing rule 100 that keeps local routes in use"),
        (FIREWALL, "firewall", "the nftables table ip rustguard-wg0"),
        (replace(FIREWALL, version=6), "firewall", "the nftables table ip6 rustguard-wg0"),
        (steps.Sysctl("net.ipv4.x", "1"), "file", "the setting net.ipv4.x=1"),
        (Dns("wg0", ("10.9.0.1",), ()), "file", "the name servers of wg0"),
    ],
)
def test_each_thing_has_words_and_a_kind_of_message(thing: Thing, kind: str | None, text: str) -> None:
    assert (watched.kind(thing), watched.describe(thing)) == (kind, text)
