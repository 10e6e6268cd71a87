"""A control socket that answers from a thread, as a daemon's does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rustguard_py.daemon.control.server import ControlServer, Handler
from rustguard_py.state import paths


@contextmanager
def answering(state: Path, handlers: Mapping[str, Handler]) -> Iterator[None]:
    """Answer at the control socket of a state directory."""
    ready = threading.Event()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        server = ControlServer(paths.announce(state), handlers)
        await server.start()
        stop = asyncio.Event()
        stops.append((asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        await server.close()
        paths.withdraw(state)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        loop, stop = stops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()
