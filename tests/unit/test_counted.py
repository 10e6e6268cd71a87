"""Numbers of things: one is in the singular, wherever a sentence counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rustguard_py.cli import render
from rustguard_py.daemon import audit_events
from rustguard_py.model.counted import counted

ROOT = Path(__file__).parents[2]
ROOMS = ("cli", "daemon", "embed", "enroll", "quick", "rootless", "rustguard_py", "service", "state", "vpp")


@pytest.mark.parametrize(("count", "text"), [(0, "0 peers"), (1, "1 peer"), (2, "2 peers")])
def test_one_is_in_the_singular(count: int, text: str) -> None:
    assert counted(count, "peer") == text


def test_a_worker_that_moved_one_datagram_says_so() -> None:
    worker = {"packets": 1, "bytes": 80, "batches": 1, "system_calls": 1}
    assert render._worker(worker) == "1 datagram, 80 B, 1.0 a batch, 1 system call"


def test_the_audit_log_counts_one_machine_and_one_event() -> None:
    assert "for 1 new machine at most" in str(audit_events.WindowOpened(60, None, most=1))
    assert str(audit_events.Omitted(1, "the disk was full")) == "the audit log lacks 1 event: the disk was full"


def test_a_number_that_may_be_one_is_counted_by_the_function() -> None:
    """A sentence with `{number} peers` has no singular: `counted` makes it."""
    nouns = "peers|datagrams|handshakes|connections|rounds|trials|flows|queues|cores|calls|machines|events|sources"
    wrong = re.compile(rf"\{{(?:len\()?[a-z_.\[\]'\")]+\}} (?:new |more |system )?(?:{nouns})\b")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for match in wrong.finditer(path.read_text())
    ]
    # Where the branch before it has taken the one.
    assert found == ["embed/first_contact.py: {len(peers)} peers"]
