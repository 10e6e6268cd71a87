"""`rustguard bench generate`, as a person runs it, and each contender that runs here, for a fraction of a second."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from rustguard_py import engine
from rustguard_py.cli.generate import compare
from rustguard_py.cli.generate.pair import Contender, running
from rustguard_py.cli.generate.stages import stages
from rustguard_py.cli.generate.trial import Trial
from rustguard_py.model.errors import RustGuardError

FOUND, _ = compare.contenders()
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(not engine.has_native(), reason="this installation has no native engine")
)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "rustguard_py.cli", "bench", "generate", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.parametrize("name", [NATIVE, "portable"])
def test_one_load_is_accounted_for_to_the_last_packet(name: str) -> None:
    done = _run("--engine", name, "--size", "imix", "--flows", "5", "--rate", "600", "--seconds", "2", "--json")
    assert done.returncode == 0, done.stderr
    trial: dict[str, Any] = json.loads(done.stdout)["trial"]
    assert trial["offered"] == 1200
    assert trial["offered"] == trial["sent"] + trial["refused"]
    assert trial["sent"] == trial["received"] + trial["lost"]
    assert trial["received"] > 1000
    assert (trial["invalid"], trial["duplicates"]) == (0, 0)
    assert sum(count for _, count in trial["latency_ns"]["counts"]) == trial["received"]
    assert 0 < trial["latency_ns"]["percentiles"]["50"] < 1e9
    assert trial["ns_per_packet"]["sink"] > 0


@pytest.mark.parametrize("name", [NATIVE, "portable"])
def test_the_throughput_without_loss_is_found(name: str) -> None:
    # The machine is busy with other tests: some loss is no fault.
    done = _run("--engine", name, "--seconds", "0.1", "--loss", "20", "--json")
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)["contenders"][0]["rounds"]
    assert measured["saturated"]["received"] > 0
    assert 0 < len(measured["searched"]) <= 16
    assert measured["ended"] in {"resolution", "trials", "time"}
    assert measured["best"]["loss"] <= 0.2
    assert [each["share"] for each in measured["loads"]] == [0.1, 0.25, 0.5, 0.75, 0.9]


@pytest.mark.skipif(not FOUND, reason="no contender runs here")
@pytest.mark.parametrize("contender", FOUND, ids=lambda each: each.name)
def test_each_contender_carries_packets_and_says_what_they_cost(contender: Contender) -> None:
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(running(contender))
        except RustGuardError as error:
            # In a user namespace. Sockets are never measured in AF_XDP's name.
            if contender.side != "AF_XDP" or "Operation not permitted" not in error.message:
                raise
            pytest.skip(error.message)
        trial = pair.trial(2000, 0.2, (64, 1420), 4)
        assert (trial.offered, trial.invalid, trial.duplicates) == (400, 0, 0)
        assert trial.received > 300
        assert _whole(trial)
        # As much as the device takes.
        trial = pair.trial(None, 0.1, (64,), 4)
        assert (trial.received > 1000, trial.refused) == (True, 0)
        assert _whole(trial)
        costs = stages(trial)
        assert costs["generator"] > 0
        if contender.program is None and contender.device in ("channel", "memif"):
            assert {"device read", "seal", "send", "receive", "open", "device write"} <= set(costs)
            assert min(trial.device["read"], trial.device["write"]) > 0
        if contender.device == "tun":
            assert {"seal", "device read, send", "receive, device write", "open"} <= set(costs)


def _whole(trial: Trial) -> bool:
    return trial.sent == trial.received + trial.lost and trial.latency.count == trial.received
