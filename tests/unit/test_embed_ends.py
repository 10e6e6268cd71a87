"""How an embedded tunnel ends: in a forked child, in another event loop, and just before it is opened again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Callable

import pytest

import rustguard_py
from rustguard_py import ClosedError, UsageError
from rustguard_py.embed.connect import EngineName
from rustguard_py.system.sockets import bind
from support.embedded import Ends, in_loop, to_one
from support.engines import on_both_engines

# For what takes a moment, on a machine that is slow and busy.
PATIENCE = 60.0

pytestmark = on_both_engines


def _in_child(work: Callable[[], str]) -> str:
    """Return what a forked child finds. It has `PATIENCE`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        found = "nothing"
        try:
            found = work()
        except BaseException as error:
            found = repr(error)
        finally:
            os.write(writing, found.encode())
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with os.fdopen(reading) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_a_tunnel_is_closed_and_the_parents_goes_on(engine: EngineName) -> None:
    ends, interval = Ends(), sys.getswitchinterval()
    with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):

        def work() -> str:
            assert one.closed
            for use in (one.stats, one.read_batch, one.wait_connected, lambda: one.write_batch([to_one()])):
                with pytest.raises(ClosedError, match="forked") as caught:
                    use()
                assert "connect()" in caught.value.fix
            # As at the child's end, when the garbage collector runs.
            plane = other._opened.tunnel.plane if other._opened is not None else None
            assert plane is not None
            plane.close()
            before = time.monotonic()
            one.close()
            other.close()
            assert time.monotonic() - before < PATIENCE / 2
            assert sys.getswitchinterval() == pytest.approx(interval)
            with rustguard_py.connect(Ends().other(), engine=engine, timeout=None) as own:
                assert own.read_batch(timeout=0) == []
            assert sys.getswitchinterval() == pytest.approx(interval)
            return "closed"

        assert _in_child(work) == "closed"
        assert not one.closed
        other.write_batch([to_one(b"still here")])
        (packet,) = one.read_batch(timeout=PATIENCE)
        assert bytes(packet) == to_one(b"still here")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@in_loop
async def test_a_forked_child_takes_nothing_from_the_parents_loop(engine: EngineName) -> None:
    ends = Ends()
    async with (
        rustguard_py.connect(ends.one(), engine=engine) as one,
        rustguard_py.connect(ends.other(), engine=engine) as other,
    ):
        waiting = asyncio.create_task(one.read_batch(timeout=PATIENCE))
        await asyncio.sleep(0.05)

        def work() -> str:
            # Without a loop that runs: the parent's is only a copy here.
            asyncio.events._set_running_loop(None)
            asyncio.run(one.close())
            return "closed"

        assert _in_child(work) == "closed"
        await other.write_batch([to_one(b"still here")])
        assert [bytes(each) for each in await waiting] == [to_one(b"still here")]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_port(engine: EngineName) -> None:
    reading, writing = os.pipe()
    forked, at_work = os.pipe()
    with rustguard_py.connect(Ends().other(), engine=engine, timeout=None) as tunnel:
        port = tunnel.port
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.write(at_work, b".")
            os.read(reading, 1)
            os._exit(0)
        os.close(at_work)
        assert os.read(forked, 1) == b"."
    os.close(forked)
    try:
        for bound in bind(port):
            bound.close()
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        os.close(reading)


def _leave(number: int) -> int:
    return number


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_pool_of_forked_workers_ends_while_a_tunnel_is_open(engine: EngineName) -> None:
    with (
        rustguard_py.connect(Ends().other(), engine=engine, timeout=None),
        multiprocessing.get_context("fork").Pool(2) as pool,
    ):
        assert pool.map_async(_leave, range(4)).get(PATIENCE) == [0, 1, 2, 3]
        pool.close()
        pool.join()


def test_a_tunnel_may_be_closed_in_another_loop(engine: EngineName) -> None:
    ends = Ends()

    async def begin() -> rustguard_py.AsyncTunnel:
        return await rustguard_py.connect(ends.other(), engine=engine, timeout=None).__aenter__()

    first = asyncio.new_event_loop()
    tunnel = first.run_until_complete(begin())
    waiting = first.create_task(tunnel.read_batch())
    first.run_until_complete(asyncio.sleep(0.02))

    async def use_elsewhere() -> None:
        with pytest.raises(UsageError, match="another event loop"):
            await tunnel.read_batch(timeout=0.5)
        await tunnel.close()

    asyncio.run(use_elsewhere())
    assert tunnel.closed
    with pytest.raises(ClosedError):
        first.run_until_complete(asyncio.wait_for(waiting, PATIENCE))
    first.close()


def test_a_tunnel_is_closed_though_its_loop_is(engine: EngineName) -> None:
    async def begin() -> rustguard_py.AsyncTunnel:
        return await rustguard_py.connect(Ends().other(), engine=engine, timeout=None).__aenter__()

    first = asyncio.new_event_loop()
    tunnel = first.run_until_complete(begin())
    first.close()
    asyncio.run(tunnel.close())
    with pytest.raises(ClosedError):
        tunnel.stats()


@pytest.mark.parametrize("waits", [True, False])
def test_opening_again_at_once_is_answered_at_once(engine: EngineName, *, waits: bool) -> None:
    """Peers drop a second initiation within 20 ms, and the next one is sent five seconds later."""
    ends = Ends()
    with rustguard_py.connect(ends.one(), engine=engine, timeout=None) as one:
        for _ in range(4):
            before = time.monotonic()
            with rustguard_py.connect(ends.other(), engine=engine, timeout=PATIENCE if waits else None) as other:
                other.write_batch([to_one(b"again")])
                (packet,) = one.read_batch(timeout=PATIENCE)
                assert bytes(packet) == to_one(b"again")
            assert time.monotonic() - before < 4


def test_the_interpreters_switch_interval_is_restored(engine: EngineName) -> None:
    before = sys.getswitchinterval()
    with rustguard_py.connect(Ends().other(), engine=engine, timeout=None):
        with rustguard_py.connect(Ends().other(), engine=engine, timeout=None):
            pass
        assert sys.getswitchinterval() == pytest.approx(0.0002 if engine == "portable" else before)
    assert sys.getswitchinterval() == pytest.approx(before)
