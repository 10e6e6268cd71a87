"""Hooks that use wg(8) on a tunnel of `up` with the kernel's engine: what they set outlives the interface."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

from support.forked import ForkedSite
from support.product import HOME4, Machine, eventually
from support.quick import Key, base64

PATIENCE = 60.0
PSK = bytes(range(32))
PORT = 4444


def _conf(path: Path, key: Key | None, interface: str, *peers: str) -> Path:
    private = "" if key is None else f"PrivateKey = {base64(key.private)}\n"
    path.write_text(f"[Interface]\n{private}{interface}\n{''.join(peers)}")
    path.chmod(0o600)
    return path


def _peer(key: Key, lines: str) -> str:
    return f"[Peer]\nPublicKey = {base64(key.public)}\n{lines}\n"


def _shown(machine: Machine, name: str, what: str) -> list[str]:
    return machine.host.run(["wg", "show", name, what]).stdout.split()


def _is_up(machine: Machine, running: subprocess.Popen[str], name: str) -> bool:
    return machine.alive(running) and f"{name} is up" in machine.said()


def _up(machine: Machine, file: Path) -> subprocess.Popen[str]:
    running = machine.start(f"up {file} --foreground --engine kernel")
    eventually(partial(_is_up, machine, running, file.stem), PATIENCE, f"{file.stem}")
    return running


def test_what_hooks_set_with_wg_holds_at_a_second_up_and_when_the_interface_is_made_again(
    site: ForkedSite, tmp_path: Path
) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    mine, theirs, third = Key(), Key(), Key()
    for name, content in (("key", mine.private), ("psk", PSK)):
        (tmp_path / name).write_text(base64(content) + "\n")
    hooks = (
        f"PostUp = wg set %i private-key {tmp_path}/key\n"
        f"PostUp = wg set %i peer {base64(theirs.public)} preshared-key {tmp_path}/psk\n"
        "PostUp = wg set %i fwmark 0x77"
    )
    lines = f"Address = 10.8.0.1/24\nListenPort = {PORT}\n{hooks}"
    file = _conf(tmp_path / "office.conf", None, lines, _peer(theirs, "AllowedIPs = 10.8.0.2/32"))
    end = f"AllowedIPs = 10.8.0.0/24\nPresharedKey = {base64(PSK)}\nEndpoint = {HOME4}:{PORT}"
    far = _conf(tmp_path / "far.conf", theirs, "Address = 10.8.0.2/24", _peer(mine, end))
    serving, joining = _up(home, file), _up(laptop, far)
    eventually(lambda: laptop.pings("10.8.0.1", 2.0), PATIENCE, "a ping")
    assert home.status()["public_key"] == base64(mine.public)
    assert "has no private key" not in str(home.status()["warnings"])

    # A second `up` changes what differs in the file, and nothing else.
    file.write_text(file.read_text() + "PersistentKeepalive = 9\n")
    home.run(f"up {file}")
    assert _shown(home, "office", "preshared-keys") == [base64(theirs.public), base64(PSK)]
    assert _shown(home, "office", "persistent-keepalive")[1] == "9"
    assert _shown(home, "office", "fwmark") == ["0x77"]
    assert laptop.pings("10.8.0.1", 2.0)

    # `wg syncconf` with a further peer. The next `up` learns of it, and what is made again has it.
    synced = _conf(
        tmp_path / "synced",
        mine,
        f"ListenPort = {PORT}\nFwMark = 0x77",
        _peer(theirs, f"PresharedKey = {base64(PSK)}\nAllowedIPs = 10.8.0.2/32\nPersistentKeepalive = 9"),
        _peer(third, "AllowedIPs = 10.8.0.3/32"),
    )
    home.host.run(["wg", "syncconf", "office", str(synced)])
    home.run(f"up {file}")
    assert {each["public_key"] for each in home.status()["peers"]} == {base64(theirs.public), base64(third.public)}
    home.host.ip(["link del office"])
    eventually(lambda: "removed the interface office; put back" in home.said(), PATIENCE, "the interface again")
    assert set(_shown(home, "office", "peers")) == {base64(theirs.public), base64(third.public)}
    assert _shown(home, "office", "preshared-keys")[:2] == [base64(theirs.public), base64(PSK)]
    assert _shown(home, "office", "fwmark") == ["0x77"]
    eventually(lambda: laptop.pings("10.8.0.1", 2.0), PATIENCE, "a ping through the new interface")
    for program in (joining, serving):
        program.terminate()
        assert program.wait(PATIENCE) == 0


def test_a_hook_sees_the_mark_of_a_default_route_and_can_not_change_it(site: ForkedSite, tmp_path: Path) -> None:
    home = site.home()
    mine, other = Key(), Key()
    lines = f"Address = 10.8.0.1/24\nPostUp = wg show %i fwmark > {tmp_path}/seen\nPostUp = wg set %i fwmark 0x1"
    file = _conf(tmp_path / "wide.conf", mine, lines, _peer(other, f"AllowedIPs = 0.0.0.0/0\nEndpoint = {HOME4}:1"))
    running = _up(home, file)
    mark = (tmp_path / "seen").read_text().strip()
    assert int(mark, 16) > 1
    assert _shown(home, "wide", "fwmark") == [mark]
    assert f"the mark of wide stays {mark}" in home.said()
    running.terminate()
    assert running.wait(PATIENCE) == 0
