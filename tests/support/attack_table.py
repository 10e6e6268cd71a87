"""One row per attack in `tests/attacks/`, and the table of them that `make attack` prints.

A test of an attack, and the control that shows that the attack works where nothing stops it, have the same mark
`attack(NAME)`. What they report with the fixture `row` comes into the same row of the table.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass, field

import pytest

_PROPERTY = "attack"
_WIDTHS = (38, 44, 34)
_HEADINGS = ("attack", "seen", "control")


def is_long() -> bool:
    """Return whether the long forms run (`make attack`, `make soak`)."""
    return any(os.environ.get(name) == "1" for name in ("RUSTGUARD_ATTACK", "RUSTGUARD_SOAK"))


class Row:
    """What a test reports of its attack.

    Args:
        item: The test.
    """

    def __init__(self, item: pytest.Item) -> None:
        mark = item.get_closest_marker("attack")
        assert mark is not None, "a test of an attack names it: @pytest.mark.attack(NAME)"
        self._name: str = mark.args[0]
        self._properties = item.user_properties

    def seen(self, text: str) -> None:
        """Report what came of the attack."""
        self._report("seen", text)

    def control(self, text: str) -> None:
        """Report what the attack does where nothing stops it."""
        self._report("control", text)

    def _report(self, column: str, text: str) -> None:
        print(f"{self._name}: {column}: {text}")
        # A worker's properties go to who started it, as plain values.
        self._properties.append((_PROPERTY, [self._name, column, text]))


@dataclass(slots=True, eq=False)
class AttackTable:
    """Collects the rows, and prints the table after a run with the long forms."""

    _rows: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test reported."""
        # All reports of a test have the properties; its last one has all of them.
        if report.when != "teardown":
            return
        for name, value in report.user_properties:
            if name == _PROPERTY and isinstance(value, list):
                attack, column, text = value
                texts = self._rows.setdefault(attack, {}).setdefault(column, [])
                if text not in texts:
                    texts.append(text)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        if not is_long() or not self._rows:
            return
        terminalreporter.section("attacks, long forms")
        for line in table(self._rows):
            terminalreporter.line(line)


def table(rows: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the lines of the table: of each attack what was seen, and what its control showed."""
    lines = [_line(*_HEADINGS), "-+-".join("-" * width for width in _WIDTHS)]
    for attack, said in sorted(rows.items()):
        cells = [[attack], said.get("seen", []), said.get("control", ["none"])]
        wrapped = [
            [line for text in cell for line in textwrap.wrap(text, width)]
            for cell, width in zip(cells, _WIDTHS, strict=True)
        ]
        for number in range(max(map(len, wrapped))):
            lines.append(_line(*(cell[number] if number < len(cell) else "" for cell in wrapped)))
    return lines


def _line(*cells: str) -> str:
    return " | ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
