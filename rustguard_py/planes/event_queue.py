"""The events that wait for Python: a lane for each kind, so that none takes another's place.

Every lane is bounded. Of one peer at most one event of a kind waits, with its last value.
"""

from __future__ import annotations

from collections import deque

from rustguard_py.model.endpoint import Endpoint, PeerId
from rustguard_py.planes.contract import (
    EndpointMoved,
    Event,
    Fault,
    ForeignReceived,
    HandshakeReceived,
    HandshakeWanted,
    KeypairConfirmed,
    Reason,
)
from rustguard_py.planes.gate import HANDSHAKE_QUEUE

# Enrollment datagrams that may wait for Python.
FOREIGN_QUEUE = 1024
# Events taken at once. Python handles them before it takes more, and the gate sees how many still wait.
EVENTS_AT_ONCE = 32


class _PeerEvents:
    """What waits of one peer: the last value of each kind."""

    __slots__ = ("confirmed", "moved", "wanted")

    def __init__(self) -> None:
        self.moved: Endpoint | None = None
        self.confirmed: int | None = None
        self.wanted: Reason | None = None


class EventQueue:
    """The events that wait for Python, each kind in a lane of its own."""

    def __init__(self) -> None:
        self._faults: deque[Event] = deque()
        self._proven: deque[Event] = deque()
        self._unproven: deque[Event] = deque()
        self._foreign: deque[Event] = deque()
        # In the order in which they came.
        self._peers: dict[PeerId, _PeerEvents] = {}

    def __bool__(self) -> bool:
        return bool(self._faults or self._proven or self._unproven or self._foreign or self._peers)

    def handshakes(self) -> int:
        """Return how many handshake datagrams wait."""
        return len(self._proven) + len(self._unproven)

    def put(self, event: Event) -> str | None:
        """Queue an event, or return why it is dropped: too many of its kind wait.

        Faults and a peer's events always have room.
        """
        match event:
            case HandshakeReceived(proven=proven):
                lane = self._proven if proven else self._unproven
                return _append(lane, event, HANDSHAKE_QUEUE, "handshake_queue")
            case ForeignReceived():
                return _append(self._foreign, event, FOREIGN_QUEUE, "foreign_queue")
            case Fault():
                if event not in self._faults:
                    self._faults.append(event)
            case EndpointMoved(peer, endpoint):
                self._of(peer).moved = endpoint
            case KeypairConfirmed(peer, index):
                waiting = self._of(peer)
                waiting.confirmed = index
                # The session that was asked for has come.
                waiting.wanted = None
            case HandshakeWanted(peer, reason):
                waiting = self._of(peer)
                # That a peer doesn't answer is more than that a session is missing or old.
                if waiting.wanted is not Reason.NO_ANSWER:
                    waiting.wanted = reason
        return None

    def take(self) -> list[Event]:
        """Take the next events: faults, and then one of each lane in turn."""
        taken: list[Event] = []
        while self._faults and len(taken) < EVENTS_AT_ONCE:
            taken.append(self._faults.popleft())
        before = -1
        while len(taken) != before:
            before = len(taken)
            for lane in (self._proven, self._unproven, self._foreign):
                if lane and len(taken) < EVENTS_AT_ONCE:
                    taken.append(lane.popleft())
            if self._peers and len(taken) < EVENTS_AT_ONCE:
                taken.append(self._take_peers())
        return taken

    def _of(self, peer: PeerId) -> _PeerEvents:
        waiting = self._peers.get(peer)
        if waiting is None:
            waiting = self._peers[peer] = _PeerEvents()
        return waiting

    def _take_peers(self) -> Event:
        """Take an event of the peer that has waited longest."""
        peer, waiting = next(iter(self._peers.items()))
        event: Event
        if waiting.moved is not None:
            event, waiting.moved = EndpointMoved(peer, waiting.moved), None
        elif waiting.confirmed is not None:
            event, waiting.confirmed = KeypairConfirmed(peer, waiting.confirmed), None
        else:
            event, waiting.wanted = HandshakeWanted(peer, waiting.wanted or Reason.NO_SESSION), None
        if waiting.moved is None and waiting.confirmed is None and waiting.wanted is None:
            del self._peers[peer]
        return event


def _append(lane: deque[Event], event: Event, most: int, full: str) -> str | None:
    if len(lane) >= most:
        return full
    lane.append(event)
    return None
