"""Let peers in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rustguard_py.enroll.export import offer
from rustguard_py.enroll.server.registry import Admitted, Registry
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.state.document import Document
from rustguard_py.state.records import ServerState, check_name


def admit(registry: Registry, name: str, public_key: bytes, preshared_key: bytes) -> Admitted:
    """Let a peer in whose keys were made for it; the caller makes it durable.

    Args:
        registry: The server's.
        name: Which to give it, or that with a number.
        public_key: 32 bytes.
        preshared_key: 32 bytes.

    Raises:
        UsageError: That is no name.
        RefusedError: There is no address left, or the key was revoked.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"{name!r} is no name: {error}.") from error
    if not name.isprintable():
        raise UsageError("A name is of printable characters.")
    change = registry.admit(public_key, name, preshared_key, None, time.time())
    if change == "full":
        raise RefusedError("The pool is used up.", "Revoke a peer, or serve a wider --pool.")
    if change == "revoked":
        raise RefusedError("That key was revoked.", "Let it in again: rustguard peers restore KEY")
    return change


def admit_at_rest(directory: Path, name: str, public_key: bytes, preshared_key: bytes) -> dict[str, Any]:
    """Let a peer into the state of a server that doesn't run; give what `offer` gives.

    Raises:
        UsageError: There is no server's state.
        RustGuardError: See `admit`; or it can't be saved.
    """
    if Document.peek(directory) is None:
        raise UsageError(f"There is no server here ({directory}).", "Start one: rustguard serve --pool 10.150.0.0/24")
    document = Document.open(directory)
    try:
        state = ServerState.from_json(document.load())
        change = admit(Registry(state), name, public_key, preshared_key)
        document.save(state.to_json())
    finally:
        document.close()
    return offer(state, change.record)
