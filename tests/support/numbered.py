"""Numbered datagrams from one host to another, many with one call: how many of them arrive."""

from __future__ import annotations

import subprocess

from rustguard_py.lab.hosts import Host

# Sends no more than a window ahead of what arrived: a TUN device holds 500 packets, and the kernel drops the next
# ones while a program that reads from it waits for a processor. The kernel's loss would be counted as the program's.
# A silent receiver gets another message each second, since what it waits for may be lost.
_SEND = """
import select, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(17, 103, 1200)
s.connect((sys.argv[1], 7000))
seen = 0
for n in range(0, int(sys.argv[2]), 20):
    while n + 20 - seen > 200 and select.select([s], [], [], 1)[0]:
        seen = max(seen, struct.unpack(">I", s.recv(4))[0])
    s.send(b"".join(struct.pack(">I", n + i) + bytes(1196) for i in range(20)))
"""
_RECEIVE = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
s.bind(("0.0.0.0", 7000)); s.settimeout(60); print("ready", flush=True)
came, told = set(), 0
try:
    while len(came) < int(sys.argv[1]):
        data, sender = s.recvfrom(2000)
        number = struct.unpack(">I", data[:4])[0]
        came.add(number)
        if number + 1 >= told + 20:
            told = number + 1
            s.sendto(struct.pack(">I", told), sender)
        s.settimeout(20)
except TimeoutError: pass
print(len(came), flush=True)
"""


def arrived(sender: Host, receiver: Host, address: str, count: int) -> int:
    """Send so many to an address of the receiver, and return how many arrive."""
    receiving = receiver.popen(["python3", "-c", _RECEIVE, str(count)], stdout=subprocess.PIPE)
    assert receiving.stdout is not None
    receiving.stdout.readline()
    sender.run(["python3", "-c", _SEND, address, str(count)], timeout=300)
    return int(receiving.stdout.readline())
