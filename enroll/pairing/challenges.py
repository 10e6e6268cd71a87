"""CHALLENGEs that a client may still answer. Anyone on the path can send more of them than the server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from rustguard_py.enroll.pairing.messages import Challenge
from rustguard_py.model.endpoint import Endpoint

# CHALLENGEs kept in each of the two pools.
POOL: Final = 64
# Senders whose earlier CHALLENGEs are remembered, about 100 bytes each.
_REMEMBERED: Final = 4096

Candidate = tuple[Challenge, Endpoint]
Sender = tuple[bytes, int, bytes]


def said_by_server(challenge: Challenge) -> Sender:
    """Return what a server says in every CHALLENGE of an epoch: two that agree on it weren't garbled on the way."""
    return challenge.server_id, challenge.epoch, challenge.ephemeral


class Challenges:
    """Keeps CHALLENGEs and draws one to answer.

    A server says the same after each HELLO, so those that say what an earlier round said are drawn first. Among them
    the draw is random, and a full pool replaces a random one, so whoever is fastest gains nothing.

    Args:
        random: Returns the requested number of random bytes.
    """

    __slots__ = ("_again", "_met", "_once", "_random", "_round")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._once: list[Candidate] = []
        self._again: list[Candidate] = []
        self._met: dict[Sender, int] = {}
        self._round = 0

    def __iter__(self) -> Iterator[Candidate]:
        yield from self._again
        yield from self._once

    @property
    def rounds(self) -> int:
        """How many HELLOs went out, the first one included."""
        return self._round + 1

    def next_round(self) -> None:
        """Note that a HELLO goes out, which the server answers with another CHALLENGE."""
        self._round += 1

    def put(self, candidate: Candidate) -> None:
        """Keep a CHALLENGE, unless it is kept already."""
        if candidate in self._once or candidate in self._again:
            return
        self._keep(self._again if self.meet(candidate[0]) else self._once, candidate)

    def meet(self, challenge: Challenge) -> bool:
        """Remember what a CHALLENGE says; return whether one of an earlier round said the same."""
        said = said_by_server(challenge)
        if said not in self._met and len(self._met) >= _REMEMBERED:
            return False
        return self._met.setdefault(said, self._round) < self._round

    def take(self, without: Collection[Sender]) -> Candidate | None:
        """Draw a CHALLENGE, which then is kept no longer; None if there is none by another sender than `without`."""
        for pool in (self._again, self._once):
            choice = [each for each in pool if said_by_server(each[0]) not in without]
            if choice:
                drawn = choice[self._number(len(choice))]
                pool.remove(drawn)
                return drawn
        return None

    def clear(self) -> None:
        """Forget all."""
        self._once.clear()
        self._again.clear()
        self._met.clear()

    def _keep(self, pool: list[Candidate], candidate: Candidate) -> None:
        if len(pool) < POOL:
            pool.append(candidate)
        else:
            pool[self._number(POOL)] = candidate

    def _number(self, below: int) -> int:
        return int.from_bytes(self._random(4), "little") % below
