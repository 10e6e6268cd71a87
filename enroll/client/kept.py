"""Whether a network from an earlier join can still be connected to."""

from __future__ import annotations

from rustguard_py.model.address import typed
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.sudo import as_root
from rustguard_py.state.client_records import NetworkRecord


def usable(kept: NetworkRecord | None, *, joins: bool) -> NetworkRecord | None:
    """Return a network joined before, or None if it has to be joined as if for the first time.

    Args:
        kept: The network, or None if there is none.
        joins: Whether a token was given to join with.

    Raises:
        RefusedError: It was joined with the first RustGuard's protocol, and no token was given.
    """
    if kept is None or not kept.has_to_join_again:
        return kept
    if joins:
        return None
    raise RefusedError(
        f"{kept.host} was joined with the protocol of the first RustGuard, which was removed.",
        f"Join again: {as_root(f'rustguard join {typed(kept.host, kept.port)} --token -')}",
    )
