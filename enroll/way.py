"""Whether one tunnel of several still carries what goes to a peer: the rules, without clock or socket.

WireGuard notices after 20 s that nobody answers. A way that is one of several is left sooner, because its flows have
another: data was sent and nothing heard for SILENCE, then a handshake asks, and when it has had no answer for
PATIENCE the way is dead. What comes back says nothing of what arrives, so the one who answers a handshake looks too:
an answer that no datagram confirms for PATIENCE was lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from rustguard_py.peer import Peer
from rustguard_py.planes.contract import PeerStats

# Seconds.
SILENCE = 2.0
PATIENCE = 2.0
# Later than the other end would ask, if it has sent what nobody answers: two handshakes that cross end each other.
QUIET = 3.0
# An empty datagram of WireGuard's: nobody owes an answer to it.
_KEEPALIVE_SIZE = 32


@dataclass(slots=True)
class Way:
    """One tunnel to one peer.

    Attributes:
        proven: Whether a handshake went both ways since it was last found dead.
        waiting_since: When data was sent that nothing was heard after; None if none was.
        data_heard: When data was last heard since the last session began.
    """

    proven: bool = False
    waiting_since: float | None = None
    data_heard: float | None = None
    _rx_bytes: int = 0
    _rx_packets: int = 0
    _tx_packets: int = 0
    _tx_bytes: int = 0

    def prove(self) -> None:
        """A session began: a handshake went there and back."""
        self.proven = True
        self.waiting_since = self.data_heard = None

    def observe(self, counters: PeerStats, now: float) -> None:
        """Take the counters of the peer on that tunnel, twice a second or so."""
        sent, size = counters.tx_packets - self._tx_packets, counters.tx_bytes - self._tx_bytes
        heard, heard_size = counters.rx_packets - self._rx_packets, counters.rx_bytes - self._rx_bytes
        self._tx_packets, self._tx_bytes = counters.tx_packets, counters.tx_bytes
        self._rx_packets, self._rx_bytes = counters.rx_packets, counters.rx_bytes
        if heard_size > _KEEPALIVE_SIZE * heard:
            self.data_heard = now
        if heard:
            self.waiting_since = None
        elif size > _KEEPALIVE_SIZE * sent and self.waiting_since is None:
            self.waiting_since = now

    def is_silent(self, now: float) -> bool:
        """Whether it is time to ask by a handshake."""
        return self.waiting_since is not None and now - self.waiting_since >= SILENCE

    def went_quiet(self, now: float) -> bool:
        """Whether data came and comes no more: all is said, or it is lost on the way."""
        return self.data_heard is not None and now - self.data_heard >= QUIET

    def is_dead(self, peer: Peer, now: float) -> bool:
        """Whether a handshake, ours or theirs, has gone unanswered for long enough."""
        asked = peer.attempt_began is not None and peer.initiation_sent is not None
        if asked and (peer.attempts > 1 or now - (peer.initiation_sent or now) >= PATIENCE):
            return True
        answered = peer.initiation_consumed
        return peer.unconfirmed and answered is not None and now - answered >= PATIENCE
