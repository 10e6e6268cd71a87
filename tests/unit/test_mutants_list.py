"""The list of mutants that no test needs to notice speaks of the code as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests/mutants/accepted.toml"
ENTRIES = tomllib.loads(LIST.read_text()).get("survivor", [])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['path']}:{entry['function']}")
def test_what_an_accepted_mutant_changes_is_still_there_and_it_has_a_reason(entry: dict[str, object]) -> None:
    code = " ".join(line.strip() for line in (ROOT / "rustguard_py" / str(entry["path"])).read_text().splitlines())
    assert str(entry["before"]) in code
    assert entry["before"] != entry["after"]
    assert isinstance(entry["same"], bool)
    assert len(str(entry["reason"])) > len("it is the same")
