"""The table of faults in docs/internals/reliability.md, and the tests that are marked with its rows."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/internals/reliability.md"
# `how` of a row that has no test.
NO_TEST = "\N{EN DASH}"
MARK = "pytest.mark.fault"


def tables() -> list[list[list[str]]]:
    """Return the page's tables as rows of cells, without their headings."""
    found: list[list[list[str]]] = [[]]
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


def rows() -> dict[int, str]:
    """Return how each row of the table of faults is tested, by its number."""
    (table,) = [table for table in tables() if len(table[0]) == 5]
    return {int(number): how for number, _, how, _, _ in table if number.isdecimal()}


def files() -> dict[str, set[int]]:
    """Return which rows each test file stands for, by the page; a line without rows continues the one above."""
    found: dict[str, set[int]] = defaultdict(set)
    numbers: set[int] = set()
    for cells in [cells for table in tables() for cells in table if len(cells) == 2 and "`tests/" in cells[1]]:
        numbers = {int(number) for number in re.findall(r"\d+", cells[0])} or numbers
        for file in re.findall(r"`(tests/[\w/]+\.py)`", cells[1]):
            found[file] |= numbers
    return found


def marked() -> dict[str, set[int]]:
    """Return the rows that the tests are marked with, by file."""
    found: dict[str, set[int]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if MARK in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == MARK:
                found[str(path.relative_to(ROOT))] |= {ast.literal_eval(argument) for argument in node.args}
    return found


def test_each_row_that_claims_a_test_has_one() -> None:
    table = rows()
    assert list(table) == list(range(1, len(table) + 1))
    assert {number for number, how in table.items() if how != NO_TEST} == set().union(*marked().values())


def test_each_file_that_the_page_names_for_a_row_has_a_test_of_it() -> None:
    named, there = files(), marked()
    assert set().union(*named.values()) == {number for number, how in rows().items() if how != NO_TEST}
    assert {file: missing for file, numbers in named.items() if (missing := numbers - there[file])} == {}


def test_each_test_among_the_faults_is_marked() -> None:
    unmarked = [
        f"{path.name}: {node.name}"
        for path in sorted((ROOT / "tests/hosts/faults").glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(ast.unparse(each).startswith(f"{MARK}(") for each in node.decorator_list)
    ]
    assert unmarked == []
