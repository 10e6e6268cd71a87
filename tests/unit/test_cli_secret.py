"""Where a token may come from, and that it doesn't stay where others read."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest

from rustguard_py.cli.secret import check_token, find_token, is_weak, read_token
from rustguard_py.model.errors import UsageError

GIVEN = "guitar-orbit-lemon"


def python(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=env,
    )  # fmt: skip


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


# Calls what is under test, says what it gave, and waits so that its process can be looked at.
LOOK_AT = (
    "import sys\n"
    "from rustguard_py.cli.secret import *\n"
    "given = dict(argument.partition('=')[::2] for argument in sys.argv[1:] if '=' in argument)\n"
    "option = given.get('--token') or (sys.argv[sys.argv.index('--token') + 1] if '--token' in sys.argv else None)\n"
    "token = find_token(option, None)\n"
    "print(token, sys.argv, sys.orig_argv[2:], flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--token", GIVEN, "--open"],
        ["serve", f"--token={GIVEN}", "--open"],
        ["--token", GIVEN],
        ["serve", "--open", f"--token={GIVEN}"],
    ],
)
def test_a_token_in_argv_is_gone_from_the_process_list_and_warned_about(arguments: list[str]) -> None:
    with python(LOOK_AT, *arguments) as process:
        said = first_line(process).decode()
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        _, warned = process.communicate(b"")
    assert said.startswith(f"{GIVEN} [")
    assert said.count(GIVEN) == 1
    assert GIVEN.encode() not in seen
    assert b"--token" in seen
    assert (b"--open" in seen) is ("--open" in arguments)
    assert b"process list" in warned
    assert GIVEN.encode() not in warned
    print(f"row 34: {' '.join(arguments).replace(GIVEN, 'SECRET')}: 0 traces in /proc/PID/cmdline")


def test_the_whole_program_wipes_its_argv_before_it_does_anything() -> None:
    code = (
        "import sys\n"
        "import rustguard_py.cli.app as app\n"
        "def run(arguments):\n"
        "    print(arguments, flush=True)\n"
        "    sys.stdin.read()\n"
        "    return 0\n"
        "app.run = run\n"
        "app.main()\n"
    )
    with python(code, "serve", "--token", GIVEN) as process:
        said = first_line(process).decode()
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.communicate(b"")
    assert said == f"['serve', '--token', '{GIVEN}']\n"
    assert GIVEN.encode() not in seen
    assert b"***" in seen


def test_a_short_token_that_is_part_of_other_words_leaves_them_alone() -> None:
    with python(LOOK_AT, "serve", "--token", "e", "--interface", "e") as process:
        first_line(process)
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        process.communicate(b"")
    assert seen[-6:] == [b"serve", b"--token", b"*", b"--interface", b"e", b""]


@pytest.mark.fault(34)
def test_a_token_in_the_environment_is_gone_from_it_after() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from rustguard_py.cli.secret import *\n"
        "print(find_token(None, None), os.environ.get('RUSTGUARD_TOKEN'), os.environ['AFTER'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {"BEFORE": "b", "RUSTGUARD_TOKEN": GIVEN, "AFTER": "a", "PATH": os.environ["PATH"]}
    with python(code, env=environment) as process:
        said = first_line(process).decode()
        seen = Path(f"/proc/{process.pid}/environ").read_bytes()
        process.communicate(b"")
    assert said == f"{GIVEN} None a\n"
    assert GIVEN.encode() not in seen
    assert b"BEFORE=b\0" in seen
    assert b"AFTER=a\0" in seen
    print("row 34: RUSTGUARD_TOKEN: 0 traces in /proc/PID/environ")


@pytest.mark.fault(34)
def test_what_sudo_hands_down_is_wiped_too_and_said_where_it_cant_be() -> None:
    line = f"/usr/bin/rustguard serve --token {GIVEN}"
    environment = {"SUDO_COMMAND": line, "AFTER": "a", "PATH": os.environ["PATH"]}
    with python(LOOK_AT, "serve", "--token", GIVEN, env=environment) as process:
        first_line(process)
        seen = Path(f"/proc/{process.pid}/environ").read_bytes()
        _, warned = process.communicate(b"")
    assert GIVEN.encode() not in seen
    assert b"AFTER=a\0" in seen
    assert b"sudo's own line" in warned
    print("row 34: SUDO_COMMAND: 0 traces in /proc/PID/environ")


def test_a_token_file_gives_its_line_without_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    for content in (GIVEN, f"{GIVEN}\n", f"{GIVEN}\r\n"):
        file.write_bytes(content.encode())
        file.chmod(0o600)
        assert read_token(None, file) == GIVEN
    assert capsys.readouterr().err == ""
    file.chmod(0o644)
    assert read_token(None, file) == GIVEN
    assert f"chmod 600 {file}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n", b"two\nlines\n", b"\xff\xfe\n", b"x" * 5000, b"bell\x07"])
def test_what_is_no_token_is_a_usage_error_that_doesnt_repeat_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UsageError) as caught:
        read_token(None, file)
    assert "lines" not in caught.value.message + caught.value.fix


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_token(None, tmp_path / "nothing")


def test_two_sources_on_the_command_line_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both"):
        find_token(GIVEN, tmp_path)


def test_nothing_given_is_none_and_asks_nobody() -> None:
    assert find_token(None, None) is None


@pytest.mark.parametrize("arguments", ["None, None", "'-', None", "None, Path('-')"])
def test_standard_input_gives_its_first_line(arguments: str) -> None:
    code = f"from rustguard_py.cli.secret import *; print(read_token({arguments}))"
    with python(code) as process:
        out, err = process.communicate(f"{GIVEN}\nmore\n".encode())
    assert (out.decode(), err) == (f"{GIVEN}\n", b"")


def test_an_empty_standard_input_is_a_usage_error() -> None:
    with python("from rustguard_py.cli.secret import *; read_token(None, None)") as process:
        _, err = process.communicate(b"")
    assert b"The token is empty" in err


def test_a_terminal_is_asked_without_echo() -> None:
    main, side = pty.openpty()
    code = "from rustguard_py.cli.secret import *; print('got', read_token(None, None))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=side, stdout=side, stderr=side, cwd="/", start_new_session=True
    ) as process:
        os.close(side)
        shown = read_until(main, b"Token: ")
        os.write(main, f"{GIVEN}\n".encode())
        shown += read_until(main, b"got " + GIVEN.encode())
        process.wait(60)
    os.close(main)
    assert shown.count(GIVEN.encode()) == 1


def read_until(descriptor: int, mark: bytes) -> bytes:
    shown = b""
    while mark not in shown:
        ready, _, _ = select.select([descriptor], [], [], 60)
        assert ready, shown
        shown += os.read(descriptor, 1024)
    return shown


def test_two_keyboards_agree_on_a_token() -> None:
    composed = unicodedata.normalize("NFC", "café-größe")
    assert check_token(unicodedata.normalize("NFD", composed)) == composed


@pytest.mark.parametrize(
    ("token", "weak"),
    [("1234567", True), ("aaaaaaaaaaaa", True), ("ababababab", True), (GIVEN, False), ("7-guitar", False)],
)
def test_a_token_that_is_easily_guessed_is_weak(token: str, weak: bool) -> None:
    assert is_weak(token) is weak


def test_who_chooses_a_weak_token_is_warned_and_who_was_given_it_isnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2")
    file.chmod(0o600)
    assert read_token(None, file) == "hunter2"
    warning = capsys.readouterr().err
    assert "easily guessed" in warning
    assert "hunter2" not in warning
    assert read_token(None, file, warn_if_weak=False) == "hunter2"
    assert capsys.readouterr().err == ""
