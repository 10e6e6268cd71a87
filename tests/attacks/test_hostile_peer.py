"""A peer, or somebody who knows the token, who wants what is another's."""

from __future__ import annotations

import json
import sys
import time
from base64 import b64decode
from pathlib import Path

import pytest

from rustguard_py import conf_reader
from rustguard_py.enroll.pairing import attempts, sessions
from rustguard_py.enroll.pairing.messages import Details
from rustguard_py.enroll.pairing.outcome import Joined
from rustguard_py.enroll.pairing.outputs import Admit
from rustguard_py.lab.hosts import Host
from support import raw_peer
from support.attack_table import Row
from support.crowd import join_at_once
from support.hostile_pairing import hostile_client
from support.product import HOME4, INNER, OPEN, PATIENCE, POOL, TOKEN, Site
from support.uapi import peers_of
from support.wire_link import World

IN_2150 = 5_680_281_600


# -- another's key -------------------------------------------------------------------------------------------


@pytest.mark.fault(43)
@pytest.mark.attack("a token holder with another's public key")
def test_who_knows_the_token_gets_nothing_with_a_key_that_is_not_its_own(site: Site, row: Row) -> None:
    home = site.home()
    laptop, stranger = site.client("laptop", home), site.client("stranger", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.join(f"{laptop.servers_end.ipv4}")
    before = home.peers()["laptop"]
    key = b64decode(before["public_key"])
    address = f"{stranger.servers_end.ipv4}"
    outcome: str = hostile_client(stranger.host, address, TOKEN, public_key=key).line()["outcome"]
    after = home.peers()
    assert outcome.startswith("The other end doesn't know this token")
    assert list(after) == ["laptop"]
    assert [after["laptop"][member] for member in ("endpoint", "address4")] == [
        before[member] for member in ("endpoint", "address4")
    ]
    assert home.status()["window"]["guesses_used"] == 1
    assert laptop.pings(INNER)
    # The same program with its own key does join.
    assert hostile_client(stranger.host, address, TOKEN).line()["outcome"] == "joined"
    row.seen("refused as a wrong token is; the peer's session, endpoint and key unmoved")


@pytest.mark.fault(43)
@pytest.mark.attack("a token holder with another's public key")
def test_control_without_the_proof_of_the_key_it_is_admitted(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    """Both ends leave out the secret that only the key's owner and the server can compute."""
    assert not _admitted_with_anothers_key()
    monkeypatch.setattr(sessions, "shared_secret", lambda *_: bytes(32))
    monkeypatch.setattr(attempts, "shared_secret", lambda *_: bytes(32))
    assert _admitted_with_anothers_key()
    row.control("the same pairing without the proof of the key: admitted in the other's name")


def _admitted_with_anothers_key() -> bool:
    world = World(9)
    world.open()
    others = bytes([9]) * 32
    joining = world.join(1)
    joining.client._details = Details(others, "laptop").encode()
    world.run(60)
    admitted = [each for each in world.outputs if isinstance(each, Admit) and each.public_key == others]
    return bool(admitted) and isinstance(joining.outcome, Joined)


# -- another's name ------------------------------------------------------------------------------------------


@pytest.mark.attack("names that are keys, options or look-alikes")
def test_a_name_that_could_be_taken_for_another_peer_is_refused(site: Site, row: Row) -> None:
    home = site.home()
    laptop, stranger = site.client("laptop", home), site.client("stranger", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.run(f"join {laptop.servers_end.ipv4} --save-only --name laptop", TOKEN)
    key = home.peers()["laptop"]["public_key"]
    sources = [f"203.0.113.{number}" for number in range(1, 8)]
    stranger.host.ip([f"addr add {each}/32 dev {stranger.own_end.interface}" for each in sources])
    home.host.ip([f"route add 203.0.113.0/24 via {stranger.own_end.ipv4}"])
    refused = [key, "--help", " laptop", "laptop ", "\uff4captop", "a\x1b[2J", "x\u202ey"]
    address = f"{stranger.servers_end.ipv4}"
    attackers = [
        hostile_client(stranger.host, address, TOKEN, name=name.encode(), source=source)
        for name, source in zip(refused, sources, strict=True)
    ]
    assert [name for name, each in zip(refused, attackers, strict=True) if each.line()["outcome"] == "joined"] == []
    home.run("open 600")
    # Plain letters that a peer has already get a number.
    assert hostile_client(stranger.host, address, TOKEN, name=b"laptop").line()["outcome"] == "joined"
    assert sorted(home.peers()) == ["laptop", "laptop-2"]
    said = home.run(f"peers revoke {key}").stderr
    assert list(home.peers()) == ["laptop-2"]
    assert "Change the token" in " ".join(said.split())
    row.seen(f"{len(refused)} of {len(refused)} refused; `peers revoke KEY` removed the key's own peer")
    row.control("recorded before names were checked: `revoke KEY` removed a decoy that was called KEY")


# -- a revoked peer ------------------------------------------------------------------------------------------


@pytest.mark.fault(37)
@pytest.mark.attack("revoke while a join is being saved")
def test_a_peer_that_is_revoked_as_it_joins_is_in_no_tunnel(site: Site, long_form: bool, row: Row) -> None:
    home = site.machine("home", own_run=True)
    first = site.client("first", home)
    home.serve(f"--pool {POOL} {OPEN}")
    tries = 40 if long_form else 8
    revoked = set()
    for begin in range(0, tries, 4):
        machines = [site.machine(f"joins-{begin + number}", first.host) for number in range(4)]
        programs = [
            each.start(f"join {first.servers_end.ipv4} --save-only --name {each.state.name}", TOKEN)
            for each in machines
        ]
        while any(program.poll() is None for program in programs):
            for peer in home.ask("peers")["peers"]:
                revoked.add(peer["public_key"])
                home.ask("revoke", who=peer["public_key"])
            time.sleep(0.0005)
    listed = {peer["public_key"] for peer in home.ask("peers")["peers"]}
    assert peers_of(home.host, "rg0") == listed
    assert len(revoked) >= tries * 3 // 4
    row.seen(f"{len(revoked)} of {tries} revoked as they joined: the tunnel has exactly the {len(listed)} listed")
    row.control("recorded before changes were compared again when durable: 3 of 8 stayed live and unlisted")


# -- a clock in 2150 -----------------------------------------------------------------------------------------


@pytest.mark.attack("a handshake with a time in 2150")
def test_a_peer_whose_clock_was_ahead_is_named_and_comes_back_after_a_reset(
    site: Site, tmp_path: Path, row: Row
) -> None:
    home = site.home()
    phone = site.client("phone", home)
    home.serve(f"--pool {POOL}")
    path = tmp_path / "phone.conf"
    home.run(f"export --new phone --endpoint {HOME4} -o {path}")
    shakes = _Shaking(phone.host, f"{phone.servers_end.ipv4}", path)
    assert shakes.answered(0)
    assert shakes.answered(IN_2150 - int(time.time()))
    assert not shakes.answered(0)
    row.control("a peer whose clock was in 2150 once is refused until somebody resets it")
    assert "its clock was once at 2150-01-01" in " ".join(home.run("peers").stdout.split())
    home.run("peers reset phone")
    assert shakes.answered(0)
    row.seen("named by `peers`, and let in again by `peers reset`")


class _Shaking:
    """A stock peer with an exported file, whose clock can be set."""

    def __init__(self, host: Host, server: str, path: Path) -> None:
        config = conf_reader.parse(path.read_text())
        self._host, (peer,) = host, config.peers
        assert config.private_key is not None
        self._keys = [config.private_key.hex(), peer.public_key.hex()]
        self._server, self._preshared_key = server, peer.preshared_key.hex()

    def answered(self, ahead: int) -> bool:
        """Return whether a handshake is answered while the clock is so many seconds ahead."""
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PRESHARED_KEY": self._preshared_key,
            "CLOCK": f"{ahead}",
        }
        argv = [sys.executable, str(Path(raw_peer.__file__)), "shake", self._server, "51820", *self._keys, "0.1", "1"]
        took = json.loads(self._host.run(argv, env=environment).stdout)
        return any(each is not None for each in took)


# -- a pool that is filled -----------------------------------------------------------------------------------


@pytest.mark.attack("a token holder that joins with many keys")
def test_a_window_admits_fifty_new_peers_whoever_asks(site: Site, row: Row) -> None:
    home = site.home()
    stranger = site.client("stranger", home)
    home.serve(f"--pool {POOL} {OPEN}")
    network = "203.0.113.0/25"
    home.host.ip([f"route add {network} via {stranger.own_end.ipv4}"])
    crowd = join_at_once(stranger.host, network, 56, f"{stranger.servers_end.ipv4}", TOKEN, PATIENCE)
    assert (len(crowd.addresses), len(home.status()["peers"])) == (50, 50)
    assert sum(crowd.failed.values()) == 6
    row.seen(f"{len(crowd.addresses)} of 56 admitted, {sum(crowd.failed.values())} told that the window is full")
    row.control("`open --most N` admits more: the crowd of `make soak` joins with 10,000 keys")
