"""Admit, revoke, restore and rename peers: each change becomes durable, and then live.

Every change of a server's peers goes the same way:

1. The registry makes the change in memory.
2. The state is saved. Other changes may be made while this one waits.
3. The tunnel gets what the registry has by now, not what it had at step 1: a peer whose join was being saved may have
   been revoked, renamed or admitted again meanwhile.

A revocation is the one exception: the peer leaves the tunnel before the save, and comes back if the save fails.
If a save fails, the registry takes the change back, and the tunnel again gets what the registry has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from rustguard_py.daemon import audit, audit_events
from rustguard_py.daemon.control.asker import asker
from rustguard_py.enroll.export import offer
from rustguard_py.enroll.server.registry import Change, PeerChange, Registry, require_name
from rustguard_py.model.clock import now
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RefusedError, StateError, UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.state.document import Document
from rustguard_py.state.records import PeerRecord, ServerState

log = logging.getLogger(__name__)

# Saves all changes made so far. If that fails, calls the function that it was given and returns False.
Durable = Callable[[Callable[[], None]], Awaitable[bool]]


class LiveSet(Protocol):
    """The peers in the tunnel."""

    def put_in(self, record: PeerRecord, *, with_endpoint: bool) -> None:
        """Add a peer, or change it. `with_endpoint`: send to the saved endpoint until the peer is heard."""

    def take_out(self, public_key: bytes) -> None:
        """Remove a peer, if it is there."""


class Admissions:
    """Changes a running server's peers.

    Args:
        registry: The server's peers.
        durable: Saves the state, like `Saver.durable`.
        live: The peers in the tunnel. Nothing else may change which peers it has.
    """

    def __init__(self, registry: Registry, durable: Durable, live: LiveSet) -> None:
        self._registry = registry
        self._durable = durable
        self._live = live
        # When each key joined, in monotonic seconds: a wall clock that jumps while the server runs ages nobody.
        wall, at = time.time(), now()
        self._joined = {
            record.public_key: at - max(0.0, wall - record.joined) for record in registry.state.peers.values()
        }

    def begin(self) -> None:
        """Put all saved peers into the tunnel, at the start."""
        records = self._registry.state.peers.values()
        for record in records:
            self._follow(record.public_key, with_endpoint=True)
        if stale := sum(record.has_to_join_again for record in records):
            again = "%s of the first RustGuard must join again; see which: rustguard peers"
            log.warning(again, counted(stale, "peer"))

    async def admit(
        self, public_key: bytes, name: str, preshared_key: bytes, endpoint: str
    ) -> PeerRecord | Literal["full", "revoked"] | None:
        """Admit a client that proved to know a token.

        Args:
            public_key: 32 bytes.
            name: What it wants to be called; may be empty.
            preshared_key: 32 bytes, from this enrollment.
            endpoint: Where it is.

        Returns:
            The peer, durable and live; or why it is refused; or None if the client must ask again, because the state
            couldn't be saved or another join of the same key replaced this one.
        """
        change = self._registry.admit(public_key, name, preshared_key, endpoint, time.time())
        while change == "full" and (unused := self._registry.give_away(self._age)) is not None:
            if not await self._save(unused):
                return None
            left = unused.record
            audit.record(audit_events.GivenAway(left.name, encode_key(left.public_key), str(left.address4)))
            change = self._registry.admit(public_key, name, preshared_key, endpoint, time.time())
        if not isinstance(change, PeerChange):
            return change
        self._joined[public_key] = now()
        return self._standing(change) if await self._save(change) else None

    async def take_back(self, public_key: bytes, preshared_key: bytes) -> PeerRecord | None:
        """Remove a new peer that can't use its admission; its key may join again.

        Args:
            public_key: 32 bytes.
            preshared_key: What the admission gave it, 32 bytes.

        Returns:
            The peer that was removed. None if it is gone, was admitted again since, or that couldn't be saved.
        """
        change = self._registry.take_back(public_key, preshared_key)
        return change.record if change is not None and await self._save(change) else None

    async def leave(self, public_key: bytes) -> PeerRecord | None:
        """Remove a peer that leaves by itself; its key may join again.

        The tunnel still has it, so that it can be answered, until `follow`.

        Args:
            public_key: 32 bytes.

        Returns:
            The peer that was removed. None if there is none, or that couldn't be saved.
        """
        change = self._registry.leave(public_key)
        if change is None:
            return None
        try:
            saved = await self._durable(change.undo)
        except BaseException:
            change.undo()
            raise
        if not saved:
            return None
        change.keep()
        return change.record

    def follow(self, public_key: bytes) -> None:
        """Make the tunnel agree with the registry about a key that has left, and may have joined again since."""
        self._follow(public_key)

    def connected(self, public_key: bytes) -> bool:
        """Note that a peer has connected; return whether that is news, which should be saved some time."""
        return self._registry.connected(public_key) is not None

    async def admit_stock(self, name: str, public_key: bytes, preshared_key: bytes) -> PeerRecord:
        """Admit a peer that runs stock WireGuard and whose keys were made here.

        Args:
            name: What to call it; a number is added if the name is taken.
            public_key: 32 bytes.
            preshared_key: 32 bytes.

        Returns:
            The peer, durable and live.

        Raises:
            UsageError: The name can't be one.
            RefusedError: The pool is used up, or the key is revoked.
            StateError: It couldn't be saved.
        """
        change = admit_stock(self._registry, name, public_key, preshared_key)
        if not await self._save(change):
            raise _not_saved()
        record = self._standing(change)
        if not isinstance(record, PeerRecord):
            raise _refusal("revoked")
        audit.record(audit_events.Admitted(record.name, encode_key(public_key), str(record.address4), asker()))
        return record

    async def revoke(self, who: str) -> PeerRecord:
        """Remove a peer at once, and refuse its key from now on.

        Args:
            who: Its name or public key (base64).

        Returns:
            The peer that was removed.

        Raises:
            RefusedError: There is no such peer.
            StateError: It couldn't be saved; the peer is in the tunnel again.
        """
        change = self._registry.revoke(who)
        # The journal keeps the peer's greatest timestamp: if it is restored, its old handshakes stay invalid.
        self._live.take_out(change.public_key)
        if not await self._save(change, with_endpoint=True):
            raise _not_saved()
        audit.record(audit_events.Revoked(change.record.name, encode_key(change.public_key), asker()))
        return change.record

    async def restore(self, key: str) -> None:
        """Allow a revoked public key (base64) to join again.

        Raises:
            RefusedError: It isn't revoked.
            StateError: It couldn't be saved.
        """
        if not await self._save(self._registry.restore(key)):
            raise _not_saved()
        audit.record(audit_events.Restored(key, asker()))

    async def rename(self, old: str, new: str) -> PeerRecord:
        """Rename a peer, and return it as it is listed then.

        Raises:
            RefusedError: There is no such peer, or the name is taken.
            UsageError: `new` can't be a name.
            StateError: It couldn't be saved.
        """
        change = self._registry.rename(old, new)
        if not await self._save(change):
            raise _not_saved()
        audit.record(audit_events.Renamed(old, change.record.name, encode_key(change.public_key), asker()))
        return self._registry.state.peers.get(change.public_key, change.record)

    def settled(self, public_key: bytes, place: int) -> bool:
        """Drop the preshared keys older than the one that a live peer has used.

        Args:
            public_key: 32 bytes.
            place: Which of its preshared keys it used, counted from the newest, 0.

        Returns:
            Whether that changed the peer, so that the state should be saved some time.
        """
        if self._registry.settled(public_key, place) is None:
            return False
        self._follow(public_key)
        return True

    def put_in_again(self, public_key: bytes) -> None:
        """Remove a peer from the tunnel and put it in again: its session ends, and the kernel's timestamp of it."""
        self._live.take_out(public_key)
        self._follow(public_key, with_endpoint=True)

    def _age(self, public_key: bytes) -> float:
        """Return how many seconds ago a key joined; 0 for one that came back when its removal couldn't be saved."""
        return now() - self._joined.setdefault(public_key, now())

    async def _save(self, change: Change, *, with_endpoint: bool = False) -> bool:
        try:
            saved = await self._durable(change.undo)
        except BaseException:
            change.undo()
            self._follow(change.public_key, with_endpoint=with_endpoint)
            raise
        if saved:
            change.keep()
        self._follow(change.public_key, with_endpoint=with_endpoint)
        return saved

    def _follow(self, public_key: bytes, *, with_endpoint: bool = False) -> None:
        """Make the tunnel agree with the registry about one key."""
        record = self._registry.durable(public_key)
        if public_key not in self._registry.state.peers:
            self._joined.pop(public_key, None)
        if public_key not in self._registry.state.peers or (record is not None and record.has_to_join_again):
            self._live.take_out(public_key)
        elif record is not None:
            self._live.put_in(record, with_endpoint=with_endpoint)

    def _standing(self, change: PeerChange) -> PeerRecord | Literal["revoked"] | None:
        """Return the peer as it is listed now, if it still accepts the preshared key of this change."""
        record = self._registry.state.peers.get(change.public_key)
        if record is not None:
            return record if change.record.preshared_key in record.preshared_keys else None
        return "revoked" if change.public_key in self._registry.state.revoked else None


def admit_at_rest(directory: Path, name: str, public_key: bytes, preshared_key: bytes) -> dict[str, Any]:
    """Admit a stock peer into the state of a server that isn't running, and return what `export.offer` returns.

    Args:
        directory: The server's state directory.
        name: What to call it; a number is added if the name is taken.
        public_key: 32 bytes.
        preshared_key: 32 bytes.

    Raises:
        UsageError: There is no server's state, or the name can't be one.
        RefusedError: The pool is used up.
        InUseError: A daemon has the directory.
        StateError: It couldn't be saved.
    """
    nothing = UsageError(f"There is no server here ({directory}).", "Start one: rustguard serve --pool 10.150.0.0/24")
    # At its first start, a server holds the directory before it has a state.
    if Document.peek(directory) is None and not Document.is_held(directory):
        raise nothing
    document = Document.open(directory)
    try:
        kept = document.load()
        if kept is None:
            raise nothing
        state = ServerState.from_json(kept)
        change = admit_stock(Registry(state), name, public_key, preshared_key)
        document.save(state.to_json())
    finally:
        document.close()
    return offer(state, change.record)


def admit_stock(registry: Registry, name: str, public_key: bytes, preshared_key: bytes) -> PeerChange:
    """Admit a stock peer into a registry; the caller makes the change durable.

    Raises:
        UsageError: The name can't be one.
        RefusedError: The pool is used up, or the key is revoked.
    """
    require_name(name)
    change = registry.admit(public_key, name, preshared_key, None, time.time())
    if not isinstance(change, PeerChange):
        raise _refusal(change)
    return change


def _refusal(reason: Literal["full", "revoked"]) -> RefusedError:
    if reason == "full":
        return RefusedError("The pool is used up.", "Revoke a peer, or serve a wider --pool.")
    return RefusedError("That key was revoked.", "Allow it again: rustguard peers restore KEY")


def _not_saved() -> StateError:
    return StateError("The change could not be saved.", "Make room on the disk and try again.")
