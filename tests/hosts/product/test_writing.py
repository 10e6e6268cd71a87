"""What a running daemon may write, tried from within it, and what its helper makes for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rustguard_py.daemon.control.client import listens
from rustguard_py.lab.hosts import Lab
from rustguard_py.sandbox import writing
from support.product import HOME4, PATIENCE, TOKEN, Machine, Site, eventually

pytestmark = pytest.mark.skipif(writing.why_not() is not None, reason=f"{writing.why_not()}")

# `rustguard` with a function that tries to write, once the control socket answers, from the thread of the event loop
# and from one that starts then.
TRY = """
import errno, json, os, socket, sys, threading
from pathlib import Path
from rustguard_py.cli.app import main
from rustguard_py.daemon import runtime

found, theirs, state, runs = (Path(each) for each in sys.argv[1:5])
del sys.argv[1:5]
made = [Path(each, "rustguard-test") for each in ("/etc", "/root", "/run", "/tmp", "/var/lib", "/usr/bin", runs)]

def create(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.unlink()

def bind(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.unlink()

def attempts():
    yield "passwd", lambda: os.close(os.open("/etc/passwd", os.O_WRONLY | os.O_APPEND))
    for each in made:
        yield f"create {each}", lambda each=each: create(each)
        yield f"mkdir {each}", lambda each=each: (each.mkdir(), each.rmdir())
        yield f"symlink {each}", lambda each=each: (each.symlink_to("x"), each.unlink())
        yield f"bind {each}", lambda each=each: bind(each)
    yield "open", lambda: os.close(os.open(theirs, os.O_WRONLY))
    yield "truncate", lambda: os.truncate(theirs, 0)
    yield "rename", lambda: theirs.rename(theirs.with_suffix(".other"))
    yield "unlink", theirs.unlink
    yield "link", lambda: theirs.with_suffix(".link").hardlink_to(theirs)
    yield "take", lambda: theirs.rename(state / "theirs")
    yield "chmod", lambda: theirs.chmod(0o666)
    yield "chown", lambda: os.chown(theirs, 0, 0)
    yield "setxattr", lambda: os.setxattr(theirs, "user.x", b"y")
    yield "sysctl", lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    yield "signal", lambda: os.kill(os.getppid(), 0)
    yield "device", lambda: os.close(os.open("/dev/null", os.O_WRONLY))
    yield "own file", lambda: create(state / "own")
    yield "own sysctl", lambda: os.close(os.open("/proc/sys/net/ipv4/conf/lo/rp_filter", os.O_WRONLY | os.O_TRUNC))
    yield "tun", lambda: os.close(os.open("/dev/net/tun", os.O_RDWR))

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def try_all():
    return {name: outcome(attempt) for name, attempt in attempts()}

real = runtime.answer

async def answer(*arguments):
    await real(*arguments)
    results = [try_all()]
    thread = threading.Thread(target=lambda: results.append(try_all()))
    thread.start()
    thread.join()
    (state / "tried").write_text(json.dumps(results))
    (state / "tried").rename(found)

runtime.answer = answer
main()
"""
# Older kernels don't refuse everything, and the status names that.
VERSION = writing.version() or 0
OLD = {"truncate": 3, "signal": 6}
PERMITTED = {"own file", "own sysctl", "tun"} | {name for name, since in OLD.items() if since > VERSION}
# seccomp's and the scope of signals answer this; Landlock's rules EACCES, and EXDEV between directories.
OTHERWISE = dict.fromkeys({"chmod", "chown", "setxattr", "signal"} - PERMITTED, "EPERM")


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def tried(machine: Machine, theirs: Path, words: str) -> list[dict[str, str]]:
    """Start a daemon that tries to write; what came of it in each of two threads."""
    found = machine.state / "result"
    argv = [sys.executable, "-c", TRY, *map(str, (found, theirs, machine.state, machine.runtime))]
    argv += [*words.split(), "--state", str(machine.state)]
    machine.programs.append(machine.host.popen(argv, log=machine.log, env=machine.environment(TOKEN)))
    eventually(lambda: machine.alive(machine.programs[-1]) and found.exists(), what="the attempts")
    results: list[dict[str, str]] = json.loads(found.read_text())
    return results


def listed(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir()) if directory.exists() else []


def paths_helper(machine: Machine) -> int:
    pid = machine.status()["pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(each) for each in children if Path(f"/proc/{each}/comm").read_text() == "rustguard-paths\n")


def test_no_thread_of_server_or_client_can_write_elsewhere(site: Site, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("x")
    home = site.home()
    laptop = site.client("laptop", home)
    for machine, words in ((home, "serve --pool 10.150.0.0/24 --open"), (laptop, f"join {HOME4} --name laptop")):
        results = tried(machine, theirs, words)
        assert len(results) == 2
        for result in results:
            assert {name for name, how in result.items() if how == "done"} == PERMITTED
            refused = {name: how for name, how in result.items() if name not in PERMITTED}
            usual = {name: how for name, how in refused.items() if name not in OTHERWISE}
            assert {name: refused[name] for name in OTHERWISE} == OTHERWISE
            assert {how for name, how in usual.items() if name not in ("take", "link")} == {"EACCES"}
            assert {usual["take"], usual["link"]} <= {"EACCES", "EXDEV"}
            assert len(usual) > 30
        status = " ".join(machine.run("status -v").stdout.split())
        assert "writing only to its own files" in status
    assert theirs.read_text() == ("" if "truncate" in PERMITTED else "x")


def test_sockets_in_removed_directories_come_back(site: Site, tmp_path: Path) -> None:
    home = site.home()
    sockets = {"RUSTGUARD_WG_SOCKETS": str(tmp_path / "wg")}
    argv = home.command("serve --pool 10.150.0.0/24")
    server = home.host.popen(argv, log=home.log, env={**home.environment(TOKEN), **sockets})
    home.programs.append(server)
    eventually(
        lambda: home.alive(server) and home.control.exists() and len(listed(tmp_path / "wg")) == 2,
        what="its start",
    )
    names = {each: listed(each) for each in (home.runtime, tmp_path / "wg")}
    modes = {path: path.stat().st_mode for each in names for path in (each, *each.iterdir())}
    for _ in range(2):
        for each in names:
            shutil.rmtree(each)
        for each, wanted in names.items():
            eventually(
                lambda each=each, wanted=wanted: listed(each) == wanted,  # type: ignore[misc]
                what=f"{each} again",
            )
        assert {path: path.stat().st_mode for path in modes} == modes
        assert home.status()["sandbox"]["applied"]
    server.terminate()
    assert server.wait(PATIENCE) == 0
    assert listed(home.runtime) == listed(tmp_path / "wg") == []


def test_a_helper_that_is_killed_is_named_and_the_server_goes_on_and_can_be_started_again(site: Site) -> None:
    home = site.home()
    server = home.serve("--pool 10.150.0.0/24")
    assert not home.status()["warnings"]
    os.kill(paths_helper(home), signal.SIGKILL)
    eventually(lambda: "makes sockets" in "".join(home.status()["warnings"]), what="the warning")
    assert home.status()["healthy"]
    server.terminate()
    assert server.wait(PATIENCE) == 0
    again = home.start("serve --pool 10.150.0.0/24", TOKEN)
    eventually(lambda: home.alive(again) and listens(home.control), what="the second start")
    assert not home.status()["warnings"]
    helper = paths_helper(home)
    # The helper ends with a daemon that is killed.
    again.kill()
    eventually(lambda: not Path(f"/proc/{helper}").exists(), what="the helper's end")
