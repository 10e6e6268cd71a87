"""Answers that a client may still take up. Anyone on the path can send more of them than the server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Final, Generic, TypeVar

from rustguard_py.enroll.pairing.messages import Challenge

# Answers kept in each of the two pools.
POOL: Final = 64
# Of how many answers it is remembered what they said, about 100 bytes each.
_REMEMBERED: Final = 4096

_Answer = TypeVar("_Answer")


def said_by_server(challenge: Challenge) -> tuple[bytes, int, bytes]:
    """Return what a server says in every CHALLENGE of an epoch: two that agree on it weren't garbled on the way."""
    return challenge.server_id, challenge.epoch, challenge.ephemeral


class Spares(Generic[_Answer]):
    """Keeps answers of one kind and draws one to take up.

    A server says the same in each round, so those that say what an earlier round said are drawn first. Among them
    the draw is random, and a full pool replaces a random one, so whoever is fastest gains nothing.

    Args:
        random: Returns the requested number of random bytes.
        said: Returns what a server repeats in each of its answers.
    """

    __slots__ = ("_again", "_met", "_once", "_random", "_round", "_said")

    def __init__(self, random: Callable[[int], bytes], said: Callable[[_Answer], Hashable]) -> None:
        self._random = random
        self._said = said
        self._once: list[_Answer] = []
        self._again: list[_Answer] = []
        self._met: dict[Hashable, int] = {}
        self._round = 0

    def __iter__(self) -> Iterator[_Answer]:
        yield from self._again
        yield from self._once

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._again) + len(self._once)

    @property
    def rounds(self) -> int:
        """How many rounds there were, the first one included."""
        return self._round + 1

    @property
    def repeated(self) -> int:
        """How many of those kept say what an earlier round said."""
        return len(self._again)

    def next_round(self) -> None:
        """Note that the server is asked again."""
        self._round += 1

    def put(self, answer: _Answer) -> None:
        """Keep an answer. One that is kept already counts as said again if it comes in a later round."""
        again = self.meet(answer)
        if answer in self._again:
            return
        if answer in self._once:
            if not again:
                return
            self._once.remove(answer)
        self._keep(self._again if again else self._once, answer)

    def meet(self, answer: _Answer) -> bool:
        """Remember what an answer says; return whether one of an earlier round said the same."""
        said = self._said(answer)
        if said not in self._met and len(self._met) >= _REMEMBERED:
            return False
        return self._met.setdefault(said, self._round) < self._round

    def take(self, without: Collection[Hashable] = ()) -> _Answer | None:
        """Draw an answer, which then is kept no longer; None if there is none that says something else than these."""
        for pool in (self._again, self._once):
            choice = [each for each in pool if self._said(each) not in without]
            if choice:
                drawn = choice[self._number(len(choice))]
                pool.remove(drawn)
                return drawn
        return None

    def clear(self) -> None:
        """Forget all answers, and what they said."""
        self._once.clear()
        self._again.clear()
        self._met.clear()

    def _keep(self, pool: list[_Answer], answer: _Answer) -> None:
        if len(pool) < POOL:
            pool.append(answer)
        else:
            pool[self._number(POOL)] = answer

    def _number(self, below: int) -> int:
        return int.from_bytes(self._random(4), "little") % below
