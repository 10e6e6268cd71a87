"""The mutants of a file: each is the file with one small change.

The changes are mutmut's, and besides: a statement left out, a condition that never holds, and other numbers.
Left out is what nobody could notice by what the program does: annotations, docstrings, log lines, decorators, and
texts for people.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_number, operator_string

# Up to here, a number is changed by one.
SMALL = 10
_LOG = m.Call(func=m.Attribute(value=m.Name("log") | m.Name("logging")))
_DOCSTRING = m.Expr(value=m.SimpleString() | m.ConcatenatedString())
# They say what types there are, or how the class is laid out.
_TYPES = m.Call(func=m.Name("TypeVar") | m.Name("cast")) | m.Subscript(
    value=m.OneOf(
        *(m.Name(each) for each in ("Callable", "Generic", "Literal", "Protocol", "Union", "tuple", "dict"))
    )
)
_LAID_OUT = m.AssignTarget(target=m.Name("__slots__") | m.Name("__all__") | m.Name("log") | m.Name("_fields_"))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed file.

    Attributes:
        path: The file, below the package.
        function: The function or class around the change; empty for the module's own lines.
        line: The first line of the original that is changed, from 1.
        last: The last one.
        imported: Whether it runs when the file is imported.
        kind: What kind of change it is.
        before: The changed lines as they were, without indentation and line ends.
        after: The same as they are now.
        code: The whole changed file.
    """

    path: str
    function: str
    line: int
    last: int
    imported: bool
    kind: str
    before: str
    after: str
    code: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same while other lines of the file change."""
        return self.path, self.function, self.before, self.after

    def diff(self, original: str) -> str:
        """Return the change as a unified diff."""
        lines = (original.splitlines(keepends=True), self.code.splitlines(keepends=True))
        return "".join(difflib.unified_diff(*lines, self.path, self.path, n=2))


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, str, str, bool]] = []
        self._inside: list[str] = []
        self._functions = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._inside.append(node.name.value)
        self._functions += isinstance(node, cst.FunctionDef)
        if _is_left_out(node):
            return False
        for kind, changed in _changes(node):
            self.found.append((node, changed, kind, ".".join(self._inside), not self._functions))
        # How an error is put into words is for people; that it is raised is not.
        return not isinstance(node, cst.Raise)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._inside.pop()
        self._functions -= isinstance(original_node, cst.FunctionDef)


def _is_left_out(node: cst.CSTNode) -> bool:
    if isinstance(
        node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Assert | cst.FormattedString
    ):
        return True
    if isinstance(node, cst.Assign):
        return any(m.matches(target, _LAID_OUT) for target in node.targets) or m.matches(node.value, _TYPES)
    if isinstance(node, cst.If):
        return m.matches(node.test, m.Name("TYPE_CHECKING"))
    if isinstance(node, cst.SimpleString):
        return " " in node.value
    return m.matches(node, _LOG | _DOCSTRING | _TYPES | m.ConcatenatedString())


def _changes(node: cst.CSTNode) -> Iterator[tuple[str, cst.CSTNode]]:
    """Yield the changes of one node, each with its kind."""
    if isinstance(node, cst.SimpleStatementLine) and _can_go(node.body):
        yield "statement", node.with_changes(body=[cst.Pass()])
    if isinstance(node, cst.If) and not m.matches(node.test, m.Name("False")):
        yield "condition", node.with_changes(test=cst.Name("False"), whitespace_before_test=cst.SimpleWhitespace(" "))
    if isinstance(node, cst.Integer | cst.Float):
        yield from (("number", node.with_changes(value=repr(each))) for each in _other_numbers(node.evaluated_value))
    for kind, operator in mutation_operators:
        if not isinstance(node, kind) or operator is operator_number:
            continue
        changed: Iterable[cst.CSTNode] = operator(node)
        if operator is operator_string:
            # Those with other cases come after it, and are noticed by the same tests.
            changed = list(changed)[:1]
        name = "other"
        if operator is operator_arg_removal:
            name = "argument"
        elif isinstance(node, cst.Assign | cst.AnnAssign):
            name = "assignment"
        elif isinstance(node, cst.ComparisonTarget | cst.BooleanOperation | cst.UnaryOperation | cst.IfExp):
            name = "condition"
        yield from ((name, each) for each in changed)


def _other_numbers(value: float) -> Iterator[float]:
    """Yield what a number becomes: a small one is off by one, a limit or a time is twice or half as large."""
    if isinstance(value, int) and value <= SMALL:
        yield value + 1
        if value > 0:
            yield value - 1
    else:
        yield value * 2
        yield value // 2 if isinstance(value, int) else value / 2


def _can_go(body: Sequence[cst.BaseSmallStatement]) -> bool:
    """Return whether a statement can be left out without a name being missing later."""
    match body:
        case [cst.Expr(value=value)]:
            asked = value.expression if isinstance(value, cst.Await) else value
            return isinstance(asked, cst.Call | cst.Yield) and not m.matches(asked, _LOG)
        case [cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() | cst.Subscript())])]:
            return True
        case [cst.AugAssign() | cst.Raise() | cst.Del() | cst.Break() | cst.Continue()]:
            return True
        case [cst.Return(value=value)]:
            return value is not None
    return False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A change that a file could have.

    Attributes:
        path: The file, below the package.
        module: The parsed file.
        node: What is changed.
        changed: What it becomes.
        kind: What kind of change it is.
        function: The function or class around it.
        imported: Whether it runs when the file is imported.
        end: The last line of what is changed, from 1.
    """

    path: str
    module: cst.Module
    node: cst.CSTNode
    changed: cst.CSTNode
    kind: str
    function: str
    imported: bool
    end: int

    def make(self) -> Mutant | None:
        """Return the mutant; None if it is no Python, or no change."""
        original, code = self.module.code, self.module.deep_replace(self.node, self.changed).code  # type: ignore[attr-defined]
        try:
            compile(code, self.path, "exec", dont_inherit=True)
        except SyntaxError:
            return None
        if code == original:
            return None
        before, after = _changed_lines(original, code)
        line = _first_changed(original, code)
        last = line if isinstance(self.node, cst.If) else max(line, self.end)
        return Mutant(self.path, self.function, line, last, self.imported, self.kind, before, after, code)


def candidates_of(path: str, original: str) -> list[Candidate]:
    """Return all changes that a file could have, in the order in which they come in it."""
    wrapper = MetadataWrapper(cst.parse_module(original))
    visitor = _Visitor()
    wrapper.visit(visitor)
    positions = wrapper.resolve(PositionProvider)
    ends = [positions[node].end.line if node in positions else 0 for node, *_ in visitor.found]
    return [Candidate(path, wrapper.module, *found, end) for found, end in zip(visitor.found, ends, strict=True)]


def _changed_lines(original: str, code: str) -> tuple[str, str]:
    old, new = original.splitlines(), code.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, first, last, new_first, new_last in blocks:
        if tag != "equal":
            parts[0].extend(line.strip() for line in old[first:last])
            parts[1].extend(line.strip() for line in new[new_first:new_last])
    return " ".join(parts[0]), " ".join(parts[1])


def _first_changed(original: str, code: str) -> int:
    old, new = original.splitlines(), code.splitlines()
    same = (number for number, pair in enumerate(zip(old, new, strict=False), 1) if pair[0] != pair[1])
    return next(same, min(len(old), len(new)))


def choose(candidates: Sequence[Candidate], number: int, seed: str) -> list[Mutant]:
    """Make `number` mutants, the same ones for the same seed, evenly over the kinds of change.

    Without that, most would be arguments that are None, which every test notices that gets there.
    """
    random = Random(seed)
    kinds: dict[str, list[Candidate]] = {}
    for each in candidates:
        kinds.setdefault(each.kind, []).append(each)
    for those in kinds.values():
        random.shuffle(those)
    chosen: dict[tuple[str, str], Mutant] = {}
    while kinds and len(chosen) < number:
        kind = random.choice(sorted(kinds))
        mutant = kinds[kind].pop().make()
        if mutant is not None:
            chosen.setdefault((mutant.path, mutant.code), mutant)
        if not kinds[kind]:
            del kinds[kind]
    return sorted(chosen.values(), key=lambda each: (each.path, each.line, each.kind, each.after))
