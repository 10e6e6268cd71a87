"""Members that the records of servers and of clients share: each returns the checked value, or is a `StateError`."""

from __future__ import annotations

from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.memif import parse as parse_memif
from rustguard_py.model.offloads import ALL, choose_offloads
from rustguard_py.model.peer_names import FALLBACK, PEER_NAME_LIMIT, label_of
from rustguard_py.state.members import Members

# Bytes. IPv6 needs the least; a WireGuard datagram has no room for more than the most.
MTU_LEAST, MTU_MOST = 1280, 65000
# Bytes. What earlier versions accepted is still loaded, and brought within the limits above.
_KEPT_MTU_LEAST, _KEPT_MTU_MOST = 576, 65535
_VERBS = {"server": "serve", "client": "join"}


def kept_label(name: str) -> str:
    """Return the label of a saved name, which an earlier version may have saved. Raise ValueError for none."""
    if not 1 <= len(name.encode()) <= PEER_NAME_LIMIT:
        raise ValueError(f"a name has 1 to {PEER_NAME_LIMIT} bytes of UTF-8")
    return label_of(name) or FALLBACK


def mtu_of(members: Members) -> int:
    """Return the MTU in bytes, brought within today's limits."""
    return min(max(members.integer("mtu", _KEPT_MTU_LEAST, _KEPT_MTU_MOST), MTU_LEAST), MTU_MOST)


def offloads_of(members: Members) -> str:
    """Return the list of `--offloads`; empty if it wasn't saved."""

    def check(text: str) -> str:
        try:
            choose_offloads(text, ALL)
        except UsageError as error:
            raise ValueError(error.message) from error
        return text

    return members.parsed("offloads", check) if members.has("offloads") else ""


def memif_of(members: Members) -> str:
    """Return the value of `--memif`; empty if it wasn't saved."""

    def check(text: str) -> str:
        try:
            parse_memif(text)
        except UsageError as error:
            raise ValueError(error.message) from error
        return text

    return members.parsed("memif", check) if members.has("memif") else ""


def check_role(members: Members, role: str) -> None:
    """Check that the state is a `server`'s or a `client`'s. Otherwise the error names the command for it."""
    found = members.text("role")
    if found == role:
        return
    if found in _VERBS:
        raise StateError(
            f"This state directory is a {found}'s, and a {role} needs another one.",
            f"Choose one with --state DIR (or RUSTGUARD_STATE). To use the {found}'s: rustguard {_VERBS[found]}",
        )
    raise members.bad("role", f'is "{found[:10]}", but a {role} was started with it')


def text_of(address: object) -> str | None:
    """Return the text of an address to save, None for none."""
    return None if address is None else str(address)
