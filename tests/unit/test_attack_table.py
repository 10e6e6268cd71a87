"""The table that `make attack` prints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.attack_table import AttackTable, Row, table

NAME = "a flood"


def report(when: str, *properties: tuple[str, object]) -> Any:
    return SimpleNamespace(when=when, user_properties=list(properties))


def test_what_a_test_and_its_control_report_comes_into_one_row() -> None:
    collected = AttackTable()
    for column, text in (
        ("seen", "nothing"),
        ("seen", "nothing"),
        ("seen", "a little"),
        ("control", "all fell down"),
    ):
        item = SimpleNamespace(get_closest_marker=lambda _: pytest.mark.attack(NAME).mark, user_properties=[])
        row = Row(cast(pytest.Item, item))
        (row.seen if column == "seen" else row.control)(text)
        for when in ("setup", "call", "teardown"):
            collected.pytest_runtest_logreport(report(when, *item.user_properties, ("missed", "else")))
    lines = [[cell.strip() for cell in line.split("|")] for line in table(collected._rows)]
    assert lines[0] == ["attack", "seen", "control"]
    assert lines[2:] == [[NAME, "nothing", "all fell down"], ["", "a little", ""]]


def test_an_attack_without_a_control_shows_that() -> None:
    assert table({NAME: {"seen": ["x" * 100]}})[2].endswith("| none")


def test_a_test_that_names_no_attack_fails() -> None:
    item = SimpleNamespace(get_closest_marker=lambda _: None, user_properties=[])
    with pytest.raises(AssertionError, match="names it"):
        Row(cast(pytest.Item, item))
