"""The Debian package on machines that boot: services that come back after a reboot and a crash, and go again.

The tests of one Debian share its two machines, and leave them with a tunnel that works; the last one removes all.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.service.unit import XDP
from support.booted import Booted
from support.booted_pair import (
    CLIENT_INNER,
    INNER,
    TOKEN,
    Pair,
    booted_pair,
    main_process,
    newer_package,
    shown,
)
from support.booted_user import BootedUser
from support.held import held, let_die
from support.product import eventually

pytestmark = [pytest.mark.needs_packages, pytest.mark.needs_namespaces, pytest.mark.timeout(600)]
MOST_SECONDS = 30.0
MOST_EXPOSURE, MOST_EXPOSURE_XDP = 2.5, 2.8
NEWER = "9.0"
# Of a thread's status, as the table in docs/internals/packages.md has them.
FIELDS = ("Name", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters")
# For a watchdog that waits less than the unit's, so that it needn't be waited for in each test.
IMPATIENT = Path("/run/systemd/system/rustguard-join.service.d/impatient.conf")


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two machines of Debian 12 or 13 on which the four commands were typed."""
    with booted_pair(tmp_path_factory.mktemp(request.param), request.param) as made:
        yield made


@pytest.fixture
def suite(pair: Pair) -> str:
    return "bookworm" if "bookworm" in str(pair.server.root.folder) else "trixie"


def test_four_commands_make_a_network_of_two_fresh_machines(pair: Pair, suite: str) -> None:
    assert len(pair.typed) == 4
    assert pair.reaches()
    apt = ", ".join(f"{each:.1f}" for each in pair.apt_seconds)
    print(f"{suite}: {pair.ping_seconds:.1f} s to the first ping, besides apt's {apt} s")
    assert pair.ping_seconds < MOST_SECONDS


def test_a_service_has_its_capabilities_alone_and_its_token_is_nowhere_to_read(pair: Pair) -> None:
    process = main_process(pair.server, "rustguard-serve")
    tasks = pair.server.run(["sh", "-c", f"cat /proc/{process}/task/*/status"]).stdout
    # CAP_NET_BIND_SERVICE and CAP_NET_ADMIN: bits 10 and 12. Of every thread.
    assert {int(each, 16) for each in re.findall(r"(?m)^CapEff:\t(.*)$", tasks)} == {1 << 10 | 1 << 12}
    assert set(re.findall(r"(?m)^NoNewPrivs:\t(.*)$", tasks)) == {"1"}
    assert set(re.findall(r"(?m)^Seccomp:\t(.*)$", tasks)) == {"2"}
    for name, *values in zip(*(re.findall(rf"(?m)^{field}:\t(.*)$", tasks) for field in FIELDS), strict=True):
        print(f"{name:16} {' '.join(values)}")
    unit = pair.server.run(["cat", "/etc/systemd/system/rustguard-serve.service"]).stdout
    assert TOKEN not in unit
    assert "LoadCredential=token:/etc/rustguard/rustguard-serve.token" in unit
    assert TOKEN not in pair.server.run(["cat", f"/proc/{process}/cmdline"]).stdout
    assert TOKEN not in pair.server.run(["sh", "-c", f"tr '\\0' '\\n' < /proc/{process}/environ"]).stdout
    assert pair.server.run(["stat", "-c", "%a", "/etc/rustguard/rustguard-serve.token"]).stdout.strip() == "600"


def test_systemd_of_this_debian_finds_little_exposed(pair: Pair, suite: str) -> None:
    """The installed unit; then with the drop-in for --xdp, read and not run."""
    folder = pair.server.root.folder / "root/units"
    folder.mkdir()
    shutil.copy(pair.server.root.folder / "etc/systemd/system/rustguard-serve.service", folder)

    def exposure() -> float:
        words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "./rustguard-serve.service"]
        said = pair.server.run(["env", "--chdir=/root/units", *words]).stdout
        return float(said.strip().splitlines()[-1].partition(": ")[2].split()[0])

    plain = exposure()
    (folder / "rustguard-serve.service.d").mkdir()
    (folder / "rustguard-serve.service.d/xdp.conf").write_text(XDP)
    with_xdp = exposure()
    print(f"{suite}: exposure {plain}, with --xdp {with_xdp}")
    assert plain <= MOST_EXPOSURE
    assert plain < with_xdp <= MOST_EXPOSURE_XDP


def test_nothing_waits_for_the_network_but_what_has_to_look_names_up(pair: Pair) -> None:
    for machine, unit in ((pair.server, "rustguard-serve"), (pair.client, "rustguard-join")):
        after, wants, kind = shown(machine, unit, "After", "Wants", "Type")
        assert "network.target" in after.split()
        assert "network-online.target" not in (after + " " + wants).split()
        assert kind == "notify"
    after, wants = shown(pair.client, "rustguard-up@wg0", "After", "Wants")
    assert "network-online.target" in after.split()
    assert "network-online.target" in wants.split()


def test_lines_in_the_journal_have_their_priority(pair: Pair) -> None:
    """What somebody has to see is a warning (4), the rest information (6)."""
    pair.server.run(["ip", "address", "del", f"{INNER}/24", "dev", "rg0"])

    def priorities() -> dict[str, str]:
        lines = pair.server.run(
            ["journalctl", "-u", "rustguard-serve", "-o", "json", "--no-pager"]
        ).stdout.splitlines()
        entries = [json.loads(line) for line in lines]
        return {str(each["MESSAGE"]): each["PRIORITY"] for each in entries if each.get("_COMM") == "rustguard"}

    eventually(lambda: any("another program" in each for each in priorities()), what="a warning in the journal")
    found = priorities()
    assert {found[each] for each in found if "another program" in each} == {"4"}
    assert "6" in found.values()
    assert "another program" in pair.server.run(["rustguard", "service", "logs"]).stdout
    # The priority is the journal's, not part of the text.
    assert not [each for each in found if each.startswith("<")]
    eventually(pair.reaches, what="a ping after the address was put back")


def test_both_come_back_after_a_reboot(pair: Pair, suite: str) -> None:
    for machine in (pair.server, pair.client):
        machine.reboot()
    eventually(pair.reaches, what="a ping after both were rebooted")
    for machine, unit in ((pair.server, "rustguard-serve"), (pair.client, "rustguard-join")):
        began, ready = map(
            int, shown(machine, unit, "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        )
        print(f"{suite}: {unit} was ready {(ready - began) / 1e6:.2f} s after its start at boot")
    connected = f"connected to {pair.address}"
    eventually(lambda: connected in shown(pair.client, "rustguard-join", "StatusText")[0], what="the status line")
    lines = pair.client.run(["rustguard", "service", "status"]).stdout.splitlines()
    assert lines[0].startswith("rustguard-join: active (running), enabled at boot, process ")
    assert connected in lines[1]
    # It is refreshed four times within a watchdog's interval.
    line = "rg0: 1 peer, 1 with a session; window closed"
    eventually(lambda: shown(pair.server, "rustguard-serve", "StatusText") == [line], what="the server's status line")


def test_a_service_is_ready_while_the_network_does_not_stand(pair: Pair) -> None:
    pair.client.run(["systemctl", "stop", "rustguard-join"])
    pair.client_end.set("down")
    began = time.monotonic()
    pair.client.run(["systemctl", "start", "rustguard-join"])
    # Type=notify: systemctl has waited for READY.
    assert time.monotonic() - began < MOST_SECONDS
    assert main_process(pair.client, "rustguard-join")
    assert "connected to" not in shown(pair.client, "rustguard-join", "StatusText")[0]
    assert "rg0" in pair.client.run(["ip", "-o", "link"]).stdout
    assert pair.client.run(["rustguard", "status", "--healthy"]).stdout.startswith("rg0 is healthy")
    pair.client_end.set("up")
    eventually(pair.reaches, what="a ping after the network came")


def test_the_drop_in_permits_what_xdp_needs(pair: Pair) -> None:
    install = ["rustguard", "service", "install", "serve"]
    # The lab names an interface after the host at the other end.
    pair.server.run([*install, "--xdp", "laptop"])
    process = main_process(pair.server, "rustguard-serve")
    (effective,) = re.findall(r"(?m)^CapEff:\t(.*)$", pair.server.run(["cat", f"/proc/{process}/status"]).stdout)
    # CAP_NET_RAW and CAP_BPF besides.
    assert int(effective, 16) == 1 << 10 | 1 << 12 | 1 << 13 | 1 << 39
    assert "AF_XDP" in pair.server.run(["rustguard", "status", "-v"]).stdout
    eventually(pair.reaches, what="a ping with --xdp")
    pair.server.run(install)
    assert shown(pair.server, "rustguard-serve", "DropInPaths") == [""]
    eventually(pair.reaches, what="a ping without --xdp")


def test_a_client_that_is_refused_is_not_started_again(pair: Pair) -> None:
    """Exit code 4 needs a person; here somebody else has the name of its interface."""
    install = ["rustguard", "service", "install", "join"]
    pair.client.run([*install, "--interface", "rg9"])
    pair.client.run(["systemctl", "stop", "rustguard-join"])
    pair.client.run(["ip", "tuntap", "add", "rg9", "mode", "tun"])
    assert pair.client.run(["systemctl", "start", "rustguard-join"], check=False).returncode
    # RestartSec is 2.
    time.sleep(3)
    wanted = ("ActiveState", "Result", "ExecMainStatus", "NRestarts")
    assert shown(pair.client, "rustguard-join", *wanted) == ["failed", "exit-code", "4", "0"]
    assert "ended by exit-code" in pair.client.run(["rustguard", "service", "status"]).stdout
    pair.client.run(["ip", "link", "del", "rg9"])
    pair.client.run(install)
    eventually(pair.reaches, what="a ping after it was installed again")


def test_a_process_that_is_killed_is_started_again(pair: Pair) -> None:
    before = main_process(pair.client, "rustguard-join")
    pair.client.run(["kill", "-KILL", before])
    _is_started_again(pair, before)


def test_a_process_that_is_stopped_is_started_again(pair: Pair) -> None:
    before = _with_impatient_watchdog(pair.client)
    pair.client.run(["kill", "-STOP", before])
    _is_started_again(pair, before)


def test_a_thread_of_the_plane_that_is_stuck_alone_has_the_process_started_again(pair: Pair, suite: str) -> None:
    """On Debian 13 with the unit's own watchdog, on 12 with one that waits less."""
    if suite == "trixie":
        pair.client.run(["rm", "-rf", IMPATIENT.parent])
        pair.client.run(["systemctl", "daemon-reload"])
        pair.client.run(["systemctl", "restart", "rustguard-join"])
        assert shown(pair.client, "rustguard-join", "WatchdogUSec") == ["30s"]
        before = main_process(pair.client, "rustguard-join")
    else:
        before = _with_impatient_watchdog(pair.client)
    eventually(pair.reaches, what="a ping before the thread is held")
    names = Path(f"/proc/{pair.client.outside(int(before))}/task").glob("*/comm")
    threads = [int(each.parent.name) for each in names if each.read_text().startswith("rg-in")]
    if not threads:
        pytest.skip("the kernel's engine has no threads of ours")
    with held(threads[0]):
        _is_started_again(pair, before, threads[0])


def _with_impatient_watchdog(machine: Booted) -> str:
    """Have the client's watchdog wait less, and return its main process."""
    machine.run(["mkdir", "-p", IMPATIENT.parent])
    machine.run(["tee", IMPATIENT], text="[Service]\nWatchdogSec=6\n")
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "restart", "rustguard-join"])
    return main_process(machine, "rustguard-join")


def _is_started_again(pair: Pair, before: str, thread: int | None = None) -> None:
    def another() -> bool:
        if thread is not None:
            let_die(thread)
        return main_process(pair.client, "rustguard-join") not in ("", before)

    # The watchdog waits 30 s.
    eventually(another, 90, "a start by systemd")
    eventually(pair.reaches, what="a ping after the start")


@pytest.fixture(scope="module")
def user(pair: Pair) -> BootedUser:
    """An ordinary user of the client's machine, where root's client runs too."""
    return BootedUser(pair.client, "ann")


def _is_up(user: BootedUser, before: str = "") -> str:
    """Return the main process of the user's client once it is ready, another one than before, and has a session."""

    def ready() -> str:
        state, process, line = user.shown("rustguard-join", "ActiveState", "MainPID", "StatusText")
        return process if state == "active" and process != before and "connected to" in line else ""

    process = eventually(ready, MOST_SECONDS, "the user's client")
    user.run(["rustguard", "exec", "--", "ping", "-n", "-c1", "-W5", INNER])
    return process


def test_an_ordinary_user_installs_a_service_of_their_own(pair: Pair, user: BootedUser) -> None:
    words = ["rustguard", "service", "install", "join", pair.address, "--rootless", "--name", "ann", "--token", "-"]
    pair.server.run(["rustguard", "open"])
    refused = user.run(words, check=False, text=f"{TOKEN}\n")
    assert "No systemd runs for this user." in refused.stderr
    user.linger()
    eventually(lambda: user.run(["systemctl", "--user", "is-system-running"], check=False).stdout == "running\n")
    assert "runs, now and at each login" in user.run(words, text=f"{TOKEN}\n").stderr
    process = _is_up(user)
    assert user.shown("rustguard-join", "Type", "UnitFileState", "NRestarts") == ["notify", "enabled", "0"]
    lines = user.run(["rustguard", "service", "status"]).stdout.splitlines()
    # Root's has the same name.
    assert lines[0] == f"rustguard-join: active (running), enabled at login, process {process}"
    assert f"connected to {pair.address}" in lines[1]
    assert lines[2].startswith("rustguard-join: active (running), enabled at boot, process ")
    state = user.home / ".local/state/rustguard/client"
    status = json.loads(user.run(["rustguard", "status", "--json", "--state", state]).stdout)
    assert (str(status["pid"]), status["healthy"]) == (process, True)
    for logs in (["service", "logs"], ["logs", state]):
        assert f"Connected to {pair.address}" in user.run(["rustguard", *logs]).stdout
    for name in ("cmdline", "environ"):
        assert TOKEN not in pair.client.run(["cat", f"/proc/{process}/{name}"]).stdout
    assert not [each for each in user.files() if "token" in each]


def test_a_users_client_comes_back_after_a_kill_of_it_or_its_helper_and_after_a_reboot(
    pair: Pair, user: BootedUser, suite: str
) -> None:
    before = _is_up(user)
    pair.client.run(["kill", "-KILL", before])
    before = _is_up(user, before)
    find = "grep -l rootless.proces[s] /proc/[0-9]*/cmdline | cut -d/ -f3"
    pair.client.run(["kill", "-KILL", pair.client.run(["sh", "-c", find]).stdout.strip()])
    before = _is_up(user, before)
    assert user.shown("rustguard-join", "NRestarts") == ["2"]
    assert "The helper process of --rootless was killed" in user.run(["rustguard", "service", "logs"]).stdout
    began = time.monotonic()
    pair.client.reboot()
    _is_up(user)
    print(f"{suite}: a user's client pinged {time.monotonic() - began:.1f} s after a reboot began")
    eventually(pair.reaches, what="a ping of root's client after the reboot")


def test_a_user_ends_and_removes_the_service_and_nothing_of_it_is_left(pair: Pair, user: BootedUser) -> None:
    files = user.files()
    assert ".config/systemd/user/default.target.wants/rustguard-join.service" in files
    assert "Ended rustguard-join.service on " in user.run(["rustguard", "down", "rg0"]).stderr
    assert user.shown("rustguard-join", "ActiveState", "Result") == ["inactive", "success"]
    user.run(["systemctl", "--user", "start", "rustguard-join"])
    _is_up(user)
    user.run(["rustguard", "stop", user.home / ".local/state/rustguard/client"])
    assert user.shown("rustguard-join", "ActiveState", "Result") == ["inactive", "success"]
    user.run(["rustguard", "service", "install", "join", "--rootless"])
    _is_up(user)
    user.run(["rustguard", "service", "remove"])
    assert {each for each in files - user.files() if "client/timestamps" not in each} == {
        ".config/systemd/user/rustguard-join.service",
        ".config/systemd/user/default.target.wants/rustguard-join.service",
    }
    assert user.shown("rustguard-join", "LoadState") == ["not-found"]
    assert pair.client.run(["sh", "-c", "ls /run/user/*/rustguard"]).stdout == ""
    assert pair.client.run(["pgrep", "-u", "ann", "-f", "rustguard"], check=False).stdout == ""
    assert pair.reaches()


def test_commands_that_start_programs_of_ours_find_them_in_the_package(pair: Pair) -> None:
    """They are in a folder that is in no Python's path."""
    words = ["rustguard", "bench", "generate", "--rate", "1000", "--seconds", "0.2", "--json"]
    assert json.loads(pair.server.run(words).stdout)


class Session:
    """A shell over SSH, from one machine through the tunnel to the other.

    Args:
        here: Whose user it is.
        address: The other's inner address.
    """

    def __init__(self, here: Booted, address: str) -> None:
        options = ("StrictHostKeyChecking=no", "BatchMode=yes", "LogLevel=ERROR")
        words = ["ssh", *(f"-o{each}" for each in options), f"root@{address}", "sh"]
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(here.command(words), stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def ask(self, line: str) -> str:
        """Run a line in the shell, and return what it printed."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(f"{line} 2>&1; echo status=$?\n")
        said = ""
        for each in self.program.stdout:
            if each.startswith("status="):
                assert each == "status=0\n", said
                return said
            said += each
        raise AssertionError(f"the session ended: {said}")

    def close(self) -> None:
        self.program.communicate("exit\n", timeout=30)


def test_a_package_is_upgraded_under_an_ssh_session_through_the_tunnel(
    pair: Pair, suite: str, tmp_path: Path
) -> None:
    """Both ends, each from the other one: the same TCP connection goes on with the new program."""
    newer = newer_package(tmp_path, NEWER)
    pair.client.run(["sh", "-c", "mkdir -p /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"])
    key = pair.client.run(["cat", "/root/.ssh/id_ed25519"]).stdout
    public = pair.client.run(["cat", "/root/.ssh/id_ed25519.pub"]).stdout
    for machine in (pair.server, pair.client):
        machine.run(["sh", "-c", "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/id_ed25519"], text=key)
        machine.run(["sh", "-c", "umask 077; cat > /root/.ssh/authorized_keys"], text=public)
        shutil.copy(newer, machine.root.folder / "root/newer.deb")
    ends = ((pair.client, INNER, pair.server, "serve"), (pair.server, CLIENT_INNER, pair.client, "join"))
    for here, address, there, kind in ends:
        before = main_process(there, f"rustguard-{kind}")
        session = Session(here, address)
        assert session.ask("rustguard --version").startswith("rustguard, version 0.")
        connection = session.ask("ss -tnH state established sport = :22")
        began = time.monotonic()
        session.ask("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq /root/newer.deb")
        print(f"{suite}: {kind} upgraded under a session in {time.monotonic() - began:.1f} s")
        assert session.ask("rustguard --version") == f"rustguard, version {NEWER}\n"
        assert session.ask("ss -tnH state established sport = :22").split()[2:4] == connection.split()[2:4]
        # More than one segment, so that both directions carry on.
        assert len(session.ask("head -c 300000 /dev/zero | tr '\\0' x; echo")) == 300_001
        session.close()
        assert main_process(there, f"rustguard-{kind}") not in ("", before)
        assert there.run(["rustguard", "status", "--healthy"]).returncode == 0


def test_what_is_stopped_or_removed_is_gone_and_the_keys_stay_unless_a_person_says_so(pair: Pair) -> None:
    server, client = pair.server, pair.client
    client.run(["rustguard", "stop"])
    assert shown(client, "rustguard-join", "ActiveState") == ["inactive"]
    client.run(["rustguard", "service", "remove", "join"])
    server.run(["rustguard", "service", "remove"])
    for machine in (server, client):
        left = machine.run(["sh", "-c", "ls /etc/systemd/system/rustguard* /etc/rustguard/*"], check=False)
        assert left.stdout == ""
        assert "rg0" not in machine.run(["ip", "-o", "link"]).stdout
    # Removing the package ends and removes the rest.
    # Two services, and what runs in the background.
    server.run(["rustguard", "service", "install", "serve"])
    server.run(["rustguard", "service", "install", "serve", "--state", "/var/lib/rustguard/third",
                "--port", "4100", "--pool", "10.152.0.0/24"])  # fmt: skip
    lines = server.run(["rustguard", "service", "status"]).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[::2]] == ["rustguard-serve", "rustguard-serve-third"]
    server.run(["rustguard", "serve", "--state", "/var/lib/rustguard/second", "--port", "4000",
                "--pool", "10.151.0.0/24", "--daemon"])  # fmt: skip
    server.run(["apt-get", "remove", "-y", "-qq", "rustguard"])
    assert " rg" not in server.run(["ip", "-o", "link"]).stdout
    assert server.run(["sh", "-c", "ls /etc/systemd/system/rustguard*"], check=False).stdout == ""
    assert server.run(["sh", "-c", "grep -l rustguar[d] /proc/[0-9]*/cmdline"], check=False).stdout == ""
    client.run(["apt-get", "remove", "-y", "-qq", "rustguard"])
    for machine, answer, stay in ((server, "", True), (client, "y\n", False)):
        # On a terminal it asks; an empty answer is a no.
        asked = machine.run(
            ["env", "-u", "DEBIAN_FRONTEND", "script", "-qec", "dpkg --purge rustguard", "/dev/null"],
            text=answer or "\n",
        )
        assert "Delete the keys and peers in /var/lib/rustguard too?" in asked.stdout
        assert (machine.root.folder / "var/lib/rustguard").exists() == stay
        assert not (machine.root.folder / "etc/default/rustguard").exists()
        assert not (machine.root.folder / "etc/rustguard").exists()
        assert not list((machine.root.folder / "usr/lib").glob("rustguard*"))
