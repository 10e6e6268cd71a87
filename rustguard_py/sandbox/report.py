"""What a daemon gave up, and what the system refused to take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """What was applied to this process.

    Attributes:
        applied: Each measure, in words.
        refused: A sentence for each that isn't in force, with the reason.
    """

    applied: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __add__(self, other: Report) -> Report:
        return Report(self.applied + other.applied, self.refused + other.refused)


# Of a process that was not asked to give anything up.
NOTHING = Report()
