"""All of `serve`, without a network: what it makes, in which order, what it says, and what it leaves on the disk."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from rustguard_py import engine
from rustguard_py.cli.serve import network4, network6
from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine
from rustguard_py.enroll.server import banner, server, start
from rustguard_py.enroll.server.settings import Settings
from rustguard_py.enroll.server.start import PairingOptions, ServeOptions, serve
from rustguard_py.enroll.tunnels import assemble, derive
from rustguard_py.enroll.tunnels.bundle import Bundle
from rustguard_py.model.errors import RustGuardError, UsageError
from rustguard_py.state.document import Document
from rustguard_py.state.records import ServerState
from support import virtual_loop
from support.shell import ShellPlane
from support.wire_link import TOKEN, cheap_stretch

POOLS = Settings(IPv4Network("10.150.0.0/24"), IPv6Network("fd00:1::/64"), port=4000, mtu=1300)


class MemoryEngine(Engine):
    """Makes planes in memory."""

    def make_plane(self, public_key: bytes, *_: object, listener: object = None, **__: object) -> Any:
        assert listener is None
        return ShellPlane(public_key)

    def for_tunnels(self, tunnels: int) -> Engine:
        del tunnels
        return self


@dataclass
class Serving:
    """A `serve` that runs, and what it did to the system."""

    directory: Path
    lines: list[str]
    laid_out: list[tuple[object, ...]]
    shown: list[tuple[str, bytes, int]]
    handlers: dict[str, Any]

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        result = self.handlers[method](params)
        answer: dict[str, Any] = await result if inspect.isawaitable(result) else result
        return answer

    def on_disk(self) -> ServerState:
        return ServerState.from_json(Document.peek(self.directory))


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Serving]:
    """Run `serve` until a test of it has ended."""
    made = Serving(tmp_path / "state", [], [], [], {})

    async def answer(_stack: AsyncExitStack, _directory: Path, handlers: Mapping[str, Any], _group: object) -> None:
        made.handlers.update(handlers)

    async def answer_wg(
        _stack: AsyncExitStack, _tunnel: object, interface: str, private_key: bytes, port: int, _hint: str
    ) -> None:
        made.shown.append((interface, private_key, port))

    def lay_out(
        _stack: AsyncExitStack, _voice: Voice, interface: str, mtu: int, own: Any, *_: object, **__: object
    ) -> None:
        made.laid_out.append((interface, mtu, [str(each) for each in own]))

    async def keep(_stack: AsyncExitStack, tunnels: Sequence[object], setups: Sequence[object], *_: object) -> None:
        # Each interface that is laid out is kept. There is no kernel to compare them with.
        assert len(tunnels) == len(setups) == len(made.laid_out)

    def bind(_stack: AsyncExitStack, port: int) -> list[Any]:
        made.lines.append(f"bound {port}")
        return []

    monkeypatch.setattr(engine, "choose", lambda _: MemoryEngine("native", "asked for"))
    monkeypatch.setattr(runtime, "free_interface_name", lambda **_: "rg0")
    monkeypatch.setattr(start, "keep", keep)
    monkeypatch.setattr(start, "check_pools", lambda _state, interfaces: made.lines.append(f"checked {interfaces}"))
    monkeypatch.setattr(start, "why_no_ipv6", lambda: None)
    monkeypatch.setattr(server, "stretch", cheap_stretch)
    monkeypatch.setattr(banner, "likely_address", lambda _own: "192.0.2.1")
    for name, replacement in (
        ("remove_leftovers", lambda _keys, _directory: False),
        ("check_interface", lambda name, *_: made.lines.append(f"is {name} free?")),
        ("bind", bind),
        ("lay_out", lay_out),
        ("answer", answer),
        ("answer_wg_fixed", answer_wg),
    ):
        monkeypatch.setattr(runtime, name, replacement)
    monkeypatch.setattr(assemble, "lay_out", lay_out)
    monkeypatch.setattr(Bundle, "begin", lambda _: ["one note"])
    monkeypatch.setattr(Bundle, "close", lambda _: None)

    def run(settings: Settings, test: Callable[[Serving], Any], pairing: PairingOptions | None = None) -> Serving:
        for each in (made.lines, made.laid_out, made.shown):
            each.clear()
        options = ServeOptions(made.directory, settings, pairing or PairingOptions(None), DataPath())

        async def main() -> None:
            task = asyncio.ensure_future(serve(options, Voice(made.lines.append, made.lines.append)))
            while not task.done() and not any("Peers known" in line for line in made.lines):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            if not task.done():
                await test(made)
            task.cancel()
            with_error = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(with_error, Exception):
                raise with_error

        virtual_loop.run(monkeypatch, main)
        return made

    return run


async def nothing(_: Serving) -> None:
    """Only start and stop."""


def test_a_server_says_what_it_runs_and_how_to_join(serving: Callable[..., Serving]) -> None:
    made = serving(POOLS, nothing, PairingOptions(TOKEN))
    state = made.on_disk()
    assert made.lines[:5] == [
        "checked ['rg0']",
        "is rg0 free?",
        "bound 4000",
        "Serving 10.150.0.0/24 and fd00:1::/64 on rg0,",
        "UDP port 4000, engine native (asked for).",
    ]
    assert made.lines[5:7] == ["Peers known: 0.", "On each machine that is to join:"]
    assert made.lines[7].startswith("  sudo rustguard join 192.0.2.1:4000 --server ")
    assert made.lines[7].endswith(" --token -")
    # As it isn't the usual server, others may run next to it.
    opens = f"rustguard open 60 --state {made.directory}"
    assert made.lines[8:] == [f"The pairing window is closed. Open it here for a minute: {opens}"]
    assert made.laid_out == [("rg0", 1300, ["10.150.0.1/24", "fd00:1::1/64"])]
    assert made.shown == [("rg0", state.private_key, 4000)]


def test_a_second_start_keeps_keys_and_settings_and_without_a_token_says_so(
    serving: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serving(POOLS, nothing).on_disk()
    monkeypatch.setattr(start, "why_no_ipv6", lambda: "This machine has no IPv6.")

    async def status(made: Serving) -> None:
        window = await made.ask("close")
        assert window["window"]["closed_because"] == "never-opened"
        with pytest.raises(RustGuardError, match="started without a token"):
            await made.ask("open", seconds=60)

    made = serving(Settings(), status)
    assert "Serving 10.150.0.0/24 on rg0," in made.lines
    assert any(line.startswith("There is no token, so nobody new can join.") for line in made.lines)
    # The pool of IPv6 waits for the day when there is IPv6 again.
    assert made.laid_out == [("rg0", 1300, ["10.150.0.1/24"])]
    second = made.on_disk()
    assert (second.private_key, second.server_id) == (first.private_key, first.server_id)
    assert (second.pool6, second.port, second.mtu) == (POOLS.pool6, 4000, 1300)


def test_a_window_of_the_start_is_open_and_on_disk_with_its_limit(serving: Callable[..., Serving]) -> None:
    async def test(made: Serving) -> None:
        kept = made.on_disk().guesses
        assert (kept.window, kept.most, kept.used) == (1, 7, 0)
        window = (await made.ask("open", seconds=30, most=1_000_000))["before"]
        assert window["open"]
        assert 59 < window["remaining"] <= 60
        assert window["new_peers_allowed"] == 7
        assert made.on_disk().guesses.most == 1_000_000
        with pytest.raises(UsageError, match="from 1 to 1000000"):
            await made.ask("open", seconds=30, most=1_000_001)

    made = serving(POOLS, test, PairingOptions(TOKEN, 60, 7))
    assert "closed" not in made.lines[-1]
    # It ended in order, so the window did too.
    assert made.on_disk().guesses.used == 0


def test_each_of_several_tunnels_has_its_port_key_interface_and_addresses(serving: Callable[..., Serving]) -> None:
    made = serving(Settings(POOLS.pool4, POOLS.pool6, port=4000, mtu=1300, tunnels=3), nothing)
    key = made.on_disk().private_key
    names = [derive.interface("rg0", number) for number in range(3)]
    ports = [derive.port(4000, number) for number in range(3)]
    assert made.shown == [(names[number], derive.private_key(key, number), ports[number]) for number in range(3)]
    assert [(name, own) for name, _, own in made.laid_out] == [
        (names[0], ["10.150.0.1/24", "fd00:1::1/64"]),
        (names[1], ["10.150.0.1/32", "fd00:1::1/128"]),
        (names[2], ["10.150.0.1/32", "fd00:1::1/128"]),
    ]
    assert made.lines[:8] == [
        f"checked {names}",
        *(f"is {name} free?" for name in names),
        *(f"bound {port}" for port in ports),
        "one note",
    ]
    assert f"3 tunnels, UDP ports 4000 and {ports[1]} to {ports[2]}: forward all." in made.lines


@pytest.mark.parametrize(
    ("token", "open_for", "most", "why"), [(None, 60, None, "--open needs a token"), (TOKEN, None, 5, "--most")]
)
def test_options_that_do_nothing_alone_are_refused(
    token: str | None, open_for: float | None, most: int | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        PairingOptions(token, open_for, most)
    PairingOptions(TOKEN, 60)
    PairingOptions(TOKEN)


def test_two_tunnels_are_put_together_too(serving: Callable[..., Serving]) -> None:
    made = serving(Settings(POOLS.pool4, POOLS.pool6, port=4000, mtu=1300, tunnels=2), nothing)
    port = derive.port(4000, 1)
    assert [shown[2] for shown in made.shown] == [4000, port]
    assert [name for name, *_ in made.laid_out] == ["rg0", derive.interface("rg0", 1)]
    assert f"2 tunnels, UDP ports 4000 and {port}: forward all." in made.lines


@pytest.mark.parametrize(
    ("read", "text", "fix"),
    [
        (network4, "10.3.0.1/24", "Write the first address of the network: --pool 10.3.0.0/24"),
        (network4, "fd00::/64", "For IPv6: --pool6 fd00::/64"),
        (network4, "x", "Write it like 10.150.0.0/24: the first address of the network, and its prefix length."),
        (network6, "10.0.0.0/8", "For IPv4: --pool 10.0.0.0/8"),
        (network6, "x", "Write it like fd12:3456:789a::/64, or leave it out."),
    ],
)
def test_a_wrong_pool_is_answered_with_the_one_that_is_meant(
    read: Callable[[str], object], text: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.fix == fix
