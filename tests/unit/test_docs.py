"""What the documents say is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from rustguard_py.cli.app import VERBS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("verb", [name for name, entry in VERBS.items() if not entry.hidden])
def test_each_command_is_in_the_readmes_table(verb: str) -> None:
    rows = [line for line in DOCUMENTS[0].read_text().splitlines() if line.startswith("| `rustguard")]
    assert any(f"`rustguard {verb}" in row for row in rows)


def test_each_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.split(r"[<>=~]", line)[0] for line in project["dependencies"]]
    extras = [re.split(r"[<>=~]", line)[0] for lines in project["optional-dependencies"].values() for line in lines]
    said = (ROOT / "docs/dependencies.md").read_text()
    assert [name for name in wanted if f"| {name} |" not in said] == []
    assert [name for name in extras if name not in said] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text()
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:rustguard_py|enroll|state|cli|tests|bench|docs|scripts|native)/[\w./]*\w\.\w+)`", text)
    missing = [target for target in linked if not (document.parent / target).exists()]
    missing += [target for target in named if not (ROOT / target).exists()]
    assert missing == []


def test_the_makefiles_targets_are_those_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", DOCUMENTS[0].read_text())) <= targets


def test_functions_that_the_data_path_names_are_in_their_files() -> None:
    text = (ROOT / "docs/data-path.md").read_text()
    named = re.findall(r"`(native/[\w/]+\.rs)`: ((?:`\w+`(?:, )?)+)", text)
    named += [(path, function) for function, path in re.findall(r"(`\w+`) in `(native/[\w/]+\.rs)`", text)]
    functions = [(path, function) for path, listed in named for function in re.findall(r"`(\w+)`", listed)]
    assert len(functions) > 30
    gone = [(path, name) for path, name in functions if not re.search(rf"\bfn {name}\b", (ROOT / path).read_text())]
    assert gone == []
