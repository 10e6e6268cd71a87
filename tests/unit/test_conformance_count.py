"""The page about tests says how many tests of the conformance suite each device has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A row of the page, and what the names of its tests end with.
ROWS = {
    "TUN, portable plane | sockets": r"portable",
    "TUN, native plane | sockets": r"native",
    "TUN, wireguard-go | sockets": r"wireguard-go",
    "channel, portable plane | sockets": r"portable on a channel",
    "channel, native plane | sockets": r"native on a channel",
    "channel, native plane | io_uring": r"native on a channel, io_uring",
    "channel, native plane | AF_XDP": r"native on a channel, xdp",
}


def _collected(*, long: bool) -> Counter[str]:
    """Return the number of tests per implementation."""
    environment = {**os.environ, "RUSTGUARD_SOAK": "1" if long else "", "RUSTGUARD_ATTACK": ""}
    argv = [sys.executable, "-m", "pytest", "tests/conformance", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    names = re.findall(r"^\S+::\w+\[(.*)\]$", done.stdout, re.MULTILINE)
    # Parameters of the test's own stand behind a hyphen, before or after.
    implementations = sorted(ROWS.values(), key=len, reverse=True)
    return Counter(next(each for each in implementations if each in name) for name in names)


def test_the_page_has_the_count_of_each_device() -> None:
    page = (ROOT / "docs/internals/testing.md").read_text()
    shown = re.findall(r"^\| ((?:TUN|channel), [^|]+ \| [^|]+) \| (\d+) \| (\d*) ?\|$", page, re.MULTILINE)
    many, few = _collected(long=True), _collected(long=False)
    counted = {row: (many[name], few[name]) for row, name in ROWS.items()}
    assert {row: (int(whole), int(short or 0)) for row, whole, short in shown} == counted
