"""A disk that fails on demand, and one that is cut off: `Files` whose calls are recorded, broken and replayed.

The model of a power cut: of the writes to a file since its last fsync, any may have reached the disk, whole or in
part; of the changes to names since the directory's last fsync, any may have, in any order. A rename is one change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

from rustguard_py.state.durable_files import Files

# A change to names: each name, and the inode it then bears or None.
Names = dict[str, int | None]
Disk = dict[str, bytes]


class BreakableFiles(Files):
    """Counts calls and makes one of them fail, or all from one on.

    Attributes:
        calls: The names of the calls made, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._fails: Callable[[int], bool] = lambda _: False
        self._error = 0
        self._partly = False

    def break_call(self, number: int, error: int, *, partly: bool = False) -> None:
        """Fail the `number`-th call from now (from 0); `partly`: a write puts half of it down first."""
        self.calls = []
        self._error, self._partly = error, partly
        self._fails = lambda call: call == number

    def break_all(self, error: int, *names: str) -> None:
        """Fail every call of these names."""
        self._error = error
        self._fails = lambda call: self.calls[call] in names

    def repair(self) -> None:
        """Fail no more."""
        self.calls = []
        self._fails = lambda _: False

    def __getattribute__(self, name: str) -> Any:
        call = object.__getattribute__(self, name)
        if name not in CALLS:
            return call

        def counted(*arguments: Any) -> Any:
            self.calls.append(name)
            if not self._fails(len(self.calls) - 1):
                return call(*arguments)
            if name == "write" and self._partly:
                descriptor, data, offset = arguments
                call(descriptor, data[: len(data) // 2], offset)
            if name == "close":
                call(*arguments)  # Linux closes it whatever it answers.
            raise OSError(self._error, os.strerror(self._error))

        return counted


CALLS = {name for name in vars(Files) if not name.startswith("_")}


class RecordingFiles(Files):
    """Works on the real directory and records what a power cut could undo there.

    Args:
        directory: The one whose files are recorded, empty yet.
        ignored: Names that don't matter, such as the lock.
    """

    def __init__(self, directory: Path, ignored: tuple[str, ...] = ("lock",)) -> None:
        self._directory = directory
        self._ignored = ignored
        self._inodes: dict[int, int] = {}
        self._names: dict[str, int] = {}
        self._next = 0
        self.log: list[tuple[Any, ...]] = []

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        new = bool(flags & os.O_CREAT) and not path.exists()
        descriptor = super().open(path, flags, mode)
        if path == self._directory:
            self._inodes[descriptor] = -1
        elif path.parent == self._directory and path.name not in self._ignored:
            if new:
                self._next += 1
                self._change({path.name: self._next})
            self._inodes[descriptor] = self._names[path.name]
        return descriptor

    def close(self, descriptor: int) -> None:
        self._inodes.pop(descriptor, None)
        super().close(descriptor)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        written = super().write(descriptor, data, offset)
        if descriptor in self._inodes:
            self.log.append(("write", self._inodes[descriptor], offset, bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        if descriptor in self._inodes:
            self.log.append(("fsync", self._inodes[descriptor]))

    def fdatasync(self, descriptor: int) -> None:
        super().fdatasync(descriptor)
        self.log.append(("fsync", self._inodes[descriptor]))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._change({target.name: self._names[source.name]})

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._change({target.name: self._names[source.name], source.name: None})

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._change({path.name: None})

    def _change(self, names: Names) -> None:
        self.log.append(("names", names))
        for name, inode in names.items():
            if inode is None:
                self._names.pop(name, None)
            else:
                self._names[name] = inode

    def crash_states(self) -> Iterator[tuple[int, Disk]]:
        """Give what the disk may hold after a cut: how many steps of the log were done, and the files."""
        for done in range(len(self.log) + 1):
            seen: set[tuple[tuple[str, bytes], ...]] = set()
            for disk in _cut(self.log[:done]):
                mark = tuple(sorted(disk.items()))
                if mark not in seen:
                    seen.add(mark)
                    yield done, disk


def put(directory: Path, disk: Disk) -> None:
    """Make a directory hold these files (0600) and no other."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in disk.items():
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)


def _cut(log: list[tuple[Any, ...]]) -> Iterator[Disk]:
    pending_names, durable_names = _since(log, -1)
    contents = {inode: list(_contents(log, inode)) for inode in _inodes(log)}
    for names in _name_states(durable_names, pending_names):
        inodes = sorted({inode for inode in names.values() if inode is not None})
        for chosen in product(*(contents[inode] for inode in inodes)):
            by_inode = dict(zip(inodes, chosen, strict=True))
            yield {name: by_inode[inode] for name, inode in names.items() if inode is not None}


def _inodes(log: list[tuple[Any, ...]]) -> set[int]:
    return {inode for step in log if step[0] == "names" for inode in step[1].values() if inode is not None}


def _since(log: list[tuple[Any, ...]], inode: int) -> tuple[list[Any], list[Any]]:
    """Part what was done to an inode (-1: the names) into what an fsync hasn't covered and what one has."""
    pending: list[Any] = []
    durable: list[Any] = []
    for step in log:
        if step == ("fsync", inode):
            durable += pending
            pending = []
        elif (inode == -1 and step[0] == "names") or (step[0] == "write" and step[1] == inode):
            pending.append(step[1:])
    return pending, durable


def _name_states(durable: list[Any], pending: list[Any]) -> Iterator[Names]:
    base: Names = {}
    for (names,) in durable:
        base |= names
    seen = set()
    for count in range(len(pending) + 1):
        for order in permutations(pending, count):
            state = dict(base)
            for (names,) in order:
                state |= names
            mark = tuple(sorted((name, inode) for name, inode in state.items() if inode is not None))
            if mark not in seen:
                seen.add(mark)
                yield dict(mark)


def _contents(log: list[tuple[Any, ...]], inode: int) -> Iterator[bytes]:
    pending, durable = _since(log, inode)
    base = bytearray()
    for _, offset, data in durable:
        _lay(base, offset, data)
    seen = set()
    # Each write since the last fsync: lost, cut after one byte, in the middle, before its last byte, or whole.
    cuts = [sorted({0, 1, len(data) // 2, len(data) - 1, len(data)}) for _, _, data in pending]
    for sizes in product(*cuts):
        content = bytearray(base)
        for (_, offset, data), size in zip(pending, sizes, strict=True):
            _lay(content, offset, data[:size])
        if bytes(content) not in seen:
            seen.add(bytes(content))
            yield bytes(content)


def _lay(content: bytearray, offset: int, data: bytes) -> None:
    if data:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
