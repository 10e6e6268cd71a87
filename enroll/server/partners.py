"""A server's peers by their inner addresses, for the reports inside the tunnel."""

from __future__ import annotations

from collections.abc import Callable

from rustguard_py.daemon.reports import Partner
from rustguard_py.model.clock import now
from rustguard_py.state.records import PeerRecord, ServerState

# Seconds between two times that all peers are gone through for an address that isn't known.
_SEARCH_AGAIN = 1.0


class Partners:
    """The peers, found by address.

    Args:
        state: The server's state, which changes meanwhile.
        clock: Returns the time.
    """

    def __init__(self, state: ServerState, clock: Callable[[], float] = now) -> None:
        self._state = state
        self._clock = clock
        self._keys: dict[str, bytes] = {}
        self._searched = float("-inf")

    def find(self, address: str) -> Partner | None:
        """Return the peer that has an inner IPv4 address."""
        record = self._known(address)
        if record is None and self._clock() - self._searched >= _SEARCH_AGAIN:
            self._searched = self._clock()
            self._keys = {str(each.address4): key for key, each in self._state.peers.items()}
            record = self._known(address)
        if record is None:
            return None
        return Partner(record.name, (record.public_key,) * self._state.tunnels)

    def _known(self, address: str) -> PeerRecord | None:
        # Its record is another one after each change, and it may have another address now.
        record = self._state.peers.get(self._keys.get(address, b""))
        return record if record is not None and str(record.address4) == address else None
