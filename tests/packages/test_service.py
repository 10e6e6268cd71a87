"""The Debian package on machines that boot: services that come back after a reboot and a crash, and go again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.booted import Booted
from support.debian_root import Root, archive, package
from support.product import eventually

pytestmark = [pytest.mark.needs_packages, pytest.mark.timeout(600)]
TOOLS = ("iproute2", "iputils-ping", "python3", "systemd", "systemd-sysv", "dbus")
INNER = "10.150.0.1"
TOKEN = "maple-comet-fjord"  # noqa: S105 - of a lab that lives for minutes


@pytest.fixture
def machines(tmp_path: Path, lab: Lab) -> Iterator[tuple[Booted, Booted, str]]:
    """A server's machine and a client's, with the package, and the server's address."""
    hosts = lab.host("home"), lab.host("laptop")
    there, _ = lab.link(*hosts, ipv4="192.0.2.0/24")
    booted: list[Booted] = []
    try:
        for host in hosts:
            root = Root(tmp_path / host.name, archive("trixie", include=TOOLS))
            root.install(package())
            booted.append(Booted(root, host))
        yield booted[0], booted[1], str(there.ipv4)
    finally:
        for each in booted:
            each.close()


def reaches(client: Booted) -> bool:
    return client.run(["ping", "-n", "-c1", "-W1", INNER], check=False).returncode == 0


def shown(machine: Booted, unit: str, *names: str) -> list[str]:
    done = machine.run(["systemctl", "show", unit, *(f"--property={each}" for each in names)])
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return [found[each] for each in names]


def main_process(machine: Booted, unit: str) -> str:
    state, process = shown(machine, unit, "ActiveState", "MainPID")
    return process if state == "active" and process != "0" else ""


def test_services_come_back_after_a_reboot_and_a_crash_and_are_removed(
    machines: tuple[Booted, Booted, str],
) -> None:
    server, client, address = machines
    install = ["rustguard", "service", "install"]
    began = time.monotonic()
    server.run([*install, "serve", "--pool", "10.150.0.0/24", "--token", "-", "--open"], text=TOKEN + "\n")
    client.run(["rustguard", "join", address, "--token", "-", "--service"], text=TOKEN + "\n")
    eventually(lambda: reaches(client), what="the first ping")
    print(f"{time.monotonic() - began:.1f} s from two installed packages to a ping between services")

    _look_at_the_limits(server)
    for machine in (server, client):
        machine.reboot()
    eventually(lambda: reaches(client), what="a ping after both were rebooted")
    connected = f"connected to {address}"
    eventually(lambda: connected in shown(client, "rustguard-join", "StatusText")[0], what="the status line")

    # Killed, stopped as a whole, and with one thread of the plane stopped: systemd starts it again.
    for signal in ("KILL", "STOP"):
        before = eventually(lambda: main_process(client, "rustguard-join"), what="the client")
        thread = before
        if signal == "STOP":
            threads = client.run(["sh", "-c", f"grep -l rg-in /proc/{before}/task/*/comm || true"]).stdout.split()
            thread = threads[0].split("/")[4] if threads else before
        client.run(["sh", "-c", f"kill -{signal} {thread}"])
        _started_again(client, before, f"a start after {signal}")
        eventually(lambda: reaches(client), what=f"a ping after {signal}")
    lines = client.run(["rustguard", "service", "status"]).stdout
    assert lines.startswith("rustguard-join: active (running), enabled at boot")

    # What somebody stops stays ended; what is removed is gone.
    client.run(["rustguard", "stop"])
    assert shown(client, "rustguard-join", "ActiveState") == ["inactive"]
    client.run(["rustguard", "service", "remove", "join"])
    server.run(["rustguard", "service", "remove"])
    for machine in (server, client):
        assert (
            machine.run(["sh", "-c", "ls /etc/systemd/system/rustguard* /etc/rustguard/*"], check=False).stdout == ""
        )
        assert "rg0" not in machine.run(["ip", "-o", "link"]).stdout
    # Removing the package ends and removes the rest.
    server.run([*install, "serve"])
    server.run(["rustguard", "serve", "--state", "/var/lib/rustguard/second", "--port", "4000",
                "--pool", "10.151.0.0/24", "--daemon"])  # fmt: skip
    server.run(["apt-get", "remove", "-y", "-qq", "rustguard"])
    assert " rg" not in server.run(["ip", "-o", "link"]).stdout
    assert server.run(["sh", "-c", "ls /etc/systemd/system/rustguard*"], check=False).stdout == ""


def _started_again(machine: Booted, before: str, what: str) -> None:
    # The watchdog waits 30 s.
    eventually(lambda: main_process(machine, "rustguard-join") not in ("", before), 90, what)


def _look_at_the_limits(server: Booted) -> None:
    """Look at what the server's process was left with, and that nobody can read the token."""
    process = main_process(server, "rustguard-serve")
    status = dict(
        line.split(":\t", 1)
        for line in server.run(["cat", f"/proc/{process}/status"]).stdout.splitlines()
        if ":\t" in line
    )
    # CAP_NET_BIND_SERVICE and CAP_NET_ADMIN: bits 10 and 12.
    assert int(status["CapEff"], 16) == 1 << 10 | 1 << 12
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    unit = server.run(["cat", "/etc/systemd/system/rustguard-serve.service"]).stdout
    assert TOKEN not in unit
    assert TOKEN not in server.run(["cat", f"/proc/{process}/cmdline"]).stdout
    assert server.run(["stat", "-c", "%a", "/etc/rustguard/rustguard-serve.token"]).stdout.strip() == "600"
