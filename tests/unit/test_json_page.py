"""docs/reference/json.md names each field and each reason that a JSON document can have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from rustguard_py.daemon import audit_events

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/json.md").read_text()
NAMED = set(re.findall(r"[a-z][a-z0-9_-]*", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
# Functions whose dictionaries are what `--json` prints.
DOCUMENTS = {
    "daemon/status.py": {"_peer", "common", "_worker"},
    "enroll/server/control.py": {"_status", "_window", "_window_document"},
    "enroll/client/control.py": {"_status"},
    "quick/control.py": {"_status"},
    "enroll/tunnels/bundle.py": {"report"},
    "rustguard_py/model/memif.py": {"to_json"},
    "cli/bench.py": {"_print_json"},
    "cli/generate/report.py": {"document", "machine", "_measured", "trial", "_histogram"},
}


def _keys(path: str, functions: set[str]) -> Iterator[str]:
    """Yield the keys of each dictionary in these functions."""
    for function in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(function, ast.FunctionDef) and function.name in functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Dict):
                    yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))


@pytest.mark.parametrize("path", DOCUMENTS)
def test_each_field_is_on_the_page(path: str) -> None:
    keys = set(_keys(path, DOCUMENTS[path]))
    assert keys, f"nothing was found in {path}"
    assert keys - NAMED == set()


def test_each_state_of_a_peer_is_on_the_page() -> None:
    source = (ROOT / "daemon/status.py").read_text().partition("def _state(")[2].partition("\ndef ")[0]
    states = set(re.findall(r'"([a-z-]+)"', source))
    assert len(states) == 5
    assert states - NAMED == set()


def test_each_reason_for_a_drop_is_on_the_page() -> None:
    source = (ROOT / "native/transport/src/drops.rs").read_text()
    reasons = set(re.findall(r'^    [A-Z]\w+ "([a-z0-9_]+)"', source, re.MULTILINE))
    assert len(reasons) > 20
    assert reasons - NAMED == set()


def test_each_reason_of_a_memif_is_in_the_walk_of_a_packet() -> None:
    page = (ROOT / "docs/internals/data-path.md").read_text()
    frames = re.findall(r'^    "([a-z_]+)",$', (ROOT / "native/neighbours/src/link.rs").read_text(), re.MULTILINE)
    rings = (ROOT / "native/plane/src/device/memif/rings.rs").read_text()
    own = re.findall(r'^const [A-Z_]+: &str = "([a-z_]+)";$', rings, re.MULTILINE)
    assert len(frames) == 10
    assert len(own) == 3
    assert [each for each in (*frames, *own) if not re.search(rf"`(memif_)?{each}`", page)] == []


def test_each_event_of_the_audit_log_is_on_the_page() -> None:
    kinds = [each for each in vars(audit_events).values() if isinstance(each, type) and hasattr(each, "kind")]
    assert len(kinds) == 15
    for each in kinds:
        row = re.search(rf"^\| `{each.kind}` \| (.*) \|$", PAGE, re.MULTILINE)
        assert row is not None, each.kind
        assert [field.name for field in fields(each) if f"`{field.name}`" not in row[1]] == [], each.kind
