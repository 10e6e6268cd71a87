"""Hints name commands: each `rustguard VERB …` in a message exists, with the options that it shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rustguard_py.cli.app import VERBS, group, run

ROOT = Path(__file__).parents[2]
FOLDERS = [
    "cli",
    "daemon",
    "enroll",
    "quick",
    "rootless",
    "service",
    "state",
    "vpp",
    "rustguard_py/kernel",
    "rustguard_py/system",
]
HINT = re.compile(r"\brustguard ([a-z]+)\b([^`;\n|]*)")
# Words behind `rustguard` in sentences and in the names of files.
NO_VERBS = {"on", "here", "again", "is", "in"}


def hints() -> Iterator[tuple[str, str, str]]:
    """Yield file, verb and the rest of each command line in a text that isn't a docstring."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in [*files, *sorted((ROOT / "rustguard_py").glob("*.py"))]:
        tree = ast.parse(path.read_text())
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                for match in HINT.finditer(node.value):
                    yield str(path.relative_to(ROOT)), match[1], match[2]


def commands(verb: str, rest: str) -> click.Command | None:
    """Return the command that a line runs, or None if there is none."""
    command = group.get_command(click.Context(group), verb)
    words = rest.split()
    if verb == "service" and words[:1] == ["install"] and len(words) > 1:
        # What follows is a command line of `serve`, `join` or `up`.
        return group.get_command(click.Context(group), words[1])
    if isinstance(command, click.Group) and words and re.fullmatch("[a-z]+", words[0]):
        return command.commands.get(words[0])
    return command


def wrong(verb: str, rest: str) -> str | None:
    """Return what is wrong with a hint, or None."""
    command = commands(verb, rest)
    if command is None:
        return None if verb in NO_VERBS else f"there is no `rustguard {verb} {rest}`"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    unknown = [option for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest) if option not in known]
    return f"`rustguard {verb}` has no {unknown}" if unknown else None


def test_every_hint_names_a_command_and_options_that_exist() -> None:
    found = list(hints())
    assert len(found) > 40
    assert {verb for _, verb, _ in found} >= {"serve", "join", "open", "status", "peers", "down"}
    assert [(path, text) for path, verb, rest in found if (text := wrong(verb, rest))] == []


@pytest.mark.parametrize(
    ("verb", "rest"),
    [
        ("begin", ""),
        ("peers", " erase laptop"),
        ("open", " 60 --for anna"),
        ("status", " --nothing"),
        ("service", " install serve --routes all"),
    ],
)
def test_a_wrong_hint_is_found(verb: str, rest: str) -> None:
    assert wrong(verb, rest)


@pytest.mark.parametrize("verb", ["open", "serve --open", "bench --seconds"])
@pytest.mark.parametrize("words", ["nonsense", "10x", "0", "٣", "1h1h", "1e3"])
def test_a_time_that_is_none_is_answered_with_what_one_is(
    verb: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, option = verb.partition(" ")
    assert run([command, f"{option}={words}"] if option else [command, "--", words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rustguard: {option or 'TIME'}: '{words}' isn't a duration")
    assert "Write it like 90s, 10m, 1h, 7d or 1w; a number alone is seconds." in err


def test_open_takes_whole_seconds_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["open", "--", "-5"]) == 2
    assert "'-5' isn't a duration." in capsys.readouterr().err
    assert run(["open", "1.5"]) == 2
    assert "'1.5' isn't a duration in whole seconds." in capsys.readouterr().err


# A wrong command line, what is said of it, and what to type instead.
WRONG = [
    ("serve --port 51820x", "--port: '51820x' isn't a whole number from 1 to 65535.", "Write it like: --port 51820"),
    ("serve --mtu 5", "--mtu: '5' isn't a whole number from 1280 to 65000.", "Write it like: --mtu 1280"),
    ("open --most x", "--most: 'x' isn't a whole number from 1.", "Write it like: --most 3"),
    ("serve --open 2d", "--open: '2d' isn't a duration from 1 s to 86400 s.", "Write it like 90s, 10m, 1h"),
    ("serve --token", "--token needs a value.", "Write it like: --token SECRET"),
    (
        "serve --engine nativ",
        "--engine: 'nativ' isn't one of the choices.",
        "Did you mean native? Choose from: auto,",
    ),
    ("serve --queues " + "9" * 5000, "--queues: '999", "Write it like: --queues 4"),
    ("serve --state /", "--state: '/' can't be a state directory.", "Choose another: --state DIR"),
    ("logs --state /..", "--state: '/..' can't be a state directory.", "Choose another: --state DIR"),
    ("serve --queues x", "--queues: 'x' is neither a number", "Write it like: --queues 4"),
    ("serve --offloads no-tos", "--offloads: There is no offload 'no-tos'.", "Choose from: auto,"),
    ("completion bsh", "SHELL: 'bsh' isn't one of the choices.", "Did you mean bash? Choose from: bash, zsh, fish."),
    ("status --jsn", "There is no option --jsn.", "Did you mean --json?"),
    ("status --json=3", "--json takes no value.", "Leave the value out: --json"),
    ("up", "FILE|NAME is missing.", "Usage: rustguard up [OPTIONS] FILE|NAME"),
    ("up a b", "The command takes no further word, and there is: b", "Usage: rustguard up [OPTIONS] FILE|NAME"),
    ("opne", "There is no command 'opne'. Did you mean `open`?", "See: rustguard --help"),
    ("stat", "There is no command 'stat'. Did you mean `status`?", "See: rustguard --help"),
    ("peers renam", "There is no command 'renam'. Did you mean `rename`?", "See: rustguard peers --help"),
    ("service instal", "There is no command 'instal'. Did you mean `install`?", "See: rustguard service --help"),
    ("xyzzy", "There is no command 'xyzzy'. See: rustguard --help", "Usage: rustguard"),
]


@pytest.mark.parametrize(("words", "message", "fix"), WRONG)
def test_a_wrong_command_line_is_answered_in_our_words(
    words: str, message: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"rustguard: {message}")
    assert any(line.startswith(f"  {fix}") for line in others)
    assert others[-1].startswith("  See: rustguard")


def test_a_wrong_value_of_a_variable_is_named_after_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_ENGINE", "fast")
    assert run(["serve"]) == 2
    assert capsys.readouterr().err.startswith("rustguard: RUSTGUARD_ENGINE: 'fast' isn't one of the choices.")


@pytest.mark.parametrize("name", ["-x", " a", "a\nb", "x" * 300, ""])
def test_a_name_that_cant_be_one_is_refused_before_the_token(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["join", "192.0.2.1", f"--name={name}", "--token-file", str(tmp_path / "no"), "--state", "/none"]) == 2
    assert "--name: a name " in capsys.readouterr().err


def test_all_verbs_have_help() -> None:
    for name in VERBS:
        assert CliRunner().invoke(group, [name, "--help"]).exit_code == 0
