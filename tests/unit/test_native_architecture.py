"""The Rust crates have no circular imports, neither between files nor between folders."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
MEMBERS: list[str] = tomllib.loads((NATIVE / "Cargo.toml").read_text())["workspace"]["members"]

# Files by path, and the files that each one imports from.
Graph = dict[str, set[str]]

# Comments, strings and characters, found in one pass. A lifetime (`'a`) is no character.
_NO_CODE = re.compile(
    r"//[^\n]*"
    r"|/\*.*?\*/"
    r'|b?r(?P<hashes>#*)".*?"(?P=hashes)'
    r'|[bc]?"(?:\\.|[^"\\])*"'
    r"|b?'(?:\\(?:u\{\w+\}|x\w\w|.)|[^'\\])'",
    re.DOTALL,
)
_MOD = re.compile(r"\bmod\s+(\w+)\s*;")
_TEST_ITEM = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*")
_USE = re.compile(r"\b(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
_INLINE = re.compile(r"(?<![\w:])(?:crate|super|self)(?:::\w+)+")


@pytest.mark.parametrize("crate", MEMBERS)
def test_no_file_and_no_folder_imports_in_a_circle(crate: str) -> None:
    src = NATIVE / crate / "src"
    files = {str(path.relative_to(src)): path.read_text() for path in src.rglob("*.rs")}
    graph = imports(files)
    assert sum(map(len, graph.values())) >= min(50, len(files) // 2), "the imports were not understood"
    assert cycles(graph) == []


@pytest.mark.parametrize(
    "files",
    [
        {
            "lib.rs": "mod a;\nmod b;",
            "a.rs": "use crate::b::B;",
            "b.rs": "use crate::a::{self, A};",
        },
        {
            "lib.rs": "mod a;\nmod b;",
            "a.rs": "use super::b::B;",
            "b.rs": "fn f() { crate::a::f() }",
        },
        {"lib.rs": "pub use a::A;\nmod a;\npub fn lock() {}", "a.rs": "use crate::lock;"},
        {
            "lib.rs": "mod a;",
            "a/mod.rs": "mod b;\nuse b::B;\npub struct A;",
            "a/b.rs": "use super::A;",
        },
        {
            "lib.rs": "mod a;",
            "a.rs": "mod b;\npub struct A;\nfn f() { b::f() }",
            "a/b.rs": "use super::A;",
        },
        # No two files import each other, but their folders do.
        {
            "lib.rs": "mod a;\nmod b;",
            "a/mod.rs": "pub mod one;\npub mod two;",
            "a/one.rs": "use crate::b::one::One;",
            "a/two.rs": "",
            "b/mod.rs": "pub mod one;\npub mod two;",
            "b/one.rs": "",
            "b/two.rs": "use crate::{a::two::Two};",
        },
    ],
    ids=["files", "inline path", "root", "parent and child", "child inline", "folders"],
)
def test_a_planted_circle_is_found(files: dict[str, str]) -> None:
    assert len(cycles(imports(files))) == 1


@pytest.mark.parametrize(
    "files",
    [
        # A parent that only declares its children.
        {"lib.rs": "mod a;", "a.rs": "mod b;\npub struct A;", "a/b.rs": "use super::A;"},
        # Siblings through their parent.
        {"lib.rs": "mod a;\nmod b;", "a.rs": "use super::b;", "b.rs": ""},
        # Tests, comments, strings and items of one's own.
        {
            "lib.rs": "mod a;\nmod b;",
            "a.rs": "use crate::b::B;",
            "b.rs": (
                "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n    fn f() { \"}\"; '}'; }\n}\n"
                "#[cfg(test)]\npub(crate) fn g() { crate::a::f() }\n"
                "// use crate::a::A;\n/// See [`crate::a`].\n"
                'const TEXT: &str = "use crate::a::A;";\nfn f<\'a>() { self::g() }\n'
            ),
        },
        {
            "lib.rs": "mod a;",
            "a/mod.rs": "mod b;\n#[cfg(test)]\nmod tests;\nuse b::B;",
            "a/b.rs": "",
            "a/tests.rs": "use super::*;\nmod c;",
            "a/tests/c.rs": "use crate::a::b::B;",
        },
    ],
    ids=["declaration", "siblings", "no code", "tests"],
)
def test_what_is_no_circle_is_let_pass(files: dict[str, str]) -> None:
    assert cycles(imports(files)) == []


def test_imports_are_resolved_to_the_file_that_defines_them() -> None:
    files = {
        "lib.rs": "mod a;\nmod b;",
        "a/mod.rs": "pub mod inner { pub mod deep; }\npub use self::c::C;\nmod c;",
        "a/c.rs": "use super::inner::deep::{Deep, other::{X, Y}};\nuse std::io;",
        "a/inner/deep.rs": "",
        "b.rs": "use crate::{a::{self as other, C}, a::inner::deep as d};",
    }
    graph = imports(files)
    assert graph == {
        "lib.rs": set(),
        "a/mod.rs": {"a/c.rs"},
        "a/c.rs": {"a/inner/deep.rs"},
        "a/inner/deep.rs": set(),
        "b.rs": {"a/mod.rs", "a/inner/deep.rs"},
    }


@dataclass
class Module:
    """A module: the file that it is in, its code without tests and comments, and its children."""

    path: tuple[str, ...]
    file: str
    code: str
    children: dict[str, Module] = field(default_factory=dict)


def imports(files: Mapping[str, str]) -> Graph:
    """Return which files of a crate import from which, tests left out.

    Args:
        files: The text of each file, by its path below `src`.
    """
    root = _module((), "lib.rs", _code(files["lib.rs"]), files)
    graph: Graph = {module.file: set() for module in _walk(root)}
    for module in _walk(root):
        for path in _paths(module):
            target = _resolve(root, module, path)
            if target and target.file != module.file:
                graph[module.file].add(target.file)
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Return the circles between files, or else those between the entries of a folder."""
    found = _circles(graph)
    for depth in range(1, 1 + max(len(_unit(file)) for file in graph)):
        if found:
            break
        merged: Graph = {}
        for file, targets in graph.items():
            for target in targets:
                here, there = _unit(file)[:depth], _unit(target)[:depth]
                # Only entries of the same folder stand beside each other.
                if here != there and here[:-1] == there[:-1]:
                    merged.setdefault("/".join(here), set()).add("/".join(there))
                    merged.setdefault("/".join(there), set())
        found = _circles(merged)
    return found


def _unit(file: str) -> tuple[str, ...]:
    """Return a file's place in the tree: `a.rs` and `a/mod.rs` are the entry `a`."""
    parts = file.removesuffix(".rs").split("/")
    return tuple(parts[:-1] if parts[-1] == "mod" else parts)


def _circles(graph: Graph) -> list[list[str]]:
    """Return each set of nodes that reach one another (Kosaraju), in the alphabet's order."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(node: str, edges: Graph, into: list[str]) -> None:
        if node not in seen:
            seen.add(node)
            for target in sorted(edges.get(node, ())):
                visit(target, edges, into)
            into.append(node)

    for node in sorted(graph):
        visit(node, graph, order)
    backwards: Graph = {}
    for node, targets in graph.items():
        for target in targets:
            backwards.setdefault(target, set()).add(node)
    seen.clear()
    found: list[list[str]] = []
    for node in reversed(order):
        group: list[str] = []
        visit(node, backwards, group)
        if len(group) > 1:
            found.append(sorted(group))
    return sorted(found)


def _code(text: str) -> str:
    """Return Rust code without comments, strings and test items; lengths aren't kept."""
    code = _NO_CODE.sub(" ", text)
    while found := _TEST_ITEM.search(code):
        code = code[: found.start()] + code[_item_end(code, found.end()) :]
    return code


def _item_end(code: str, start: int) -> int:
    """Return where the item that begins at `start` ends: behind its `;`, or behind its braces."""
    end = re.compile(r"[;{]").search(code, start)
    if end is None:
        return len(code)
    return end.end() if end[0] == ";" else _closing(code, end.start()) + 1


def _closing(code: str, opening: int) -> int:
    """Return where the brace at `opening` is closed."""
    depth = 0
    for brace in re.compile(r"[{}]").finditer(code, opening):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise AssertionError("a brace is never closed")


def _module(path: tuple[str, ...], file: str, code: str, files: Mapping[str, str]) -> Module:
    """Return a module with its children, those inside its file and those in files of their own."""
    made = Module(path, file, code)
    while found := re.search(r"\bmod\s+(\w+)\s*\{", made.code):
        closing = _closing(made.code, found.end() - 1)
        inner = made.code[found.end() : closing]
        made.code = made.code[: found.start()] + made.code[closing + 1 :]
        made.children[found[1]] = _module((*path, found[1]), file, inner, files)
    for name in _MOD.findall(made.code):
        base = "/".join((*path, name))
        child = next(one for one in (f"{base}.rs", f"{base}/mod.rs") if one in files)
        made.children[name] = _module((*path, name), child, _code(files[child]), files)
    return made


def _walk(module: Module) -> Iterator[Module]:
    """Yield a module and all below it."""
    yield module
    for child in module.children.values():
        yield from _walk(child)


def _paths(module: Module) -> Iterator[list[str]]:
    """Yield the paths that a module imports, and those that it names inline."""
    for found in _USE.finditer(module.code):
        yield from _expanded(found[1])
    rest = _USE.sub(" ", module.code)
    for inline in _INLINE.finditer(rest):
        yield inline[0].split("::")
    for name in module.children:
        if re.search(rf"(?<![\w:.]){name}::", rest):
            yield [name]


def _expanded(tree: str) -> Iterator[list[str]]:
    """Yield the paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`."""
    tree = re.sub(r"\s+as\s+\w+", "", tree).strip()
    head, brace, tail = tree.partition("{")
    prefix = [part.strip() for part in head.split("::") if part.strip()]
    if not brace:
        yield prefix
        return
    depth, start = 0, 0
    inner = tail[: tail.rindex("}")] + ","
    for at, char in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if piece := inner[start:at].strip():
                for path in _expanded(piece):
                    yield prefix + path
            start = at + 1


def _resolve(root: Module, module: Module, path: list[str]) -> Module | None:
    """Return the innermost module that a path leads to; None for another crate's."""
    by_path = {one.path: one for one in _walk(root)}
    first, *rest = path
    if first == "crate":
        found = root
    elif first in ("super", "self"):
        found = module
        rest = path
    elif first in module.children:
        found = module.children[first]
    else:
        return None
    for name in rest:
        if name == "self":
            continue
        if name == "super":
            found = by_path[found.path[:-1]]
        elif name in found.children:
            found = found.children[name]
        else:
            break
    return found
