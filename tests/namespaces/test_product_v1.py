"""The first RustGuard's wire: its client joins our server, and ours joins a server that speaks it.

No build of the first RustGuard is to be had here. In its client's place, a script that says what the wire page says
pairs from a socket of its own, and wireguard-go then carries the traffic; in its server's place is our own.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab import Lab
from support.product import HOME4, INNER, OPEN, PATIENCE, Machine, Site, eventually
from support.wireguard_go import Peer, WireGuardGo

TOKEN = "nq6d7k2mzt5c3xw4rv8h"  # noqa: S105 - of a lab that lives for seconds

# The old client's half, from the words of the specification: key in, what it was given out.
OLD_CLIENT = """
import hashlib, json, os, socket, sys
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as opened
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as sealed
token, public_key, host = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3]
key = hashlib.blake2s(b"rustguard-enroll-v1" + token.encode()).digest()
nonce = os.urandom(24)
request = b"RGE\\x01" + nonce + sealed(public_key, b"RGE\\x01", nonce, key)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.settimeout(1)
    for _ in range(10):
        udp.sendto(request, (host, 51820))
        try:
            response = udp.recv(65536)
            break
        except TimeoutError:
            continue
    else:
        sys.exit("nobody answered")
given = opened(response[28:], response[:4], response[4:28], key)
print(json.dumps([given[:32].hex(), socket.inet_ntoa(given[32:36]), given[36]]))
"""


def old_client_joins(machine: Machine, public_key: bytes, *, check: bool = True) -> tuple[bytes, str, int] | None:
    command = [sys.executable, "-c", OLD_CLIENT, TOKEN, public_key.hex(), HOME4]
    done = machine.host.run(command, check=check, timeout=120)
    if done.returncode != 0:
        return None
    server_key, address, prefix = json.loads(done.stdout)
    return bytes.fromhex(server_key), address, prefix


def fresh_key() -> tuple[bytes, bytes]:
    key = X25519PrivateKey.from_private_bytes(os.urandom(32))
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def stock_tunnel(site: Site, home: Machine) -> tuple[Machine, WireGuardGo]:
    """An old client that has joined and goes on over a WireGuard that nobody here wrote."""
    old = site.client("old", home, own_run=True)
    private_key, public_key = fresh_key()
    given = old_client_joins(old, public_key)
    assert given is not None
    server_key, address, prefix = given
    assert (address, prefix) == ("10.150.0.2", 24)
    tunnel = WireGuardGo(
        old.host,
        [f"{address}/32"],
        [Peer(server_key, ["10.150.0.0/24"], f"{HOME4}:51820")],
        private_key=private_key,
    )
    assert old_client_joins(old, public_key) == given
    return old, tunnel


@pytest.mark.needs_wireguard_go
def test_its_client_joins_our_server_and_carries_traffic(site: Site) -> None:
    home = site.home()
    home.serve(f"--pool 10.150.0.0/24 --v1-token {TOKEN} {OPEN}", token=None)
    old, _ = stock_tunnel(site, home)
    eventually(lambda: old.pings(INNER), what="a ping through the tunnel")
    assert eventually(lambda: home.pings("10.150.0.2"))
    (peer,) = home.peers().values()
    assert peer["address4"] == "10.150.0.2"
    assert TOKEN not in home.said() + home.run("status --json").stdout


@pytest.mark.needs_wireguard_go
def test_it_carries_traffic_through_two_rekeys(site: Site, soak: bool) -> None:
    if not soak:
        pytest.skip("takes 250 s: make soak")
    home = site.home()
    home.serve(f"--pool 10.150.0.0/24 --v1-token {TOKEN} {OPEN}", token=None)
    old, tunnel = stock_tunnel(site, home)
    eventually(lambda: old.pings(INNER), what="a ping through the tunnel")
    command = ["ping", "-q", "-i", "0.2", "-c", "1250", "-W", "2", INNER]
    said = old.host.run(command, timeout=300).stdout
    received = int((re.search(r"(\d+) received", said) or [0, "0"])[1])
    age = time.time() - tunnel.peer(public_key_of(home)).last_handshake
    print(f"version 1, two rekeys: {received} of 1250 pings; the last handshake was {age:.0f} s ago")
    assert received >= 1249
    assert age < 60


def public_key_of(machine: Machine) -> bytes:
    private_key = b64decode(machine.saved()["data"]["private_key"])
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def test_our_client_joins_by_version_1_and_comes_back_without_a_token(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --v1-token {TOKEN} {OPEN}", token=None)
    first = laptop.join(HOME4, "--v1", TOKEN)
    assert laptop.status()["addresses"] == ["10.150.0.2/24"]
    first.terminate()
    first.wait(PATIENCE)
    home.run("close")
    laptop.join(HOME4, token=None)
    assert laptop.status()["addresses"] == ["10.150.0.2/24"]


def test_a_closed_window_lets_nobody_in_by_version_1_either(site: Site) -> None:
    home = site.home()
    old = site.client("old", home)
    home.serve("--pool 10.150.0.0/24 --v1-token", token=None)
    token = (home.state / "v1-token").read_text().strip()
    assert eventually(lambda: "v1-token" in home.said())
    assert token not in home.said()
    assert old_client_joins(old, fresh_key()[1], check=False) is None
    assert home.peers() == {}


def test_an_old_request_takes_nobodys_preshared_key_away(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --v1-token {TOKEN} {OPEN}")
    laptop.join(HOME4)
    (before,) = home.saved()["data"]["peers"]
    assert old_client_joins(laptop, public_key_of(laptop), check=False) is None
    (after,) = home.saved()["data"]["peers"]
    assert after["preshared_key"] == before["preshared_key"]
    assert laptop.reaches(INNER)


def test_version_1_is_never_tried_unasked(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --v1-token {TOKEN} {OPEN}", token=None)
    done = laptop.run(f"join {HOME4}", TOKEN, check=False)
    assert done.returncode == 5
    assert home.peers() == {}


def test_a_token_that_is_refused_changes_nothing_and_keeps_nothing(site: Site) -> None:
    home = site.home()
    before = home.network()
    done = home.run("serve --pool 10.150.0.0/24 --v1-token short", check=False)
    assert done.returncode == 2
    assert "too easily found" in done.stderr
    assert "[#]" not in done.stderr
    assert home.network() == before
    assert not (home.state / "state.json").exists()
