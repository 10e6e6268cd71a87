"""Others' handshakes while a peer, or strangers, send what could take their place."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import Lab
from support.attack_table import Row
from support.engines import on_the_better_engine
from support.flood import Flood
from support.our_tunnel import OurTunnel
from support.wireguard_go import Peer

pytestmark = pytest.mark.alone

PORT = 51820
# Datagrams per second of each kind. What the plane has no time to look at, the kernel drops, whichever kind it is.
# Then the machine is too busy for that rate, and nothing can be said of the lanes: the next rate is tried.
_RATES = (20_000, 5_000, 1_250)
# What no machine keeps up with in Python: there the control needs the gate to be full.
_CONTROL = 20_000
_KEPT_UP = 0.95
_RAW_PEER = str(Path(__file__).parents[1] / "support" / "raw_peer.py")
_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1])}


class _Scene:
    """A server with two peers on hosts of their own, and a stranger with a link of its own."""

    def __init__(self, lab: Lab, folder: Path, engine: str, *, believing: bool = False) -> None:
        server, self.mover, self.other, stranger = (
            lab.host(name) for name in ("server", "mover", "other", "stranger")
        )
        self.near, _ = lab.link(server, self.mover, ipv4="192.0.2.0/29")
        self.far, _ = lab.link(server, self.other, ipv4="192.0.2.8/29")
        self.attacked, self.attacker = lab.link(server, stranger, ipv4="192.0.2.16/29")
        self.keys = [X25519PrivateKey.generate() for _ in range(2)]
        peers = [
            Peer(key.public_key().public_bytes_raw(), [f"10.9.0.{number}/32"])
            for number, key in enumerate(self.keys, start=2)
        ]
        self.server = OurTunnel(
            server, ["10.9.0.1/32"], peers, folder=folder, port=PORT, engine=engine, believing=believing
        )
        server.ip([f"route add 11.0.0.0/8 via {self.attacker.ipv4}"])
        for each in ("all", "default", *(one.interface for one in server.ends)):
            server.sysctl(f"net.ipv4.conf.{each}.rp_filter", 0)

    def move(self, rate: int, seconds: float) -> subprocess.Popen[str]:
        """Have the first peer send from two ports by turns."""
        argv = self._argv("move", f"{self.near.ipv4}", 0, rate, seconds)
        program = self.mover.popen(argv, stdout=subprocess.PIPE, env=_ENVIRONMENT)
        assert program.stdout is not None
        assert program.stdout.readline() == "moving\n"
        return program

    def shake(self, pause: float, seconds: float) -> list[float | None]:
        """Have the second peer shake hands again and again. Return the seconds that each took."""
        argv = self._argv("shake", f"{self.far.ipv4}", 1, pause, seconds)
        took: list[float | None] = json.loads(self.other.run(argv, env=_ENVIRONMENT, timeout=seconds + 60).stdout)
        return took

    def _argv(self, what: str, server: str, key: int, number: float, seconds: float) -> list[str]:
        keys = self.keys[key].private_bytes_raw().hex(), self.server.public_key.hex()
        return [sys.executable, _RAW_PEER, what, server, f"{PORT}", *keys, f"{number}", f"{seconds}"]


@pytest.mark.fault(38)
@pytest.mark.attack("a peer that moves with every datagram")
@on_the_better_engine
def test_a_peer_that_moves_with_every_datagram_delays_nobodys_handshake(
    lab: Lab, tmp_path: Path, long_form: bool, row: Row, engine: str
) -> None:
    scene = _Scene(lab, tmp_path, engine)
    seconds = 30.0 if long_form else 4.0
    asked = 15_000
    mover = scene.move(asked, seconds + 2)
    took = scene.shake(0.25, seconds)
    said, _ = mover.communicate(timeout=60)
    rate = int(said) / (seconds + 2)
    answered = [each for each in took if each is not None]
    moves = len(scene.server.said("moved"))
    row.seen(
        f"{rate:,.0f} datagrams/s from two ports by turns ({engine}): {len(took)} handshakes of another, "
        f"{len(took) - len(answered)} unanswered, {statistics.median(answered) * 1000:.1f} ms in the middle, "
        f"{max(answered) * 1000:.1f} ms at most; {moves} moves reported"
    )
    row.control("recorded before moves were coalesced: another's handshake went from 10 ms to never")
    # A busy machine sends fewer, and an attack of a few shows nothing.
    assert rate > asked / 2
    assert len(answered) == len(took)
    assert statistics.median(answered) < 0.05
    assert max(answered) < 0.5
    # Ten a second, and the other peer's first.
    assert moves <= 10 * (seconds + 3) + 2


@pytest.mark.fault(38)
@pytest.mark.attack("a flood of zeros and one of garbage as MAC2")
@on_the_better_engine
def test_strangers_without_a_proof_and_with_a_made_up_one_together_keep_nobody_out(
    lab: Lab, tmp_path: Path, long_form: bool, row: Row, engine: str
) -> None:
    scene = _Scene(lab, tmp_path, engine)
    seconds = 30.0 if long_form else 4.0
    kinds = ("initiation", "initiation with a cookie")
    key = scene.server.public_key
    for many in _RATES[0 if long_form and engine == "native" else 1 :]:
        before = sum(scene.server.stats()["drops"].values())
        floods = [Flood(scene.attacker, scene.attacked, PORT, many, kind, public_key=key) for kind in kinds]
        took = scene.shake(0.25, seconds)
        flooded = [flood.end() for flood in floods]
        dropped = sum(scene.server.stats()["drops"].values()) - before
        # The plane counts a little late: what is missing here may come on top of the next rate's.
        judged = min(1.0, dropped / sum(each.datagrams for each in flooded))
        answered = [each for each in took if each is not None]
        row.seen(
            f"{flooded[0].rate:,.0f}/s without a proof and {flooded[1].rate:,.0f}/s with a made-up one ({engine}), "
            f"{judged:.0%} of them judged: {len(took)} handshakes of a peer, {len(took) - len(answered)} unanswered, "
            f"{statistics.median(answered or [1.0]) * 1000:.1f} ms in the middle"
        )
        assert min(each.rate for each in flooded) > many / 2
        if _kept_in(took) or judged > _KEPT_UP:
            break
    assert _kept_in(took)


def _kept_in(took: list[float | None]) -> bool:
    """Return whether the peer's handshakes go on: nearly all are answered, and soon."""
    answered = [each for each in took if each is not None]
    return len(answered) >= 0.85 * len(took) and statistics.median(answered) < 0.25


@pytest.mark.attack("a flood of zeros and one of garbage as MAC2")
def test_control_where_any_mac2_is_believed_the_peer_is_kept_out(lab: Lab, tmp_path: Path, row: Row) -> None:
    """The portable plane, with a gate that doesn't check MAC2: garbage takes the places of senders with a cookie."""
    scene = _Scene(lab, tmp_path, "portable", believing=True)
    key = scene.server.public_key
    kinds = ("initiation", "initiation with a cookie")
    floods = [Flood(scene.attacker, scene.attacked, PORT, _CONTROL, kind, public_key=key) for kind in kinds]
    # By then the garbage has filled its queue.
    time.sleep(1.5)
    took = scene.shake(0.1, 1.5)
    flooded = [flood.end() for flood in floods]
    answered = [each for each in took if each is not None]
    row.control(
        f"a gate that believes any MAC2, {flooded[0].rate:,.0f}/s and {flooded[1].rate:,.0f}/s: "
        f"{len(answered)} of {len(took)} handshakes answered"
    )
    assert not _kept_in(took)
