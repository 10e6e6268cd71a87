"""CONFIRMs that wait for a turn while too many wrong tokens have been tried in a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")

# The last CONFIRM of each session is kept. Several machines may pair from one address, behind a NAT.
WAITING_A_SOURCE: Final = 8


class Draw:
    """Draws who is next: one of the sources with the fewest wrong tokens, then one of its sessions.

    It is a draw and not a queue, because an attacker is always faster than a client: whoever comes first would win.

    Args:
        random: Returns the requested number of random bytes.
    """

    __slots__ = ("_by_source", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._by_source: dict[str, dict[bytes, bytes]] = {}

    def __len__(self) -> int:
        """Return how many sessions wait."""
        return sum(map(len, self._by_source.values()))

    def __bool__(self) -> bool:
        """Return whether any session waits."""
        return bool(self._by_source)

    def put(self, source: str, session: bytes, confirm: bytes) -> bool:
        """Let a session wait with this CONFIRM, in place of the one that it waits with already.

        Args:
            source: See `cookies.source_of`.
            session: 8 bytes.
            confirm: The datagram.

        Returns:
            Whether it waits; False if enough other sessions of that source do.
        """
        waiting = self._by_source.get(source, {})
        if session not in waiting and len(waiting) >= WAITING_A_SOURCE:
            return False
        waiting[session] = confirm
        self._by_source[source] = waiting
        return True

    def remove(self, source: str, session: bytes) -> None:
        """Let a session wait no longer, if it does."""
        waiting = self._by_source.get(source)
        if waiting is not None and waiting.pop(session, None) is not None and not waiting:
            del self._by_source[source]

    def take(self, wrong: Callable[[str], int]) -> tuple[bytes, bytes] | None:
        """Draw a session, which then waits no longer.

        Args:
            wrong: Returns how many wrong tokens a source has tried.

        Returns:
            The session and its CONFIRM; None if nobody waits.
        """
        if not self._by_source:
            return None
        counts = {source: wrong(source) for source in self._by_source}
        fewest = min(counts.values())
        source = self._choose([each for each, count in counts.items() if count == fewest])
        session = self._choose(list(self._by_source[source]))
        confirm = self._by_source[source][session]
        self.remove(source, session)
        return session, confirm

    def _choose(self, items: list[_T]) -> _T:
        return items[int.from_bytes(self._random(8), "little") % len(items)]
