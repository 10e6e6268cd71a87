"""The kept handshake timestamps of a server's peers, over all tunnels."""

from __future__ import annotations

from rustguard_py.daemon import audit, audit_events
from rustguard_py.daemon.clocks import time_of
from rustguard_py.daemon.control.asker import asker
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.enroll.tunnels.derive import timestamp_names
from rustguard_py.model.keys import encode_key
from rustguard_py.state.records import MOST_TUNNELS, PeerRecord


def greatest(server: RunningServer, public_key: bytes) -> bytes | None:
    """Return a peer's greatest timestamp (TAI64N, 12 bytes) in any tunnel that runs, or None."""
    kept = map(server.timestamps.greatest, timestamp_names(public_key, len(server.tunnels)))
    return max(filter(None, kept), default=None)


async def reset(server: RunningServer, who: str, *, in_kernel: bool) -> tuple[PeerRecord, str | None]:
    """Forget a peer's timestamps, durably, so that its next handshake is accepted whatever its clock says.

    The kernel keeps timestamps with its peers. There, the peer is removed and added again, which ends its session.

    Args:
        server: The server.
        who: The peer's name or public key (base64).
        in_kernel: Whether the kernel's engine runs.

    Returns:
        The peer, and the time of the greatest timestamp that was forgotten, or None.

    Raises:
        RefusedError: There is no such peer.
        StateError: It couldn't be saved.
    """
    record = server.registry.find(who)
    forgotten = await server.timestamps.forget(timestamp_names(record.public_key, MOST_TUNNELS))
    if in_kernel:
        server.admissions.put_in_again(record.public_key)
    was = None if forgotten is None else time_of(forgotten)
    audit.record(audit_events.ClockReset(record.name, encode_key(record.public_key), was, asker()))
    return record, was
