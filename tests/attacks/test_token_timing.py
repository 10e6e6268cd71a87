"""The time that CPace's map takes says nothing about the token, in the manner of dudect.

An attacker without the token knows the server's public id, so each candidate can be stretched once, and the
map timed for any session id. If the map's time depended on the password, the server's times would follow
the right candidate's times from one session id to the next, and those of no other candidate.

The server's id, the session ids and 21 candidates are fixed per run. For each session id the server's map is timed
many times, and each candidate's a few times. What all candidates have in common is taken away. Then the
correlation of the server's times with each candidate's is turned into a z-score (Fisher): about normal where
nothing leaks. A z of 3 or more is measured again with four times the samples, which a leak answers with
twice the z, and chance with another throw.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
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
LEAKY_SESSIONS = 1000
DECOYS = 20
TRIES_PER_CANDIDATE = 3
LIMIT = 3.0
RUNS = 3
GROUPS = [group for group in (native(), libsodium()) if group is not None]

Map = Callable[[bytes, bytes, bytes], bytes]


def leaky_generator(prs: bytes, ci: bytes, sid: bytes) -> bytes:
    """Map to Curve25519 with Python's integers, whose modular inverse takes longer for some values."""
    prime, a = 2**255 - 19, 486662
    r = int.from_bytes(sha512(lv_cat(prs, ci, sid)).digest()[:32], "little") & (1 << 255) - 1
    v = -a * pow(1 + 2 * r * r, -1, prime) % prime
    is_square = pow(v * (v * v + a * v + 1) % prime, (prime - 1) // 2, prime) != prime - 1
    return ((v if is_square else -v - a) % prime).to_bytes(32, "little")


def timed(one_map: Map, prs: bytes, ci: bytes, sid: bytes) -> int:
    began = perf_counter_ns()
    one_map(prs, ci, sid)
    return perf_counter_ns() - began


def z_scores(one_map: Map, samples: int, dice: random.Random, sessions: int = SESSIONS) -> list[float]:
    """Return a z-score for each candidate; the first is the right one."""
    ci = dice.randbytes(60)
    sids = [dice.randbytes(32) for _ in range(sessions)]
    candidates = [dice.randbytes(32) for _ in range(1 + DECOYS)]
    server: list[list[int]] = [[] for _ in sids]
    predicted = [[1 << 62] * sessions for _ in candidates]
    for _ in range(max(1, samples // sessions)):
        for at in dice.sample(range(sessions), sessions):
            server[at].append(timed(one_map, candidates[0], ci, sids[at]))
    for _ in range(TRIES_PER_CANDIDATE):
        for at in dice.sample(range(sessions), sessions):
            for which in dice.sample(range(len(candidates)), len(candidates)):
                took = timed(one_map, candidates[which], ci, sids[at])
                predicted[which][at] = min(predicted[which][at], took)
    observed = [float(sorted(each)[len(each) // 4]) for each in server]
    common = [statistics.fmean(column) for column in zip(*predicted, strict=True)]
    scores = []
    for times in predicted:
        own = [took - shared for took, shared in zip(times, common, strict=True)]
        # Ranks, because one interrupted measurement must not decide.
        correlation = statistics.correlation(_ranks(own), _ranks(observed))
        scores.append(math.atanh(correlation) * math.sqrt(sessions - 3))
    return scores


def _ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for rank, at in enumerate(order):
        ranks[at] = float(rank)
    return ranks


@pytest.mark.fault(36)
@pytest.mark.attack("the time of the map, against a dictionary")
@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_time_of_the_map_does_not_follow_the_token(
    group: Group, run: int, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    monkeypatch.setattr(cpace, "GROUP", group)
    dice = random.Random(run)
    scores = z_scores(generator, SAMPLES, dice)
    row.seen(f"{group.name}, {SAMPLES} samples: z {scores[0]:.2f} among {DECOYS} decoys")
    if abs(scores[0]) >= LIMIT:
        scores = z_scores(generator, 4 * SAMPLES, dice)
        row.seen(f"{group.name}, again with {4 * SAMPLES} samples: z {scores[0]:.2f}")
    assert abs(scores[0]) < LIMIT


@pytest.mark.fault(36)
@pytest.mark.attack("the time of the map, against a dictionary")
def test_a_map_that_leaks_is_found(row: Row) -> None:
    # It leaks so much that few session ids and 15 samples of each are enough on a quiet machine. On a busy one the
    # times are noisier: samples lessen the noise, and z grows with the root of the number of session ids.
    dice = random.Random(36)
    for sessions, each in (
        (LEAKY_SESSIONS // 5, 15),
        (LEAKY_SESSIONS // 5, 60),
        (LEAKY_SESSIONS, 15),
        (LEAKY_SESSIONS, 60),
    ):
        scores = z_scores(leaky_generator, each * sessions, dice, sessions)
        row.control(f"a leaky map, {each * sessions} samples: z {scores[0]:.2f}")
        if scores[0] > 2 * LIMIT:
            break
    assert scores[0] > 2 * LIMIT
    assert scores[0] == max(scores)
