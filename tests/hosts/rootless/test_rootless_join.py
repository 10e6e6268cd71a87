"""An ordinary user joins without root: a tunnel in a network namespace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.engine import has_native
from rustguard_py.lab.hosts import Lab
from support.product import HOME4, INNER, OPEN, PATIENCE, TOKEN, Machine, Site, eventually
from support.rootless import USER, User, left_of, processes, user_on, without

pytestmark = pytest.mark.needs_second_uid


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.fixture
def home(site: Site) -> Machine:
    made = site.home()
    made.serve(f"--pool 10.150.0.0/24 {OPEN}")
    return made


@pytest.fixture
def laptop(site: Site, home: Machine) -> Iterator[User]:
    with user_on(site, "laptop", home) as made:
        yield made


def _helper() -> int:
    [found] = [process for process, line in processes().items() if "rustguard_py.rootless.process" in line]
    return found


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_user_joins_and_programs_inside_reach_the_server_over_both_families(
    laptop: User, home: Machine, engine: str
) -> None:
    if engine == "native" and not has_native():
        pytest.skip("the native plane isn't built here (no cargo at installation)")
    before = laptop.network()
    program = laptop.join(HOME4, f"--rootless --engine {engine} --queues 2")
    status = laptop.status()
    assert (status["engine"], status["healthy"]) == (engine, True)
    assert status["rootless"] == {"proxy": [], "forwards": [], "options": {}}
    for address in home.status()["addresses"]:
        assert laptop.reaches(address.split("/")[0])
    assert home.reaches(status["addresses"][0].split("/")[0])
    # Nothing of it is on the machine itself, and its UDP sockets are the machine's: it roams.
    assert laptop.network() == before
    laptop.own_end.readdress("198.51.100.3/29")
    assert laptop.reaches(INNER)
    assert home.peers()["laptop"]["endpoint"].startswith("198.51.100.3:")
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{status['pid']}/status").read_text()
    program.terminate()
    assert program.wait(PATIENCE) == 0


def test_a_program_inside_has_its_names_no_rights_and_its_exit_code_and_signals(laptop: User) -> None:
    laptop.join(HOME4, "--rootless --dns 10.150.0.9 --dns fd00::9")
    assert laptop.inside("cat /etc/resolv.conf").stdout == "nameserver 10.150.0.9\nnameserver fd00::9\n"
    assert laptop.inside("getent hosts laptop").stdout.split()[1:] == ["laptop"]
    assert "Groups:" in (rights := laptop.inside("cat /proc/self/status").stdout)
    assert "CapPrm:\t0000000000000000" in rights
    assert "NoNewPrivs:\t1" in rights
    assert laptop.inside("id -u").stdout == f"{USER}\n"
    assert laptop.inside("ls -d /etc/../tmp").stdout == "/etc/../tmp\n"
    assert [laptop.inside(words).returncode for words in ("false", "/nonexistent", "/etc/passwd")] == [1, 127, 126]
    # What it is sent arrives, and how it ends is seen.
    argv, env = laptop.command("exec -- cat"), laptop.environment(None)
    with laptop.host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write("through\n")
        cat.stdin.flush()
        assert cat.stdout.readline() == "through\n"
        cat.send_signal(signal.SIGTERM)
        assert cat.wait(PATIENCE) == -signal.SIGTERM
    # A terminal is the program's own.
    typed = laptop.host.run(["script", "-qec", " ".join(laptop.command("exec -- tty")), "/dev/null"], env=env)
    assert typed.stdout.startswith("/dev/pts/")
    # Nobody but the user may start one, root neither.
    [socket] = laptop.runtime.glob("*.sock")
    ask = "import sys, pathlib; from rustguard_py.daemon.control import client; "
    ask += "client.call(pathlib.Path(sys.argv[1]), 'enter')"
    refused = laptop.host.run([sys.executable, "-c", ask, socket], check=False)
    assert "Only the user who runs the client may start programs inside" in refused.stderr


def test_where_mounts_are_refused_the_tunnel_works_without_names(laptop: User) -> None:
    laptop.prefix = without("mount")
    program = laptop.start(f"join {HOME4} --rootless --socks --name laptop", TOKEN)
    eventually(lambda: laptop.alive(program) and "Connected to" in laptop.said())
    assert (
        "Names can't be resolved inside, because mounts are refused there: Operation not permitted." in laptop.said()
    )
    refused = laptop.inside("true")
    assert refused.returncode == 4
    assert "needs a mount namespace" in refused.stderr
    # The filter was that of the client alone.
    laptop.prefix = []
    assert laptop.reaches(INNER)


def test_stop_status_and_leave_work_as_with_root_and_nothing_is_left(laptop: User, home: Machine) -> None:
    clean = left_of(laptop)
    said = laptop.run(f"join {HOME4} --rootless --daemon --name laptop", TOKEN).stderr
    assert "To end it: rustguard stop" in said
    eventually(lambda: laptop.pings(INNER))
    assert "client" in laptop.run("status").stdout
    assert left_of(laptop)["namespaces"] > clean["namespaces"]
    assert laptop.run("stop").returncode == 0
    eventually(lambda: left_of(laptop) == {**clean, "files": left_of(laptop)["files"]}, what="nothing left")
    assert "Connected to" in laptop.run("logs").stdout
    laptop.run("join --rootless --daemon")
    eventually(lambda: laptop.pings(INNER))
    laptop.run("down rg0", state=False)
    eventually(lambda: left_of(laptop)["processes"] == 0)
    program = laptop.join(HOME4, "--rootless", token=None)
    assert "The server has removed laptop" in laptop.run("leave --yes").stderr
    assert program.wait(PATIENCE) == 0
    assert home.peers() == {}
    eventually(lambda: left_of(laptop) == {**clean, "files": left_of(laptop)["files"]}, what="nothing left")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_takes_a_helper_along_that_somebody_has_stopped(laptop: User, how: signal.Signals) -> None:
    program = laptop.join(HOME4, "--rootless")
    daemon, helper = laptop.status()["pid"], _helper()
    os.kill(helper, signal.SIGSTOP)
    os.kill(daemon, how)
    assert program.wait(PATIENCE) == (0 if how == signal.SIGTERM else -how)
    eventually(lambda: not processes(), 10.0, "the helper's end")


def test_a_killed_daemon_takes_its_helper_along_and_the_next_start_works(laptop: User) -> None:
    clean = left_of(laptop)
    program = laptop.join(HOME4, "--rootless")
    pid = laptop.status()["pid"]
    assert {pid, _helper()} <= processes().keys()
    os.kill(pid, signal.SIGKILL)
    program.wait(PATIENCE)
    eventually(
        lambda: left_of(laptop)["namespaces"] == clean["namespaces"] and not processes(), what="the helper's end"
    )
    laptop.join(HOME4, "--rootless", token=None).terminate()


def test_a_daemon_whose_helper_was_killed_says_so_and_ends(laptop: User) -> None:
    clean = left_of(laptop)
    program = laptop.join(HOME4, "--rootless")
    os.kill(_helper(), signal.SIGKILL)
    assert program.wait(PATIENCE) == 1
    assert "The helper process of --rootless was killed (signal 9)" in laptop.said()
    assert "rustguard join --rootless" in laptop.said()
    eventually(lambda: left_of(laptop) == {**clean, "files": left_of(laptop)["files"]}, what="nothing left")


def test_the_state_and_runtime_directories_are_the_users(laptop: User) -> None:
    env = {**laptop.environment(TOKEN), "RUSTGUARD_RUNTIME": "", "XDG_RUNTIME_DIR": ""}
    join = laptop.command(f"join {HOME4} --rootless --daemon", state=False)
    laptop.host.run(join, env=env)
    status = laptop.command("status", state=False)
    shown = laptop.host.run([*status, "--json"], env=env).stdout
    assert f'"state_directory": "{laptop.state.parent}/xdg/rustguard/client"' in shown
    laptop.host.run(laptop.command("stop", state=False), env=env)
    eventually(lambda: not processes())


def test_what_root_alone_can_do_is_refused_with_a_line_that_says_so(laptop: User) -> None:
    for words, why in (
        ("--engine kernel", "--rootless is an option of RustGuard's own engines, not of the kernel's."),
        ("--engine auto --threaded-napi", "--rootless is an option of RustGuard's own engines, not of the kernel's."),
        ("--xdp lo", "AF_XDP needs root"),
    ):
        done = laptop.run(f"join {HOME4} --rootless {words}", TOKEN, check=False)
        assert done.returncode == 2
        assert why in done.stderr
    without = laptop.run(f"join {HOME4}", TOKEN, check=False)
    assert "Or join without root, in a network of its own: add --rootless" in without.stderr
    assert "--dns needs --rootless" in laptop.run(f"join {HOME4} --dns 10.0.0.1", TOKEN, check=False).stderr
