"""A campaign of random faults: a server, six clients, a fault at a time, and what must hold after each.

RUSTGUARD_SEED=7 make test PYTEST_ARGS="-k random_campaign"      the campaign of seed 7
RUSTGUARD_SEED=7:12 make test PYTEST_ARGS="-k random_campaign"   only its step 12, on fresh machines
RUSTGUARD_CAMPAIGN_SECONDS=600 make soak PYTEST_ARGS="-k random_campaign"   another time than an hour
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import RustGuardError
from support import campaign_attacks
from support.campaign import Campaign, begin, fault_of, lay_out
from support.campaign_faults import FAULTS
from support.campaign_invariants import check, check_end, own_network

_STEPS = 6
# Its six faults are of six parts of the list, and quick to recover from.
_SHORT_SEED = 16583
# Of the long form, which ends with whichever comes first.
_LONG_STEPS = 1000
_LONG_SECONDS = 3600.0


def _seed(*, soak: bool) -> tuple[int, int | None]:
    """Return the seed, and the only step to run if one is named. The short form is the same each time."""
    given = os.environ.get("RUSTGUARD_SEED") or str(random.randrange(1_000_000) if soak else _SHORT_SEED)
    seed, _, step = given.partition(":")
    return int(seed), int(step) if step else None


def _steps(only: int | None, *, soak: bool) -> Iterator[int]:
    if only is not None:
        yield only
        return
    limit = os.environ.get("RUSTGUARD_CAMPAIGN_SECONDS")
    until = time.monotonic() + float(limit or _LONG_SECONDS)
    for step in range(_LONG_STEPS if soak or limit else _STEPS):
        if time.monotonic() < until:
            yield step


def _faults(campaign: Campaign, seed: int, step: int) -> list[str]:
    """Return the faults of a step: one, and in the long form often another right after it."""
    name, campaign.random = fault_of(seed, step, list(FAULTS))
    another = campaign.long and campaign.random.random() < 0.5
    return [name, campaign.random.choice(sorted(FAULTS))] if another else [name]


def _do(campaign: Campaign, names: list[str]) -> str:
    """Do faults one right after the other, and return how long that took and the recovery."""
    began = time.monotonic()
    for name in names:
        campaign.notes.append(f"{name}:")
        FAULTS[name](campaign)
    took = time.monotonic() - began
    back = check(campaign)
    campaign.longest = max(campaign.longest, back)
    return f"{took:.1f} s, all clients back after {back:.1f} s"


def _failure(campaign: Campaign, seed: int, step: int, done: list[str], error: BaseException) -> str:
    command = 'make {} PYTEST_ARGS="-k random_campaign"'.format("soak" if campaign.long else "test")
    limit = os.environ.get("RUSTGUARD_CAMPAIGN_SECONDS")
    whole = f"RUSTGUARD_CAMPAIGN_SECONDS={limit} {command}" if limit else command
    said = "\n".join(
        f"--- {member.name} said:\n" + "\n".join(member.said().splitlines()[-15:]) for member in campaign.members
    )
    return (
        f"seed {seed}, step {step}, {done[-1]}: {type(error).__name__}: {error}\n"
        f"  Again, this step alone:  RUSTGUARD_SEED={seed}:{step} {command}\n"
        f"  Again, all until here:   RUSTGUARD_SEED={seed} {whole}\n"
        f"  The steps until here: {'; '.join(done)}\n{said}"
    )


@pytest.mark.fault(49)
@pytest.mark.timeout(600)
def test_random_campaign(lab: Lab, tmp_path: Path, soak: bool) -> None:
    seed, only = _seed(soak=soak)
    print(f"seed {seed}")
    campaign = lay_out(lab, tmp_path, long=soak)
    for member in campaign.members:
        member.before = own_network(member)
    begin(campaign)
    check(campaign)
    done: list[str] = []
    kinds: Counter[str] = Counter()
    for step in _steps(only, soak=soak):
        campaign.notes = []
        names = _faults(campaign, seed, step)
        kinds.update(names)
        try:
            seen = _do(campaign, names)
        except (AssertionError, RustGuardError, OSError, KeyError, subprocess.SubprocessError) as error:
            done.append(" ".join(campaign.notes))
            pytest.fail(_failure(campaign, seed, step, done, error), pytrace=False)
        done.append(" ".join(campaign.notes))
        print(f"step {step}: {done[-1]} {seen}", flush=True)
    try:
        check_end(campaign)
    except AssertionError as error:
        pytest.fail(_failure(campaign, seed, len(done), [*done, "end"], error), pytrace=False)
    print(
        f"row 49: seed {seed}: {kinds.total()} faults of {len(kinds)} kinds in {len(done)} steps: all clients back "
        f"within {campaign.longest:.1f} s of each"
    )


def test_a_campaign_has_at_least_25_kinds_of_fault_and_a_seed_decides_them() -> None:
    names = list(FAULTS)
    assert len(names) >= 25
    assert campaign_attacks.port_changing_flood in FAULTS.values()
    first = [fault_of(7, step, names)[0] for step in range(2 * len(names))]
    assert first == [fault_of(7, step, names[::-1])[0] for step in range(2 * len(names))]
    assert sorted(first[: len(names)]) == sorted(first[len(names) :]) == sorted(names)
    assert first[: len(names)] != first[len(names) :]
    assert fault_of(7, 3, names)[1].random() == fault_of(7, 3, names)[1].random() != fault_of(8, 3, names)[1].random()
