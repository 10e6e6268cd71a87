"""What programs see of the kernel's interface, they see of ours: counters, unreachable addresses, a down link."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rustguard_py.lab.hosts import Lab
from support.engines import on_both_engines
from support.product import eventually
from support.wireguards import HERE4, THERE4, Implementation, Pair, linked, reaches, wg


def _transfer(pair: Pair) -> tuple[int, int]:
    received, sent = wg(pair.one.host, "show", "wg0", "transfer").split()[1:]
    return int(received), int(sent)


@on_both_engines
def test_a_transfer_has_the_kernels_bytes(lab: Lab, tmp_path: Path, engine: str) -> None:
    pair = Pair(*linked(lab), Implementation(engine, tmp_path))
    pair.one.host.run(["ping", "-n", "-c10", "-i0.02", "-W10", THERE4])
    # Ten packets of 84 bytes, padded to 96, and a handshake of 148 and 92.
    assert _transfer(pair) == (10 * 128 + 92, 10 * 128 + 148)


@on_both_engines
def test_what_no_peer_takes_is_unreachable_at_once(lab: Lab, tmp_path: Path, engine: str) -> None:
    host = Pair(*linked(lab), Implementation(engine, tmp_path)).one.host
    for address, words in (("10.9.0.77", "Destination Host Unreachable"), ("fd09::77", "Address unreachable")):
        said = host.run(["ping", "-n", "-c1", "-W20", address], check=False).stdout
        assert f"From {address} " in said
        assert words in said
        ask = f"import socket; socket.create_connection(({address!r}, 1), 30)"
        refused = host.run([sys.executable, "-c", ask], check=False)
        assert "No route to host" in refused.stderr


@on_both_engines
def test_a_link_that_is_down_is_silent_and_begins_when_it_comes_up(lab: Lab, tmp_path: Path, engine: str) -> None:
    pair = Pair(*linked(lab), Implementation(engine, tmp_path))
    one, other = pair.one.host, pair.other.host
    other.ip(["link set dev wg0 down"])
    one.ip(["link set dev wg0 down"])
    time.sleep(0.3)
    # It isn't up yet, so nothing goes to a peer that isn't up either.
    pair.set_one("persistent-keepalive", "25")
    time.sleep(0.5)
    assert _transfer(pair) == (0, 0)
    other.ip(["link set dev wg0 up"])
    began = time.monotonic()
    one.ip(["link set dev wg0 up"])
    eventually(lambda: wg(one, "show", "wg0", "latest-handshakes").split()[1] != "0", 4, "a handshake")
    took = time.monotonic() - began
    print(f"link up: {engine}: a handshake after {took:.2f} s")
    # Down again it takes nothing, and up again it goes on.
    one.ip(["link set dev wg0 down"])
    time.sleep(0.3)
    before = _transfer(pair)
    assert not reaches(other, HERE4)
    assert _transfer(pair) == before
    one.ip(["link set dev wg0 up", f"route replace {THERE4}/32 dev wg0"])
    eventually(lambda: reaches(one, THERE4), 4, "a ping")
