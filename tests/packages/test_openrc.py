"""OpenRC's script on machines that boot: Debian's OpenRC, with sysvinit as process 1."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.booted import BootedOpenrc
from support.debian_root import Root, archive, package
from support.product import eventually

pytestmark = [pytest.mark.needs_packages, pytest.mark.timeout(600)]
TOOLS = ("iproute2", "iputils-ping", "python3", "sysvinit-core", "openrc")
EXAMPLES = "/usr/share/doc/rustguard/examples/openrc"
INNER = "10.150.0.1"
TOKEN = "maple-comet-fjord"  # noqa: S105 - of a lab that lives for minutes
NAME = "rustguard"


class Machine(BootedOpenrc):
    """A machine with the package and the script, set up as docs/guide/service.md says."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        root = Root(folder, archive("trixie", include=TOOLS))
        root.install(package())
        super().__init__(root, lab.host(folder.name))
        self.run(["install", "-m", "755", f"{EXAMPLES}/rustguard.initd", f"/etc/init.d/{NAME}"])
        self.run(["install", "-m", "644", f"{EXAMPLES}/rustguard.confd", f"/etc/conf.d/{NAME}"])

    def set(self, *lines: str) -> None:
        """Add lines to the service's settings; later ones prevail."""
        with (self.root.folder / f"etc/conf.d/{NAME}").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def service(self, verb: str, *, check: bool = True) -> tuple[int, str]:
        done = self.run(["rc-service", NAME, verb], check=check)
        return done.returncode, done.stdout + done.stderr

    def daemon(self) -> str:
        """Return the daemon's process id, or "" if none runs."""
        return self.run(["cat", f"/run/openrc/options/{NAME}/child_pid"], check=False).stdout.strip()

    def signal(self, name: str) -> str:
        """Send the daemon a signal, and return its process id."""
        process = self.daemon()
        self.run(["sh", "-c", f"kill -{name} {process}"])
        return process


@pytest.fixture
def machines(tmp_path: Path, lab: Lab) -> Iterator[list[Machine]]:
    """A server's machine and a client's."""
    made: list[Machine] = []
    try:
        for name in ("home", "laptop"):
            made.append(Machine(tmp_path / name, lab))
        yield made
    finally:
        for each in made:
            each.close()


def test_a_service_comes_back_after_a_kill_and_a_reboot_and_stays_ended_when_it_should(
    machines: list[Machine], lab: Lab
) -> None:
    server, client = machines
    there, here = lab.link(server.host, client.host, ipv4="192.0.2.0/24")
    _serve(server)
    _join(client, str(there.ipv4))
    for machine in machines:
        machine.run(["rc-update", "add", NAME, "default"])
    _reaches(client, "the first ping")

    # Killed, and then one that doesn't answer.
    for machine, signal in ((server, "KILL"), (client, "STOP")):
        before = machine.signal(signal)
        _started_again(machine, before)
        _reaches(client, f"a ping after {signal}")

    for machine in machines:
        machine.reboot()
        assert "rg0" in machine.run(["ip", "-o", "link"]).stdout
    # Debian's shutdown has taken the network down, and nothing here takes it up but us.
    for end in (there, here):
        end.set("up")
    _reaches(client, "a ping after both were rebooted")

    # What a person ends stays ended.
    assert "Ended rustguard on /var/lib/rustguard/client" in client.run(["rustguard", "stop"]).stderr
    assert client.service("status", check=False)[0] == 3
    time.sleep(3)
    assert client.daemon() == ""
    _refused(server)
    done = client.run(["rustguard", "service", "install", "join"], check=False)
    assert done.returncode == 4
    assert "OpenRC" in done.stderr


def _started_again(machine: Machine, before: str) -> None:
    eventually(lambda: machine.daemon() not in ("", before), what="another start")


def _serve(server: Machine) -> None:
    code, said = server.service("start", check=False)
    assert code != 0, "there is no token yet"
    assert "/etc/rustguard/token" in said
    server.run(["sh", "-c", "mkdir -p /etc/rustguard && umask 077 && cat > /etc/rustguard/token"], text=TOKEN + "\n")
    server.service("start")
    assert "Serving 10.150.0.0/24" in server.run(["rustguard", "logs"]).stdout
    server.run(["rustguard", "open", "600"])


def _join(client: Machine, address: str) -> None:
    client.set('rustguard_options="join"', "healthcheck_delay=2", "healthcheck_timer=2", 'retry="TERM/2/KILL/5"')
    code, said = client.service("start", check=False)
    assert code != 0
    assert "Join once" in said
    client.run(["rustguard", "join", address, "--token", "-", "--save-only"], text=TOKEN + "\n")
    client.service("start")


def _reaches(client: Machine, what: str) -> None:
    ping = ["ping", "-n", "-c1", "-W1", INNER]
    eventually(lambda: client.run(ping, check=False).returncode == 0, what=what)


def _refused(server: Machine) -> None:
    """Have the server end at each start: it is started a few times, and not for ever."""
    server.service("stop")
    assert "rg0" not in server.run(["ip", "-o", "link"]).stdout
    server.set('rustguard_options="serve --pool nonsense"', "respawn_delay=1", "respawn_max=2")
    code, said = server.service("start", check=False)
    assert code != 0
    assert "It didn't start. The end of its log, /var/lib/rustguard/server.log:" in said
    assert server.service("status", check=False)[0] == 3
    assert (server.root.folder / "var/lib/rustguard/server.log").read_text().count("nonsense") == 3
