"""Steps that are done by other programs (nft, resolvectl, resolvconf), where this process gave up what those need.

`up` has a helper that kept its privileges (`quick/helper.py`), and gives it such steps. Elsewhere they are done here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.interface import Echo
from rustguard_py.system.netlink_library import IPRoute

Object = TypeVar("Object")


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a step that a helper was given.

    Attributes:
        lines: What was echoed.
        seen: The result of `look`.
        fault: Why it failed, or None.
    """

    lines: tuple[str, ...] = ()
    seen: str | None = None
    fault: RustGuardError | None = None


# Takes a step, the name of its method, and the memo.
Helper = Callable[[Any, str, str], Done]
_helper: list[Helper] = []


def use(helper: Helper | None) -> None:
    """Let this helper do the steps of this process from now on; None for the process itself."""
    _helper[:] = [] if helper is None else [helper]


def changes(method: Callable[[Object, IPRoute, str, Echo], None]) -> Callable[[Object, IPRoute, str, Echo], None]:
    """Let the helper do `apply`, `undo` or `put_back` of a step, if there is a helper."""

    @wraps(method)
    def do(step: Object, netlink: IPRoute, memo: str, echo: Echo) -> None:
        if not _helper:
            method(step, netlink, memo, echo)
            return
        done = _helper[0](step, method.__name__, memo)
        for line in done.lines:
            echo(line)
        if done.fault is not None:
            raise done.fault

    return do


def looks(method: Callable[[Object, str], str | None]) -> Callable[[Object, str], str | None]:
    """Let the helper do `look` of a step, if there is a helper."""

    @wraps(method)
    def do(step: Object, memo: str) -> str | None:
        return _helper[0](step, method.__name__, memo).seen if _helper else method(step, memo)

    return do
