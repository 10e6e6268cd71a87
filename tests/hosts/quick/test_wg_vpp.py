"""`rustguard-wg` in wireguard-go-vpp's place: an ordinary user, a played VPP, and testpmd at the other end."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import rustguard_wg
from support.channel_pair import eventually
from support.engines import needs_native
from support.played_vpp import BVI, DEFINITIONS, PlayedVpp
from support.played_vppctl import PlayedVppctl
from support.rootless import USER, let_in
from support.testpmd import INTERFACE, Testpmd
from support.wireguard_go import Peer, WireGuardGo

pytestmark = [
    needs_native,
    pytest.mark.needs_testpmd,
    pytest.mark.needs_vpp_papi,
    pytest.mark.needs_wireguard_go,
    pytest.mark.needs_second_uid,
    pytest.mark.xdist_group("testpmd"),
]
# Sends a packet, and prints what comes back from the address and port it was sent to.
_ASK = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(1)
    asking.bind(("10.9.0.2", 7000))
    asking.connect(("10.9.0.1", 7001))
    for _ in range(10):
        try:
            asking.send(b"there and back")
            print(asking.recv(100).decode())
            break
        except OSError:
            pass
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the ordinary user's."""
    made = Path(tempfile.mkdtemp(prefix="rg-vpp-", dir="/tmp"))
    os.chown(made, USER, USER)
    yield made
    shutil.rmtree(made)


def _write_files(folder: Path) -> None:
    interface = {"uid": 5, "secret": "psst", "IPv4ArpResponseRanges": ["10.9.0.2/32"], "VppBridgeID": 4242, "Old": 1}
    bridge = {
        "GatewayMacAddr": "42:42:42:42:42:42",
        "WgIfMacaddrPrefix": "98:D2:93",
        "VppIfMacaddrPrefix": "A4:77:33",
        "VppBridgeLoop_InstallMethod": "api",
        "VppBridgeLoop_CheckRouteConflict": True,
        "VppBridgeLoop_CheckRouteConfigPaths": [str(folder)],
        "VppBridgeLoop_SwIfName": BVI,
        "VppBridgeLoop_SwIfIndex": 0,
        "VppBridgeLoop_InstallRoutes": {"IPv4": True},
    }
    (folder / "if.home.json").write_text(json.dumps(interface))
    (folder / "gw.4242.json").write_text(json.dumps(bridge))


def test_a_packet_goes_to_vpp_and_back_and_nothing_stays(lab: Lab, folder: Path) -> None:
    host, there = lab.host("one", own_run=True), lab.host("other", own_run=True)
    let_in(host)
    here, _ = lab.link(host, there, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    vpp = PlayedVpp(folder / "api.sock")
    vpp.path.chmod(0o777)
    _write_files(folder)
    host.run(["install", "-d", "-o", str(USER), "/run/wireguard"])
    stock = WireGuardGo(there, ["10.9.0.2/24"])
    variables = {
        "VPP_MEMIF_SOCKET_DIR": str(folder / "run"),
        "VPP_MEMIF_CONFIG_DIR": str(folder),
        "VPP_API_SOCKET_PATH": str(vpp.path),
        "VPP_API_DIR": str(DEFINITIONS),
        "LOG_LEVEL": "debug",
    }
    said, own = folder / "said", ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    running = host.popen([*own, *rustguard_wg.argv(folder, engine="native"), "home"], log=said, env=variables)
    testpmd = None
    try:
        eventually(lambda: "home is ready" in said.read_text() or running.poll() is not None, "it starts")
        assert (
            "home is a memif of VPP, as with wireguard-go-vpp, because VPP_MEMIF_SOCKET_DIR is set."
            in said.read_text()
        )
        assert f"{folder}/if.home.json, line 1: Old isn't known, so it is ignored." in said.read_text()
        assert [(each["id"], each["up"], each["bridge"]) for each in vpp.memifs.values()] == [(5, True, 4242)]
        assert vpp.routes == [("10.9.0.2/32", vpp.index)]
        key = host.run(["wg", "genkey"]).stdout.strip()
        (folder / "home.conf").write_text(
            f"[Interface]\nPrivateKey = {key}\nListenPort = 51820\n"
            f"[Peer]\nPublicKey = {b64encode(stock.public_key).decode()}\nAllowedIPs = 10.9.0.2/32\n"
        )
        host.run(["wg", "setconf", "home", str(folder / "home.conf")])
        public = host.run(["wg", "pubkey"], stdin=key).stdout.strip()
        stock.set_peer(Peer(b64decode(public), ["10.9.0.1/32"], f"{here.ipv4}:51820"))
        testpmd = Testpmd(folder / "run/home.sock", server=False)
        testpmd.start()
        eventually(lambda: f"connected to {INTERFACE} of DPDK" in said.read_text(), "testpmd connects")
        assert there.run([sys.executable, "-c", _ASK]).stdout == "there and back\n"
        counts = testpmd.stop()
        assert counts.received == counts.sent > 0
        vpp.restart()
        vpp.path.chmod(0o777)
        testpmd.kill()
        eventually(lambda: "It was set up again" in said.read_text(), "VPP's restart is seen")
        assert len(vpp.routes) == len(vpp.memifs) == 1
        # As wireguard-go-vpp, it ends when its socket is removed.
        host.run(["rm", "/run/wireguard/home.sock"])
        assert running.wait(20) == 0, said.read_text()
        assert vpp.is_clean
        assert not (folder / "run/home.sock").exists()
    finally:
        print(said.read_text())
        running.kill()
        if testpmd is not None:
            testpmd.kill()
        vpp.stop()


def test_a_signal_while_vpp_is_set_up_leaves_nothing(lab: Lab, folder: Path) -> None:
    host = lab.host("one", own_run=True)
    vppctl = PlayedVppctl(folder)
    _write_files(folder)
    slow = folder / "slow"
    slow.write_text(f'#!/bin/sh\n{vppctl.program} "$@"\nsleep 0.3\n')
    slow.chmod(0o755)
    file = folder / "gw.4242.json"
    ways = {"VppBridgeLoop_InstallMethod": "vppctl", "VppBridgeLoop_VppctlBin": str(slow)}
    ways["VppBridgeLoop_SwIfName"] = "loop42"
    file.write_text(json.dumps(json.loads(file.read_text()) | ways))
    said = folder / "log"
    variables = {"VPP_MEMIF_SOCKET_DIR": str(folder / "run"), "VPP_MEMIF_CONFIG_DIR": str(folder)}
    running = host.popen([*rustguard_wg.argv(folder, engine="native"), "home"], log=said, env=variables)
    try:
        eventually(lambda: any("create interface" in line for line in vppctl.said), "it begins")
        running.terminate()
        assert running.wait(30) == 0, said.read_text()
    finally:
        running.kill()
    assert "is ready" not in said.read_text()
    assert vppctl.is_clean
    assert not (folder / "run/home.sock").exists()
