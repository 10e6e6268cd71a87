"""Whether one tunnel of several still carries what goes to a peer: the rules, without clock or socket.

WireGuard notices after 20 s that nobody answers. A way that is one of several is left sooner, because its flows have
another. While data moves between the two ends, over whichever way, each sends something over every way between two
looks, be it an empty datagram. So a way by which nothing comes, look after look, while something comes by another is
dead, however late both ends look or a handshake is answered. Who leaves it sends nothing over it any more, which is
how the other end hears that it is dead one way.

An end that no data reached doesn't know that there is any. Who sent data and hears nothing for SILENCE therefore asks
by a handshake, and without an answer for PATIENCE, or with nothing heard since, the way is dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from rustguard_py.model.peer import Peer
from rustguard_py.model.statistics import PeerStats
from rustguard_py.protocol import wire

# Looks in a row, half a second apart, at which another way was heard and this one wasn't.
MISSES = 5
# Seconds.
SILENCE = 2.0
PATIENCE = 2.0
# A handshake that begins a session is sent a second time after 5 s: one may be lost.
SECOND_PATIENCE = 1.0
# Where bytes are counted and datagrams aren't, and handshakes among them, these are what moves without data from look
# to look. Data of just such a size is taken for none, until the next look.
_HANDSHAKES = frozenset({0, *wire.HANDSHAKE_VOLUMES})
_NO_DATA = frozenset(size + wire.KEEPALIVE_SIZE * keepalives for size in _HANDSHAKES for keepalives in range(3))


@dataclass(slots=True)
class Way:
    """One tunnel to one peer.

    Attributes:
        proven: Whether a handshake went both ways since it was last found dead.
        heard: Whether anything came between the last two looks.
        sent: Whether data was sent between them.
        moved: Whether data went or came between them.
        missed: Looks in a row at which others were heard and this one wasn't.
        waiting_since: When data was sent that nothing was heard after; None if none was.
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
        """A session began: a handshake went there and back."""
        self.proven = True
        self.missed = 0
        self.waiting_since = None

    def observe(self, counters: PeerStats, now: float) -> None:
        """Take the counters of the peer on that tunnel: a look."""
        sent, sent_size = counters.tx_packets - self._tx_packets, counters.tx_bytes - self._tx_bytes
        heard, heard_size = counters.rx_packets - self._rx_packets, counters.rx_bytes - self._rx_bytes
        self._tx_packets, self._tx_bytes = counters.tx_packets, counters.tx_bytes
        self._rx_packets, self._rx_bytes = counters.rx_packets, counters.rx_bytes
        data_sent = _is_data(sent, sent_size)
        self.heard, self.sent = heard > 0 or heard_size not in _HANDSHAKES, data_sent
        self.moved = data_sent or _is_data(heard, heard_size)
        if self.heard:
            self.missed = 0
            self.waiting_since = None
        elif data_sent and self.waiting_since is None:
            self.waiting_since = now

    def is_silent(self, now: float) -> bool:
        """Whether it is time to ask by a handshake."""
        return self.waiting_since is not None and now - self.waiting_since >= SILENCE

    def why_dead(self, peer: Peer, now: float, *, session: bool, asks_freely: bool = True) -> str | None:
        """Say what shows that nothing goes this way any more, for the log; None if nothing does.

        Args:
            peer: As that tunnel knows it.
            now: When.
            session: Whether it has one that may still be used.
            asks_freely: Whether it stays when a handshake asks; else the way is left before that.
        """
        if self.missed >= MISSES:
            return f"nothing came {self.missed} times while others were heard"
        if session and not asks_freely and self.is_silent(now):
            return f"nothing came for {SILENCE:g} s after data"
        if peer.attempt_began is None or peer.initiation_sent is None:
            return None
        asked = now - peer.initiation_sent
        if session:
            lost = self.is_silent(now) and (peer.attempts > 1 or asked >= PATIENCE)
        else:
            lost = peer.attempts > 1 and asked >= SECOND_PATIENCE
        return f"no answer to {peer.attempts} handshakes, the last {asked:.1f} s ago" if lost else None


def _is_data(datagrams: int, size: int) -> bool:
    """Whether some of these datagrams, or of so many bytes, are more than keepalives."""
    return size > wire.KEEPALIVE_SIZE * datagrams if datagrams else size not in _NO_DATA
