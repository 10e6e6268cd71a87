"""Saving a server's state: callers that wait learn whether it is on disk, and a failed save is retried."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from ipaddress import IPv4Network

import pytest

from rustguard_py.enroll.server.saver import Saver
from rustguard_py.model.errors import StateError
from rustguard_py.state.records import ServerState

NEVER = 3600.0


class Disk:
    """What was written; refuses while it is full."""

    def __init__(self) -> None:
        self.full = False
        self.refusals = 0
        self.ports: list[object] = []
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def write(self, document: Mapping[str, object]) -> None:
        self._loop.call_soon_threadsafe(self.changed.set)
        if self.full:
            self.refusals += 1
            raise StateError("The disk is full.")
        self.ports.append(document["port"])

    async def change(self) -> None:
        """Wait for a call that begins from now on."""
        self.changed.clear()
        await asyncio.wait_for(self.changed.wait(), 60)


def make_state() -> ServerState:
    return ServerState(bytes(32), bytes(32), IPv4Network("10.150.0.0/24"), None, 51820, 1420)


def test_a_save_that_the_disk_refuses_is_told_once_undone_and_done_once_there_is_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        state, disk = make_state(), Disk()
        saver = Saver(state, disk.write, lazy=NEVER, retry=0.01)
        disk.full = True
        state.port = 1
        assert not await saver.durable(lambda: setattr(state, "port", 51820))
        failed = saver.failed
        assert failed
        while disk.refusals < 3:
            await disk.change()
        disk.full = False
        async with asyncio.timeout(60):
            while saver.failed:
                await asyncio.sleep(0.005)
        assert disk.ports == [51820]
        await saver.finish()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "the state can't be saved",
        "the state can be saved again",
    ]


def test_a_change_that_was_refused_is_not_in_the_next_save_either() -> None:
    """A crash after that save would load what its caller was told is not saved."""

    async def main() -> None:
        state, held = make_state(), threading.Event()
        refused: list[object] = []
        ports: list[object] = []

        def write(document: Mapping[str, object]) -> None:
            if not refused:
                refused.append(document["port"])
                held.wait(60)
                raise StateError("The disk is full.")
            ports.append(document["port"])

        saver = Saver(state, write, lazy=NEVER, retry=NEVER)
        state.port = 1
        first = asyncio.create_task(saver.durable(lambda: setattr(state, "port", 51820)))
        while not refused:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(saver.durable(lambda: None))
        await asyncio.sleep(0)
        held.set()
        assert (await first, await second) == (False, True)
        assert (refused, ports) == ([1], [51820])
        await saver.finish()

    asyncio.run(main())


def test_what_can_wait_is_saved_by_itself_and_many_changes_at_once() -> None:
    async def main() -> None:
        state, disk = make_state(), Disk()
        saver = Saver(state, disk.write, lazy=0.01, retry=NEVER)
        for port in range(1, 100):
            state.port = port
            saver.save_soon()
        await disk.change()
        await saver.finish()
        assert disk.ports == [99, 99]

    asyncio.run(main())


def test_a_change_that_can_wait_does_not_make_a_refused_save_wait_as_long() -> None:
    async def main() -> None:
        state, disk = make_state(), Disk()
        saver = Saver(state, disk.write, lazy=NEVER, retry=0.01)
        saver.save_soon()
        disk.full = True
        assert not await saver.durable(lambda: None)
        disk.full = False
        await disk.change()
        await saver.finish()
        assert len(disk.ports) == 2

    asyncio.run(main())


def test_at_the_end_all_is_saved_at_once_and_a_disk_that_refuses_stops_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        state, disk = make_state(), Disk()
        saver = Saver(state, disk.write, lazy=NEVER, retry=NEVER)
        state.port = 7
        saver.save_soon()
        await saver.finish()
        assert disk.ports == [7]
        disk.full = True
        await saver.finish()

    asyncio.run(main())
    assert "could not be saved" in caplog.text
