"""The peers of a server: their keys, names and addresses. Only this module changes them.

A change takes effect in memory at once, so that two peers never get the same name or address. It becomes durable
later, when the state is saved. Until the caller reports how that went (`Change.keep` or `Change.undo`), the names and
the address that the key had are reserved, so that an undo can always give them back.

Several changes of one key may wait at the same time, because each save contains all changes made before it. When the
last of them is reported, the newest one that is durable decides what the key has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from rustguard_py.enroll.server.pool import Pool
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import decode_key
from rustguard_py.model.peer_names import FALLBACK, check_label, dns_name_of, label_of, normalized, numbered
from rustguard_py.state.records import PeerRecord, ServerState

# A peer that answers a handshake tries them in turn, for five seconds each.
PREVIOUS_KEYS = 2
# After that, the address of a peer that joined and never connected may go to another one.
UNCONNECTED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one key that was made in memory and isn't known to be durable.

    Attributes:
        public_key: The key, 32 bytes.
        keep: Report that the change is durable. Only the first call of `keep` or `undo` counts.
        undo: Report that it couldn't be saved. Takes the change back, unless a newer one of this key is durable.
    """

    public_key: bytes
    keep: Callable[[], None]
    undo: Callable[[], None]


@dataclass(frozen=True, slots=True)
class PeerChange(Change):
    """A change of a peer.

    Attributes:
        record: The peer after the change; for a revocation, the peer that was removed.
    """

    record: PeerRecord


@dataclass(slots=True)
class _Unsaved:
    """A key with changes that aren't reported yet.

    Attributes:
        record: The peer as the disk has it, or None.
        revoked: Whether the disk has the key as revoked.
        made: How many changes were made; they are numbered from 1.
        saved: The number of the newest change that is durable, 0 for none.
        waiting: The numbers of the changes that aren't reported yet.
        names: The names that the key had in the meantime. No other key gets them.
    """

    record: PeerRecord | None
    revoked: bool
    made: int = 0
    saved: int = 0
    waiting: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


class Registry:
    """The peers of a server.

    Args:
        state: Changed in place.

    Raises:
        StateError: A saved peer has an address of the server's.
    """

    __slots__ = ("_names", "_numbers", "_unsaved", "pool", "state")

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.pool = Pool(state.pool4, state.pool6, [each.ip for each in state.addresses()])
        self._names: dict[str, bytes] = {}
        # For each name that several peers asked for, the first number that may be free. Many clients with the same
        # name may join at once, and none of them searches from the start.
        self._numbers: dict[str, int] = {}
        self._unsaved: dict[bytes, _Unsaved] = {}
        for record in state.peers.values():
            if taken := [str(each) for each in self.pool.own if each in (record.address4, record.address6)]:
                raise StateError(
                    f"The saved address {taken[0]} of {record.name} is the server's own.",
                    "Start with the pool that the address is from, or revoke that peer first.",
                )
            self.pool.hold(record.public_key, record.allowed)
            self._names |= dict.fromkeys(record.names, record.public_key)

    # -- changes --------------------------------------------------------------------------------------------

    def admit(
        self, public_key: bytes, wished: str, preshared_key: bytes, endpoint: str | None, at: float
    ) -> PeerChange | Literal["full", "revoked"]:
        """Assign a name and an address to a key.

        A known key keeps those that it has. A new one gets the wished name and the lowest free address, or the name
        and address of a peer of that name that has to join again (see `PeerRecord.has_to_join_again`).

        Args:
            public_key: 32 bytes.
            wished: The label that the client asks for; empty for any.
            preshared_key: 32 bytes, from this enrollment.
            endpoint: Where the client is, if that is known.
            at: Unix time in seconds.

        Returns:
            The change; "full" when the pool has no free address; "revoked" when the key is revoked.
        """
        if public_key in self.state.revoked:
            return "revoked"
        before = self.state.peers.get(public_key)
        if before is not None:
            return self._admit_again(before, preshared_key, endpoint, at)
        self._replace_stale(wished, public_key)
        addresses = self.pool.allocate(public_key)
        if addresses is None:
            return "full"
        name = self._free_name(label_of(wished) or FALLBACK, public_key)
        dns_name = self._free_name(dns_name_of(name), public_key)
        record = PeerRecord(
            name, public_key, preshared_key, *addresses, at, endpoint, dns_name=dns_name, connected=False
        )
        return self._change_peer(record)

    def revoke(self, who: str) -> PeerChange:
        """Remove a peer and refuse its key from now on. Its address is free again once that is durable.

        Args:
            who: Its label, DNS name or public key (base64).

        Raises:
            RefusedError: There is no such peer.
        """
        record = self.find(who)
        change = self._change(record.public_key, None, revoked=True)
        return PeerChange(change.public_key, change.keep, change.undo, record)

    def take_back(self, public_key: bytes, preshared_key: bytes) -> PeerChange | None:
        """Remove a peer that can't use its admission. Its key may join again.

        Args:
            public_key: 32 bytes.
            preshared_key: What the admission gave it.

        Returns:
            The change; None if the peer is gone or was admitted again since.
        """
        record = self.state.peers.get(public_key)
        if record is None or record.preshared_key != preshared_key:
            return None
        return self._remove(record)

    def leave(self, public_key: bytes) -> PeerChange | None:
        """Remove a peer that leaves by itself; None if there is none. Its key may join again."""
        record = self.state.peers.get(public_key)
        return None if record is None else self._remove(record)

    def give_away(self, age: Callable[[bytes], float]) -> PeerChange | None:
        """Remove the oldest peer that joined and never connected, so that its address is free once that is durable.

        A peer that runs stock WireGuard stays: it couldn't join again.

        Args:
            age: Returns how many seconds ago a key joined.

        Returns:
            The change; None if there is no such peer, or none that joined long enough ago.
        """
        idle = [
            record
            for record in self.state.peers.values()
            if not record.connected
            and record.endpoint is not None
            and age(record.public_key) > UNCONNECTED_SECONDS
            and record.public_key not in self._unsaved
        ]
        return self._remove(max(idle, key=lambda record: age(record.public_key))) if idle else None

    def restore(self, key: str) -> Change:
        """Allow a revoked public key (base64) to enroll again.

        Raises:
            RefusedError: It isn't revoked.
        """
        public_key = _key(key)
        if public_key is None or public_key not in self.state.revoked:
            raise RefusedError(
                f"{key} is not a revoked public key.", "Use the key that was revoked: rustguard audit --json"
            )
        return self._change(public_key, self.state.peers.get(public_key), revoked=False)

    def rename(self, old: str, new: str) -> PeerChange:
        """Give a peer another label, and the DNS name that it makes.

        Raises:
            RefusedError: There is no such peer, or the name is taken.
            UsageError: `new` can't be a name.
        """
        record = self.find(old)
        new = require_name(new)
        if self._names.get(new, record.public_key) != record.public_key:
            raise RefusedError(f"There is a peer {new} already.", "Choose another name.")
        # One that has to join again may be known by its name alone.
        endpoint = "" if record.has_to_join_again else record.endpoint
        dns_name = self._free_name(dns_name_of(new), record.public_key)
        return self._change_peer(replace(record, name=new, dns_name=dns_name, endpoint=endpoint))

    def find(self, who: str) -> PeerRecord:
        """Return a peer by its public key (base64), label or DNS name. A key is looked up first.

        Raises:
            RefusedError: There is none.
        """
        record = self.state.peers.get(_key(who) or b"")
        if record is None:
            name = normalized(who)
            named = self.state.peers.get(self._names.get(name, b""))
            # A name that the peer had before may still be reserved for it.
            record = named if named is not None and name in named.names else None
        if record is None:
            raise RefusedError(f"There is no peer {who!r}.", "List the peers: rustguard peers")
        return record

    def durable(self, public_key: bytes) -> PeerRecord | None:
        """Return a peer as it may be in the tunnel now; None if that must wait for a save.

        This is the newest record of the key that is on disk, provided that the peer as it is listed still accepts the
        record's preshared key.
        """
        listed, unsaved = self.state.peers.get(public_key), self._unsaved.get(public_key)
        if listed is None or unsaved is None:
            return listed
        saved = unsaved.record
        return saved if saved is not None and saved.preshared_key in listed.preshared_keys else None

    def settled(self, public_key: bytes, place: int) -> PeerRecord | None:
        """Drop the preshared keys older than the one that a peer has used.

        Args:
            public_key: 32 bytes.
            place: Which of the peer's preshared keys it used, counted from the newest, 0.

        Returns:
            The changed record; None if there was nothing to drop.
        """
        record = self.state.peers.get(public_key)
        if record is None or len(record.previous_preshared_keys) <= place:
            return None
        settled = replace(record, previous_preshared_keys=record.previous_preshared_keys[:place])
        self.state.peers[public_key] = settled
        return settled

    def connected(self, public_key: bytes) -> PeerRecord | None:
        """Note that a peer has connected; return the changed record, or None if that was known."""
        record = self.state.peers.get(public_key)
        if record is None or record.connected:
            return None
        connected = self.state.peers[public_key] = replace(record, connected=True)
        return connected

    def moved(self, public_key: bytes, endpoint: str) -> None:
        """Note where a peer is now."""
        record = self.state.peers.get(public_key)
        if record is not None:
            self.state.peers[public_key] = replace(record, endpoint=endpoint)

    # -- how a change is made, and reported -----------------------------------------------------------------

    def _admit_again(
        self, before: PeerRecord, preshared_key: bytes, endpoint: str | None, at: float
    ) -> PeerChange | Literal["full"]:
        addresses = self.pool.allocate(before.public_key)
        if addresses is None:
            return "full"
        address4, address6 = addresses[0], addresses[1] or before.address6
        # Its pairing gives it addresses of the pools. Those that it had outside of them stay its own.
        had = [each for each in before.allowed if each not in before.networks]
        outside = [each for each in had if each.network_address not in (address4, address6)]
        # Older keys stay valid until a newer one is used. The client may be killed before it has saved the new one,
        # and again when it tries once more.
        previous = () if before.has_to_join_again else _newest_and_last(before.preshared_keys)
        record = replace(
            before,
            preshared_key=preshared_key,
            previous_preshared_keys=previous,
            endpoint=endpoint,
            address4=address4,
            address6=address6,
            networks=(*before.networks, *outside),
            # One that never connected is about to, so its time to do so begins again.
            joined=before.joined if before.connected else at,
        )
        return self._change_peer(record)

    def _replace_stale(self, name: str, public_key: bytes) -> None:
        """Make way for a new key that joins under the name of a peer that has to join again."""
        stale = self.state.peers.get(self._names.get(name, b""))
        if stale is None or not stale.has_to_join_again or stale.public_key in self._unsaved:
            return
        # There is no undo: nobody can connect with the old key, and the disk still has it if this join isn't saved.
        del self.state.peers[stale.public_key]
        self._give_up(*stale.names)
        self.pool.release(stale.public_key)
        if stale.address4 is not None:
            self.pool.take(public_key, stale.address4)

    def _remove(self, record: PeerRecord) -> PeerChange:
        change = self._change(record.public_key, None, revoked=False)
        return PeerChange(change.public_key, change.keep, change.undo, record)

    def _change_peer(self, record: PeerRecord) -> PeerChange:
        change = self._change(record.public_key, record, revoked=False)
        return PeerChange(change.public_key, change.keep, change.undo, record)

    def _change(self, public_key: bytes, record: PeerRecord | None, *, revoked: bool) -> Change:
        before = self.state.peers.get(public_key)
        unsaved = self._unsaved.get(public_key)
        if unsaved is None:
            unsaved = self._unsaved[public_key] = _Unsaved(before, public_key in self.state.revoked)
        unsaved.made += 1
        number = unsaved.made
        unsaved.waiting.add(number)
        unsaved.names.update(*(each.names for each in (before, record) if each is not None))
        self._set(public_key, record, revoked=revoked)

        def keep() -> None:
            if number in unsaved.waiting and number > unsaved.saved:
                unsaved.saved, unsaved.record, unsaved.revoked = number, record, revoked
            self._report(public_key, unsaved, number)

        return Change(public_key, keep, lambda: self._report(public_key, unsaved, number))

    def _report(self, public_key: bytes, unsaved: _Unsaved, number: int) -> None:
        """Stop waiting for a change; after the last one, settle what the key has."""
        if number not in unsaved.waiting:
            return
        unsaved.waiting.remove(number)
        if unsaved.waiting:
            return
        del self._unsaved[public_key]
        if unsaved.saved < unsaved.made:
            self._set(public_key, unsaved.record, revoked=unsaved.revoked)
        record = self.state.peers.get(public_key)
        self._give_up(*(unsaved.names if record is None else unsaved.names - record.names))
        if record is None:
            self.pool.release(public_key)

    def _set(self, public_key: bytes, record: PeerRecord | None, *, revoked: bool) -> None:
        if record is None:
            self.state.peers.pop(public_key, None)
        else:
            self.state.peers[public_key] = record
            self._names |= dict.fromkeys(record.names, public_key)
        if revoked:
            self.state.revoked.add(public_key)
        else:
            self.state.revoked.discard(public_key)

    # -- names ----------------------------------------------------------------------------------------------

    def _free_name(self, wished: str, public_key: bytes) -> str:
        if self._names.get(wished, public_key) == public_key:
            return wished
        number = self._numbers.get(wished, 2)
        while (name := numbered(wished, number)) in self._names:
            number += 1
        self._numbers[wished] = number
        return name

    def _give_up(self, *names: str) -> None:
        for name in names:
            del self._names[name]
        if names:
            self._numbers.clear()


def require_name(name: str) -> str:
    """Return the label that a person gave a peer, normalized.

    Raises:
        UsageError: It can't be a name; the message says why.
    """
    try:
        return check_label(name)
    except ValueError as error:
        raise UsageError(f"{name!r} can't be a name: {error}.", "Choose another name.") from error


def _newest_and_last(keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the keys to keep. They are few, so that a peer with any of them connects soon; the last is in use."""
    return keys if len(keys) <= PREVIOUS_KEYS else (*keys[: PREVIOUS_KEYS - 1], keys[-1])


def _key(text: str) -> bytes | None:
    try:
        return decode_key(text)
    except UsageError:
        return None
