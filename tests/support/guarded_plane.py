"""A program: a plane that guards a server's pairing, whose window is open.

    python guarded_plane.py ENGINE PORT

It says `up`, and after a line on standard input what it dropped, and how many enrollment datagrams came to Python.
"""

from __future__ import annotations

import json
import select
import sys
import time

from rustguard_py.engine import Engine
from rustguard_py.model.pairing import PairingEpoch, PairingGate
from rustguard_py.planes.contract import ForeignReceived
from rustguard_py.system.sockets import bind


def main() -> None:
    """Run by itself."""
    engine, port = sys.argv[1], int(sys.argv[2])
    plane = Engine(engine, "asked for", 1, uring=False, xdp=None).make_plane(bytes(32), "rg0", bind(port), 1420)
    plane.set_pairing(PairingGate(b"i" * 32, PairingEpoch(7, b"s" * 32, b"e" * 32)))
    print("up", flush=True)
    passed = 0
    while True:
        ready, _, _ = select.select([plane, sys.stdin], [], [])
        if plane in ready:
            passed += sum(isinstance(event, ForeignReceived) for event in plane.poll_events())
            # What a server does with each takes about as long.
            time.sleep(0.0005)
        if sys.stdin in ready:
            break
    print(json.dumps({"passed": passed, "drops": plane.stats().drops}), flush=True)
    plane.close()


if __name__ == "__main__":
    main()
