"""The time that CPace's map takes says nothing about the token, in the manner of dudect.

An attacker without the token knows the server's public id, so each candidate can be stretched once, and the
map timed for any session id. If the map's time depended on the password, the server's times would follow
the right candidate's times from one session id to the next, and those of no other candidate.

The server's id, the session ids and 21 candidates are fixed per run. For each session id the server's map is timed
many times, and each candidate's a few times. What all candidates have in common is taken away. Then the
correlation of the server's times with each candidate's is turned into a z-score (Fisher): about normal where
nothing leaks, however busy the machine is, because each of the server's rounds has the session ids in another order.

Three runs are judged each by itself and together. A z of 3 or more is measured again, all three runs with four times
the samples, and judged together: a leak answers with twice the z, and chance with another throw.
"""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from hashlib import sha512
from time import perf_counter_ns

import pytest

from rustguard_py.enroll.pairing import cpace
from rustguard_py.enroll.pairing.cpace import generator, lv_cat
from rustguard_py.enroll.pairing.ristretto import Group, libsodium, native
from support.attack_table import Row, is_long

# Of each of the three runs. In the short form the three together have 100,000, with a third of the session ids each.
SAMPLES = 1_000_000 if is_long() else 33_400
SESSIONS = 1000 if is_long() else 334
DECOYS = 20
TRIES_PER_CANDIDATE = 3
LIMIT = 3.0
RUNS = 3
LEAKY_SESSIONS = 200
LEAKY_SAMPLES = 15 * LEAKY_SESSIONS
MOST_LEAKY_ROUNDS = 40
GROUPS = [group for group in (native(), libsodium()) if group is not None]

Map = Callable[[bytes, bytes, bytes], bytes]


def leaky_generator(prs: bytes, ci: bytes, sid: bytes) -> bytes:
    """Return the first candidate of Elligator 2 on Curve25519, with an inverse whose time depends on its value.

    The choice between the two candidates is left out: that power takes far longer than the inverse, and as long for
    each value, so on a busy machine its noise hides the rest.
    """
    prime, a = 2**255 - 19, 486662
    r = int.from_bytes(sha512(lv_cat(prs, ci, sid)).digest()[:32], "little") & (1 << 255) - 1
    return (-a * euclid(1 + 2 * r * r, prime) % prime).to_bytes(32, "little")


def euclid(value: int, prime: int) -> int:
    """Return the inverse of a value modulo a prime. It takes about 149 divisions, with a deviation of 10."""
    rest, other, factor, next_factor = prime, value % prime, 0, 1
    while other:
        quotient = rest // other
        rest, other = other, rest - quotient * other
        factor, next_factor = next_factor, factor - quotient * next_factor
    return factor % prime


def timed(one_map: Map, prs: bytes, ci: bytes, sid: bytes) -> int:
    began = perf_counter_ns()
    one_map(prs, ci, sid)
    return perf_counter_ns() - began


class Times:
    """Measured times of a map for random session ids: the server's, and those that each candidate predicts.

    Args:
        one_map: The map.
        dice: Where the values and the order of the measurements come from.
        sessions: How many session ids there are.
    """

    def __init__(self, one_map: Map, dice: random.Random, sessions: int) -> None:
        self._map = one_map
        self._dice = dice
        self._ci = dice.randbytes(60)
        self._sids = [dice.randbytes(32) for _ in range(sessions)]
        # The first is the right one.
        self._candidates = [dice.randbytes(32) for _ in range(1 + DECOYS)]
        self._server: list[list[int]] = [[] for _ in self._sids]
        self._predicted = [[1 << 62] * sessions for _ in self._candidates]

    def measure(self, samples: int) -> None:
        """Time the server's map, and that of each candidate, in addition to what was measured before."""
        for _ in range(max(1, samples // len(self._sids))):
            for at in self._shuffled(self._sids):
                self._server[at].append(timed(self._map, self._candidates[0], self._ci, self._sids[at]))
        for _ in range(TRIES_PER_CANDIDATE):
            for at in self._shuffled(self._sids):
                for which in self._shuffled(self._candidates):
                    took = timed(self._map, self._candidates[which], self._ci, self._sids[at])
                    self._predicted[which][at] = min(self._predicted[which][at], took)

    def z_scores(self) -> list[float]:
        """Return a z-score for each candidate; the first is the right one."""
        observed = _ranks([sorted(each)[len(each) // 4] for each in self._server])
        common = [statistics.fmean(column) for column in zip(*self._predicted, strict=True)]
        scores = []
        for times in self._predicted:
            own = [took - shared for took, shared in zip(times, common, strict=True)]
            # Ranks, because one interrupted measurement must not decide.
            correlation = statistics.correlation(_ranks(own), observed)
            scores.append(math.atanh(correlation) * math.sqrt(len(own) - 3))
        return scores

    def _shuffled(self, values: list[bytes]) -> list[int]:
        return self._dice.sample(range(len(values)), len(values))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; the same for equal ones, so that their order doesn't look like a correlation."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value)) / 2 for value in values]


def together(scores: list[float]) -> float:
    """Return the z-score of several independent ones (Stouffer)."""
    return sum(scores) / math.sqrt(len(scores))


@pytest.mark.fault(36)
@pytest.mark.attack("the time of the map, against a dictionary")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_time_of_the_map_does_not_follow_the_token(
    group: Group, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    monkeypatch.setattr(cpace, "GROUP", group)
    dice = random.Random(36)

    def runs(samples: int) -> list[float]:
        scores = []
        for _ in range(RUNS):
            times = Times(generator, dice, SESSIONS)
            times.measure(samples)
            scores.append(times.z_scores()[0])
            row.seen(f"{group.name}, {samples} samples: z {scores[-1]:.2f} among {DECOYS} decoys")
        row.seen(f"{group.name}, {RUNS} runs together: z {together(scores):.2f}")
        return scores

    scores = runs(SAMPLES)
    if max(abs(score) for score in (*scores, together(scores))) >= LIMIT:
        assert abs(together(runs(4 * SAMPLES))) < LIMIT


@pytest.mark.fault(36)
@pytest.mark.attack("the time of the map, against a dictionary")
def test_a_map_that_leaks_is_found(row: Row) -> None:
    # The first round is enough on a quiet machine. On a busy one each round adds to what is known: z comes near to
    # what the leak itself gives once each candidate had an undisturbed try.
    times = Times(leaky_generator, random.Random(36), LEAKY_SESSIONS)
    for rounds in range(1, MOST_LEAKY_ROUNDS + 1):
        times.measure(LEAKY_SAMPLES)
        scores = times.z_scores()
        row.control(f"a leaky map, {rounds * LEAKY_SAMPLES} samples: z {scores[0]:.2f}")
        if scores[0] > 2 * LIMIT:
            break
    assert scores[0] > 2 * LIMIT
    assert scores[0] == max(scores)
