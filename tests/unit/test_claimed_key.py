"""A server that gives another server's key: the client keeps what it has of that one until the key is proved."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.daemon.console import Voice
from rustguard_py.enroll.client import checks, obtain
from rustguard_py.enroll.client.obtain import Applicant, Target
from rustguard_py.enroll.client.routes import RouteAnswers
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.enroll.pairing.outputs import Admit, Forgotten, Guessed, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, UnansweredError
from rustguard_py.model.keys import public_key
from rustguard_py.state.document import Document
from support.wire_link import TOKEN, admission, cheap_stretch

HERE: Endpoint = ("192.0.2.2", 40000)
THERE: Endpoint = ("192.0.2.1", 51820)


class Server:
    """A server that knows the token and gives whatever key it likes."""

    def __init__(self, private_key: bytes, claims: bytes | None = None) -> None:
        self.window, server_id = Window(), os.urandom(32)
        self.window.open(600, 0.0)
        tokens = {0: cheap_stretch(TOKEN, server_id)}
        self.pairing = PairingServer(server_id, private_key, tokens, self.window, os.urandom, 0.0)
        self.key = public_key(private_key) if claims is None else claims
        self.admitted: list[bytes] = []
        self.forgotten: list[bytes] = []

    def answer(self, outputs: list[Output]) -> list[bytes]:
        answers = []
        for output in outputs:
            match output:
                case Reply(datagram):
                    answers.append(datagram)
                case Guessed(reply=Reply(datagram)):
                    answers.append(datagram)
                case Forgotten(preshared_key=preshared_key):
                    self.forgotten.append(preshared_key)
                case Admit():
                    self.admitted.append(output.preshared_key)
                    given = replace(admission(IPv4Address("10.150.0.2")), server_key=self.key)
                    answers += self.answer(self.pairing.answer(output.session, given.to_mapping(), 0.0, created=True))
        return answers

    def tell(self, datagram: bytes, now: float = 0.0) -> list[bytes]:
        return self.answer(self.pairing.handle(datagram, HERE, now))


class Joining:
    """A client, and servers by the names that it joins them by."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.document = Document.open(directory)
        self.servers: dict[str, Server] = {}
        self.said: list[str] = []
        monkeypatch.setattr(obtain, "resolve", self._resolve)
        monkeypatch.setattr(obtain, "ask", self._ask)
        monkeypatch.setattr(obtain, "now", lambda: 0.0)
        monkeypatch.setattr(obtain, "PairingClient", partial(PairingClient, stretching=cheap_stretch))
        monkeypatch.setattr(obtain, "_take_back", lambda joined, _: self._asked.tell(joined.forget))
        monkeypatch.setattr(checks, "taken_networks", list)

    async def _resolve(self, host: str, _: int) -> list[Endpoint]:
        self._asked = self.servers[host]
        return [THERE]

    async def _ask(self, client: PairingClient, *_: Sequence[Any]) -> Joined:
        at = 0.0
        while client.outcome is None:
            client.handle_timeout(at)
            while (transmit := client.poll_transmit()) is not None:
                for answer in self._asked.tell(transmit.datagram, at):
                    client.handle(answer, THERE, at)
            at = client.poll_timeout() or at
        if isinstance(client.outcome, Joined):
            return client.outcome
        raise client.outcome.error()

    def join(self, host: str) -> None:
        voice = Voice(self.said.append, self.said.append)
        state, applicant = obtain.load(self.document), Applicant(TOKEN, "laptop")
        answers = RouteAnswers(None, None)
        asyncio.run(obtain.obtain(Target.parse(host, None), applicant, self.document, state, [], voice, answers))

    @property
    def kept(self) -> dict[str, bytes]:
        return {each.host: each.server_key for each in obtain.load(self.document).networks}


@pytest.fixture
def joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joining]:
    joining = Joining(tmp_path / "state", monkeypatch)
    yield joining
    joining.document.close()


def test_a_server_that_gives_another_ones_key_is_refused_and_the_other_ones_record_stays(joining: Joining) -> None:
    home = joining.servers["home.example"] = Server(os.urandom(32))
    false = joining.servers["cafe.example"] = Server(os.urandom(32), claims=home.key)
    joining.join("home.example")
    before = obtain.load(joining.document)
    with pytest.raises(RefusedError, match=r"gave the key of home\.example, which was joined before, but") as caught:
        joining.join("cafe.example")
    assert caught.value.fix == "Ask whoever runs cafe.example: no two servers have the same key."
    assert obtain.load(joining.document) == before
    assert false.forgotten == false.admitted
    # What was kept is checked as before.
    joining.servers["home.example"] = Server(os.urandom(32))
    with pytest.raises(RefusedError, match="doesn't know this token"):
        joining.join("home.example")
    assert joining.kept == {"home.example": home.key}


def test_the_same_server_under_another_name_proves_its_key_and_replaces_its_record(joining: Joining) -> None:
    home = joining.servers["home.example"] = joining.servers["192.0.2.1"] = Server(os.urandom(32))
    joining.join("home.example")
    joining.join("192.0.2.1")
    assert joining.kept == {"192.0.2.1": home.key}
    (network,) = obtain.load(joining.document).networks
    assert network.preshared_key == home.admitted[-1]
    assert len(home.admitted) == 3
    assert not home.forgotten
    # By the name that is kept it proves the key in one pairing.
    joining.join("192.0.2.1")
    assert len(home.admitted) == 4


def test_a_server_that_is_silent_when_it_should_prove_another_ones_key_changes_nothing(joining: Joining) -> None:
    home = joining.servers["home.example"] = Server(os.urandom(32))
    false = joining.servers["cafe.example"] = Server(os.urandom(32), claims=home.key)
    joining.join("home.example")
    answer = false.answer

    def once(outputs: list[Output]) -> list[bytes]:
        answers = answer(outputs)
        if false.admitted:
            false.window.close()
        return answers

    false.answer = once  # type: ignore[method-assign]
    with pytest.raises(UnansweredError):
        joining.join("cafe.example")
    assert joining.kept == {"home.example": home.key}
    assert false.forgotten == false.admitted


def test_another_port_of_the_same_machine_is_another_place(joining: Joining) -> None:
    home = joining.servers["home.example"] = Server(os.urandom(32))
    joining.join("home.example:443")
    joining.servers["home.example"] = Server(os.urandom(32), claims=home.key)
    with pytest.raises(RefusedError) as caught:
        joining.join("home.example:51820")
    assert caught.value.message.startswith(
        "home.example, port 51820, gave the key of home.example, port 443, which was joined before, but doesn't own"
    )
    assert joining.kept == {"home.example": home.key}


def test_another_server_with_a_key_of_its_own_is_kept_next_to_the_first(joining: Joining) -> None:
    home = joining.servers["home.example"] = Server(os.urandom(32))
    office = joining.servers["office.example"] = Server(os.urandom(32))
    joining.join("home.example")
    joining.join("office.example")
    assert joining.kept == {"home.example": home.key, "office.example": office.key}
    assert len(office.admitted) == 1
