"""The helper for sockets makes what it was told of at its start, and nothing else that it is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.daemon import places
from rustguard_py.daemon.control import listening
from rustguard_py.daemon.places import PlacesHelper
from rustguard_py.daemon.places_process import PlacesProcess
from rustguard_py.model.errors import RefusedError, RustGuardError, StateError
from rustguard_py.sandbox.privileges import Needs
from rustguard_py.state import paths


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "run"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def process(state: Path) -> Iterator[PlacesProcess]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield PlacesProcess(theirs, state, None, state.parent / "wg", state.parent / "state.log")


def ask(process: PlacesProcess, **request: Any) -> tuple[dict[str, Any], int | None]:
    return process.answer(json.dumps(request).encode())


def test_it_binds_the_control_socket_and_those_of_wg_alone(process: PlacesProcess, state: Path) -> None:
    control, root = paths.control_socket(state), state.parent
    for path, mode in ((control, 0o660), (root / "wg/wg0.sock", 0o600), (root / "wg/wg0.4026531840", 0o600)):
        answer, descriptor = ask(process, do="bind", path=str(path))
        assert descriptor is not None, answer
        status = path.lstat()
        assert (stat.S_ISSOCK(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, mode)
        assert answer == {"file": (status.st_dev, status.st_ino)}
        with socket.socket(fileno=descriptor), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    others = [
        control.with_name("0123456789abcdef.sock"),
        control.parent / "x" / control.name,
        root / "other.sock",
        root / "wg/wg0",
        root / "wg/../x.sock",
        root / "wg/a/b.sock",
        root / "wg/.sock",
        root / "wg" / f"{'x' * 16}.sock",
        root / "wg/wg0.sock\n",
        root / "wg/wg0.service",
        "wg0.sock",
        "",
    ]
    before = sorted(root.rglob("*"))
    for each in others:
        answer, descriptor = ask(process, do="bind", path=str(each))
        assert (set(answer), descriptor) == ({"error"}, None), each
    assert sorted(root.rglob("*")) == before


def test_it_removes_only_sockets_that_it_made(process: PlacesProcess, state: Path) -> None:
    path = state.parent / "wg/wg0.sock"
    _, descriptor = ask(process, do="bind", path=str(path))
    assert descriptor is not None
    os.close(descriptor)
    for each in (state, state.parent / "wg", paths.control_socket(state), "/etc/passwd"):
        assert "error" in ask(process, do="remove", path=str(each))[0]
    # Somebody else's is in its place by now.
    path.unlink()
    path.write_text("theirs")
    assert ask(process, do="remove", path=str(path)) == ({}, None)
    assert path.read_text() == "theirs"
    path.unlink()
    _, descriptor = ask(process, do="bind", path=str(path))
    assert descriptor is not None
    os.close(descriptor)
    assert ask(process, do="remove", path=str(path)) == ({}, None)
    assert not path.exists()


def test_marker_and_log_are_those_that_it_knows(process: PlacesProcess, state: Path) -> None:
    answer, _ = ask(process, do="announce", path="/etc/passwd")
    marker = paths.control_socket(state).with_suffix(".state")
    assert answer == {"path": str(paths.control_socket(state))}
    assert marker.read_bytes() == os.fsencode(state) + b"\n"
    assert ask(process, do="withdraw") == ({}, None)
    assert not marker.exists()
    _, descriptor = ask(process, do="log", path="/etc/passwd")
    assert descriptor is not None
    os.write(descriptor, b"x" * ((1 << 20) + 1))
    os.close(descriptor)
    log = state.parent / "state.log"
    assert (stat.S_IMODE(log.stat().st_mode), log.stat().st_size) == (0o600, (1 << 20) + 1)
    _, descriptor = ask(process, do="log")
    assert descriptor is not None
    os.close(descriptor)
    assert log.stat().st_size == 0
    # A link that somebody put there isn't followed.
    log.unlink()
    log.symlink_to(state / "elsewhere")
    assert "error" in ask(process, do="log")[0]
    process.log = None
    assert "error" in ask(process, do="log")[0]


def test_what_is_no_request_is_answered(process: PlacesProcess) -> None:
    for line in (b"[]", b"null", b"\xff", b"{", b'{"do": "exec"}', b'{"do": "bind"}', b'{"do": "bind", "path": 1}'):
        answer, descriptor = process.answer(line)
        assert (set(answer), descriptor) == ({"error"}, None)


@pytest.fixture
def helper(state: Path) -> Iterator[PlacesHelper]:
    made = PlacesHelper.start(state, None, state.parent / "wg", None, Needs(set(), [state.parent]))
    places.use(made)
    yield made
    places.use(None)
    made.close()


@pytest.mark.usefixtures("helper")
def test_a_daemon_gets_its_sockets_from_the_helper_and_errors_as_they_are(state: Path) -> None:
    path = places.announce(state)
    assert path == paths.control_socket(state)

    def here(_: Path) -> listening.Bound:
        raise AssertionError("made by this process")

    bound = listening.make(path, here)
    with bound.socket, socket.socket(socket.AF_UNIX) as client:
        assert (bound.socket.getblocking(), os.get_inheritable(bound.socket.fileno())) == (False, False)
        assert bound.file == (path.lstat().st_dev, path.lstat().st_ino)
        client.connect(str(path))
        # Who asks for the listener's process gets ours, not the helper's.
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert int.from_bytes(credentials[:4], "little") == os.getpid()
        with pytest.raises(StateError, match="Another daemon answers"):
            listening.make(path, here)
    listening.remove(path)
    assert not path.exists()
    path.write_text("no socket")
    with pytest.raises(RefusedError, match="isn't a socket"):
        listening.make(path, here)
    places.withdraw(state)
    assert not path.with_suffix(".state").exists()
    assert places.warnings() == []


def test_a_helper_that_is_gone_is_named_and_nothing_waits_for_it(helper: PlacesHelper, state: Path) -> None:
    os.kill(helper._forked.process, 9)
    os.waitid(os.P_PID, helper._forked.process, os.WEXITED | os.WNOWAIT)
    assert not helper.is_there()
    assert "A restart fixes it." in places.warnings()[0]
    with pytest.raises(RustGuardError, match="is gone"):
        places.announce(state)
    places.withdraw(state)
    listening.remove(state / "x.sock")


def test_a_helper_that_does_not_answer_is_given_up(helper: PlacesHelper, state: Path) -> None:
    os.kill(helper._forked.process, 19)
    try:
        assert helper._channel is not None
        helper._channel.settimeout(0.05)
        with pytest.raises(RustGuardError, match="is gone"):
            places.announce(state)
        assert not helper.is_there()
    finally:
        os.kill(helper._forked.process, 9)


def test_without_a_helper_this_process_makes_everything(state: Path) -> None:
    path = places.announce(state)
    bound = listening.make(path, lambda where: listening.bind(where, None))
    bound.socket.close()
    listening.remove(path)
    places.withdraw(state)
    descriptor = places.log_file(state.parent / "log")
    os.close(descriptor)
    assert places.warnings() == []
    (state / "link").symlink_to("x")
    with pytest.raises(StateError, match="is a symbolic link"):
        places.log_file(state / "link")


ENDED = """
import os, signal, socket, sys, time
from rustguard_py.daemon.forked import fork_helper

ours, theirs = socket.socketpair()
with theirs:
    forked = fork_helper(theirs, "rustguard-test", lambda: theirs.send(b"!") and theirs.recv(1))
ours.recv(1)
os.kill(forked.process, signal.SIGSTOP)
while open(f"/proc/{forked.process}/stat").read().rpartition(")")[2].split()[0] != "T":
    time.sleep(0.01)
print(forked.process, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
ours.close()
forked.wait_for_end()
"""


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_helper_that_somebody_has_stopped_ends_with_its_daemon(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENDED, how], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == ""
    helper = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 10
    while helper.exists() and time.monotonic() < deadline:
        # Where nobody collects it, it stays as a zombie.
        with contextlib.suppress(OSError):
            if (helper / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.01)
    else:
        assert not helper.exists(), "it is still stopped"
