"""What a running daemon may do, read of each of its threads in /proc."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from rustguard_py.sandbox import writing
from rustguard_py.sandbox.capabilities import Capability
from support.product import HOME4, INNER, PATIENCE, TOKEN, Machine, Site, eventually
from support.quick import PORT, Quick, lan

# What a start has, and what it keeps of that.
pytestmark = pytest.mark.fresh

HOOKS, PATHS = "rustguard-hooks", "rustguard-paths"
LANDLOCK = writing.why_not() is None
# What a kernel before Linux 6.12 doesn't refuse is one more sentence.
OLD_LANDLOCK = LANDLOCK and (writing.version() or 0) < 6
USUAL = {Capability.NET_ADMIN, Capability.NET_BIND_SERVICE}
needs_native = pytest.mark.skipif(not has_native(), reason="the native plane isn't built here")


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def tasks(pid: int) -> dict[str, dict[str, str]]:
    """What /proc says of each thread of a process, by number and name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        found[f"{task.name} {lines['Name']}"] = lines
    return found


def helpers(pid: int) -> dict[str, int]:
    """The processes that a daemon started, by name."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{each}/comm").read_text().strip(): int(each) for each in started}


def check(machine: Machine | Quick, kept: set[Capability], *, chowns: bool = False) -> None:
    """Every thread has these capabilities alone, and can gain none. A helper for sockets chowns."""
    if chowns and not LANDLOCK:
        kept = kept | {Capability.CHOWN}
    mask = f"{sum(1 << each for each in kept):016x}"
    found = tasks(machine.status()["pid"])
    assert len(found) > 1, "threads of the plane, of the audit log or of look-ups"
    for name, lines in found.items():
        held = {each: lines[each] for each in ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs")}
        assert held == {"CapPrm": mask, "CapEff": mask, "CapBnd": mask, "NoNewPrivs": "1"}, name
        # The portable engine runs without the native one too, and without the filter then.
        assert lines["Seccomp"] == ("2" if has_native() else "0"), name
        assert lines["CapInh"] == lines["CapAmb"] == f"{0:016x}", name
    names = ", ".join(map(str, sorted(kept)))
    assert machine.status()["sandbox"]["applied"][:2] == [f"capabilities: {names}", "no new privileges"]
    missing = [not has_native(), not LANDLOCK, OLD_LANDLOCK]
    assert len(machine.status()["sandbox"]["refused"]) == sum(missing)
    started = helpers(machine.status()["pid"])
    assert (PATHS in started) == LANDLOCK
    if LANDLOCK:
        assert "writing only to its own files" in machine.status()["sandbox"]["applied"]
        # It has what making sockets needs: a group for the control socket, and no more.
        [lines] = tasks(started[PATHS]).values()
        own = f"{1 << Capability.CHOWN if chowns else 0:016x}"
        assert (lines["CapPrm"], lines["CapEff"]) == (own, own)
        assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "portable"])
def test_no_thread_of_server_or_client_has_more_than_it_needs(site: Site, engine: str) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --open --port 443 --engine {engine}")
    laptop.join(f"{HOME4}:443", f"--engine {engine}")
    for machine in (home, laptop):
        check(machine, USUAL)
        shown = " ".join(machine.run("status -v").stdout.split())
        assert "capabilities: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN; no new privileges" in shown


@needs_native
def test_options_keep_what_they_need_and_no_more(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool 10.150.0.0/24 --open --xdp {laptop.servers_end.interface} --group root")
    laptop.join(HOME4, "--uring")
    # Lifting the limit of locked memory takes CAP_SYS_RESOURCE, which containers lack.
    own = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    lifted = int(own["CapEff"], 16) >> 24 & 1 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] < 0
    memory: set[Capability] = set() if lifted else {Capability.IPC_LOCK}
    check(home, USUAL | memory | {Capability.NET_RAW, Capability.BPF}, chowns=True)
    assert not [note for note in home.status()["notes"] if "AF_XDP" in note and "refuse" in note]
    check(laptop, USUAL | memory)


def test_in_a_container_with_cap_net_admin_alone_it_runs_and_reports_nothing_refused(site: Site) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve("--pool 10.150.0.0/24 --open")
    alone = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"]
    argv = [*alone, *laptop.command(f"join {HOME4} --name laptop")]
    laptop.programs.append(laptop.host.popen(argv, log=laptop.log, env=laptop.environment(TOKEN)))
    eventually(lambda: laptop.alive(laptop.programs[-1]) and laptop.pings(INNER), what="join")
    check(laptop, {Capability.NET_ADMIN})


def test_with_no_sandbox_everything_is_as_it_was_and_the_status_says_so(site: Site) -> None:
    home = site.home()
    home.serve("--pool 10.150.0.0/24 --no-sandbox")
    own = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for lines in tasks(home.status()["pid"]).values():
        assert (lines["NoNewPrivs"], lines["CapBnd"]) == ("0", own["CapBnd"])
    assert "not restricted: Everything that this user may do is permitted" in home.run("status -v").stdout


def test_wg_is_answered_by_the_daemon_of_its_own_network_namespace(site: Site) -> None:
    """The daemon may not look into /proc/PID/ns of root's programs any more."""
    shared = {"RUSTGUARD_WG_SOCKETS": "/var/run/wireguard"}
    name = f"rgp{os.getpid() % 100000}"
    machines = [site.machine(each) for each in ("one", "two")]
    for port, machine in enumerate(machines, 7001):
        argv = machine.command(f"serve --pool 10.150.0.0/24 --interface {name} --port {port}")
        machine.programs.append(
            machine.host.popen(argv, log=machine.log, env={**machine.environment(TOKEN), **shared})
        )
        eventually(lambda machine=machine: machine.status()["sandbox"]["applied"], what="its start")  # type: ignore[misc]
    for port, machine in enumerate(machines, 7001):

        def answered(port: int = port, machine: Machine = machine) -> bool:
            shown = machine.host.run(["wg", "show", name, "listen-port"], check=False)
            return shown.stdout.strip() == str(port)

        eventually(answered, 15.0, what=f"port {port} as the answer to wg")
    for machine in machines:
        machine.programs[0].terminate()
        assert machine.programs[0].wait(PATIENCE) == 0
    assert not [*Path("/var/run/wireguard").glob(f"{name}*")]


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "portable"])
def test_a_tunnel_of_up_keeps_two_capabilities_and_its_helper_runs_the_hooks_with_all(
    lab: Lab, tmp_path: Path, engine: str
) -> None:
    net = lan(lab)
    laptop = net.laptop
    seen = [
        f"PreUp = cat /proc/self/status > {tmp_path}/first",
        f"PostDown = cat /proc/self/status > {tmp_path}/last",
    ]
    peer = net.home.peer(f"AllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.2:{PORT}")
    laptop.file("\n".join(["Address = 10.9.0.1/24", "DNS = 10.9.0.53, lan", *seen]), peer)
    resolvconf = tmp_path / "bin/resolvconf"
    resolvconf.parent.mkdir()
    resolvconf.write_text(f"#!/bin/sh\ncat /proc/self/status > {tmp_path}/names; cat > /dev/null\n")
    resolvconf.chmod(0o755)
    before = laptop.system()
    laptop.run(f"up wg0 --engine {engine}", path=resolvconf.parent)
    check(laptop, USUAL)
    pid = laptop.status()["pid"]
    helper = helpers(pid)[HOOKS]
    # nft ran too, and the reader of the changed file has hooks to add.
    assert "rustguard-wg0" in laptop.says("nft", "list", "tables")
    laptop.file("\n".join(["Address = 10.9.0.1/24", *seen, f"PreDown = touch {tmp_path}/added"]), peer)
    laptop.run("up wg0")
    laptop.run("down wg0")
    assert laptop.system() == before
    own = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name in ("first", "last", "names"):
        lines = dict(line.split(":\t", 1) for line in (tmp_path / name).read_text().splitlines())
        assert [lines[each] for each in ("CapEff", "CapBnd", "NoNewPrivs")] == [own["CapEff"], own["CapBnd"], "0"]
    assert (tmp_path / "added").exists()
    assert not Path(f"/proc/{helper}").exists()


def test_a_helper_that_is_killed_is_named_and_down_undoes_everything_all_the_same(lab: Lab, tmp_path: Path) -> None:
    net = lan(lab)
    laptop = net.laptop
    hooks = [f"PreUp = touch {tmp_path}/up", f"PostDown = rm {tmp_path}/up"]
    peer = net.home.peer(f"AllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.2:{PORT}")
    laptop.file("\n".join(["Address = 10.9.0.1/24", *hooks]), peer)
    before = laptop.system()
    laptop.run("up wg0")
    pid = laptop.status()["pid"]
    assert not laptop.status()["warnings"]
    assert laptop.status()["healthy"]
    os.kill(helpers(pid)[HOOKS], signal.SIGKILL)
    eventually(lambda: "runs the hooks of wg0 is gone" in "".join(laptop.status()["warnings"]), what="the warning")
    assert not laptop.status()["healthy"]
    # It leaves the rest to be undone, which `down` does.
    laptop.run("down wg0")
    assert laptop.system() == before
    assert not (tmp_path / "up").exists()
