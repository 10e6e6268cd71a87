"""Who is enrolled, under which name and address: the one place that changes a server's peers.

Every change is made in memory first and returns what takes it back, so that the caller can make it durable before
anybody hears of it, and undo it when the disk refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Literal

from rustguard_py.enroll.server.pool import Pool
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import decode_key
from rustguard_py.state.records import PEER_NAME_LIMIT, PeerRecord, ServerState, check_name

Undo = Callable[[], None]

# A peer that answers tries them in turn, five seconds each.
PREVIOUS_KEYS = 2


@dataclass(frozen=True, slots=True)
class Admitted:
    """A peer that may come in once `record` is durable; `undo` takes it back."""

    record: PeerRecord
    undo: Undo


class Registry:
    """The peers of a server.

    Args:
        state: Changed in place.

    Raises:
        StateError: A kept peer's address is not one of the pool's.
    """

    __slots__ = ("_names", "_numbers", "pool", "state")

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.pool = Pool(state.pool4, state.pool6)
        self._names: dict[str, bytes] = {}
        # For each name that several wished for, the first number that may be free: a crowd of one name comes at once.
        self._numbers: dict[str, int] = {}
        for record in state.peers.values():
            if record.address4 is None or not self.pool.take(record.public_key, record.address4):
                raise StateError(
                    f"The kept address {record.address4} of {record.name} is not one of the pool {state.pool4}.",
                    "Start with the pool that it was given out of, or revoke that peer first.",
                )
            self._names[record.name] = record.public_key

    def admit(
        self, public_key: bytes, wished: str, preshared_key: bytes, endpoint: str | None, at: float
    ) -> Admitted | Literal["full", "revoked"]:
        """Give a key its name and address: those that it had, or the wished name and the lowest free address.

        Args:
            public_key: 32 bytes.
            wished: The name that the client asks for; empty for any.
            preshared_key: 32 bytes, of this enrollment.
            endpoint: Where the client is, if that is known.
            at: Unix time in seconds.
        """
        if public_key in self.state.revoked:
            return "revoked"
        before = self.state.peers.get(public_key)
        if before is not None:
            # They stay good until a newer one was used: the client may be killed before it has kept that, and again
            # at its next try.
            record = replace(
                before,
                preshared_key=preshared_key,
                previous_preshared_keys=_newest_and_last((before.preshared_key, *before.previous_preshared_keys)),
                endpoint=endpoint,
                address6=before.address6 or self._address6(public_key),
            )
            self.state.peers[public_key] = record
            return Admitted(record, lambda: self._put_back(before, record))
        addresses = self.pool.allocate(public_key)
        if addresses is None:
            return "full"
        address4, address6 = addresses
        name = self._free_name(wished or "peer")
        record = PeerRecord(name, public_key, preshared_key, address4, address6, at, endpoint)
        self._insert(record)
        return Admitted(record, lambda: self._take_out(record))

    def revoke(self, who: str) -> Admitted:
        """Shut a peer out for good; its address is free again.

        Raises:
            RefusedError: There is no such peer.
        """
        record = self.find(who)
        self._take_out(record)
        self.state.revoked.add(record.public_key)

        def undo() -> None:
            self.state.revoked.discard(record.public_key)
            if record.address4 is not None and self.pool.take(record.public_key, record.address4):
                self._insert(record)

        return Admitted(record, undo)

    def restore(self, key: str) -> bytes:
        """Let a revoked key enrol again; give it.

        Raises:
            RefusedError: It isn't revoked.
        """
        public_key = _key(key)
        if public_key is None or public_key not in self.state.revoked:
            raise RefusedError(f"{key} is not a revoked public key.", "See them: rustguard peers --json")
        self.state.revoked.discard(public_key)
        return public_key

    def rename(self, old: str, new: str) -> Admitted:
        """Give a peer another name.

        Raises:
            RefusedError: There is no such peer, or the name is taken.
            UsageError: That is no name.
        """
        record = self.find(old)
        try:
            check_name(new)
        except ValueError as error:
            raise UsageError(f"{new!r} is no name: {error}.") from error
        if not new.isprintable():
            raise UsageError("A name is of printable characters.")
        if self._names.get(new, record.public_key) != record.public_key:
            raise RefusedError(f"There is a peer {new} already.", "Choose another name.")
        renamed = replace(record, name=new)
        self._rename(record, renamed)
        return Admitted(renamed, lambda: self._rename(renamed, record))

    def find(self, who: str) -> PeerRecord:
        """Find a peer by name or public key (base64).

        Raises:
            RefusedError: There is none.
        """
        public_key = self._names.get(who) or _key(who)
        record = self.state.peers.get(public_key) if public_key is not None else None
        if record is None:
            raise RefusedError(f"There is no peer {who!r}.", "See the peers: rustguard peers")
        return record

    def settled(self, public_key: bytes, place: int) -> PeerRecord | None:
        """Drop the preshared keys before the one that a peer has used; give the record if that changed it.

        Args:
            public_key: 32 bytes.
            place: Which one it was, counted from the newest, 0.
        """
        record = self.state.peers.get(public_key)
        if record is None or len(record.previous_preshared_keys) <= place:
            return None
        settled = replace(record, previous_preshared_keys=record.previous_preshared_keys[:place])
        self.state.peers[public_key] = settled
        return settled

    def moved(self, public_key: bytes, endpoint: str) -> None:
        """Note where a peer is now."""
        record = self.state.peers.get(public_key)
        if record is not None:
            self.state.peers[public_key] = replace(record, endpoint=endpoint)

    def _address6(self, public_key: bytes) -> IPv6Address | None:
        """The one that goes with its IPv4 address, for a peer that joined while there was no IPv6 pool."""
        addresses = self.pool.allocate(public_key)
        return None if addresses is None else addresses[1]

    def _free_name(self, wished: str) -> str:
        if wished not in self._names:
            return wished
        number = self._numbers.get(wished, 2)
        while (name := _numbered(wished, number)) in self._names:
            number += 1
        self._numbers[wished] = number
        return name

    def _give_up(self, name: str) -> None:
        del self._names[name]
        self._numbers.clear()

    def _insert(self, record: PeerRecord) -> None:
        self.state.peers[record.public_key] = record
        self._names[record.name] = record.public_key

    def _take_out(self, record: PeerRecord) -> None:
        if self.state.peers.pop(record.public_key, None) is not None:
            self._give_up(record.name)
            self.pool.release(record.public_key)

    def _put_back(self, before: PeerRecord, record: PeerRecord) -> None:
        if self.state.peers.get(record.public_key) is record:
            self.state.peers[record.public_key] = before

    def _rename(self, old: PeerRecord, new: PeerRecord) -> None:
        if self.state.peers.get(old.public_key) is not old:
            return
        self.state.peers[old.public_key] = new
        self._give_up(old.name)
        self._names[new.name] = new.public_key


def _newest_and_last(keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Leave so many that a peer which has any of them is let in soon; the last is the one that it used last."""
    return keys if len(keys) <= PREVIOUS_KEYS else (*keys[: PREVIOUS_KEYS - 1], keys[-1])


def _numbered(name: str, number: int) -> str:
    suffix = f"-{number}"
    room = PEER_NAME_LIMIT - len(suffix)
    return name.encode()[:room].decode(errors="ignore") + suffix


def _key(text: str) -> bytes | None:
    try:
        return decode_key(text)
    except UsageError:
        return None
