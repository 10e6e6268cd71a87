"""wg-quick files made from a network, and a server made from a wg-quick file."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from pathlib import Path

import pytest

from rustguard_py import conf, conf_reader
from rustguard_py.cli.app import run
from rustguard_py.enroll.server import admissions, import_wg_quick
from rustguard_py.enroll.server.registry import Registry
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import public_key
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from rustguard_py.state.records import ServerState

KEY, OTHER, PSK = (bytes([number]) * 32 for number in (64, 72, 3))


def server(directory: Path) -> ServerState:
    state = ServerState(KEY, bytes(32), IPv4Network("10.5.0.0/29"), IPv6Network("fd05::/64"), 4000, 1400)
    document = Document.open(directory)
    document.load()
    document.save(state.to_json())
    document.close()
    return state


def kept(directory: Path) -> ServerState:
    return ServerState.from_json(Document.peek(directory))


def exported(capsys: pytest.CaptureFixture[str], *arguments: str) -> conf.Config:
    assert run(["export", *arguments]) == 0
    return conf_reader.parse(capsys.readouterr().out)


# -- out ----------------------------------------------------------------------------------------------------


def test_a_new_peers_file_is_whole_and_the_peer_is_kept_without_its_private_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server(tmp_path)
    config = exported(capsys, "--new", "phone", "--endpoint", "home.example", "--state", str(tmp_path))
    (ours,) = config.peers
    (peer,) = kept(tmp_path).peers.values()
    assert config.addresses == tuple(map(ip_interface, ("10.5.0.2/29", "fd05::2/64")))
    assert (config.mtu, ours.public_key, ours.keepalive) == (1400, public_key(KEY), 25)
    assert str(ours.endpoint) == "home.example:4000"
    assert ours.allowed_ips == (ip_network("10.5.0.0/29"), ip_network("fd05::/64"))
    assert (peer.name, peer.public_key) == ("phone", public_key(config.private_key or b""))
    assert peer.preshared_key == ours.preshared_key != bytes(32)
    assert peer.endpoint is None
    secret = b64encode(config.private_key or b"").decode()
    assert not any(secret in path.read_text(errors="replace") for path in tmp_path.iterdir())


def test_a_file_is_made_for_us_alone_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, path = tmp_path / "state", tmp_path / "phone.conf"
    server(state)
    arguments = ["export", "--new", "phone", "--endpoint", "[::1]:5", "--state", str(state), "-o", str(path)]
    assert run(arguments) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(conf_reader.parse(path.read_text()).peers[0].endpoint) == "[::1]:5"
    assert run(arguments) == 4
    assert "already" in capsys.readouterr().err
    assert len(kept(state).peers) == 1


def test_what_fails_leaves_no_file_and_no_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, path = tmp_path / "state", tmp_path / "phone.conf"
    arguments = ["export", "--new", "phone", "--endpoint", "x", "--state", str(state), "-o", str(path)]
    assert run(arguments) == 2
    assert "no server here" in capsys.readouterr().err
    assert not path.exists()
    server(state)
    for name in ("", "x" * 46, "a\nb"):
        assert run([*arguments[:2], name, *arguments[3:]]) == 2
    for _ in range(5):
        admissions.admit_at_rest(state, "peer", public_key(bytes([_ + 1]) * 32), PSK)
    assert [each.name for each in kept(state).peers.values()] == ["peer", "peer-2", "peer-3", "peer-4", "peer-5"]
    assert run(arguments) == 4
    assert "pool is used up" in capsys.readouterr().err
    assert not path.exists()


def test_a_key_that_was_revoked_is_not_let_in(tmp_path: Path) -> None:
    state = server(tmp_path)
    state.revoked.add(OTHER)
    with pytest.raises(RefusedError, match="revoked"):
        admissions.admit_stock(Registry(state), "phone", OTHER, PSK)


def test_a_clients_own_tunnel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rustguard_py.state.client_records import NetworkRecord

    network = NetworkRecord(
        host="home.example",
        port=4000,
        server_key=OTHER,
        preshared_key=PSK,
        name="laptop",
        address4=IPv4Interface("10.5.0.2/24"),
        address6=IPv6Interface("fd05::2/64"),
        routes=(ip_network("192.168.7.0/24"),),
        mtu=1380,
        keepalive=25,
        gateway4=None,
        gateway6=None,
        joined=0.0,
    )
    document = Document.open(tmp_path)
    document.load()
    document.save(ClientState(KEY, (network,)).to_json())
    # The lock is held, as by a client that runs.
    config = exported(capsys, "--state", str(tmp_path))
    document.close()
    networks = tuple(map(ip_network, ("10.5.0.0/24", "fd05::/64", "192.168.7.0/24")))
    assert config == conf.Config(
        KEY,
        addresses=network.addresses,
        mtu=1380,
        peers=(conf.PeerSection(OTHER, networks, PSK, conf.HostPort("home.example", 4000), 25),),
    )
    assert run(["export", "other.example", "--state", str(tmp_path)]) == 2
    assert "other.example was not joined" in capsys.readouterr().err


def test_a_server_has_no_file_for_those_who_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server(tmp_path)
    assert run(["export", "--state", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "only a peer itself has its private key" in said
    assert "--new NAME" in said


# -- in -----------------------------------------------------------------------------------------------------


def text(key: bytes) -> str:
    return b64encode(key).decode()


FILE = f"""[Interface]
PrivateKey = {text(KEY)}
Address = 10.8.0.1/24, fd08::1/64
ListenPort = 4000
PostUp = iptables -A

# anna
[Peer]
PublicKey = {text(bytes([1]) * 32)}
PresharedKey = {text(PSK)}
AllowedIPs = 10.8.0.2/32, fd08::2/128
[Peer]
PublicKey = {text(bytes([2]) * 32)}
AllowedIPs = 10.8.0.9/32
Endpoint = 192.0.2.9:9
"""


def test_a_server_is_made_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = tmp_path / "wg0.conf", tmp_path / "state"
    path.write_text(FILE)
    assert run(["import", str(path), "--state", str(directory)]) == 0
    said = capsys.readouterr().err
    assert "10.8.0.0/24 and fd08::/64, port 4000, 2 peers" in said
    assert "PostUp" in said
    state = kept(directory)
    assert (state.private_key, state.port, state.mtu) == (KEY, 4000, 1420)
    one, two = state.peers.values()
    assert (one.name, str(one.address4), str(one.address6), one.preshared_key) == ("anna", "10.8.0.2", "fd08::2", PSK)
    assert (two.name, str(two.address4), two.address6, two.endpoint) == ("peer-2", "10.8.0.9", None, "192.0.2.9:9")
    assert run(["import", str(path), "--state", str(directory)]) == 4
    assert "a server here already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("10.8.0.9/32", "0.0.0.0/0", "is a client's file"),
        ("10.8.0.9/32", "10.8.0.0/24", "is a client's file: it sends 10.8.0.0/24, where its own address is,"),
        ("10.8.0.9/32", "10.8.0.1/32", "line 13: 10.8.0.1 is not free"),
        ("10.8.0.9/32", "fd08::1/128", "line 13: fd08::1 is not free"),
        ("10.8.0.1/24, ", "", "has no IPv4 address"),
        ("ListenPort = 4000", "MTU = 1000", "has MTU = 1000"),
    ],
)
def test_what_a_server_of_ours_can_not_be_is_named_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        import_wg_quick.read_server(conf_reader.parse(FILE.replace(old, new)), "wg0.conf")
    assert said in refused.value.message
    assert refused.value.fix


@pytest.mark.parametrize(
    ("old", "new", "has"),
    [
        ("10.8.0.9/32", "10.8.0.9/32, 192.168.7.0/24", "10.8.0.9/32 192.168.7.0/24"),
        ("10.8.0.9/32", "10.9.0.9/32", "10.9.0.9/32"),
        ("10.8.0.9/32", "10.9.0.9/32, 10.8.0.10", "10.8.0.10/32 10.9.0.9/32"),
        ("10.8.0.9/32", "fd08::9/128", "fd08::9/128"),
        ("10.8.0.9/32", "", ""),
        ("fd08::2/128", "fd08::7/128", "10.8.0.9/32"),
        ("10.8.0.1/24", "10.8.0.254/24", "10.8.0.9/32"),
        ("10.8.0.1/24", "10.8.0.1/32", "10.8.0.9/32"),
        ("fd08::1/64", "fd08::1/120, 10.7.0.1/16", "10.8.0.9/32"),
    ],
)
def test_a_peer_keeps_what_it_has_and_the_server_too(old: str, new: str, has: str) -> None:
    config = conf_reader.parse(FILE.replace(old, new))
    state = ServerState.from_json(import_wg_quick.read_server(config, "wg0.conf").state.to_json())
    assert " ".join(map(str, list(state.peers.values())[1].allowed)) == has
    assert {each.ip for each in state.addresses()} == {each.ip for each in config.addresses}
    assert state.pool4 == ip_network("10.8.0.0/24")
    for peer in config.peers:
        assert set(state.peers[peer.public_key].allowed) == set(peer.allowed_ips)


def test_two_peers_of_one_name_get_two() -> None:
    config = conf_reader.parse(FILE)
    twins = replace(config, peers=tuple(replace(peer, name="anna") for peer in config.peers))
    assert [each.name for each in import_wg_quick.read_server(twins, "x").state.peers.values()] == ["anna", "peer-2"]


def test_each_key_that_a_server_has_no_use_for_is_named() -> None:
    lines = ["DNS = lan", "FwMark = 0x7", "Table = off", "PreUp = a", "PostUp = a", "PreDown = a", "PostDown = a"]
    keys = [line.partition(" ")[0] for line in lines] + ["SaveConfig"]
    told = FILE.replace("[Interface]\n", "\n".join(["[Interface]", *lines, "SaveConfig = true", ""]), 1)
    before, after = (
        import_wg_quick.read_server(conf_reader.parse(each), "wg0.conf").left_out for each in (FILE, told)
    )
    assert set(after) == {*before, *keys}
    assert "SaveConfig" not in before


def test_an_export_warns_of_a_file_that_others_can_read_only_when_it_writes_there(tmp_path: Path) -> None:
    state = tmp_path / "server"
    server(state)
    argv = [sys.executable, "-P", "-m", "rustguard_py.cli", "export", "--state", str(state)]

    def ask(*more: str) -> tuple[int, str, int]:
        output = tmp_path / "output.conf"
        output.write_text("")
        output.chmod(0o644)
        with output.open("w") as file:
            done = subprocess.run([*argv, *more], stdout=file, stderr=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stderr, output.stat().st_size

    code, said, size = ask("--new", "")
    assert (code != 0, "world accessible" in said, size) == (True, False, 0)
    code, said, size = ask("--new", "phone", "--endpoint", "vpn.example.org")
    assert (code, "world accessible" in said, size > 0) == (0, True, True)
