"""Numbered datagrams from one host to another, many with one call: how many of them arrive."""

from __future__ import annotations

import subprocess
import sys

from rustguard_py.lab.hosts import Host

# After each call it waits until the last datagram of that call has come, for half a second at most. The queue of a
# TUN device has room for 500 packets: a tunnel that gets no processor for a while would lose what it never read.
_SEND = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(17, 103, 1200)
s.settimeout(0.5)
for n in range(0, int(sys.argv[2]), 20):
    s.sendto(b"".join(struct.pack(">I", n + i) + bytes(1196) for i in range(20)), (sys.argv[1], 7000))
    try:
        while struct.unpack(">I", s.recv(4))[0] < n + 19: pass
    except TimeoutError: pass
"""
_RECEIVE = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
s.bind(("0.0.0.0", 7000)); s.settimeout(30); print("ready", flush=True)
came = set()
try:
    while len(came) < int(sys.argv[1]):
        datagram, sender = s.recvfrom(2000)
        number = struct.unpack(">I", datagram[:4])[0]
        came.add(number)
        if number % 20 == 19: s.sendto(datagram[:4], sender)
        s.settimeout(20)
except TimeoutError: pass
print(len(came), flush=True)
"""


def arrived(sender: Host, receiver: Host, address: str, count: int) -> int:
    """Send so many to an address of the receiver, and return how many arrive."""
    receiving = receiver.popen([sys.executable, "-c", _RECEIVE, str(count)], stdout=subprocess.PIPE)
    assert receiving.stdout is not None
    receiving.stdout.readline()
    sender.run([sys.executable, "-c", _SEND, address, str(count)], timeout=180)
    return int(receiving.stdout.readline())
