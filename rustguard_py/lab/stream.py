"""Measures one TCP stream between two hosts of a lab. Each end is a program, with nothing to install.

    python -m rustguard_py.lab.stream take ADDRESS PORT SECONDS      prints "ready", then the throughput in Mbit/s
    python -m rustguard_py.lab.stream send ADDRESS PORT              until the other end closes

The start isn't counted: the first second, or as long as SECONDS if that is less. The receiver discards the bytes in
the kernel (MSG_TRUNC), so the path between the hosts is the bottleneck.
"""

from __future__ import annotations

import socket
import sys
import time

CHUNK = 1 << 17
# The longest time at the start that isn't counted, seconds.
WARM_UP = 1.0
# How long either end waits for the other, seconds.
PATIENCE = 20.0


def warm_up(seconds: float) -> float:
    """Return how many seconds at the start of a stream aren't counted, given those that are."""
    return min(WARM_UP, seconds)


def take(address: str, port: int, seconds: float) -> float:
    """Accept one sender and return its throughput over `seconds`, in Mbit/s (10⁶), after those of `warm_up`.

    Raises:
        ConnectionError: The sender ended before.
        TimeoutError: Nobody came, or nothing, for `PATIENCE` seconds.
    """
    buffer = bytearray(1 << 20)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        listener.settimeout(PATIENCE)
        print("ready", flush=True)
        stream, _ = listener.accept()
    with stream:
        stream.settimeout(PATIENCE)
        began = time.monotonic() + warm_up(seconds)
        taken, now = 0, 0.0
        while now < began + seconds:
            got = stream.recv_into(buffer, len(buffer), socket.MSG_TRUNC)
            now = time.monotonic()
            if not got:
                raise ConnectionError("the stream ended early")
            if now >= began:
                taken += got
    return taken * 8 / (now - began) / 1e6


def send(address: str, port: int) -> None:
    """Send zeros over a TCP connection until the other end closes it.

    Raises:
        OSError: Nobody listens there, or nothing can be sent for `PATIENCE` seconds.
    """
    chunk = memoryview(bytes(CHUNK))
    with socket.create_connection((address, port), timeout=PATIENCE) as stream:
        try:
            while True:
                stream.sendall(chunk)
        except ConnectionError:
            return


if __name__ == "__main__":
    _, verb, to, at, *rest = sys.argv
    if verb == "take":
        print(take(to, int(at), float(rest[0])), flush=True)
    else:
        send(to, int(at))
