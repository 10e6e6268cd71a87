"""Paths: which directory is meant, and that nobody else can put theirs in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rustguard_py.daemon.control.listening import bind
from rustguard_py.model.errors import StateError
from rustguard_py.state import paths
from rustguard_py.state.document import Document
from rustguard_py.system import place
from support.other_user import NOBODY


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("RUSTGUARD_SYSTEM_RUNTIME", str(tmp_path / "system"))
    return tmp_path / "run"


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_the_option_goes_before_the_environment_before_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_STATE", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert paths.state_directory("server", tmp_path / "option") == tmp_path / "option"
    assert paths.state_directory("server") == tmp_path / "environment"
    monkeypatch.setenv("RUSTGUARD_STATE", "")
    monkeypatch.delenv("RUSTGUARD_SYSTEM_STATE")
    as_user(monkeypatch, 0)
    assert paths.state_directory("client") == Path("/var/lib/rustguard/client")
    as_user(monkeypatch, 1000)
    assert paths.state_directory("client") == tmp_path / "xdg/rustguard/client"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("uid_is_root", "mode"), [(True, 0o755), (False, 0o700)])
def test_the_runtime_directory_is_made_whatever_the_umask(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, uid_is_root: bool, mode: int
) -> None:
    mine = os.getuid()
    monkeypatch.setattr(paths, "_trouble", lambda *_: None)
    as_user(monkeypatch, 0 if uid_is_root else mine or 1000)
    before = os.umask(0o077)
    try:
        assert paths.runtime_directory() == runtime
    finally:
        os.umask(before)
    assert runtime.stat().st_mode & 0o777 == mode


def test_a_symlink_a_file_or_an_open_directory_in_its_place_is_refused(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    runtime.symlink_to(tmp_path / "theirs")
    with pytest.raises(StateError, match="symbolic link"):
        paths.runtime_directory()
    runtime.unlink()
    runtime.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match="symbolic link"):
        paths.runtime_directory()
    runtime.unlink()
    runtime.touch()
    with pytest.raises(StateError, match="not a directory"):
        paths.runtime_directory()
    runtime.unlink()
    runtime.mkdir()
    runtime.chmod(0o777)
    with pytest.raises(StateError, match="written in by others"):
        paths.runtime_directory()


def test_another_users_directory_is_refused_and_so_is_one_that_can_be_swapped(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.mkdir(0o700)
    assert paths.runtime_directory() == runtime
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="swap it"):
        paths.runtime_directory()
    tmp_path.chmod(0o1777)
    assert paths.runtime_directory() == runtime
    as_user(monkeypatch, os.getuid() + 1)
    with pytest.raises(StateError, match="another user"):
        paths.runtime_directory()


@pytest.mark.needs_second_uid
def test_a_runtime_directory_in_somebody_elses_is_refused(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.mkdir(0o700)
    (tmp_path / "uid_map").write_text("         0          0 4294967295\n")
    monkeypatch.setattr(paths, "_UID_MAP", tmp_path / "uid_map")
    os.chown(tmp_path, NOBODY, -1)
    with pytest.raises(StateError, match="swap it"):
        paths.runtime_directory()


@pytest.mark.needs_second_uid
def test_in_a_user_namespace_the_machines_root_is_let_pass_above_and_not_below(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.mkdir(0o700)
    os.chown(tmp_path, NOBODY, -1)  # As root's directories look there.
    (tmp_path / "uid_map").write_text("         0       1000          1\n")
    monkeypatch.setattr(paths, "_UID_MAP", tmp_path / "uid_map")
    assert paths.runtime_directory() == runtime
    os.chown(runtime, NOBODY, -1)
    with pytest.raises(StateError, match="another user"):
        paths.runtime_directory()


@pytest.mark.needs_second_uid
def test_a_users_runtime_directory_may_lie_in_roots(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.mkdir(0o700)
    (tmp_path / "uid_map").write_text("         0          0 4294967295\n")
    monkeypatch.setattr(paths, "_UID_MAP", tmp_path / "uid_map")
    os.chown(tmp_path, 0, -1)
    os.chown(runtime, NOBODY, -1)
    as_user(monkeypatch, NOBODY)
    assert paths.runtime_directory() == runtime


def test_a_runtime_directory_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "file/run"))
    with pytest.raises(StateError, match="can't be made") as caught:
        paths.runtime_directory()
    assert "RUSTGUARD_RUNTIME" in caught.value.fix


def test_each_state_directory_has_its_own_socket_by_whatever_name_it_is_called(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "state")
    socket = paths.control_socket(tmp_path / "state")
    assert socket.parent == runtime
    assert paths.control_socket(tmp_path / "alias") == socket
    assert paths.control_socket(tmp_path / "other") != socket
    assert len(socket.name) < 32


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / ("x" * 90)))
    with pytest.raises(StateError, match="99 bytes"):
        paths.control_socket(tmp_path)


def test_the_longest_path_that_is_given_can_be_bound_by_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # The greatest process id; and a shorter place than pytest's own, which may be too long already.
    monkeypatch.setattr("os.getpid", lambda: 2**22)
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("RUSTGUARD_RUNTIME", str(Path(short, "x" * (99 - len(f"{short}//{'0' * 16}.sock")))))
        socket = paths.control_socket(Path(short))
        assert len(str(socket)) == 99
        bind(socket, None).socket.close()


def test_what_was_announced_is_listed_until_it_is_withdrawn(runtime: Path, tmp_path: Path) -> None:
    assert paths.running() == []
    assert not runtime.exists()
    states = [tmp_path / name for name in ("a", "b\u00e9 \udcff")]
    for state in states:
        paths.announce(state).touch()
        paths.announce(state)
    assert [candidate.state_directory for candidate in paths.running()] == states
    assert paths.find_socket(states[1]) == paths.control_socket(states[1])
    assert paths.find_socket(tmp_path / "c") is None
    assert len(list(runtime.iterdir())) == 4
    paths.withdraw(states[0])
    paths.withdraw(states[0])
    assert [candidate.state_directory for candidate in paths.running()] == states[1:]


def test_a_marker_that_lies_or_is_missing_is_left_out(runtime: Path, tmp_path: Path) -> None:
    sockets = [paths.announce(tmp_path / name) for name in "abc"]
    for socket in sockets:
        socket.touch()
    sockets[0].with_suffix(".state").unlink()
    sockets[1].with_suffix(".state").write_text("/elsewhere\n")
    assert [candidate.socket for candidate in paths.running()] == [sockets[2]]
    runtime.chmod(0o777)
    assert paths.running() == []


@pytest.mark.needs_second_uid
def test_roots_daemons_are_listed_for_others_too(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "system"))
    paths.announce(tmp_path / "state").touch()
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(runtime))
    as_user(monkeypatch, 1000)
    assert [candidate.socket.parent for candidate in paths.running()] == [tmp_path / "system"]


def test_a_user_without_a_runtime_directory_of_the_systems_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSTGUARD_RUNTIME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    paths.running()  # a warning is an error in tests


def test_paths_are_had_without_loading_cryptography() -> None:
    check = "import sys, rustguard_py.state.paths as p; p.running(); sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_process_that_has_a_state_directory_is_known(tmp_path: Path) -> None:
    assert paths.holder(tmp_path / "nowhere") is None
    document = Document.open(tmp_path / "state")
    assert paths.holder(tmp_path / "state") == os.getpid()
    document.close()
    assert paths.holder(tmp_path / "state") is None


def test_what_is_in_the_sockets_place_and_is_no_socket_stays(tmp_path: Path) -> None:
    socket = paths.announce(tmp_path)
    assert paths.is_announced(tmp_path)
    socket.write_text("somebody else's")
    paths.withdraw(tmp_path)
    assert socket.exists()
    assert not paths.is_announced(tmp_path)


def test_the_timestamps_of_a_wg_quick_tunnel_are_the_machines_for_root_and_a_users_own_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(place, "namespace_number", lambda _process="self": 1)
    monkeypatch.delenv("RUSTGUARD_SYSTEM_STATE")
    as_user(monkeypatch, 0)
    assert paths.tunnel_directory("wg0") == Path("/var/lib/rustguard/tunnels/wg0")
    for user in (1, NOBODY):
        as_user(monkeypatch, user)
        assert paths.tunnel_directory("wg0") == tmp_path / "xdg/rustguard/tunnels/wg0"


def test_a_tunnel_in_another_network_namespace_has_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    named = tmp_path / "netns/blue"
    named.parent.mkdir()
    named.touch()
    monkeypatch.setattr(place, "_NAMED", named.parent)
    numbers: dict[int | str, int | None] = {1: 1, "self": named.stat().st_ino}
    monkeypatch.setattr(place, "namespace_number", lambda process="self": numbers[process])
    assert paths.tunnel_directory("wg0").name == "wg0@blue"
    numbers["self"] = named.stat().st_ino + 1
    assert paths.tunnel_directory("wg0").name == f"wg0@{named.stat().st_ino + 1}"
    # A user can't see the namespace of process 1, and is likely in it.
    numbers[1] = None
    as_user(monkeypatch, NOBODY)
    assert paths.tunnel_directory("wg0") == tmp_path / "rustguard/tunnels/wg0"
    numbers["self"] = None
    assert paths.tunnel_directory("wg0") == tmp_path / "rustguard/tunnels/wg0"


def test_a_user_without_a_runtime_directory_is_told_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise PermissionError("runtime directory is a symlink")

    monkeypatch.delenv("RUSTGUARD_RUNTIME")
    monkeypatch.setattr("platformdirs.user_runtime_path", refuse)
    as_user(monkeypatch, 1000)
    with pytest.raises(StateError, match="runtime directory is a symlink") as told:
        paths.runtime_path()
    assert told.value.fix == "Name one of your own: RUSTGUARD_RUNTIME=DIR"
