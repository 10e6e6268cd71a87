"""The ledger: the changes that a tunnel made to this machine, in order, kept on disk to be undone after a crash.

A step that outlives the interface is written to the ledger before it is done. The file is in the state directory: a
runtime directory may be emptied while the changes stay. After a reboot the changes are gone and the file isn't, so it
says from which boot and which network namespace it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rustguard_py import conf
from rustguard_py.daemon import steps
from rustguard_py.daemon.dns import MANAGERS, Dns
from rustguard_py.daemon.steps import Step, Sysctl
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths
from rustguard_py.state.durable_files import Files, read_private, unusable, write_fresh
from rustguard_py.system.interface import Echo, with_netlink
from rustguard_py.system.netlink_library import IPRoute
from rustguard_py.system.place import boot_id, namespace_id

# As `up` takes them. A hook has the name in place of %i, so it must be neither words of a shell, an option nor `..`.
_INTERFACE = re.compile(r"(?!-|\.{1,2}$)[a-zA-Z0-9_=+.-]{1,15}")
_KINDS: Mapping[str, type[Any]] = {each.__name__: each for each in (steps.Rule, Sysctl, steps.Firewall, Dns)}


@dataclass(frozen=True, slots=True)
class Left:
    """What a killed tunnel left behind, besides the steps.

    Attributes:
        interface: The interface's name.
        hooks: The commands that it would have run.
        mark: What `wg show INTERFACE fwmark` gave: those commands may ask for it. 0 for none.
        memif: The socket that a memif listened at. Empty for none. Root removes it only if nobody listens there.
    """

    interface: str
    hooks: conf.Hooks
    mark: int = 0
    memif: str = ""


def _parse(interface: str, value: Mapping[str, Any], memo: str) -> Step:
    """Return a step that we make for this interface. ValueError, TypeError or KeyError if it isn't one.

    Root undoes it, and the daemon wrote it, perhaps after it was taken over: so it may change nothing else.
    """
    step = steps.from_json(_KINDS, value)
    match step:
        case Sysctl(steps.SRC_VALID_MARK) if memo == "" or memo.isdecimal():
            return step
        case Dns(of) if of == interface and memo in MANAGERS:
            return step
        case steps.Firewall(of, 4 | 6) if of == interface:
            return step
        case steps.Rule(4 | 6, int(priority), int(table), int(mark)):
            if all(0 <= each < 1 << 32 for each in (priority, table, mark)):
                return step
    raise ValueError(value)


def _parse_left(value: Mapping[str, Any]) -> Left:
    """Return what the file has besides the steps. ValueError, TypeError or KeyError if it is invalid."""
    interface, mark, memif = value["interface"], value.get("mark", 0), value.get("memif", "")
    hooks = {name: tuple(lines) for name, lines in value["hooks"].items()}
    is_text = all(isinstance(line, str) for lines in hooks.values() for line in lines)
    is_mark = isinstance(mark, int) and 0 <= mark < 1 << 32
    is_path = isinstance(memif, str) and "\0" not in memif
    if not (_INTERFACE.fullmatch(interface) and is_text and is_mark and is_path):
        raise ValueError(value)
    return Left(interface, conf.Hooks(**hooks), mark, memif)


def _is_one_of_many(step: Step) -> bool:
    """Return whether there may be thousands of this kind, so that they are done many at a time."""
    return isinstance(step, (steps.Address, steps.Route))


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

    @property
    def done(self) -> Mapping[Step, str]:
        """The steps that are done, with their memos."""
        return self._done

    @classmethod
    def load(cls, path: Path) -> Ledger | None:
        """Return the ledger of a killed tunnel, or None if there is none, or none of this boot and namespace.

        Raises:
            StateError: The file can't be read.
        """
        try:
            content = read_private(Files(), path)
            if content is None:
                return None
            value = json.loads(content)
            here = {"boot": boot_id(), "namespace": namespace_id()}
            # Those of earlier versions don't say where they are from.
            if any(value.get(name, wanted) != wanted for name, wanted in here.items()):
                return None
            ledger = cls(path, _parse_left(value))
            ledger._done = {_parse(ledger.left.interface, step, memo): memo for step, memo in value["steps"]}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StateError(
                f"{path} can't be read. It has the changes that a killed tunnel made to this machine.",
                f"Check `ip rule` and your DNS, then remove it: rm {path}",
            ) from error
        return ledger

    @staticmethod
    def bring_home(directory: Path) -> None:
        """Move the ledger of an earlier version from the runtime directory to the state directory."""
        here, earlier = paths.undo_files(directory)
        # An unreadable one is reported by who undoes it.
        with suppress(StateError):
            if not here.exists() and (ledger := Ledger.load(earlier)) is not None:
                ledger._path = here
                ledger.save()
                earlier.unlink()

    def become(self, wanted: Sequence[Step], echo: Echo) -> None:
        """Do the new steps, in order. Then undo those that are no longer wanted, last one first.

        In this order, because the kernel drops an interface's routes with its last address, and because traffic must
        never find neither the old way nor the new one.

        Raises:
            RustGuardError: A step was refused. Earlier ones are done, and `undo` undoes them.
        """
        kept, places = set(wanted), {step.place for step in wanted}
        old = [each for each in self._done if each not in kept]
        gone = [each for each in reversed(old) if each.place not in places]
        replaced = [each for each in old if each.place in places]

        def work(netlink: IPRoute) -> None:
            new = [step for step in wanted if step not in self._done]
            # An old address and the kernel's route to its network may be in the way, until that address is gone.
            late = self._apply(netlink, new, echo, wait=any(isinstance(step, steps.Address) for step in gone))
            for step in replaced:
                del self._done[step]
            self._take_back(netlink, gone, echo)
            self._apply(netlink, late, echo)

        with_netlink(work)

    def _apply(self, netlink: IPRoute, new: Sequence[Step], echo: Echo, *, wait: bool = False) -> list[Step]:
        """Do steps, and return those that are to be done later."""
        late: list[Step] = []
        for many, run in groupby(new, _is_one_of_many):
            if many:
                here = [step for step in run if isinstance(step, (steps.Address, steps.Route))]
                late += steps.apply_all(here, echo, lambda step: self._done.__setitem__(step, ""), wait=wait)
                continue
            for step in run:
                self._done[step] = self._memo(step)
                if step.outlives:
                    self.save()
                step.apply(netlink, self._done[step], echo)
        return late

    def undo(self, echo: Echo) -> None:
        """Undo the steps that outlive the interface, last one first, and remove the file.

        Raises:
            RustGuardError: A step couldn't be undone. The others are, and the file still has this one.
        """
        lasting = {step: memo for step, memo in reversed(self._done.items()) if step.outlives}
        failed: dict[Step, RustGuardError] = {}

        def work(netlink: IPRoute) -> None:
            for each in lasting:
                try:
                    self._take_back(netlink, [each], echo)
                except RustGuardError as error:
                    failed[each] = error

        if lasting:
            with_netlink(work)
        self._done.clear()
        self._done.update({step: lasting[step] for step in reversed(failed)})
        if failed:
            self.save()
            first = next(iter(failed.values()))
            again = paths.down_command(self.left.interface, self._path.parent)
            raise RustGuardError(first.message, f"Undo the rest: {as_root(again)}")
        self._path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the file. Only we may read it, because it has hooks."""
        lasting = [[steps.to_json(step), memo] for step, memo in self._done.items() if step.outlives]
        hooks = {name: getattr(self.left.hooks, name) for name in conf.Hooks.__slots__}
        place = {"boot": boot_id(), "namespace": namespace_id()}
        ours = {"interface": self.left.interface, "mark": self.left.mark, "memif": self.left.memif}
        left = {**ours, **place, "hooks": hooks, "steps": lasting}
        content = json.dumps(left).encode()
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            os.close(write_fresh(Files(), temporary, content))
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise unusable("written", self._path, error) from error

    def _take_back(self, netlink: IPRoute, gone: Sequence[Step], echo: Echo) -> None:
        """Undo steps, in order."""
        for many, run in groupby(gone, _is_one_of_many):
            if many:
                here = [step for step in run if isinstance(step, (steps.Address, steps.Route))]
                for step in here:
                    del self._done[step]
                steps.undo_all(here, echo)
                continue
            for each in run:
                memo = self._done.pop(each)
                if not (isinstance(each, Sysctl) and self._others_memo(each) is not None):
                    each.undo(netlink, memo, echo)

    def _memo(self, step: Step) -> str:
        """Return the memo of a step. For a variable that another tunnel has set, it is the value before that."""
        others = self._others_memo(step) if isinstance(step, Sysctl) else None
        return step.prepare() if others is None else others

    def _others_memo(self, step: Step) -> str | None:
        others = set(self._path.parent.parent.glob(f"*/{self._path.name}"))
        others |= {paths.undo_file(each.state_directory) for each in paths.running()}
        for path in others - {self._path}:
            with suppress(StateError):
                other = Ledger.load(path)
                if other is not None and step in other._done:
                    return other._done[step]
        return None
