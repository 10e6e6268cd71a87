"""Whether a tunnel to a peer, one of several, still works: the rules, without clock or socket.

WireGuard takes 20 s to notice that nobody answers. With several tunnels a dead one can be left sooner, because its
flows have another tunnel to go over. Both ends check each tunnel every half second.

- While data moves between the two ends, over any tunnel, each end sends something over every tunnel between two
  checks, if only an empty datagram. So a tunnel over which nothing arrives, check after check, while another one is
  heard, is dead. This holds however late a check runs or a handshake is answered.
- An end that leaves a dead tunnel sends nothing over it any more. So the other end notices too if the tunnel is dead
  in one direction only.
- An end that no data reaches doesn't know that there is any. So an end that sent data and hears nothing for SILENCE
  begins a handshake. If that isn't answered within PATIENCE, or nothing was heard since, the tunnel is dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from rustguard_py.model.counted import counted
from rustguard_py.model.peer import Peer
from rustguard_py.model.statistics import PeerStats
from rustguard_py.protocol import wire

# Checks in a row at which another tunnel was heard and this one wasn't.
MISSES = 5
# Seconds.
SILENCE = 2.0
PATIENCE = 2.0
# Without a session, a handshake is sent again after 5 s, and only the second one counts: the first may be lost.
SECOND_PATIENCE = 1.0
# The kernel counts bytes but not datagrams, and includes handshakes. These sums of bytes can arise between two checks
# without any data. Data that has exactly such a size is overlooked until the next check.
_HANDSHAKES = frozenset({0, *wire.HANDSHAKE_VOLUMES})
_NO_DATA = frozenset(size + wire.KEEPALIVE_SIZE * keepalives for size in _HANDSHAKES for keepalives in range(3))


@dataclass(slots=True)
class TunnelHealth:
    """The health of one tunnel to one peer.

    Attributes:
        proven: Whether a handshake completed since the tunnel was last found dead.
        heard: Whether anything arrived between the last two checks.
        sent: Whether data was sent between them.
        moved: Whether data was sent or arrived between them.
        missed: Checks in a row at which other tunnels were heard and this one wasn't.
        waiting_since: When data was first sent with nothing heard since; None if something was heard.
    """

    proven: bool = False
    heard: bool = False
    sent: bool = False
    moved: bool = False
    missed: int = 0
    waiting_since: float | None = None
    _rx_bytes: int = 0
    _rx_packets: int = 0
    _tx_packets: int = 0
    _tx_bytes: int = 0

    def prove(self) -> None:
        """Note that a session began, so that a handshake completed."""
        self.proven = True
        self.missed = 0
        self.waiting_since = None

    def observe(self, counters: PeerStats, now: float) -> None:
        """Check the tunnel, by the peer's counters on it."""
        tx_bytes = counters.tx_bytes - counters.tx_handshake_bytes
        rx_bytes = counters.rx_bytes - counters.rx_handshake_bytes
        sent, sent_size = counters.tx_packets - self._tx_packets, tx_bytes - self._tx_bytes
        heard, heard_size = counters.rx_packets - self._rx_packets, rx_bytes - self._rx_bytes
        self._tx_packets, self._tx_bytes = counters.tx_packets, tx_bytes
        self._rx_packets, self._rx_bytes = counters.rx_packets, rx_bytes
        data_sent = _is_data(sent, sent_size)
        self.heard, self.sent = heard > 0 or heard_size not in _HANDSHAKES, data_sent
        self.moved = data_sent or _is_data(heard, heard_size)
        if self.heard:
            self.missed = 0
            self.waiting_since = None
        elif data_sent and self.waiting_since is None:
            self.waiting_since = now

    def is_silent(self, now: float) -> bool:
        """Return whether it is time to ask by a handshake."""
        return self.waiting_since is not None and now - self.waiting_since >= SILENCE

    def why_dead(self, peer: Peer, now: float, *, session: bool, asks_freely: bool = True) -> str | None:
        """Return what shows that the tunnel is dead, for the log; None if it seems to work.

        Args:
            peer: The peer as that tunnel knows it.
            now: Monotonic seconds.
            session: Whether there is a session that may still be used.
            asks_freely: Whether asking by a handshake leaves the session as it is. If not, silence alone is enough.
        """
        if self.missed >= MISSES:
            return f"nothing arrived at {counted(self.missed, 'check')} while others were heard"
        if session and not asks_freely and self.is_silent(now):
            return f"nothing arrived for {SILENCE:g} s after data was sent"
        if peer.attempt_began is None or peer.initiation_sent is None:
            return None
        asked = now - peer.initiation_sent
        if session:
            lost = self.is_silent(now) and (peer.attempts > 1 or asked >= PATIENCE)
        else:
            lost = peer.attempts > 1 and asked >= SECOND_PATIENCE
        return f"no answer to {counted(peer.attempts, 'handshake')}, the last {asked:.1f} s ago" if lost else None


def _is_data(datagrams: int, size: int) -> bool:
    """Return whether these datagrams, or this many bytes, contain more than keepalives and handshakes."""
    return size > wire.KEEPALIVE_SIZE * datagrams if datagrams else size not in _NO_DATA
