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
FOLDERS = ["cli", "daemon", "enroll", "quick", "service", "state", "rustguard_py/kernel", "rustguard_py/system"]
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


@pytest.mark.parametrize("words", ["nonsense", "10m", "-5", "0", "1.5", "٣"])
def test_open_says_what_a_duration_is(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["open", "--", words]) == 2
    assert "isn't a number of seconds from 1. For ten minutes: rustguard open 600" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-x", " a", "a\nb", "x" * 300, ""])
def test_a_name_that_cant_be_one_is_refused_before_the_token(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["join", "192.0.2.1", f"--name={name}", "--token-file", str(tmp_path / "no"), "--state", "/none"]) == 2
    assert "--name: a name " in capsys.readouterr().err


def test_all_verbs_have_help() -> None:
    for name in VERBS:
        assert CliRunner().invoke(group, [name, "--help"]).exit_code == 0
