"""The thread of an embedded tunnel: it makes the tunnel, shakes hands, and ends it.

Packets don't pass through it. It has an event loop of its own, so a program that keeps its own loop busy doesn't
delay a handshake, and a handshake doesn't delay the program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

from rustguard_py.embed import forks
from rustguard_py.embed.first_contact import FirstContact
from rustguard_py.embed.fixes import closed, with_its_fix
from rustguard_py.embed.plan import Parts, Plan
from rustguard_py.engine import Engine
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import public_key
from rustguard_py.model.limits import limit_of
from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import CHANNEL_BYTES, PacketChannel
from rustguard_py.quick import peers
from rustguard_py.quick.tunnel import PlainTunnel
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)

# How long the end waits for look-ups of names, which can't be interrupted, seconds.
_LOOK_UP_PATIENCE = 1.0
# The same for what ends by itself when the tunnel does, and how often to look.
_PATIENCE, _LOOK = 0.5, 0.002


@dataclass(frozen=True, slots=True)
class Opened:
    """A tunnel that runs.

    Attributes:
        parts: What it is made of.
        tunnel: It. Only the control thread changes it.
        channel: Its packets.
        port: Its UDP port.
        contact: Waits for handshakes, in the control thread.
    """

    parts: Parts
    tunnel: Tunnel
    channel: PacketChannel
    port: int
    contact: FirstContact


class Control:
    """The thread, from the first step of a tunnel to its last.

    Args:
        plan: How the tunnel's parts are got.
        engine: What moves its packets.
        capacity: Number of packets that may wait in each direction.
        timeout: Seconds within which a peer must answer before the tunnel counts as open; None not to wait.

    Attributes:
        opened: The tunnel once it is open, or why it couldn't be opened.
        ended: Done when the thread has let go of everything.
        on_fault: Called in the thread when the data plane broke.
        fault: Why, or None.
    """

    def __init__(self, plan: Plan, engine: Engine, capacity: int, timeout: float | None) -> None:
        self.opened: Future[Opened] = Future()
        self.ended: Future[None] = Future()
        self.on_fault: Callable[[], None] = lambda: None
        self.fault: RustGuardError | None = None
        self._plan = plan
        self._engine = engine
        self._capacity = capacity
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        # Whether the loop takes no more work, and the lock of that.
        self._over = False
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._main, name="rustguard control", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RustGuardError: The system has no thread or descriptor left.
        """
        try:
            self._loop = asyncio.new_event_loop()
            self._thread.start()
        except (OSError, RuntimeError) as error:
            if self._loop is not None:
                self._loop.close()
            raise described(error) from error

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process has the thread: this one was forked while the tunnel was open.

        What is left here then shares descriptors with that process, and its locks may be held by threads that don't
        exist here. So nothing may be done with it.
        """
        return os.getpid() != self._process

    def end(self) -> None:
        """End the thread, and wait for it. Does nothing in a forked child."""
        if not self.is_elsewhere:
            self.stop()
            self.ended.result()
            self.join()

    def stop(self) -> None:
        """Begin the end, also of a tunnel that isn't open yet. May be called in any thread, and twice."""
        with self._lock:
            if not self._over and self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin_the_end)

    def join(self) -> None:
        """Wait for the thread, once `ended` is done."""
        self._thread.join()

    def wait_connected(self, opened: Opened, timeout: float | None) -> Future[None]:
        """Have the thread wait for a peer's answer; see `FirstContact.wait`."""
        with self._lock:
            if self._over or self._loop is None:
                raise closed()
            return asyncio.run_coroutine_threadsafe(opened.contact.wait(timeout), self._loop)

    def _begin_the_end(self) -> None:
        self._stop.set()
        if self._task is not None and not self.opened.done():
            self._task.cancel()

    def _main(self) -> None:
        loop, executor = self._loop, ThreadPoolExecutor(2, "rustguard names")
        assert loop is not None  # noqa: S101 - `start` made it
        loop.set_default_executor(executor)
        try:
            self._task = loop.create_task(self._run())
            loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self.opened.set_exception(closed())
        except BaseException as error:
            # Whoever keeps the error keeps no descriptor.
            traceback.clear_frames(error.__traceback__)
            if self.opened.done():
                log.exception("internal error")
            else:
                # Also what isn't an error of ours, such as a refused descriptor: whoever opens the tunnel gets it.
                self.opened.set_exception(described(error))
        finally:
            with self._lock:
                self._over = True
            _let_go(loop, executor)
            self.ended.set_result(None)

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            parts = await self._plan.gather(stack)
            stack.callback(forks.hold(int(parts.sockets[0].getsockname()[1])))
            try:
                async with AsyncExitStack() as attempt:
                    opened = await self._open(attempt, parts)
                    stack.push_async_exit(attempt.pop_all())
            except BaseException:
                if parts.give_up is not None:
                    parts.give_up()
                raise
            self.opened.set_result(opened)
            await self._until_stopped(opened.tunnel)
            if opened.tunnel.fault is None:
                if parts.say_goodbye is not None:
                    await parts.say_goodbye(opened.tunnel, opened.channel)
                await _send_the_rest(opened)

    async def _open(self, stack: AsyncExitStack, parts: Parts) -> Opened:
        """Make the tunnel, and wait for its first handshake."""
        contact = FirstContact(parts, self._timeout, self._stop)
        found = await contact.look_up()
        await contact.keep_distance()
        port = int(parts.sockets[0].getsockname()[1])
        memory = max(CHANNEL_BYTES, self._capacity * parts.mtu)
        channel = self._engine.make_channel(self._capacity, memory)
        stack.callback(channel.close)
        plane = self._engine.make_plane(
            public_key(parts.private_key), "embedded", parts.sockets, parts.mtu, channel=channel
        )
        stack.callback(plane.close)
        tunnel = Tunnel.make(parts.private_key, plane, parts.timestamps, Listeners())
        stack.callback(_end, tunnel)
        if parts.fwmark:
            plane.set_fwmark(parts.fwmark)
        plain = PlainTunnel(tunnel, parts.timestamps, parts.private_key)
        stack.push_async_callback(plain.close)
        for peer in parts.peers:
            plain.set_peer(peers.peer_config(peer, found), *peers.name_and_addresses(peer, found))
        contact.listen(tunnel)
        plain.begin()
        if self._timeout is not None:
            await contact.wait(self._timeout)
        return Opened(parts, tunnel, channel, port, contact)

    async def _until_stopped(self, tunnel: Tunnel) -> None:
        """Wait for the end. A fault of the plane is kept for those who use the tunnel, who then end it."""
        stop, stopped = (asyncio.ensure_future(each.wait()) for each in (self._stop, tunnel.stopped))
        await asyncio.wait({stop, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if tunnel.fault is not None:
            self.fault = with_its_fix(tunnel.fault)
            self.on_fault()
        await stop
        stopped.cancel()


async def _send_the_rest(opened: Opened) -> None:
    """Have the plane send what was written before the end. It ends when it has."""
    opened.channel.close()
    deadline = now() + _PATIENCE
    while opened.tunnel.has_interface() and now() < deadline:
        await asyncio.sleep(_LOOK)


def _end(tunnel: Tunnel) -> None:
    """Close a tunnel. Its listeners would keep it and its channel's descriptors for the garbage collector."""
    tunnel.close()
    tunnel.listeners = Listeners()


def _let_go(loop: asyncio.AbstractEventLoop, executor: ThreadPoolExecutor) -> None:
    """Let what still runs in the loop end, and close both."""

    async def end() -> None:
        # What was asked for last begins.
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=_PATIENCE)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    loop.run_until_complete(end())
    # A name server that doesn't answer keeps a look-up for longer than anybody wants to wait.
    waiting = threading.Thread(target=executor.shutdown, daemon=True)
    waiting.start()
    waiting.join(_LOOK_UP_PATIENCE)
    loop.close()


def described(error: BaseException) -> BaseException:
    """Return an error with its fix; one that comes of a limit of the system as one of ours."""
    limit = limit_of(error)
    if isinstance(error, RustGuardError):
        if limit is not None:
            error.fix = limit.fix
        return with_its_fix(error)
    if limit is None:
        return error
    made = with_its_fix(RustGuardError(limit.message, limit.fix))
    made.__cause__ = error
    return made
