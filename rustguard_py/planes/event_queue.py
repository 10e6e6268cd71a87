"""The bounded queue of events between the portable plane's loop and the control thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from rustguard_py.planes.contract import Event, Fault, ForeignReceived, HandshakeReceived
from rustguard_py.planes.foreign_pace import ForeignPace
from rustguard_py.planes.gate import HANDSHAKE_QUEUE

# How many enrollment datagrams, and how many events in total, may wait for Python.
FOREIGN_QUEUE = 1024
EVENT_QUEUE = 65536
# Events returned at once. Python handles them before it asks for more, so the gate sees how many still wait.
EVENTS_AT_ONCE = 32


class EventQueue:
    """Events from the loop's thread to the control thread. Each end has its own counters, so neither needs a lock."""

    def __init__(self, drop: Callable[[str], None], clock: Callable[[], float]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._drop = drop
        self._clock = clock
        self._events: deque[Event] = deque()
        self._signalled = False
        self._handshakes = [0, 0]
        self._foreign = [0, 0]
        self._foreign_pace = ForeignPace()

    def handshakes(self) -> int:
        """Return how many handshake datagrams wait."""
        return self._handshakes[0] - self._handshakes[1]

    def put(self, event: Event) -> None:
        """Queue an event, or drop it if too many of its kind wait. For the loop's thread."""
        if isinstance(event, HandshakeReceived):
            if self.handshakes() >= HANDSHAKE_QUEUE:
                self._drop("handshake_queue")
                return
            self._handshakes[0] += 1
        elif isinstance(event, ForeignReceived):
            if self._foreign[0] - self._foreign[1] >= FOREIGN_QUEUE:
                self._drop("foreign_queue")
                return
            if not self._foreign_pace.admit(event.datagram, self._clock()):
                self._drop("foreign_rate")
                return
            self._foreign[0] += 1
        elif len(self._events) >= EVENT_QUEUE and not isinstance(event, Fault):
            self._drop("event_queue")
            return
        self._events.append(event)
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self.fd, 1)

    def take(self) -> list[Event]:
        """Return the next events. The descriptor stays readable if there are more. For the control thread."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        self._signalled = False
        events: list[Event] = []
        while self._events and len(events) < EVENTS_AT_ONCE:
            event = self._events.popleft()
            if isinstance(event, HandshakeReceived):
                self._handshakes[1] += 1
            elif isinstance(event, ForeignReceived):
                self._foreign[1] += 1
            events.append(event)
        if self._events and not self._signalled:
            self._signalled = True
            os.eventfd_write(self.fd, 1)
        return events

    def close(self) -> None:
        """Close the descriptor. Neither end may use it afterwards."""
        os.close(self.fd)
