"""Many TCP streams in one process, each between two addresses of its own: iperf3 would need a process for each.

    python bench/streams.py take PORT STREAMS SECONDS [PID ...]
    python bench/streams.py send PORT FROM-TO ...

What takes them counts for SECONDS, from a second after the last stream came on, and tells the rate of all in Mbit/s
and the least and the most of one; the share of the time that each core was busy; and the CPU seconds of each process
named. It looks at no byte of them (MSG_TRUNC), so that the tunnel is the work.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

from process import core_seconds, cpu_seconds

from rustguard_py.lab.stream import CHUNK, PATIENCE, WARM_UP


def _spent(pids: list[int]) -> tuple[list[float], list[float]]:
    return core_seconds(), [cpu_seconds(pid) for pid in pids]


def _since(before: list[float], after: list[float]) -> list[float]:
    return [late - early for early, late in zip(before, after, strict=True)]


def _take(port: int, streams: int, seconds: float, pids: list[int]) -> dict[str, float | list[float]]:
    buffer = bytearray(1 << 20)
    selector = selectors.DefaultSelector()
    counted: dict[socket.socket, int] = {}
    with socket.create_server(("0.0.0.0", port), backlog=streams) as listener:  # noqa: S104 - in a namespace
        listener.settimeout(PATIENCE)
        for _ in range(streams):
            stream, _ = listener.accept()
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ, stream)
            counted[stream] = 0
    began = time.monotonic() + WARM_UP
    before = None
    while (now := time.monotonic()) < began + seconds:
        if before is None and now >= began:
            before = _spent(pids)
        for key, _ in selector.select(0.1):
            got = key.data.recv_into(buffer, len(buffer), socket.MSG_TRUNC)
            if not got:
                raise SystemExit("a stream ended early")
            if now >= began:
                counted[key.data] += got
    cores, processes = map(_since, before or _spent(pids), _spent(pids))
    rates = [each * 8 / seconds / 1e6 for each in counted.values()]
    return {
        "mbit": sum(rates),
        "least": min(rates),
        "most": max(rates),
        # A tick of the kernel's more can fall into the time.
        "cores": [min(1.0, each / seconds) for each in cores],
        "processes": processes,
    }


def _send(port: int, ways: list[str]) -> None:
    """Send until the other end has enough."""
    chunk = memoryview(bytes(CHUNK))
    selector = selectors.DefaultSelector()
    for way in ways:
        source, target = way.split("-")
        stream = socket.create_connection((target, port), timeout=PATIENCE, source_address=(source, 0))
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_WRITE, stream)
    try:
        while True:
            for key, _ in selector.select():
                key.data.send(chunk)
    except ConnectionError:
        return


if __name__ == "__main__":
    if sys.argv[1] == "take":
        pids = [int(each) for each in sys.argv[5:]]
        print(json.dumps(_take(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), pids)))
    else:
        _send(int(sys.argv[2]), sys.argv[3:])
