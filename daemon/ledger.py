"""The ledger: the changes that a tunnel made to this machine, in order, kept on disk to be undone after a crash.

A step that outlives the interface is written to the ledger before it is done. The file is in the runtime directory,
next to the control socket. A reboot removes both the file and the changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from rustguard_py import conf
from rustguard_py.daemon import steps
from rustguard_py.daemon.dns import Dns
from rustguard_py.daemon.steps import Step, Sysctl
from rustguard_py.model.errors import StateError
from rustguard_py.state.durable_files import Files, read_private, write_fresh
from rustguard_py.system.interface import Echo, with_netlink

_KINDS: Mapping[str, type[Any]] = {each.__name__: each for each in (steps.Rule, Sysctl, steps.Firewall, Dns)}


@dataclass(frozen=True, slots=True)
class Left:
    """What a killed tunnel left behind, besides the steps.

    Attributes:
        interface: The interface's name.
        hooks: The commands that it would have run.
    """

    interface: str
    hooks: conf.Hooks


class Ledger:
    """The steps of one tunnel.

    Args:
        path: The file, in an existing directory.
        left: What the file has besides the steps.
    """

    def __init__(self, path: Path, left: Left) -> None:
        self.left = left
        self._path = path
        self._done: dict[Step, str] = {}

    @classmethod
    def load(cls, path: Path) -> Ledger | None:
        """Return the ledger of a killed tunnel, or None if there is none.

        Raises:
            StateError: The file can't be read.
        """
        try:
            content = read_private(Files(), path)
            if content is None:
                return None
            value = json.loads(content)
            hooks = conf.Hooks(**{name: tuple(lines) for name, lines in value["hooks"].items()})
            ledger = cls(path, Left(value["interface"], hooks))
            ledger._done = {steps.from_json(_KINDS, step): memo for step, memo in value["steps"]}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateError(
                f"{path} can't be read. It has the changes that a killed tunnel made to this machine.",
                f"Check `ip rule` and your DNS, then remove it: rm {path}",
            ) from error
        return ledger

    def become(self, wanted: Sequence[Step], echo: Echo) -> None:
        """Undo steps that are no longer wanted, last one first. Then do the new ones, in order.

        Raises:
            RustGuardError: A step was refused. Earlier ones are done, and `undo` undoes them.
        """
        kept = set(wanted)

        def work(netlink: IPRoute) -> None:
            for step in [each for each in reversed(self._done) if each not in kept]:
                self._take_back(netlink, step, echo)
            for step in wanted:
                if step not in self._done:
                    self._done[step] = self._memo(step)
                    if step.outlives:
                        self.save()
                    step.apply(netlink, self._done[step], echo)

        with_netlink(work)

    def undo(self, echo: Echo) -> None:
        """Undo the steps that outlive the interface, last one first, and remove the file."""

        def work(netlink: IPRoute) -> None:
            for step in reversed([each for each in self._done if each.outlives]):
                self._take_back(netlink, step, echo)

        if any(step.outlives for step in self._done):
            with_netlink(work)
        self._done.clear()
        self._path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file. Only we may read it, because it has hooks."""
        lasting = [[steps.to_json(step), memo] for step, memo in self._done.items() if step.outlives]
        hooks = {name: getattr(self.left.hooks, name) for name in conf.Hooks.__slots__}
        content = json.dumps({"interface": self.left.interface, "hooks": hooks, "steps": lasting}).encode()
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            os.close(write_fresh(Files(), temporary, content))
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StateError(
                f"{self._path} can't be written: {error.strerror}.", "Free some space on /run."
            ) from error

    def _take_back(self, netlink: IPRoute, step: Step, echo: Echo) -> None:
        memo = self._done.pop(step)
        if not (isinstance(step, Sysctl) and self._others_memo(step) is not None):
            step.undo(netlink, memo, echo)

    def _memo(self, step: Step) -> str:
        """Return the memo of a step. For a variable that another tunnel has set, it is the value before that."""
        others = self._others_memo(step) if isinstance(step, Sysctl) else None
        return step.prepare() if others is None else others

    def _others_memo(self, step: Step) -> str | None:
        for path in self._path.parent.glob(f"*{self._path.suffix}"):
            with suppress(StateError):
                other = None if path == self._path else Ledger.load(path)
                if other is not None and step in other._done:
                    return other._done[step]
        return None
