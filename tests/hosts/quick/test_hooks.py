"""Hooks that use wg(8), as wg-quick(8) and VPN providers write them, on tunnels of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, Site, eventually
from support.quick import PORT, Key, Lan, Quick, base64, lan

PSK = bytes(range(32))
END = f"Endpoint = 192.0.2.2:{PORT}"
# The kill switch of wg-quick(8) and Mullvad, in nft's words and as the manual has it.
IN_NFT = (
    "PostUp = nft add table inet ks; nft add chain inet ks out '{ type filter hook output priority 0; }'; "
    'nft add rule inet ks out oifname != "%i" meta mark != $(wg show %i fwmark) fib daddr type != local drop\n'
    "PreDown = nft delete table inet ks"
)
_RULE = "OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! --dst-type LOCAL -j REJECT"
IN_IPTABLES = (
    f"PostUp = iptables -I {_RULE} && ip6tables -I {_RULE}\nPreDown = iptables -D {_RULE} && ip6tables -D {_RULE}"
)


@pytest.fixture
def net(lab: Lab) -> Lan:
    return lan(lab)


def wg(quick: Quick, words: str, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return quick.host.run(["sh", "-c", f"wg {words}"], stdin=stdin, check=False)


@pytest.mark.parametrize("switch", [IN_NFT, IN_IPTABLES], ids=["nft", "iptables"])
def test_behind_the_kill_switch_of_wg_quick_nothing_leaves_but_the_tunnel(
    net: Lan, tmp_path: Path, switch: str
) -> None:
    laptop, home = net.laptop, net.home
    net.office.ip(["route add 10.9.0.0/24 via 198.51.100.1"])
    home.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", laptop.peer("AllowedIPs = 10.9.0.1/32"))
    home.run("up wg0")
    laptop.file(f"Address = 10.9.0.1/32\n{switch}", home.peer(f"AllowedIPs = 0.0.0.0/0\n{END}"))
    if switch == IN_IPTABLES:
        # It leaves its tables, empty.
        for each in ("iptables", "ip6tables"):
            laptop.says("sh", "-c", f"{each} -I OUTPUT -j ACCEPT && {each} -D OUTPUT -j ACCEPT")
    before = laptop.system()
    laptop.run("up wg0")
    assert wg(laptop, "show wg0 fwmark").stdout.strip() == "0xca6c"
    capture = tmp_path / "capture"
    other = f"ip and not (udp and host 192.0.2.2 and port {PORT})"
    argv = ["tcpdump", "-n", "-l", "--immediate-mode", "-Q", "out", "-i", net.ends[0].interface, other]
    watching = net.laptop.host.popen(argv, log=capture)
    eventually(lambda: "listening on" in capture.read_text(), what="the capture")
    laptop.reaches("198.51.100.2")
    # Without its rules and routes the tunnel would be passed by.
    laptop.host.ip(["rule del priority 32765", "rule del priority 32764"])
    laptop.host.run(["ping", "-c3", "-i0.2", "-W1", "198.51.100.2"], check=False)
    assert wg(laptop, "set wg0 fwmark 0x1").stderr.strip().endswith("Operation not permitted")
    assert wg(laptop, "syncconf wg0 /dev/stdin", stdin=_stripped(laptop)).returncode == 0
    assert wg(laptop, "show wg0 fwmark").stdout.strip() == "0xca6c"
    assert " IP " not in capture.read_text()
    laptop.run("down wg0")
    # What the capture would have shown.
    eventually(lambda: laptop.pings("198.51.100.2") and " IP " in capture.read_text(), what="a packet seen")
    watching.terminate()
    watching.wait(60)
    assert laptop.system() == before


def _stripped(quick: Quick) -> str:
    return quick.says("wg-quick", "strip", "wg0")


def test_a_hook_sets_the_keys_and_a_second_up_leaves_them(net: Lan, tmp_path: Path) -> None:
    laptop, home = net.laptop, net.home
    key, secret = tmp_path / "key", tmp_path / "secret"
    key.write_text(base64(laptop.key.private) + "\n")
    secret.write_text(base64(PSK) + "\n")
    home.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", laptop.peer("AllowedIPs = 10.9.0.1/32", PSK))
    home.run("up wg0")
    lines = (
        f"Address = 10.9.0.1/24\nPostUp = wg set %i private-key {key}\n"
        f"PostUp = wg set %i peer {base64(home.key.public)} preshared-key {secret}\nPostUp = wg set %i fwmark 0x77"
    )
    known = laptop.key
    laptop.key = Key()  # the file has another one
    path = laptop.file(lines, home.peer(f"AllowedIPs = 10.9.0.0/24\n{END}"))
    laptop.run("up wg0")
    laptop.reaches("10.9.0.2")
    assert wg(laptop, "show wg0 private-key").stdout.strip() == _clamped(known)
    path.write_text(path.read_text() + "PersistentKeepalive = 9\n")
    assert "set" in laptop.run("up wg0").stderr
    shown = wg(laptop, "show wg0 dump").stdout.split()
    assert shown[0] == _clamped(known)
    assert shown[3:6] == ["0x77", base64(home.key.public), base64(PSK)]
    assert shown[-1] == "9"
    status = laptop.status()
    assert status["public_key"] == base64(known.public)
    laptop.reaches("10.9.0.2")
    # A peer of wg(8) alone is shown like the others, stays at a second `up`, and goes with `wg syncconf`.
    other = base64(Key().public)
    wg(laptop, f"set wg0 peer {other} allowed-ips 10.7.0.0/16")
    laptop.run("up wg0")
    assert other in {each["public_key"] for each in laptop.status()["peers"]}
    began = wg(laptop, "show wg0 latest-handshakes").stdout.split()[1]
    synced = f"[Interface]\nPrivateKey = {base64(known.private)}\n" + _stripped(laptop).partition("[Peer]")[2].join(
        ["[Peer]", f"PresharedKey = {base64(PSK)}\n"]
    )
    assert wg(laptop, "syncconf wg0 /dev/stdin", stdin=synced).returncode == 0
    assert wg(laptop, "show wg0 peers").stdout.split() == [base64(home.key.public)]
    assert wg(laptop, "show wg0 latest-handshakes").stdout.split()[1] == began
    laptop.reaches("10.9.0.2")


def _clamped(key: Key) -> str:
    raw = bytearray(key.private)
    raw[0], raw[31] = raw[0] & 248, raw[31] & 127 | 64
    return base64(bytes(raw))


def test_the_hooks_of_the_end_may_use_wg_and_save_config_keeps_what_wg_set(net: Lan, tmp_path: Path) -> None:
    laptop, other = net.laptop, base64(Key().public)
    hook = f"PreDown = wg set %i peer {other} allowed-ips 10.7.0.0/16 && wg show %i listen-port > {tmp_path}/port"
    path = laptop.file(f"Address = 10.9.0.1/32\nListenPort = 4242\nSaveConfig = true\n{hook}")
    laptop.run("up wg0")
    assert wg(laptop, "set wg0 listen-port 4343").returncode == 0
    laptop.host.wait_listening("udp", 4343)
    laptop.run("down wg0")
    assert (tmp_path / "port").read_text().strip() == "4343"
    assert "ListenPort = 4343" in path.read_text()
    assert other in path.read_text()


def test_of_a_server_and_a_client_wg_changes_only_what_can_not_contradict(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.machine("home", own_run=True)
    laptop = site.client("laptop", home, own_run=True)
    home.serve("--pool 10.150.0.0/24 --open")
    laptop.join(HOME4)
    for machine in (home, laptop):

        def run(words: str, host=machine.host, stdin: str = "") -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
            done: subprocess.CompletedProcess[str] = host.run(["sh", "-c", f"wg {words}"], stdin=stdin, check=False)
            return done

        [line] = run("show rg0 dump").stdout.splitlines()[1:]
        peer, _, endpoint, _, _, _, _, keepalive = line.split("\t")
        for words in (
            "listen-port 7777",
            "private-key /dev/stdin",
            f"peer {peer} remove",
            f"peer {peer} preshared-key /dev/stdin",
            f"peer {peer} persistent-keepalive 7",
            f"peer {peer} allowed-ips 10.7.0.0/16",
            f"peer {base64(Key().public)} allowed-ips 10.7.0.0/16",
        ):
            refused = run(f"set rg0 {words}", stdin=base64(Key().private))
            assert "Operation not permitted" in refused.stderr, words
        assert (
            run(f"set rg0 fwmark 0x77 peer {peer} endpoint {endpoint} persistent-keepalive {keepalive}").stderr == ""
        )
        assert run("show rg0 fwmark").stdout.strip() == "0x77"
        # What is so already may be said again.
        assert run("syncconf rg0 /dev/stdin", stdin=run("showconf rg0").stdout).stderr == ""
        [after] = run("show rg0 dump").stdout.splitlines()[1:]
        assert after.split("\t")[:2] == line.split("\t")[:2]
        said = "\n".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
        assert "which peers there are can't be changed here: " in said


@pytest.mark.parametrize("again", [["down"], ["up", "down"]], ids=lambda verbs: "-".join(verbs))
def test_the_predown_of_a_killed_tunnel_is_told_its_mark(lab: Lab, tmp_path: Path, again: list[str]) -> None:
    """A kill switch as Mullvad writes it can only be taken back with the mark."""
    net = lan(lab)
    laptop, asked = net.laptop, tmp_path / "asked"
    laptop.file(
        f"Address = 10.9.0.1/32\nPreDown = wg show %i fwmark >> {asked}", net.home.peer("AllowedIPs = 0.0.0.0/0")
    )
    laptop.run("up wg0")
    laptop.kill()
    for verb in again:
        laptop.run(f"{verb} wg0")
    assert asked.read_text() == "0xca6c\n" * len(again)


def test_a_killed_tunnel_whose_predown_fails_says_what_may_be_left(lab: Lab) -> None:
    laptop = lan(lab).laptop
    laptop.file("Address = 10.9.0.1/32\nPreDown = exit 7")
    laptop.run("up wg0")
    laptop.kill()
    done = laptop.run("down wg0", check=False)
    assert done.returncode == 1
    assert "Undo by hand" in done.stderr
    assert "isn't up" in laptop.run("down wg0", check=False).stderr
