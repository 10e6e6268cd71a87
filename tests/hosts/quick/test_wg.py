"""wg(8) and wg-quick(8) against `rustguard-wg`, and wg(8) against a running `serve` and `join`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.model.errors import RustGuardError
from rustguard_py.planes.tun import Tun
from support import rustguard_wg
from support.product import HOME4, Site, eventually
from support.wireguard_go import Peer, WireGuardGo

pytestmark = [pytest.mark.needs_wireguard_go]

ENGINES = ["portable", pytest.param("native", marks=pytest.mark.skipif(not has_native(), reason="no native plane"))]
SOCKET = "/run/wireguard/wg0.sock"


def _key() -> bytes:
    return os.urandom(31) + b"\x40"


def _start(host: Host, folder: Path, engine: str = "auto", **options: object) -> WireGuardGo:
    return WireGuardGo(host, argv=rustguard_wg.argv(folder, engine=engine), **options)  # type: ignore[arg-type]


def _link(lab: Lab) -> tuple[End, End]:
    one, other = lab.host("one", own_run=True), lab.host("other", own_run=True)
    return lab.link(one, other, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")


def _wg(host: Host, *words: str, stdin: str = "", check: bool = True) -> str:
    return host.run(["wg", *words], stdin=stdin, check=check).stdout


def _gone(host: Host) -> bool:
    links = host.run(["ip", "-o", "link"]).stdout
    return "wg0" not in links and host.run(["test", "-e", SOCKET], check=False).returncode != 0


@pytest.mark.parametrize("engine", ENGINES)
def test_wg_sets_up_a_tunnel_that_talks_to_wireguard_go(lab: Lab, tmp_path: Path, engine: str) -> None:
    here, there = _link(lab)
    psk, our_key = _key(), _key()
    ours = _start(here.host, tmp_path, engine, addresses=["10.9.0.1/24", "fd09::1/64"], private_key=our_key)
    mine = Peer(ours.public_key, ["10.9.0.1/32", "fd09::1/128"], f"{here.ipv4}:{ours.port}", psk)
    stock = WireGuardGo(there.host, ["10.9.0.2/24", "fd09::2/64"], [mine])
    ours.set_peer(Peer(stock.public_key, ["10.9.0.2/32", "fd09::2/128"], f"[{there.ipv6}]:{stock.port}", psk, 25))
    here.host.run(["ping", "-c3", "-i0.05", "-W5", "10.9.0.2"])
    there.host.run(["ping", "-c3", "-i0.05", "-W5", "fd09::1"])
    assert ours.peer(stock.public_key).last_handshake > 0
    seen = ours.peer(stock.public_key)
    assert seen.received > 0 < seen.sent
    shown = _wg(here.host, "show", "wg0")
    assert "latest handshake" in shown
    assert "persistent keepalive: every 25 seconds" in shown


@pytest.mark.parametrize("engine", ENGINES)
def test_a_changed_port_mark_and_mtu_keep_the_session_and_a_changed_key_the_peers(
    lab: Lab, tmp_path: Path, engine: str
) -> None:
    here, there = _link(lab)
    ours = _start(here.host, tmp_path / "one", engine, addresses=["10.9.0.1/24"])
    other = _start(there.host, tmp_path / "other", engine, addresses=["10.9.0.2/24"])
    ours.set_peer(Peer(other.public_key, ["10.9.0.2/32"], f"{there.ipv4}:{other.port}"))
    other.set_peer(Peer(ours.public_key, ["10.9.0.1/32"]))
    here.host.run(["ping", "-c2", "-i0.05", "-W5", "10.9.0.2"])
    began = ours.peer(other.public_key).last_handshake
    # It is told in whole seconds: another one would be later.
    eventually(lambda: time.time() > began + 1.1, what="the next second")
    for port in ("7777", "7778"):
        _wg(here.host, "set", "wg0", "listen-port", port, "fwmark", "0x99")
        assert ours.port == int(port)
        here.host.run(["ping", "-c2", "-i0.05", "-W5", "10.9.0.2"])
        assert other.peer(ours.public_key).endpoint == f"{here.ipv4}:{port}"
        there.host.run(["ping", "-c2", "-i0.05", "-W5", "10.9.0.1"])
    for mtu in (1300, 1480):
        here.host.ip([f"link set dev wg0 mtu {mtu}"])
        here.host.run(["ping", "-c2", "-i0.05", "-W5", "-M", "do", "-s", str(mtu - 28), "10.9.0.2"])
    assert ours.peer(other.public_key).last_handshake == began
    assert ":7777 " not in here.host.run(["ss", "-Huln"]).stdout
    assert "fwmark: 0x99" in _wg(here.host, "show", "wg0")
    fresh = b64encode(_key()).decode()
    _wg(here.host, "set", "wg0", "private-key", "/dev/stdin", stdin=fresh)
    public = _wg(here.host, "pubkey", stdin=fresh).strip()
    assert public in _wg(here.host, "show", "wg0")
    _wg(there.host, "set", "wg0", "peer", public, "allowed-ips", "10.9.0.1/32")
    here.host.run(["ping", "-c2", "-i0.05", "-W8", "10.9.0.2"])


def test_a_taken_port_is_refused_and_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    ours = _start(here.host, tmp_path, addresses=[])
    before = ours.port
    taking = "import socket,sys;s=socket.socket(2,2);s.bind(('',7777));print(flush=True);sys.stdin.read()"
    taker = here.host.popen([sys.executable, "-c", taking], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert taker.stdout is not None
    taker.stdout.readline()
    with pytest.raises(RustGuardError, match="Address already in use"):
        _wg(here.host, "set", "wg0", "listen-port", "7777")
    assert ours.port == before
    assert f":{before} " in here.host.run(["ss", "-Huln"]).stdout


def test_a_thousand_peers_are_set_read_back_and_synced(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    ours = _start(here.host, tmp_path, addresses=[])
    peers = [
        Peer(_key(), [f"10.{n >> 8}.{n & 255}.0/24", f"fd00:{n + 1:x}::/64"], f"192.0.2.9:{n + 1}", _key(), n % 100)
        for n in range(1000)
    ]
    config = "".join(peer.section() for peer in peers)
    _wg(here.host, "addconf", "wg0", "/dev/stdin", stdin=config)
    dump = _wg(here.host, "show", "wg0", "dump").splitlines()[1:]
    assert len(dump) == 1000
    told = {line.split("\t")[0]: line.split("\t") for line in dump}
    for peer in peers:
        fields = told[b64encode(peer.public_key).decode()]
        assert fields[1] == b64encode(peer.preshared_key or b"").decode()
        assert fields[2] == peer.endpoint
        assert fields[3] == ",".join(peer.allowed_ips)
        assert fields[7] == (str(peer.keepalive) if peer.keepalive else "off")
    private = f"[Interface]\nListenPort = {ours.port}\n"
    _wg(here.host, "syncconf", "wg0", "/dev/stdin", stdin=private + peers[7].section())
    left = _wg(here.host, "show", "wg0", "peers").split()
    assert left == [b64encode(peers[7].public_key).decode()]


def test_an_allowed_ip_belongs_to_whom_it_was_given_last(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    _start(here.host, tmp_path, addresses=[])
    one, other = (b64encode(_key()).decode() for _ in range(2))
    for words in (
        [one, "allowed-ips", "10.0.0.1/32,10.0.0.2/32"],
        [other, "allowed-ips", "10.0.0.1/32,10.0.0.3/32"],
        [one, "persistent-keepalive", "9"],
    ):
        _wg(here.host, "set", "wg0", "peer", *words)
    lines = dict(line.split("\t") for line in _wg(here.host, "show", "wg0", "allowed-ips").splitlines())
    assert lines == {one: "10.0.0.2/32", other: "10.0.0.1/32 10.0.0.3/32"}
    _wg(here.host, "set", "wg0", "peer", one, "remove")
    assert one not in _wg(here.host, "show", "wg0", "peers")


def test_a_peer_that_becomes_ourselves_leaves_its_networks_to_others(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    _start(here.host, tmp_path, addresses=[])
    private, other = (b64encode(_key()).decode() for _ in range(2))
    own = _wg(here.host, "pubkey", stdin=private).strip()
    _wg(here.host, "set", "wg0", "peer", own, "allowed-ips", "10.0.0.1/32")
    _wg(here.host, "set", "wg0", "private-key", "/dev/stdin", stdin=private)
    _wg(here.host, "set", "wg0", "peer", own, "allowed-ips", "10.0.0.1/32")
    _wg(here.host, "set", "wg0", "peer", other, "allowed-ips", "10.0.0.1/32")
    assert _wg(here.host, "show", "wg0", "allowed-ips").strip() == f"{other}\t10.0.0.1/32"


def test_it_goes_to_the_background_and_ends_with_its_interface(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    here.host.run([*rustguard_wg.argv(tmp_path, foreground=False), "wg0"])
    assert "listening port" in _wg(here.host, "show", "wg0")
    here.host.ip(["link delete dev wg0"])
    eventually(lambda: _gone(here.host), what="the end of socket and interface")


def test_it_ends_with_its_socket(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    ours = _start(here.host, tmp_path, addresses=[])
    here.host.run(["rm", SOCKET])
    assert ours.process.wait(60) == 0
    assert _gone(here.host)


def test_a_signal_ends_it_and_nothing_is_left(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    ours = _start(here.host, tmp_path, addresses=[])
    ours.process.send_signal(signal.SIGTERM)
    assert ours.process.wait(60) == 0
    assert _gone(here.host)


def test_a_second_one_of_the_name_is_refused(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    _start(here.host, tmp_path / "one", addresses=[])
    done = here.host.run([*rustguard_wg.argv(tmp_path / "other"), "wg0"], check=False)
    assert done.returncode == 4
    assert "There is an interface wg0 already" in done.stderr
    assert "listening port" in _wg(here.host, "show", "wg0")


def test_it_takes_descriptors_that_were_handed_down(tmp_path: Path, lab: Lab) -> None:
    here, _ = _link(lab)
    script = f"""
import os, socket, sys
sys.path[:0] = []
from rustguard_py.planes.tun import Tun
tun = Tun("wg0", print)
listener = socket.socket(socket.AF_UNIX)
os.makedirs("/run/wireguard", exist_ok=True)
listener.bind({SOCKET!r})
listener.listen()
for each in (tun.fd, listener.fileno()):
    os.set_inheritable(each, True)
os.environ.update(WG_TUN_FD=str(tun.fd), WG_UAPI_FD=str(listener.fileno()))
argv = sys.argv[1:]
os.execvp(argv[0], argv)
"""
    argv = [*rustguard_wg.argv(tmp_path), "wg0"]
    running = here.host.popen([argv[3], "-P", "-c", script, *argv])
    eventually(lambda: "listening port" in _wg(here.host, "show", "wg0", check=False), what="an answer to wg")
    running.terminate()
    assert running.wait(60) == 0


def test_two_network_namespaces_have_an_interface_of_the_same_name(lab: Lab, tmp_path: Path) -> None:
    here, there = lab.link(lab.host("one"), lab.host("two"), ipv4="192.0.2.0/24")
    # wg(8) finds them at its own path alone.
    shared = {"RUSTGUARD_WG_SOCKETS": "/var/run/wireguard"}
    name = f"rgt{os.getpid() % 100000}"
    running = [
        end.host.popen([*rustguard_wg.argv(tmp_path), name], env=shared, log=tmp_path / end.host.name)
        for end in (here, there)
    ]
    try:
        for port, end in enumerate((here, there), 7001):
            said = tmp_path / end.host.name
            eventually(lambda said=said: "is ready" in said.read_text(), what="its socket")  # type: ignore[misc]
            _wg(end.host, "set", name, "listen-port", str(port))
        assert [_wg(end.host, "show", name, "listen-port").strip() for end in (here, there)] == ["7001", "7002"]
        assert name in _wg(there.host, "show", "interfaces")
        assert ":7002 " in there.host.run(["ss", "-Huln"]).stdout
        running[0].terminate()
        assert running[0].wait(60) == 0
        # The other one takes the path over.
        eventually(
            lambda: _wg(there.host, "show", name, "listen-port", check=False).strip() == "7002", what="the path"
        )
        there.host.ip([f"link delete {name}"])
        assert running[1].wait(60) == 0
        assert not [*Path("/var/run/wireguard").glob(f"{name}*")]
    finally:
        for each in running:
            each.terminate()
            each.wait(60)


def test_a_descriptor_of_another_shape_is_refused(tmp_path: Path, lab: Lab) -> None:
    here, _ = _link(lab)
    script = "import os,sys; os.environ['WG_TUN_FD']='0'; os.execvp(sys.argv[1], sys.argv[1:])"
    done = here.host.run([sys.executable, "-c", script, *rustguard_wg.argv(tmp_path), "wg0"], check=False)
    assert done.returncode == 4
    assert "TUN descriptor" in done.stderr


def test_wg_quick_takes_it_for_the_kernels(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    stock = WireGuardGo(there.host, ["10.9.0.2/24"])
    key = b64encode(_key()).decode()
    public = _wg(here.host, "pubkey", stdin=key).strip()
    _wg(there.host, "set", "wg0", "peer", public, "allowed-ips", "10.9.0.1/32")
    file = tmp_path / "wg0.conf"
    file.touch(0o600)
    file.write_text(
        f"[Interface]\nPrivateKey = {key}\nAddress = 10.9.0.1/24\nMTU = 1400\nListenPort = 7070\n"
        f"[Peer]\nPublicKey = {b64encode(stock.public_key).decode()}\nAllowedIPs = 10.9.0.0/24\n"
        f"Endpoint = {there.ipv4}:{stock.port}\n"
    )
    program = tmp_path / "rustguard-wg"
    program.write_text(f'#!/bin/sh\nexec {" ".join(rustguard_wg.argv(tmp_path / "state", foreground=False))} "$@"\n')
    program.chmod(0o755)
    environment = {"WG_QUICK_USERSPACE_IMPLEMENTATION": str(program)}
    here.host.run(["wg-quick", "up", file], env=environment)
    here.host.run(["ping", "-c3", "-i0.05", "-W5", "10.9.0.2"])
    assert "listening port: 7070" in _wg(here.host, "show")
    assert "mtu 1400" in here.host.run(["ip", "link", "show", "wg0"]).stdout
    here.host.run(["wg-quick", "down", file], env=environment)
    eventually(lambda: _gone(here.host), what="the end of socket and interface")


def test_the_port_stays_where_it_began_while_the_interface_moves(lab: Lab, tmp_path: Path) -> None:
    here, there = _link(lab)
    inner = lab.host("inner")
    stock = WireGuardGo(there.host, ["10.9.0.2/24"])
    ours = _start(here.host, tmp_path, addresses=[])
    ours.set_peer(Peer(stock.public_key, ["10.9.0.2/32"], f"{there.ipv4}:{stock.port}"))
    stock.set_peer(Peer(ours.public_key, ["10.9.0.1/32"]))
    here.host.ip([f"link set dev wg0 netns {inner.pid}"])
    inner.ip(["address add 10.9.0.1/24 dev wg0", "link set dev wg0 up"])
    inner.run(["ping", "-c3", "-i0.05", "-W5", "10.9.0.2"])
    assert f":{ours.port} " in here.host.run(["ss", "-Huln"]).stdout
    assert inner.run(["ss", "-Huln"]).stdout == ""


def test_wg_shows_a_running_server_and_client_and_leaves_their_port(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.machine("home", own_run=True)
    laptop = site.client("laptop", home, own_run=True)
    home.serve("--pool 10.150.0.0/24 --open")
    laptop.join(HOME4)
    for machine, other in ((home, laptop), (laptop, home)):
        assert other.status()["public_key"] in _wg(machine.host, "show", "rg0")
        # Traffic may be ahead of what tells of the handshake.
        eventually(
            lambda host=machine.host: "latest handshake" in _wg(host, "show", "rg0"),  # type: ignore[misc]
            what="the handshake shown",
        )
        refused = machine.host.run(["wg", "set", "rg0", "listen-port", "7777"], check=False)
        assert "Operation not permitted" in refused.stderr
    for machine in (home, laptop):
        for program in machine.programs:
            program.terminate()
            program.wait(60)
        assert machine.host.run(["ls", "/run/wireguard"]).stdout == ""


def test_a_queue_that_was_adopted_gives_the_interface_back(lab: Lab, tmp_path: Path) -> None:
    here, _ = _link(lab)
    ours = _start(here.host, tmp_path, addresses=["10.9.0.1/24"])
    _wg(here.host, "set", "wg0", "listen-port", "7778")
    assert "10.9.0.1/24" in here.host.run(["ip", "address", "show", "wg0"]).stdout
    assert ours.process.poll() is None


def test_what_is_no_tun_is_refused() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(RustGuardError, match="TUN descriptor"):
        Tun.adopt(one.fileno(), print)
