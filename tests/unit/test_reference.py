"""docs/reference/commands.md is what `make reference` writes, and names everything that can be typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from rustguard_py.cli import reference, wg
from rustguard_py.cli.app import VERBS, group, new_context, visible_commands

PAGE = Path(__file__).parents[2] / "docs/reference/commands.md"
COMMANDS = [
    *visible_commands(new_context(group, "rustguard")),
    (wg.command, new_context(wg.command, "rustguard-wg")),
]


def section(path: str) -> str:
    """Return what the page has below a command's heading."""
    _, found, rest = reference.page().partition(f"# {path}\n")
    assert found
    return rest.partition("\n## ")[0].partition("\n### ")[0]


def test_the_page_is_up_to_date_else_run_make_reference() -> None:
    assert PAGE.read_text() == reference.page()


def test_the_page_is_the_same_whatever_the_callers_environment_is() -> None:
    variables = {"COLUMNS": "40", "RUSTGUARD_ENGINE": "portable", "RUSTGUARD_LOG": "debug", "RUSTGUARD_STATE": "/x"}
    argv = [sys.executable, "-P", "-m", "rustguard_py.cli.reference"]
    environment = {"PYTHONIOENCODING": "utf-8", **variables}
    said = subprocess.run(argv, env=environment, capture_output=True, check=True, timeout=60).stdout
    assert said.decode() == reference.page()


def test_its_first_line_says_who_it_is_for_and_no_line_is_too_long() -> None:
    lines = reference.page().splitlines()
    assert lines[:2] == ["# Commands", ""]
    assert lines[2].startswith("For people who ")
    assert [line for line in lines if len(line) > reference.COLUMNS or line != line.rstrip()] == []


def test_hidden_commands_are_left_out() -> None:
    assert all(f"## rustguard {name}\n" not in reference.page() for name, entry in VERBS.items() if entry.hidden)


@pytest.mark.parametrize(("command", "context"), COMMANDS, ids=[context.command_path for _, context in COMMANDS])
def test_a_command_has_its_usage_options_defaults_and_examples(
    command: click.Command, context: click.Context
) -> None:
    text = section(context.command_path)
    flat = " ".join(text.split())
    assert f"```text {context.command_path}" in flat
    assert " ".join((command.help or "").split()) in flat
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.make_metavar(context).partition(" -- ")[0]
            assert f"- `{name[1:-1] if name.startswith('[') else name}`: " in text
        else:
            record = parameter.get_help_record(context)
            assert record is not None
            assert f"- `{record[0]}`: {' '.join(record[1].split())}" in flat
    for line, purpose in getattr(command, "examples", ()):
        assert f"\n{line}\n" in text
        assert purpose in flat.replace(" # ", " ")
