"""What many enrolled peers cost a server: memory over one without any, CPU while idle, and the time to start.

    python bench/peers.py [--peers 10000]

Needs root or a user namespace (scripts/in-namespace). Prints a line per figure and, with --json, one document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from process import cpu_seconds, resident_mib

from rustguard_py.cli.machine import Machine
from rustguard_py.lab.hosts import Host, Lab
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import generate_private_key
from rustguard_py.state.document import Document
from rustguard_py.state.records import PeerRecord, ServerState

IDLE_SECONDS = 10
POOL4, POOL6 = IPv4Network("10.64.0.0/16"), IPv6Network("fd12:3456:789a::/64")


def write_state(directory: Path, peers: int, *, located: bool) -> None:
    """Enrol so many peers on paper: real state, random keys. Those with a known address are greeted at the start."""
    state = ServerState(generate_private_key(), os.urandom(32), POOL4, POOL6, 51820, 1420)
    for number in range(2, peers + 2):
        key = os.urandom(32)
        addresses = POOL4[number], POOL6[number]
        state.peers[key] = PeerRecord(
            f"peer-{number}", key, os.urandom(32), *addresses, 0.0, f"192.0.2.1:{number}" if located else None
        )
    document = Document.open(directory)
    document.load()
    document.save(state.to_json())
    document.close()


@contextmanager
def started(host: Host, directory: Path, peers: int, *, located: bool) -> Iterator[tuple[int, float]]:
    """Run a server; gives its process id and how many seconds it took until it answered."""
    stem = f"{peers}-{located}"
    machine = Machine(host, directory / f"state-{stem}", directory / f"run-{stem}", "correct horse")
    write_state(machine.state, peers, located=located)
    began = time.monotonic()
    server = machine.start("serve")
    while True:
        try:
            machine.status()
            break
        except RustGuardError:
            if server.poll() is not None or time.monotonic() - began > 30:
                sys.exit(machine.log.read_text())
    yield server.pid, time.monotonic() - began
    server.terminate()
    server.wait(10)


def measure(host: Host, directory: Path, peers: int) -> dict[str, float]:
    """Start a server and look at it once it answers; start another that has nobody to greet, and look at it idle."""
    with started(host, directory, peers, located=True) as (pid, seconds):
        # Greeting 10,000 goes on for 100 s; the memory for it is there by now.
        time.sleep(2)
        figures = {"start_s": seconds, "rss_mib": resident_mib(pid)}
    with started(host, directory, peers, located=False) as (pid, _):
        time.sleep(2)
        began, used = time.monotonic(), cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        figures["idle_cpu"] = (cpu_seconds(pid) - used) / (time.monotonic() - began)
    return figures


def main() -> None:
    """Measure once without peers and once with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        host = lab.host("server")
        none = measure(host, Path(directory), 0)
        many = measure(host, Path(directory), options.peers)
    over = many["rss_mib"] - none["rss_mib"]
    document = {"peers": options.peers, "none": none, "many": many, "over_mib": over}
    if options.json:
        print(json.dumps(document))
        return
    print(f"memory: {none['rss_mib']:.1f} MiB without peers, {over:.1f} MiB over that with {options.peers:,}")
    print(f"idle:   {none['idle_cpu']:.2%} of a core without peers, {many['idle_cpu']:.2%} with {options.peers:,}")
    print(f"start:  {none['start_s']:.2f} s without peers, {many['start_s']:.2f} s with {options.peers:,}")


if __name__ == "__main__":
    main()
