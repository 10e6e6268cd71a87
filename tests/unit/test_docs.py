"""The documents are true where a test can tell, and written as docs are to be written."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rustguard_py import __version__
from rustguard_py.cli.app import VERBS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
COMMANDS = ROOT / "docs/reference/commands.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README_WORDS = 700
COLUMNS = 100
ROOMS = "rustguard_py|embed|enroll|quick|service|rootless|daemon|state|cli|tests|bench|docs|scripts|native|package"
ROOMS += "|examples"
# Old or odd words, each with what to write in its place.
UNUSUAL = {
    r"\bmend": "fix",
    r"\banew\b": "again",
    r"\bshall\b": "will, must",
    r" beside ": "besides, next to, during",
    r"\b(is|are) told\b": "gets, is reported to",
    r"\bis said\b": "is logged, is reported",
}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [ROOT / name for name in listed.stdout.split("\0") if name]
    # A source tree without git has the same files.
    return [path for path in found if path.exists()] or [
        *sorted(ROOT.glob("*.md")),
        *PAGES,
        *sorted((ROOT / "bench").glob("*.md")),
    ]


DOCUMENTS = _tracked()


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(text: str) -> set[str]:
    """Return what a link can name in a page, as GitHub makes it from the headings."""
    headings = re.findall(r"^#+ (.+)$", _without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("verb", [name for name, entry in VERBS.items() if not entry.hidden])
def test_each_command_is_in_the_reference(verb: str) -> None:
    assert re.search(rf"`rustguard {verb}\b|^#+ .*\b{verb}\b", COMMANDS.read_text(), re.MULTILINE)


def test_each_dependency_has_its_reason() -> None:
    project = _project()
    wanted = [re.split(r"[<>=~]", line)[0] for line in project["dependencies"]]
    extras = [re.split(r"[<>=~]", line)[0] for lines in project["optional-dependencies"].values() for line in lines]
    reasons = (ROOT / "docs/internals/dependencies.md").read_text()
    assert [name for name in wanted if f"| {name} |" not in reasons] == []
    assert [name for name in extras if name not in reasons] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_and_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text()
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        page = document.parent / target if target else document
        if not page.exists() or (anchor and anchor not in _anchors(page.read_text())):
            missing.append(f"{target}#{anchor}")
    named = re.findall(rf"`((?:{ROOMS})/[\w./]*\w\.\w+)`", text)
    missing += [target for target in named if not (ROOT / target).exists()]
    assert missing == []


def test_the_makefiles_targets_are_those_that_documents_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    heads = re.findall(r"^([a-z][a-z -]*):(?!=)", makefile, re.MULTILINE)
    targets = {name for head in heads for name in head.split()}
    named = {name for each in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", each.read_text())}
    assert named <= targets


def test_functions_that_the_data_path_names_are_in_their_files() -> None:
    text = (ROOT / "docs/internals/data-path.md").read_text()
    named = re.findall(r"`(native/[\w/]+\.rs)`:\s+((?:`\w+`(?:,\s+)?)+)", text)
    named += [(path, function) for function, path in re.findall(r"(`\w+`) in\s+`(native/[\w/]+\.rs)`", text)]
    functions = [(path, function) for path, listed in named for function in re.findall(r"`(\w+)`", listed)]
    assert len(functions) > 30
    gone = [(path, name) for path, name in functions if not re.search(rf"\bfn {name}\b", (ROOT / path).read_text())]
    assert gone == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= README_WORDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_lines_are_narrow(document: Path) -> None:
    lines = enumerate(document.read_text().splitlines(), 1)
    assert [number for number, line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_words_are_usual(document: Path) -> None:
    text = " ".join(document.read_text().split())
    found = {word: better for word, better in UNUSUAL.items() if re.search(word, text, re.IGNORECASE)}
    assert found == {}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_each_page_names_its_reader_first(page: Path) -> None:
    title, first = [line for line in page.read_text().splitlines() if line][:2]
    assert title.startswith("# ")
    assert first.startswith("For ")


def test_the_newest_version_in_the_changelog_is_the_projects() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert dated[0] == __version__
