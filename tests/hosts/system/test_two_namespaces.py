"""Two network namespaces of one machine each have a tunnel of the same name, and neither disturbs the other.

Both see the same files: /run with the control sockets and wg(8)'s, and the state directories.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from rustguard_py.daemon.control.client import call
from rustguard_py.lab.hosts import Lab
from support.product import eventually
from support.quick import PORT, Key, Quick

INSIDE = ["ip", "netns", "exec", "blue"]


@pytest.fixture
def machine(lab: Lab) -> Quick:
    """A host with a namespace `blue` in it, and a file wg0.conf for each, which name each other."""
    machine = Quick(lab.host("machine", own_files=True))
    machine.host.ip(
        [
            "netns add blue",
            "link add out type veth peer name in netns blue",
            "addr add 192.0.2.1/24 dev out",
            "link set out up",
        ]
    )
    for words in (["addr", "add", "192.0.2.2/24", "dev", "in"], ["link", "set", "in", "up"]):
        machine.host.run([*INSIDE, "ip", *words])
    blue = Quick(machine.host, Key())
    machine.file(f"Address = 10.9.0.1/24\nListenPort = {PORT}", blue.peer(f"AllowedIPs = 10.9.0.2\n{_end(2)}"))
    # `ip netns exec` puts what is in here over /etc.
    other = machine.root / "etc/netns/blue/wireguard/wg0.conf"
    other.parent.mkdir(parents=True)
    mine = machine.root / "etc/wireguard/wg0.conf"
    text = mine.read_text()
    blue.file(f"Address = 10.9.0.2/24\nListenPort = {PORT}", machine.peer(f"AllowedIPs = 10.9.0.1\n{_end(1)}"))
    mine.rename(other)
    mine.write_text(text)
    mine.chmod(0o600)
    return machine


def _end(number: int) -> str:
    return f"Endpoint = 192.0.2.{number}:{PORT}"


def _blue(machine: Quick, words: str) -> subprocess.CompletedProcess[str]:
    return machine.host.run([*INSIDE, *machine.command(words)], check=False)


def _daemons(machine: Quick) -> dict[str, int]:
    """Return the process of each daemon by the place of its state."""
    found = {}
    for marker in (machine.root / "run/rustguard").glob("*.state"):
        status = call(marker.with_suffix(".sock"), "status")
        found[Path(marker.read_text().strip()).name.partition("@")[2]] = int(status["pid"])
    return found


def _public_key(machine: Quick, *inside: str) -> str:
    return machine.says(*inside, "wg", "show", "wg0", "public-key").strip()


def test_a_tunnel_of_the_same_name_in_two_namespaces(machine: Quick) -> None:
    machine.run("up wg0")
    done = _blue(machine, "up wg0")
    assert done.returncode == 0, done.stderr
    machine.reaches("10.9.0.2")
    first = _daemons(machine)
    assert set(first) > {"blue"}
    keys = _public_key(machine), _public_key(machine, *INSIDE)
    assert len(set(keys)) == 2
    # Each one's own.
    assert "nothing in" in machine.run("up wg0").stderr
    assert "nothing in" in _blue(machine, "up wg0").stderr
    # A killed one: what it left is undone by the next in its own namespace.
    machine.host.run(["kill", f"-{signal.SIGKILL.value}", str(first["blue"])])
    eventually(lambda: "wg0" not in machine.says(*INSIDE, "ip", "link"), what="the end")
    done = _blue(machine, "up wg0")
    assert (done.returncode, "was killed" in done.stderr) == (0, True)
    machine.reaches("10.9.0.2")
    assert keys == (_public_key(machine), _public_key(machine, *INSIDE))
    assert "Ended process" in _blue(machine, "stop wg0").stderr
    assert "isn't up" in _blue(machine, "down wg0").stderr
    # That of the machine took no notice.
    assert list(_daemons(machine).values()) == [pid for place, pid in first.items() if place != "blue"]
    assert _public_key(machine) == keys[0]
    logs = [each.read_text() for each in (machine.root / "var/lib/rustguard/tunnels").glob("wg0@*/log")]
    assert len(logs) == 2
    assert not [line for log in logs for line in log.splitlines() if "wg(8)" in line or "another program" in line]
    machine.run("down wg0")
    assert _daemons(machine) == {}
    assert not [*(machine.root / "var/run/wireguard").glob("wg0*")]
