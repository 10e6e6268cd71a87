"""CONFIRMs that wait for a turn while too many wrong tokens have been tried in a window."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from rustguard_py.model.rate_limit import site_of

_T = TypeVar("_T")

# The last CONFIRM of each session is kept. Several machines may pair from one address, behind a NAT.
WAITING_A_SOURCE: Final = 8


class Draw:
    """Draws who is next: one of the sites with the fewest wrong tokens, then one of its sources, then a session.

    A site is an IPv4 address or an IPv6 /48 (`cookies.site_of`). Otherwise one machine that has a /48 would be 65,536
    sources against a client's one. It is a draw and not a queue, because an attacker is always faster than a client:
    whoever comes first would win.

    Args:
        random: Returns the requested number of random bytes.
    """

    __slots__ = ("_by_site", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        # The CONFIRM of each session, by source, by site.
        self._by_site: dict[str, dict[str, dict[bytes, bytes]]] = {}

    def __len__(self) -> int:
        """Return how many sessions wait."""
        return sum(len(waiting) for sources in self._by_site.values() for waiting in sources.values())

    def __bool__(self) -> bool:
        """Return whether any session waits."""
        return bool(self._by_site)

    def put(self, source: str, session: bytes, confirm: bytes) -> bool:
        """Let a session wait with this CONFIRM, in place of the one that it waits with already.

        Args:
            source: See `rate_limit.source_of`.
            session: 8 bytes.
            confirm: The datagram.

        Returns:
            Whether it waits; False if enough other sessions of that source do.
        """
        sources = self._by_site.get(site := site_of(source), {})
        waiting = sources.get(source, {})
        if session not in waiting and len(waiting) >= WAITING_A_SOURCE:
            return False
        waiting[session] = confirm
        sources[source] = waiting
        self._by_site[site] = sources
        return True

    def remove(self, source: str, session: bytes) -> None:
        """Let a session wait no longer, if it does."""
        sources = self._by_site.get(site := site_of(source), {})
        waiting = sources.get(source)
        if waiting is not None and waiting.pop(session, None) is not None and not waiting:
            del sources[source]
            if not sources:
                del self._by_site[site]

    def take(self, wrong: Callable[[str], tuple[int, int]]) -> tuple[bytes, bytes] | None:
        """Draw a session, which then waits no longer.

        Args:
            wrong: Returns how many wrong tokens the site of a source, and the source, have tried.

        Returns:
            The session and its CONFIRM; None if nobody waits.
        """
        if not self._by_site:
            return None
        site = self._choose_fewest(self._by_site, lambda site: wrong(next(iter(self._by_site[site])))[0])
        source = self._choose_fewest(by_source := self._by_site[site], lambda source: wrong(source)[1])
        session = self._choose(list(by_source[source]))
        confirm = by_source[source][session]
        self.remove(source, session)
        return session, confirm

    def _choose_fewest(self, names: Iterable[str], wrong: Callable[[str], int]) -> str:
        counts = {each: wrong(each) for each in names}
        fewest = min(counts.values())
        return self._choose([each for each, count in counts.items() if count == fewest])

    def _choose(self, items: list[_T]) -> _T:
        return items[int.from_bytes(self._random(8), "little") % len(items)]
