"""A join from its options to the running client, with everything replaced that needs a network or privileges."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py import engine
from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine
from rustguard_py.enroll.client import obtain, start
from rustguard_py.enroll.client.checks import check_networks
from rustguard_py.enroll.client.obtain import Obtained, Target
from rustguard_py.enroll.client.start import JoinOptions
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError, StateError, UsageError
from rustguard_py.model.statistics import PlaneStats
from rustguard_py.model.sudo import as_root
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from support.joined import NETWORK

SERVER: Endpoint = ("192.0.2.1", 51820)
JOINED = Joined(cast(Any, None), b"p" * 32, SERVER, b"forget")


class Machine:
    """What a join finds, and what it does, in order.

    Attributes:
        did: What it did.
        fails: Whether the interface can't be set up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self.did: list[Any] = []
        self.fails = False
        self.handlers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        node = SimpleNamespace(public_key=b"o" * 32, get=lambda _: None)
        self.tunnel = SimpleNamespace(node=node, plane=SimpleNamespace(stats=PlaneStats), fault=None, silent=[])
        self.client = SimpleNamespace(
            tunnel=self.tunnel,
            tunnels=[self.tunnel],
            server_keys=[NETWORK.server_key],
            bundle=None,
            network=NETWORK,
            unanswered=0,
            reports=None,
            connect=lambda where: self.did.append(("connect", where)),
            run=self._run,
        )
        for place, name, made in (
            (engine, "choose", lambda _: Engine("native", "it is there")),
            (runtime, "remove_leftovers", lambda *_: False),
            (runtime, "with_free_name", self._with_free_name),
            (runtime, "bind", lambda *_: [self.socket]),
            (runtime, "answer", self._answer),
            (runtime, "answer_wg_fixed", self._answer_wg),
            (start, "obtain", self._obtain),
            (start, "make_client", self._make_client),
            (start, "lay_out", self._lay_out),
            (start, "keep", self._keep),
            (start, "withdraw", self._withdraw),
        ):
            monkeypatch.setattr(place, name, made)

    async def _with_free_name(
        self, stack: AsyncExitStack, name: str | None, make: Callable[..., Any], taken: object
    ) -> Any:
        assert taken == set()
        return make(stack, name or "rg0")

    async def _obtain(self, *given: object) -> Obtained:
        assert given[-1] is check_networks
        return Obtained(NETWORK, SERVER, JOINED)

    def _make_client(self, stack: object, _voice: Voice, program: Any, *rest: Any) -> Any:
        assert isinstance(stack, AsyncExitStack)
        self.did.append(("make", program.interface, *rest))
        return self.client

    def _lay_out(self, *_: object, in_kernel: bool) -> list[Any]:
        if self.fails:
            raise RustGuardError("The address is taken.")
        self.did.append(("lay out", in_kernel))
        return []

    async def _keep(self, *_: object) -> Any:
        return SimpleNamespace(warnings=lambda: ["Another program removed a route."])

    async def _answer(self, _stack: object, directory: Path, handlers: dict[str, Any], _group: object) -> None:
        assert directory == self.directory
        self.handlers = handlers

    async def _answer_wg(self, stack: object, *what: object) -> None:
        assert isinstance(stack, AsyncExitStack)
        self.did.append(("answer wg", *what))

    def _withdraw(self, joined: Joined, _document: object, state: ClientState, sockets: object) -> None:
        self.did.append(("withdraw", joined, state.private_key, sockets))

    async def _run(self) -> None:
        self.did.append("run")

    def join(self, **options: Any) -> list[str]:
        """Join, and return what was said."""
        said: list[str] = []
        given = JoinOptions(self.directory, Target(), None, options.pop("data_path", DataPath()), **options)
        voice = Voice(change=said.append, say=said.append)
        asyncio.run(start.join(given, voice, lambda: self.did.append("ready")))
        return said

    def kept(self) -> ClientState:
        return ClientState.from_json(Document.peek(self.directory))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    made = Machine(monkeypatch, tmp_path)
    yield made
    made.socket.close()


def test_a_join_ends_in_a_running_client_that_answers(machine: Machine) -> None:
    said = machine.join()
    key, port = machine.kept().private_key, machine.socket.getsockname()[1]
    hint = "the server decides, or the options of `rustguard join`"
    assert machine.did == [
        ("make", "rg0", key, [machine.socket], NETWORK),
        # The peer is set before the interface has an address to send from.
        ("connect", SERVER),
        ("lay out", False),
        ("answer wg", machine.tunnel, "rg0", key, port, hint),
        "ready",
        "run",
    ]
    assert said == ["Engine native (it is there)."]
    assert machine.handlers["status"]({})["warnings"] == ["Another program removed a route."]


def test_the_offloads_that_were_asked_for_are_kept_for_the_next_start(machine: Machine) -> None:
    machine.join(data_path=DataPath(offloads="none", keep_offloads=True))
    assert machine.kept().offloads == "none"
    machine.join(data_path=DataPath(offloads="all", keep_offloads=False))
    assert machine.kept().offloads == "none"
    machine.join(data_path=DataPath(offloads="auto", keep_offloads=True))
    assert machine.kept().offloads == ""


def test_a_memif_is_kept_for_the_next_start_and_given_up() -> None:
    state = ClientState(bytes(32), memif="/run/m,id=3,secret=psst")
    assert ClientState.from_json(state.to_json()) == state
    assert "psst" not in repr(state)
    assert "memif" not in ClientState(bytes(32)).to_json()
    with pytest.raises(StateError, match="memif"):
        ClientState.from_json({**state.to_json(), "memif": "/run/m,id=x"})


def test_a_join_that_this_machine_cannot_use_is_taken_back(machine: Machine) -> None:
    machine.fails = True
    with pytest.raises(RustGuardError, match="The address is taken"):
        machine.join()
    assert machine.did[-1] == ("withdraw", JOINED, machine.kept().private_key, [machine.socket])
    assert "ready" not in machine.did


def test_saving_only_makes_no_interface(machine: Machine) -> None:
    said = machine.join(save_only=True)
    assert machine.did == []
    assert said == [
        f"Saved in {machine.directory}. To connect: {as_root(f'rustguard join --state {machine.directory}')}"
    ]


def test_a_port_that_was_not_joined_is_named_with_the_one_that_was() -> None:
    state = ClientState(bytes(32), (replace(NETWORK, host="home.example", port=4000),))
    with pytest.raises(UsageError, match=r"^home\.example was not joined before") as caught:
        obtain._find_kept(None, obtain.Target("home.example", 51820), state)
    join, connect = str(caught.value.fix).splitlines()
    assert join.endswith("rustguard join home.example --token -")
    assert connect.startswith("To connect to home.example:4000, which was: ")
    assert connect.endswith("rustguard join home.example:4000")
    with pytest.raises(UsageError, match=r"^\[fd00::1\]:5 was not joined before") as caught:
        obtain._find_kept(None, obtain.Target("fd00::1", 5), state)
    assert str(caught.value.fix).endswith("rustguard join '[fd00::1]:5' --token -")
