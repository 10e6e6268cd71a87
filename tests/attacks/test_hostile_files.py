"""Somebody on this machine, or who hands over a file: hooks that nobody sees or of others, half a UAPI request."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support import rustguard_wg, uapi
from support.attack_table import Row
from support.faults import until
from support.quick import Quick

PEER = (bytes([9]) * 32).hex()
# What `str.splitlines` takes for the end of a line, and wg and wg-quick don't.
ENDS = ["\v", "\f", "\x1c", "\x85", "\u2028", "\r"]


@pytest.fixture
def machine(lab: Lab) -> Quick:
    return Quick(lab.host("laptop", own_files=True))


def _mark(machine: Quick) -> Path:
    return machine.root / "run/hook"


@pytest.mark.attack("a hook hidden in a comment")
def test_a_hook_behind_a_line_end_that_is_none_does_not_run(machine: Quick, row: Row) -> None:
    lines = "\n".join(f"# note{end}PreUp = touch /run/hook" for end in ENDS)
    machine.file(f"Address = 10.9.0.1/24\n{lines}")
    machine.run("up wg0")
    assert not _mark(machine).exists()
    machine.run("down wg0")
    row.seen(f"0 of {len(ENDS)} ran")
    assert "PreUp = touch /run/hook" in lines.splitlines()
    machine.file("Address = 10.9.0.1/24\n# note\nPreUp = touch /run/hook")
    machine.run("up wg0")
    assert _mark(machine).exists()
    row.control("Python's `splitlines` reads them as hooks; behind a line feed the hook runs")


@pytest.mark.attack("hooks of a file that others can write")
@pytest.mark.parametrize("open_to", ["file", "directory"])
def test_hooks_of_a_file_that_others_can_write_do_not_run(machine: Quick, open_to: str, row: Row) -> None:
    path = machine.file("Address = 10.9.0.1/24\nPreUp = touch /run/hook")
    (path if open_to == "file" else path.parent).chmod(0o666 if open_to == "file" else 0o777)
    refused = machine.run("up wg0", check=False)
    assert refused.returncode == 4
    assert "has hooks" in " ".join(refused.stderr.split())
    assert not _mark(machine).exists()
    row.seen(f"others can write the {open_to}: refused, nothing started")
    machine.run("up wg0 --trust-file")
    assert _mark(machine).exists()
    row.control("with `--trust-file` the hook runs")


@pytest.mark.attack("half a UAPI request")
def test_a_request_with_a_wrong_scope_is_refused_as_a_whole(lab: Lab, tmp_path: Path, row: Row) -> None:
    host = lab.host("laptop", own_run=True)
    host.popen([*rustguard_wg.argv(tmp_path), "wg0"], log=tmp_path / "log")
    whole = f"set=1\nprivate_key={bytes(31).hex()}40\npublic_key={PEER}\nallowed_ip=10.9.0.2/32\n"
    accepted = until("its socket", lambda: uapi.ask(host, "wg0", f"{whole}endpoint=192.0.2.1:7\n\n"))
    assert accepted == {"errno": ["0"]}
    before = uapi.ask(host, "wg0", "get=1\n\n")
    scopes = [2**32, 2**64, 10**40]
    for scope in scopes:
        half = f"set=1\npublic_key={PEER}\npersistent_keepalive_interval=9\nallowed_ip=10.9.0.3/32\n"
        answer = uapi.ask(host, "wg0", f"{half}endpoint=[fe80::1%{scope}]:7\n\n")
        assert answer == {"errno": [f"{-errno.EINVAL}"]}
        assert uapi.ask(host, "wg0", "get=1\n\n") == before
    row.seen(f"{len(scopes)} of {len(scopes)} refused with EINVAL, nothing of them applied")
    row.control("recorded before a request was checked as a whole: no errno, half of the peer applied")
