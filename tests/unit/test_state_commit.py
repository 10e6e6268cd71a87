"""Group commit: each caller gets a save that began after it asked, and many share one."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from rustguard_py.model.errors import StateError
from rustguard_py.state.commit import GroupCommit


class Store:
    """A store whose saves wait to be let through, one by one."""

    def __init__(self, *, held: bool = True) -> None:
        self.live = 0
        self.saved: list[int] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0 if held else 1 << 20)
        self.error: Exception | None = None
        self.at_once = 0
        self.group = GroupCommit(lambda: self.live, self.save)

    def save(self, snapshot: int) -> None:
        self.at_once += 1
        assert self.at_once == 1
        self.begun.release()
        self.gate.acquire()
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        self.saved.append(snapshot)

    async def wait_until_begun(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


def test_a_thousand_commits_at_once_cost_few_saves() -> None:
    async def scene() -> None:
        store = Store(held=False)

        async def join(number: int) -> None:
            await asyncio.sleep(0.00001 * number)
            store.live += 1
            mine = store.live
            await store.group.commit()
            assert store.saved[-1] >= mine

        await asyncio.gather(*(store.group.commit() for _ in range(1000)))
        assert store.group.saves <= 2
        together = store.group.saves
        await asyncio.gather(*(join(number) for number in range(1000)))
        assert store.saved[-1] == 1000
        assert store.group.saves < 1000
        print(f"group commit: 1,000 at once cost {together} saves, 1,000 spread {store.group.saves - together}")

    asyncio.run(scene())


def test_who_comes_during_a_save_waits_for_the_next_one_and_shares_it() -> None:
    async def scene() -> None:
        store = Store()
        store.live = 1
        first = asyncio.create_task(store.group.commit())
        await store.wait_until_begun()
        store.live = 2
        later = [asyncio.create_task(store.group.commit()) for _ in range(50)]
        store.gate.release()
        await first
        assert store.saved == [1]
        await store.wait_until_begun()
        assert not any(task.done() for task in later)
        store.gate.release()
        await asyncio.gather(*later)
        assert store.saved == [1, 2]

    asyncio.run(scene())


@pytest.mark.parametrize("error", [StateError("no room"), OSError(28, "no room")])
def test_a_failure_reaches_all_who_waited_for_that_save_and_the_next_one_goes_on(error: Exception) -> None:
    async def scene() -> None:
        store = Store(held=False)
        store.error = error
        results = await asyncio.gather(*(store.group.commit() for _ in range(100)), return_exceptions=True)
        assert all(result is error for result in results)
        assert store.saved == []
        store.error, store.live = None, 3
        await store.group.commit()
        assert store.saved == [3]

    asyncio.run(scene())


def test_what_could_not_be_saved_is_taken_back_before_the_next_save_looks() -> None:
    """A crash after that next save must not load what its caller was told is not saved."""

    async def scene() -> None:
        store = Store()
        store.live, store.error = 5, StateError("no room")
        first = asyncio.create_task(store.group.commit(lambda: setattr(store, "live", 0)))
        await store.wait_until_begun()
        second = asyncio.create_task(store.group.commit(lambda: setattr(store, "live", -1)))
        await asyncio.sleep(0)
        store.gate.release()
        with pytest.raises(StateError):
            await first
        store.error = None
        store.gate.release()
        await second
        assert (store.saved, store.live) == ([0], 0)

    asyncio.run(scene())


def test_a_snapshot_that_fails_reaches_who_waits_too() -> None:
    async def scene() -> None:
        group: GroupCommit[int] = GroupCommit(lambda: 1 // 0, print)
        with pytest.raises(ZeroDivisionError):
            await group.commit()
        await group.drain()

    asyncio.run(scene())


def test_a_cancelled_caller_takes_nobody_along() -> None:
    async def scene() -> None:
        store = Store()
        gone, stays = asyncio.create_task(store.group.commit()), asyncio.create_task(store.group.commit())
        await store.wait_until_begun()
        gone.cancel()
        store.gate.release()
        await stays
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert store.saved == [0]

    asyncio.run(scene())


def test_a_failure_that_nobody_waits_for_any_more_is_no_warning() -> None:
    async def scene() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        store = Store()
        store.error = StateError("no room")
        gone = asyncio.create_task(store.group.commit())
        await store.wait_until_begun()
        gone.cancel()
        await asyncio.wait({gone})
        store.gate.release()
        await store.group.drain()
        # Tracebacks, and the loop's last callback, would keep the future alive that may complain.
        store.error = None
        del gone
        await asyncio.sleep(0)
        gc.collect()
        assert complaints == []

    asyncio.run(scene())


def test_draining_waits_for_the_running_save_and_the_wanted_one() -> None:
    async def scene() -> None:
        store = Store()
        tasks = [asyncio.create_task(store.group.commit())]
        await store.wait_until_begun()
        tasks.append(asyncio.create_task(store.group.commit()))
        await asyncio.sleep(0)
        draining = asyncio.create_task(store.group.drain())
        store.gate.release()
        await store.wait_until_begun()
        assert not draining.done()
        store.gate.release()
        await draining
        assert store.saved == [0, 0]
        await asyncio.gather(*tasks)

    asyncio.run(scene())
