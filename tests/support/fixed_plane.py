"""A program: one portable plane with fixed keys, one peer and no handshakes.

    python fixed_plane.py INTERFACE NUMBER PEER [OPTION...]

NUMBER is 1 or 2, PEER the other's address outside. Inside it is 10.99.0.NUMBER and fd99::NUMBER. It says `up`,
then each event, then, after a line on standard input or a fatal fault, its counters, its open descriptors before
and after, and its threads, as JSON.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from ipaddress import ip_network

from rustguard_py.planes.contract import Fault, Keypair
from rustguard_py.planes.offload import wanted_gso_segments
from rustguard_py.planes.portable import PortablePlane
from rustguard_py.system.sockets import bind

KEYS = {1: b"1" * 32, 2: b"2" * 32}


def main() -> None:
    interface, number, peer = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    other = 3 - number
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    plane = PortablePlane(bytes(32), interface=interface, sockets=bind(51820))
    endpoint = (peer, 51820, 0, 0) if ":" in peer else (peer, 51820)
    inner = [ip_network(f"10.99.0.{other}/32"), ip_network(f"fd99::{other}/128")]
    plane.set_peer(7, endpoint, inner, 0)
    keypair = Keypair(number, other, KEYS[number], KEYS[other], True, time.monotonic())
    plane.install_keypair(7, keypair)
    segments = wanted_gso_segments(1420)
    for words in (
        f"addr add 10.99.0.{number}/24 dev {interface}",
        f"addr add fd99::{number}/64 dev {interface} nodad",
        f"link set {interface} mtu 1420 gso_max_segs {segments} up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    print("up", flush=True)
    while True:
        ready, _, _ = select.select([plane, sys.stdin], [], [])
        if plane in ready:
            events = plane.poll_events()
            print(*events, flush=True)
            if any(isinstance(event, Fault) and event.fatal for event in events):
                break
        if sys.stdin in ready:
            break
    stats, switch_interval = plane.stats(), sys.getswitchinterval()
    plane.close()
    plane.close()
    after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    counted = stats.peers[7]
    said = {
        "rx": counted.rx_packets,
        "tx": counted.tx_packets,
        "drops": stats.drops,
        "notes": stats.notes,
        "descriptors": [before, after],
        "threads": threading.active_count(),
        "switch_interval": switch_interval,
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
