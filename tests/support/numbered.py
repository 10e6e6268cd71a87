"""Numbered datagrams from one host to another, many with one call: how many of them arrive."""

from __future__ import annotations

import subprocess

from rustguard_py.lab.hosts import Host

# Waits a moment after each call; the receiver tells what never came.
_SEND = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(17, 103, 1200)
for n in range(0, int(sys.argv[2]), 20):
    s.sendto(b"".join(struct.pack(">I", n + i) + bytes(1196) for i in range(20)), (sys.argv[1], 7000))
    time.sleep(0.005)
"""
_RECEIVE = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
s.bind(("0.0.0.0", 7000)); s.settimeout(30); print("ready", flush=True)
came = set()
try:
    while len(came) < int(sys.argv[1]):
        came.add(struct.unpack(">I", s.recv(2000)[:4])[0])
        s.settimeout(20)
except TimeoutError: pass
print(len(came), flush=True)
"""


def arrived(sender: Host, receiver: Host, address: str, count: int) -> int:
    """Send so many to an address of the receiver, and return how many arrive."""
    receiving = receiver.popen(["python3", "-c", _RECEIVE, str(count)], stdout=subprocess.PIPE)
    assert receiving.stdout is not None
    receiving.stdout.readline()
    sender.run(["python3", "-c", _SEND, address, str(count)], timeout=60)
    return int(receiving.stdout.readline())
