"""The manual page has the exit codes and variables of docs/reference/files-and-exit-codes.md."""

from __future__ import annotations

import re
from pathlib import Path

from rustguard_py.cli import man

PAGE = (Path(__file__).parents[2] / "docs/reference/files-and-exit-codes.md").read_text()


def _first_cells(heading: str) -> list[str]:
    """Return the first cells of the first table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [line.split("|")[1].strip().strip("`") for line in table[0].splitlines()[2:]]


def test_the_manual_page_has_each_variable() -> None:
    assert sorted(name for name, _ in man.ENVIRONMENT) == sorted(_first_cells("Environment variables"))


def test_the_manual_page_has_each_exit_code() -> None:
    assert [str(code) for code, _ in man.EXIT_CODES] == _first_cells("Exit codes")
