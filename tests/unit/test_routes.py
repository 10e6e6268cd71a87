"""Routes that a server offers: none is used that the user hasn't accepted, and the answer is kept."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli.app import run
from rustguard_py.cli.join import _confirm
from rustguard_py.daemon.console import Voice
from rustguard_py.enroll import export
from rustguard_py.enroll.client import checks, obtain, routes
from rustguard_py.enroll.client.obtain import Applicant, Target
from rustguard_py.enroll.client.routes import RouteAnswers, RouteChoice
from rustguard_py.enroll.pairing.admission import Admission
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.model.sudo import as_root
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.document import Document

OFFICE, HALF, DNS, INSIDE = map(ip_network, ("192.168.7.0/24", "0.0.0.0/2", "8.8.8.8/32", "10.150.0.128/25"))
SERVER, PSK = bytes([7]) * 32, bytes([9]) * 32
TARGET, APPLICANT = Target("home.example"), Applicant("token", "laptop")


class Joining:
    """A client whose pairing ends with what a server offers."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.document = Document.open(directory)
        self.offered: list[Network] = [OFFICE, HALF, DNS, INSIDE]
        self.address4 = "10.150.0.2/24"
        self.gateway4 = "10.150.0.1"
        self.said: list[str] = []
        self.taken_back: list[Joined] = []
        monkeypatch.setattr(obtain, "_pair", self._pair)
        monkeypatch.setattr(obtain, "_take_back", lambda joined, _sockets: self.taken_back.append(joined))
        monkeypatch.setattr(checks, "taken_networks", list)

    async def _pair(self, *_: Any) -> Joined:
        members = {
            "name": "laptop",
            "address4": self.address4,
            "server_key": encode_key(SERVER),
            "port": 51820,
            "mtu": 1420,
            "keepalive": 25,
            "routes": list(map(str, self.offered)),
            "gateway4": self.gateway4,
        }
        given = Admission.from_mapping(members)
        assert given is not None
        return Joined(given, PSK, ("192.0.2.1", 51820), b"")

    def join(self, choice: str | None = None, answer: bool | None = None, *, pairs: bool = True) -> NetworkRecord:
        """Join, or connect to what was kept; return the network that the tunnel then uses, which must be saved."""

        async def confirm(question: str) -> bool:
            self.said.append(question)
            assert answer is not None
            return answer

        answers = RouteAnswers(
            None if choice is None else RouteChoice.parse(choice), confirm if answer is not None else None
        )
        self.said = []
        voice = Voice(self.said.append, self.said.append)
        state = obtain.load(self.document)
        applicant = APPLICANT if pairs else None
        obtained = asyncio.run(obtain.obtain(TARGET, applicant, self.document, state, [], voice, answers))
        network = obtained.network
        assert obtain.load(self.document).network() == network
        config = export.of_client(state, network)
        assert config.peers[0].allowed_ips == (*network.pools, *network.routes)
        return network

    @property
    def words(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joining]:
    joining = Joining(tmp_path / "state", monkeypatch)
    yield joining
    joining.document.close()


def test_without_a_terminal_nothing_beyond_the_pool_is_routed_and_the_offer_is_shown(joining: Joining) -> None:
    network = joining.join()
    assert network.routes == ()
    assert network.offered == (OFFICE, HALF, DNS)
    assert (
        "home.example also offers routes to 192.168.7.0/24, 0.0.0.0/2, 8.8.8.8/32; they are not used. "
        + f"To accept them: {as_root('rustguard join home.example --routes 192.168.7.0/24,0.0.0.0/2,8.8.8.8/32')}"
    ) in joining.words
    # The window may be closed by now: what was offered is known.
    assert joining.join("192.168.7.0/24", pairs=False).routes == (OFFICE,)
    assert joining.join(pairs=False).routes == (OFFICE,)


def test_a_list_accepts_what_is_offered_of_it(joining: Joining) -> None:
    network = joining.join("192.168.0.0/16,1.1.1.0/24, 2001:db8::/32,9.0.0.0/8")
    assert network.routes == (OFFICE, ip_network("1.1.1.0/24"), ip_network("9.0.0.0/8"))
    assert "home.example offers no route to 2001:db8::/32." in joining.words
    assert "192.168.7.0/24" in joining.words
    assert joining.join("none", pairs=False).routes == ()
    assert joining.join(pairs=False).routes == ()


def test_all_is_kept_for_what_is_offered_later(joining: Joining) -> None:
    assert joining.join("all").routes == (OFFICE, HALF, DNS)
    joining.offered = [DNS, ip_network("172.16.0.0/16")]
    assert joining.join().routes == (DNS, ip_network("172.16.0.0/16"))
    assert joining.join("none").routes == ()
    assert joining.join().routes == ()


@pytest.mark.parametrize(("answer", "accepted"), [(True, (OFFICE, HALF, DNS)), (False, ())])
def test_a_person_at_a_terminal_is_asked_once(joining: Joining, answer: bool, accepted: tuple[Network, ...]) -> None:
    assert joining.join(answer=answer).routes == accepted
    assert "home.example offers routes to 192.168.7.0/24, 0.0.0.0/2, 8.8.8.8/32." in joining.words
    assert joining.join(answer=not answer).routes == accepted
    assert joining.join(pairs=False, answer=not answer).routes == accepted
    joining.offered.append(ip_network("172.16.0.0/16"))
    assert joining.join(answer=True).routes == (*accepted, ip_network("172.16.0.0/16"))
    assert "offers routes to 172.16.0.0/16." in joining.words


def test_who_leaves_the_question_unanswered_has_joined_without_the_routes(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(*_: object) -> NetworkRecord:
        raise asyncio.CancelledError

    monkeypatch.setattr(routes, "ask", interrupt)
    with pytest.raises(asyncio.CancelledError):
        joining.join(answer=True)
    saved = obtain.load(joining.document).network()
    assert saved is not None
    assert saved.routes == ()


def test_what_was_accepted_is_not_accepted_of_another_network(joining: Joining) -> None:
    assert joining.join("192.168.7.0/24").routes == (OFFICE,)
    joining.offered = [ip_network("192.168.0.0/16"), DNS]
    # Of a wider network, only the part that was accepted.
    assert joining.join().routes == (OFFICE,)


@pytest.mark.parametrize(
    ("address", "gateway"), [("8.8.8.2/24", "8.8.8.1"), ("64.0.0.2/2", "64.0.0.1"), ("10.0.0.2/1", "10.0.0.1")]
)
def test_a_pool_of_the_internet_is_refused_unless_it_is_meant(joining: Joining, address: str, gateway: str) -> None:
    joining.address4, joining.gateway4 = address, gateway
    pool = ip_interface(address).network
    with pytest.raises(RefusedError, match="public addresses") as refused:
        joining.join()
    assert f"--routes {pool}" in refused.value.fix
    assert len(joining.taken_back) == 1, "the server is told to forget the machine"
    assert obtain.load(joining.document).network() is None
    assert joining.join(str(pool)).pools == (pool,)
    assert joining.join().pools == (pool,)


def test_routes_of_an_earlier_version_stay_and_are_logged_once(
    joining: Joining, caplog: pytest.LogCaptureFixture
) -> None:
    network = replace(joining.join("192.168.7.0/24"), offered=())
    joining.document.save(ClientState(PSK, (network,)).to_json())
    caplog.set_level(logging.WARNING)
    assert joining.join(pairs=False).routes == (OFFICE,)
    assert joining.join(pairs=False).routes == (OFFICE,)
    assert [each.getMessage() for each in caplog.records] == [
        "the routes to 192.168.7.0/24 through home.example stay: an earlier version took them without asking. "
        + f"To drop them: {as_root('rustguard join home.example --routes none')}"
    ]
    assert joining.join("none", pairs=False).routes == ()
    assert joining.join(pairs=False).routes == ()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", ["", "ALL", "yes", "10.0.0.1/8", "fd00::%eth0/64", "10.0.0.0/8,", "a" * 99])
def test_a_list_that_is_none_is_a_usage_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--routes"):
        RouteChoice.parse(text)
    assert run(["join", "home.example", "--token", "x", "--routes", text, "--state", str(tmp_path)]) == 2
    assert "--routes" in capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal that standard input is; give the end that a person types at."""
    typed, shown = os.openpty()
    with open(shown, encoding="utf-8") as stdin:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdin", stdin)
        yield typed
    os.close(typed)


@pytest.mark.parametrize(
    ("line", "answer"), [(b"y\n", True), (b"Yes\n", True), (b"\n", False), (b"n\n", False), (b"yesterday\n", False)]
)
def test_only_yes_is_yes(terminal: int, line: bytes, answer: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def answered() -> bool:
        asyncio.get_running_loop().call_later(0.05, os.write, terminal, line)
        return await _confirm("home\x1b[2J offers routes.")

    assert asyncio.run(asyncio.wait_for(answered(), 5)) is answer
    assert capsys.readouterr().err == "home\\x1b[2J offers routes. [y/N] "


@pytest.mark.usefixtures("terminal")
def test_an_unanswered_question_can_be_interrupted() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_confirm("home offers routes."), 0.1))
