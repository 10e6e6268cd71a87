"""What is set in the kernel can be read back, however many there are; and what works without root."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest

from rustguard_py.kernel import netlink
from rustguard_py.kernel.messages import KernelPeerChange
from rustguard_py.kernel.netlink import KernelInterface
from rustguard_py.lab.hosts import Lab
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import generate_private_key, public_key
from support.product import eventually

ALIAS = "rustguard a test"
OTHER_USER = 65534


def networks(number: int) -> list[Network]:
    """Several networks that nobody else has."""
    high, low = divmod(number, 256)
    return [
        *(IPv4Network((f"10.{high}.{low}.{16 * part}", 28)) for part in range(2)),
        IPv6Network(f"fd00:{number:x}::/64"),
    ]


@pytest.fixture
def device() -> Iterator[KernelInterface]:
    made = KernelInterface.make("rgtest", ALIAS)
    yield made
    made.remove()


def test_a_thousand_peers_are_read_as_they_were_set(device: KernelInterface) -> None:
    private_key = generate_private_key()
    device.configure(private_key=private_key, port=5555, fwmark=0xABCD)
    wanted = [
        KernelPeerChange(
            os.urandom(32),
            os.urandom(32),
            ("192.0.2.1", 1 + number) if number % 2 else ("fe80::1", 1 + number, 0, 2),
            number % 100,
            networks(number),
        )
        for number in range(1000)
    ]
    # One has more than fit a message, either way.
    many = [ip_network(f"172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}") for n in range(1500)]
    wanted[500] = KernelPeerChange(wanted[500].public_key, os.urandom(32), None, 5, many)
    device.set_peers(wanted)

    state = device.read(allowed_ips=True)
    assert (state.port, state.fwmark, state.public_key) == (5555, 0xABCD, public_key(private_key))
    assert len(state.peers) == 1000
    for each in wanted:
        got = state.peers[each.public_key]
        assert (got.preshared_key, got.endpoint, got.keepalive) == (each.preshared_key, each.endpoint, each.keepalive)
        assert set(got.allowed_ips) == set(each.allowed_ips or ())
        assert got.last_handshake is None

    # Networks move from peer to peer, what isn't named stays, and what is only to be changed isn't made.
    a, b, c, *rest = (each.public_key for each in wanted)
    device.set_peers(
        [
            *(KernelPeerChange(key, remove=True) for key in rest),
            KernelPeerChange(b, allowed_ips=networks(0)),
            KernelPeerChange(c, keepalive=7, update_only=True),
            KernelPeerChange(bytes(range(32)), keepalive=7, update_only=True),
        ]
    )
    state = device.read(allowed_ips=True)
    assert set(state.peers) == {a, b, c}
    assert state.peers[a].allowed_ips == []
    assert set(state.peers[b].allowed_ips) == set(networks(0))
    assert state.peers[b].preshared_key == wanted[1].preshared_key
    assert (state.peers[c].keepalive, set(state.peers[c].allowed_ips)) == (7, set(networks(2)))

    # Found again by its key and alias, and by nothing less.
    assert netlink.find([bytes(32), public_key(private_key)], ALIAS) == [device.index]
    assert netlink.find([public_key(private_key)], "rustguard another") == []
    assert netlink.find([bytes(32)], ALIAS) == []
    assert netlink.remove_leftovers([public_key(private_key)], ALIAS) == 1
    assert not device.exists()
    with pytest.raises(RustGuardError, match="is gone"):
        device.read()


def test_the_capability_to_administer_the_network_is_enough_to_serve(lab: Lab) -> None:
    host = lab.host("box")
    # Where another user can get to, unlike pytest's folders.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        home, said = Path(folder, "home"), Path(folder, "said")
        home.mkdir(mode=0o700)
        for path in (Path(folder), home):
            os.chown(path, OTHER_USER, OTHER_USER)
        environment = {"HOME": str(home), "RUSTGUARD_RUNTIME": str(home / "run"), "RUSTGUARD_TOKEN": "maple-comet"}
        serve = f"-m rustguard_py.cli serve --pool 10.150.0.0/24 --tunnels 2 --engine kernel --state {home}/state"
        user = ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"]
        able = [f"--{which}=-all,+net_admin" for which in ("inh-caps", "ambient-caps", "bounding-set")]
        before = host.run(["ip", "-br", "link"]).stdout
        serving = host.popen([*user, *able, sys.executable, *serve.split()], log=said, env=environment)
        eventually(lambda: "Peers known" in said.read_text() or serving.poll() is not None, 120, "the server")
        assert serving.poll() is None, said.read_text()
        assert "10.150.0.1/32" in host.run(["ip", "-br", "addr", "show", "rg0-1"]).stdout
        serving.terminate()
        assert serving.wait(60) == 0
        refused = host.run([*user, sys.executable, *serve.split()], env=environment, timeout=120, check=False)
        assert "needs root or the capability CAP_NET_ADMIN" in refused.stderr
        assert host.run(["ip", "-br", "link"]).stdout == before
