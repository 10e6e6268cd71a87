"""`rustguard backup` and `restore` as a person types them: where the passphrase comes from, and what goes wrong."""

from __future__ import annotations

import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rustguard_py.cli import backup as verb
from rustguard_py.cli.app import group, run
from rustguard_py.cli.backup import places
from rustguard_py.model import sudo
from rustguard_py.model.errors import InUseError, RefusedError, RustGuardError, StateError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.service.systemd import Service
from rustguard_py.state import paths
from rustguard_py.state.backup import Places
from rustguard_py.state.document import Document
from rustguard_py.state.sealed import MAGIC, Cost, Sealed, seal

KEPT = Path(__file__).parents[1] / "data/states/0.2.0/server"
WORDS = "five-random-words-as-usual"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Cost(log_n=4, r=8, p=1)
    monkeypatch.setattr(verb, "seal", lambda content, passphrase: seal(content, passphrase, quick))
    # A restore by an ordinary user sets it.
    monkeypatch.setattr(sudo._Rootless, "is_it", False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "server"
    shutil.copytree(KEPT, directory)
    directory.chmod(0o700)
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_text(WORDS + "\n")
    return path


def test_it_is_saved_and_restored_with_a_passphrase_from_a_file(
    tmp_path: Path, state: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "a.backup", tmp_path / "other"
    options = ["--passphrase-file", str(passphrase)]
    assert run(["backup", str(file), *options, "--state", str(state)]) == 0
    said = capsys.readouterr().err
    assert "Saved server: a server of 10.150.0.0/24 with 2 peers." in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().startswith(MAGIC)
    # A newer one replaces it. Nothing else is left next to it.
    assert run(["backup", str(file), *options, "--state", str(state)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.backup", "passphrase", "server"}
    capsys.readouterr()
    assert run(["restore", str(file), *options, "--state", str(other)]) == 0
    said = capsys.readouterr().err
    assert "stop the machine of the backup" in said
    assert f"Start it: {as_root(f'rustguard serve --state {other}')}" in said
    assert Document.peek(other) == Document.peek(state)


def test_wrong_passphrase_running_daemon_and_what_is_there_change_nothing(
    tmp_path: Path, state: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.backup"
    options = ["--passphrase-file", str(passphrase)]
    run(["backup", str(file), *options, "--state", str(state)])
    before = (state / "state.json").read_bytes()
    (state / "audit.jsonl").write_text('{"later": 1}\n')
    assert run(["restore", str(file), *options, "--state", str(state)]) == RefusedError.exit_code
    assert "--overwrite" in capsys.readouterr().err
    document = Document.open(state)
    assert run(["restore", str(file), *options, "--overwrite", "--state", str(state)]) == InUseError.exit_code
    assert f"Stop it first: {as_root('rustguard stop server')}" in capsys.readouterr().err
    document.close()
    passphrase.write_text("another\n")
    assert run(["restore", str(file), *options, "--overwrite", "--state", str(state)]) == RefusedError.exit_code
    assert "The passphrase is wrong." in capsys.readouterr().err
    assert (state / "state.json").read_bytes() == before
    assert (state / "audit.jsonl").read_text() == '{"later": 1}\n'


def test_without_a_passphrase_only_with_the_option_on_both_sides(
    tmp_path: Path, state: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "a.backup", tmp_path / "other"
    # Standard input is no terminal here.
    assert run(["backup", str(file), "--state", str(state)]) == UsageError.exit_code
    assert "--passphrase-file" in capsys.readouterr().err
    assert not file.exists()
    assert run(["backup", str(file), "--no-passphrase", "--state", str(state)]) == 0
    assert Sealed.parse(file.read_bytes()).cost is None
    for options in ([], ["--passphrase-file", str(passphrase)]):
        assert run(["restore", str(file), *options, "--state", str(other)]) == RefusedError.exit_code
        assert "anybody may have made or changed it" in capsys.readouterr().err
    both = ["--no-passphrase", "--passphrase-file", str(passphrase)]
    for name in ("backup", "restore"):
        assert run([name, str(file), *both, "--state", str(state)]) == UsageError.exit_code
    assert not other.exists()
    assert run(["restore", str(file), "--no-passphrase", "--state", str(other)]) == 0


def test_no_option_takes_the_passphrase_itself() -> None:
    for name in ("backup", "restore"):
        command = group.commands.get(name) or group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts if "passphrase" in option}
        assert options == {"--passphrase-file", "--no-passphrase"}


@pytest.mark.parametrize(
    ("text", "why"), [("\n", "is empty"), ("a\tb\n", "holds a control character"), ("x" * 1025, "is longer than")]
)
def test_a_passphrase_that_cannot_be_one_is_refused(
    tmp_path: Path, state: Path, passphrase: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    passphrase.write_text(text)
    words = ["backup", str(tmp_path / "b"), "--passphrase-file", str(passphrase), "--state", str(state)]
    assert run(words) == UsageError.exit_code
    assert f"The passphrase {why}" in capsys.readouterr().err


def test_a_short_passphrase_and_a_file_that_others_read_get_a_warning(
    tmp_path: Path, state: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passphrase.write_text("short\n")
    passphrase.chmod(0o644)
    words = ["--passphrase-file", str(passphrase), "--state"]
    assert run(["backup", str(tmp_path / "b"), *words, str(state)]) == 0
    said = capsys.readouterr().err
    assert "The passphrase is short" in said
    assert f"Others may read {passphrase}" in said
    assert run(["restore", str(tmp_path / "b"), *words, str(tmp_path / "other")]) == 0
    assert "is short" not in capsys.readouterr().err


def test_a_file_that_is_no_backup_is_neither_replaced_nor_restored(
    tmp_path: Path, state: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--passphrase-file", str(passphrase), "--state", str(state)]
    letter = tmp_path / "letter"
    letter.write_text("Dear Anna")
    assert run(["backup", str(letter), *options]) == RefusedError.exit_code
    assert letter.read_text() == "Dear Anna"
    assert run(["restore", str(letter), *options]) == StateError.exit_code
    os.mkfifo(tmp_path / "pipe")
    assert run(["restore", str(tmp_path / "pipe"), *options]) == UsageError.exit_code
    assert run(["restore", str(tmp_path / "nothing"), *options]) == UsageError.exit_code
    assert run(["backup", str(tmp_path / "no/where"), *options]) == RustGuardError.exit_code
    assert "can't be written" in capsys.readouterr().err


def test_a_disk_that_fails_leaves_the_backup_before(
    tmp_path: Path, state: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.backup"
    options = ["--passphrase-file", str(passphrase), "--state", str(state)]
    assert run(["backup", str(file), *options]) == 0
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", _fail)
    assert run(["backup", str(file), *options]) == RustGuardError.exit_code
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.backup", "passphrase", "server"}


def _fail(_: int) -> None:
    raise OSError(5, "Input/output error")


def test_a_whole_machine_is_its_states_and_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert places(tmp_path).single
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places(None) == Places(paths.state_root(), Path("/etc/rustguard"), Path("/etc/default"), single=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert places(None) == Places(paths.state_root())
    assert paths.state_root() == paths.state_directory("server").parent


def test_the_command_that_installs_a_service_again_is_read_from_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rustguard_py.service.systemd.UNITS", tmp_path)
    unit = Service("rustguard-serve")
    program = "/usr/bin/python3 -m rustguard_py.cli"
    unit.file.write_text(
        f'[Service]\nExecStart={program} serve --state "/srv/a b" --mtu 1300 --token-file %d/token\n'
    )
    assert unit.install_words() == ("serve", "--state", "/srv/a b", "--mtu", "1300")
    unit.file.write_text("[Service]\nExecStart=/usr/bin/rustguard up --foreground /etc/rustguard/100%%.conf\n")
    assert unit.install_words() == ("up", "/etc/rustguard/100%.conf")
    unit.file.write_text("[Service]\nType=notify\n")
    assert unit.install_words() == ()


def answered(words: list[str], typed: list[str]) -> tuple[int, str]:
    """Run rustguard on a terminal, type a line at each prompt, and return its exit code and what it showed."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "rustguard_py.cli", *words])  # noqa: S606
    shown = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                shown += os.read(terminal, 4096)
            except OSError:
                break
            if typed and shown.endswith((b"Passphrase: ", b"The same again: ")):
                # The echo is off by then: getpass sets it before it shows the prompt.
                os.write(terminal, typed.pop(0).encode() + b"\n")
                shown += b"\n"
    finally:
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_on_a_terminal_it_asks_twice_and_shows_nothing(tmp_path: Path, state: Path) -> None:
    file, other = tmp_path / "a.backup", tmp_path / "other"
    # The first two differ, so it asks again.
    typed = [WORDS, "something-else", WORDS, WORDS]
    code, shown = answered(["backup", str(file), "--state", str(state)], typed)
    assert (code, typed) == (0, [])
    assert WORDS not in shown
    assert shown.count("The same again") == 2
    code, shown = answered(["restore", str(file), "--state", str(other)], [WORDS])
    assert code == 0
    assert "The same again" not in shown
    assert Document.peek(other) == Document.peek(state)


def test_it_is_read_from_standard_input_for_a_script(tmp_path: Path, state: Path) -> None:
    words = [sys.executable, "-m", "rustguard_py.cli", "backup", str(tmp_path / "b"), "--passphrase-file", "-"]
    done = subprocess.run(
        [*words, "--state", str(state)], input=WORDS + "\n", text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Sealed.parse((tmp_path / "b").read_bytes()).open(WORDS)
