"""Files as other tools write them, brought up and served on hosts."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from ipaddress import ip_interface
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.quick import conf_files
from support.product import eventually
from support.quick import PORT, Key, base64, lan

FILES = Path(__file__).parents[2] / "data/files"


@pytest.mark.parametrize("name", ["wg-easy-15", "latin1-hook", "odd-line-ends", "key-by-hook"])
def test_up_takes_a_file_as_another_tool_wrote_it(lab: Lab, tmp_path: Path, name: str) -> None:
    home = lan(lab).home
    path = home.file("")
    path.write_bytes((FILES / f"{name}.conf").read_bytes().replace(b"HERE", bytes(tmp_path)))
    (tmp_path / "wgk.key").write_text(f"{base64(home.key.private)}\n")
    home.run("up wg0")
    try:
        addresses = home.says("ip", "-o", "address", "show", "dev", "wg0")
        assert home.status()["addresses"]
        for address in home.status()["addresses"]:
            assert f" {address} " in addresses
        if name == "latin1-hook":
            assert (tmp_path / "said").read_bytes() == "Zürich".encode("cp1252")
        assert not (tmp_path / "hidden").exists()
        # A second time, nothing has changed, and the key that the hook has set stays.
        assert "nothing in" in home.run("up wg0").stderr
        if name == "key-by-hook":
            assert home.says("wg", "show", "wg0", "public-key").strip() == base64(home.key.public)
    finally:
        home.run("down wg0")


_PROVIDERS = ("mullvad", "nord", "mikrotik", "aws")
_MORE_PROVIDERS = ("proton", "openwrt", "unifi")


def test_up_takes_every_providers_and_routers_file_and_leaves_nothing(lab: Lab, tmp_path: Path, soak: bool) -> None:
    home = lan(lab).home
    path, names = home.file(""), tmp_path / "names"
    fake = tmp_path / "bin/resolvconf"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n[ $1 = -a ] && exec cat > {names}\nrm {names}\n")
    fake.chmod(0o755)
    before = home.system()
    for name in _PROVIDERS + (_MORE_PROVIDERS if soak else ()):
        path.write_bytes((FILES / f"{name}.conf").read_bytes())
        file = conf_files.load(path)
        (peer,) = file.peers
        home.run("up wg0", path=fake.parent)
        addresses = home.says("ip", "-o", "address", "show", "dev", "wg0")
        assert [each for each in file.addresses if f" {each} " not in addresses] == [], name
        shown = home.says("wg", "show", "wg0", "dump").splitlines()[1].split("\t")
        # The name in AWS's file is no name here.
        endpoint = "(none)" if name == "aws" else str(peer.endpoint)
        secret = base64(peer.preshared_key) if any(peer.preshared_key) else "(none)"
        assert shown[:3] == [base64(peer.public_key), secret, endpoint]
        assert set(shown[3].split(",")) == set(map(str, peer.allowed_ips))
        assert shown[7] == (str(peer.keepalive) if peer.keepalive else "off")
        assert names.exists() == bool(file.dns)
        if file.dns:
            assert re.findall(r"nameserver (\S+)", names.read_text()) == [str(each) for each in file.dns]
        inside = "192.168.7.9" if name == "aws" else "203.0.113.9"
        assert " dev wg0 " in home.says("ip", "route", "get", inside), name
        if name == "aws":
            # Its hooks ran.
            assert 'oifname "ens5" masquerade' in home.says("nft", "list", "table", "ip", "wireguard")
        home.run("down wg0", path=fake.parent)
        assert home.system() == before, name


def test_up_keeps_the_offloads_of_its_command_line(lab: Lab) -> None:
    home = lan(lab).home
    home.file("Address = 10.71.0.2/24")
    for words in (" --offloads no-udp-gro", ""):
        home.run(f"up wg0 --engine portable{words}")
        assert "Off: udp-gro, as asked for (--offloads no-udp-gro)" in " ".join(home.status()["notes"]), words
        home.run("down wg0")


def test_a_file_without_a_key_shows_none_until_there_is_one(lab: Lab) -> None:
    home = lan(lab).home
    home.file("").write_text("[Interface]\nAddress = 10.71.0.2/24\nPostUp = true\n")
    home.run("up wg0")
    try:
        assert home.says("wg", "show", "wg0", "private-key") == "(none)\n"
        assert "no private key yet" in home.run("status").stderr + home.run("status").stdout
    finally:
        home.run("down wg0")


@pytest.mark.parametrize(
    ("name", "peer", "new"),
    [
        ("wg-easy-15", "Phone", "10.8.0.4 fdcc:ad94:bacf:61a4::cafe:4"),
        ("pivpn-away", "phone", "10.6.0.2 fd11:5ee:bad:c0de::2"),
    ],
)
def test_a_servers_file_moves_here_and_its_peer_goes_on(
    lab: Lab, tmp_path: Path, name: str, peer: str, new: str
) -> None:
    net = lan(lab)
    laptop, home = net.laptop, net.home
    text = (FILES / f"{name}.conf").read_text()
    # The first peer is the laptop.
    theirs, secret, allowed = re.findall(r"(?m)^(?:PublicKey|PresharedKey|AllowedIPs) = (.*)$", text)[:3]
    home.key = Key(b64decode(re.findall(r"(?m)^PrivateKey = (.*)$", text)[0]))
    path = home.file("")
    path.write_text(text.replace(theirs, base64(laptop.key.public)))
    own = [ip_interface(each.strip()) for each in re.findall(r"(?m)^Address = (.*)$", text)[0].split(",")]
    networks = ", ".join(str(each.network) for each in own)
    server = home.peer(f"AllowedIPs = {networks}\nEndpoint = 192.0.2.2:{PORT}\nPersistentKeepalive = 1")
    server = server.replace("\nAllowedIPs", f"\nPresharedKey = {secret}\nAllowedIPs")
    laptop.file(f"Address = {allowed}", server)
    laptop.run("up wg0")
    home.run("import /etc/wireguard/wg0.conf")
    for start in range(2):
        serving = home.start("serve", tmp_path / f"serve{start}")
        for each in own:
            laptop.reaches(str(each.ip))
        peers = {each["name"]: each for each in json.loads(home.run("peers --json").stdout)["peers"]}
        assert peers[peer]["address4"] == allowed.split("/")[0]
        if start == 0:
            file = home.run("export --new tablet --endpoint 192.0.2.2").stdout
            given = re.findall(r"(?m)^Address = (\S+)/", file)
            assert " ".join(given) == new
        assert home.status()["interface"] == "wg0"
        if name == "pivpn-away":
            # The network behind the office has its route.
            assert " dev wg0 " in home.says("ip", "route", "get", "192.168.7.9")
        serving.terminate()
        assert serving.wait(20) == 0
    assert "tablet" in peers


def test_a_machine_joins_a_server_that_came_from_a_file(lab: Lab, tmp_path: Path) -> None:
    net = lan(lab)
    laptop, home = net.laptop, net.home
    home.run(f"import {FILES / 'wg-easy-15.conf'}")
    home.start("serve --token purple-otter-7 --open", tmp_path / "serve")
    laptop.start("join 192.0.2.2 --token purple-otter-7 --name laptop", tmp_path / "join")
    # There is no interface before it has joined; without one, the pings would go around the tunnel.
    eventually(lambda: "10.8.0.4/24" in laptop.says("ip", "-o", "address", "show", "dev", "rg0"), what="the join")
    assert "fdcc:ad94:bacf:61a4::cafe:4/112" in laptop.says("ip", "-o", "address", "show", "dev", "rg0")
    for address in ("10.8.0.1", "fdcc:ad94:bacf:61a4::cafe:1"):
        laptop.reaches(address)
    assert home.status()["interface"] == "wg-easy-15"
