"""What isn't a plain file in the place of one of ours: it is refused with the way out, never waited for."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rustguard_py.cli.foreground import Background
from rustguard_py.daemon import audit, places
from rustguard_py.daemon.audit import AuditLog
from rustguard_py.daemon.ledger import Ledger
from rustguard_py.model.errors import RustGuardError, StateError, UsageError
from rustguard_py.quick import conf_files
from rustguard_py.state import backup, durable_files, interrupted, kept_offloads, paths
from rustguard_py.state.document import Document
from rustguard_py.state.journal import TimestampJournal
from support.backups import loaded

LARGE = 1 << 30


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _link(path: Path) -> None:
    path.symlink_to("/dev/null")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: its end never comes
    except PermissionError:
        pytest.skip("only root makes devices")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        pytest.skip("devices can't be used on this filesystem")


KINDS = [_fifo, Path.mkdir, _link, _socket, _device]


def _append_to_audit(directory: Path) -> None:
    files = durable_files.Files()
    AuditLog(directory, files)._append([b"{}\n"])


# Each file, and what opens it.
FILES: list[tuple[str, Callable[[Path], object]]] = [
    ("state.json", loaded),
    ("lock", loaded),
    (interrupted.MARKER, loaded),
    (interrupted.PLAN, lambda directory: interrupted.carry_out(durable_files.Files(), directory / interrupted.PLAN)),
    ("undo.json", lambda directory: Ledger.load(directory / "undo.json")),
    ("timestamps", TimestampJournal.open),
    ("offloads", kept_offloads.load),
    ("audit.jsonl", _append_to_audit),
    ("audit.jsonl", audit.read),
    ("log", lambda directory: places.log_file(directory / "log")),
    ("timestamps", lambda directory: backup._read(directory / "timestamps")),
]


def in_time(work: Callable[[], object]) -> BaseException | None:
    """Run what might wait for ever, and return what it raises."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert raised, "it waits"
    return raised[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
@pytest.mark.parametrize(("name", "use"), FILES, ids=[f"{number}-{name}" for number, (name, _) in enumerate(FILES)])
def test_what_is_no_plain_file_is_refused_with_the_way_out(
    tmp_path: Path, name: str, use: Callable[[Path], object], kind: Callable[[Path], Any]
) -> None:
    tmp_path.chmod(0o700)
    kind(tmp_path / name)
    error = in_time(lambda: use(tmp_path))
    assert isinstance(error, StateError), error
    assert str(tmp_path / name) in error.message
    what = "is a symbolic link" if kind is _link else "is not a plain file"
    assert what in error.message
    assert error.fix
    # It is left as it was.
    assert os.path.lexists(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_who_holds_a_lock_is_asked_without_waiting(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    kind(tmp_path / "lock")
    found: list[object] = []
    assert in_time(lambda: found.extend([Document.is_held(tmp_path), paths.holder(tmp_path)])) is None
    assert found == [False, None]


@pytest.mark.parametrize("name", ["state.json", "undo.json", "timestamps", "offloads"])
def test_a_file_of_a_gibibyte_is_refused_before_it_is_in_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a test, less does: memory is for the others too.
    monkeypatch.setattr(durable_files, "MOST_BYTES", 1 << 21)
    tmp_path.chmod(0o700)
    (tmp_path / name).touch(0o600)
    os.truncate(tmp_path / name, LARGE)
    [use] = {use for each, use in FILES[:-1] if each == name}
    error = in_time(lambda: use(tmp_path))
    assert isinstance(error, StateError), error
    assert "so RustGuard didn't write it" in error.message
    assert f"mv {tmp_path / name} " in error.fix


def test_a_log_of_more_than_a_mebibyte_is_replaced_and_a_small_one_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for size, kept in ((1 << 20, True), ((1 << 20) + 1, False), (LARGE, False)):
        with log.open("wb") as file:
            file.truncate(size)
        descriptor = places.log_file(log)
        os.write(descriptor, b"x")
        assert os.get_blocking(descriptor)
        os.close(descriptor)
        assert log.stat().st_size == (size + 1 if kept else 1)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_is_a_fifo_ends_the_start_in_the_background(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process that is left at the terminal ends too, with the other's exit code."""
    _fifo(tmp_path / "log")
    starter = os.fork()
    if not starter:
        with suppress(BaseException):
            background = Background(tmp_path / "log", str)
            try:
                background.ready()
            except RustGuardError as error:
                os.write(2, error.message.encode())
                os._exit(7)
        os._exit(0)
    codes: list[int] = []
    assert in_time(lambda: codes.append(os.waitstatus_to_exitcode(os.waitpid(starter, 0)[1]))) is None
    assert codes == [7]
    assert f"{tmp_path / 'log'} is not a plain file." in capfd.readouterr().err


def test_a_file_of_wg_quick_that_became_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    _fifo(tmp_path / "wg0.conf")
    error = in_time(lambda: conf_files.load_to_run(tmp_path / "wg0.conf", trust=True))
    assert isinstance(error, UsageError)
    assert "not a plain file" in error.message
