"""Peers that leave the network: a client says so inside the tunnel, and is removed as durably as by a person."""

from __future__ import annotations

import asyncio
import hmac

from rustguard_py.daemon import audit, audit_events
from rustguard_py.daemon.reports import FAREWELL, Partner
from rustguard_py.enroll.server.admissions import Admissions
from rustguard_py.enroll.tunnels import farewell
from rustguard_py.enroll.tunnels.farewell import Proofs
from rustguard_py.model.clock import now
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key
from rustguard_py.state.records import ServerState

# Seconds between two checks of a peer's proofs, so that a peer that sends many doesn't keep the server busy. A client
# sends two per second.
CHECK_AGAIN = 0.25


class Farewells:
    """Removes peers that prove that they leave.

    Args:
        state: The server's state, which changes meanwhile.
        admissions: Changes its peers.
    """

    def __init__(self, state: ServerState, admissions: Admissions) -> None:
        self._state = state
        self._admissions = admissions
        self._leaving: set[bytes] = set()
        self._checked: dict[bytes, float] = {}

    async def remove(self, partner: Partner, proof: bytes) -> bytes | None:
        """Remove a peer. It stays in the tunnel for a moment, so that it hears the answer.

        Args:
            partner: Who sent the datagram, by its inner address.
            proof: What it sent, 32 bytes.

        Returns:
            What proves the answer, once the removal is durable. None if the proof is wrong, if the peer is being
            removed already, or if that couldn't be saved.
        """
        key, at = partner.keys[0], now()
        if key in self._leaving or at - self._checked.get(key, float("-inf")) < CHECK_AGAIN:
            return None
        self._checked[key] = at
        proofs = self._check(key, proof)
        if proofs is None:
            return None
        self._leaving.add(key)
        try:
            record = await self._admissions.leave(key)
        finally:
            self._leaving.discard(key)
            self._checked.pop(key, None)
        if record is None:
            return None
        audit.record(audit_events.Left(record.name, encode_key(key), str(record.address4)))
        asyncio.get_running_loop().call_later(FAREWELL, self._admissions.follow, key)
        return proofs.left

    def _check(self, key: bytes, proof: bytes) -> Proofs | None:
        """Return the proofs of a peer if this is one of them, made with a preshared key that it may have."""
        record = self._state.peers.get(key)
        for preshared_key in () if record is None else record.preshared_keys:
            if preshared_key == NO_PRESHARED_KEY:
                continue
            try:
                proofs = farewell.of_server(self._state.private_key, key, preshared_key)
            except UsageError:
                return None
            if hmac.compare_digest(proof, proofs.leave):
                return proofs
        return None
