"""Changes to files and directories are noticed, also to those that are made again or don't exist yet."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rustguard_py.system.file_watch import FileWatch


def noticed(paths: list[Path], *changes: Callable[[], object]) -> list[bool]:
    """Watch paths, make each change, and return which of them were noticed."""

    async def main() -> list[bool]:
        seen = asyncio.Event()
        watch = FileWatch(seen.set)
        found = []
        for change in changes:
            watch.watch(paths)
            change()
            with suppress(TimeoutError):
                await asyncio.wait_for(seen.wait(), 0.2)
            found.append(seen.is_set())
            seen.clear()
        watch.close()
        watch.close()
        return found

    return asyncio.run(main())


def test_a_file_that_is_written_replaced_or_removed_is_noticed_and_its_neighbours_are_not(tmp_path: Path) -> None:
    file, other = tmp_path / "resolv.conf", tmp_path / "other"
    file.write_text("one")
    assert noticed(
        [file],
        lambda: file.write_text("two"),
        lambda: other.write_text("mine"),
        lambda: other.replace(file),
        lambda: file.read_text(),
        file.unlink,
        lambda: file.symlink_to("nowhere"),
    ) == [True, False, True, False, True, True]


def test_everything_in_a_directory_is_noticed_also_when_the_directory_comes_later(tmp_path: Path) -> None:
    records = tmp_path / "run/resolvconf/interfaces"
    assert noticed(
        [records],
        (tmp_path / "else").mkdir,
        lambda: records.mkdir(parents=True),
        lambda: (records / "wg0").write_text("nameserver 10.9.0.1\n"),
        (records / "wg0").unlink,
        records.rmdir,
        records.parent.rmdir,
        lambda: records.mkdir(parents=True),
    ) == [False, True, True, True, True, True, True]


def test_what_is_watched_no_longer_is_not_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        seen = asyncio.Event()
        watch = FileWatch(seen.set)
        watch.watch([tmp_path])
        watch.watch([])
        # The message that the watch ended comes too.
        (tmp_path / "file").touch()
        await asyncio.sleep(0.05)
        watch.close()
        assert not seen.is_set()

    asyncio.run(main())


def test_lost_messages_count_as_a_change(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 20000:
        pytest.skip("the kernel keeps too many messages")
    (tmp_path / "sub").mkdir()

    async def main() -> bool:
        seen = asyncio.Event()
        watch = FileWatch(seen.set)
        watch.watch([tmp_path / "sub/name"])
        # Of another name, so that only the overflow can be noticed.
        for number in range(limit + 2):
            (tmp_path / "sub" / f"other{number % 2}").write_bytes(b"")
        await asyncio.sleep(0.05)
        watch.close()
        return seen.is_set()

    assert asyncio.run(main())


def test_a_kernel_that_refuses_is_an_error() -> None:
    async def main() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(24)):
                FileWatch(lambda: None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(main())
