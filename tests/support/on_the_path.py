"""Somebody on the path who writes faster than both ends, but drops nothing: a program for a host of the lab.

    python on_the_path.py HERE PORT SERVER PORT SOURCE CHALLENGES SHARES CONFIRMS RESULTS

It passes on what one client and a server say to each other. Before each HELLO that it passes on, the client gets so
many forged CHALLENGEs, before each SHARE_C so many forged SHARE_Ss, and before each CONFIRM the server gets so many
forged ones in the client's session and the client so many forged RESULTs. It says `ready`.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from rustguard_py.enroll.pairing.cpace import generator
from rustguard_py.enroll.pairing.key_schedule import session_id
from rustguard_py.enroll.pairing.messages import Challenge, Confirm, Hello, Result, ShareC, ShareS
from rustguard_py.lab.hosts import Host

# The encapsulation key of the server's last SHARE_S. Before there is one, no key that a client would take.
_ek = [bytes(1184)]


def start(host: Host, here: str, server: str, source: str, counts: tuple[int, int, int, int]) -> None:
    """Start it between a client that asks `here` and a server, which sees it as `source`."""
    ends = [here, "51820", server, "51820", source]
    argv = [sys.executable, __file__, *ends, *map(str, counts)]
    program = host.popen(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])})
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"


def forged(datagram: bytes, counts: tuple[int, int, int, int]) -> tuple[list[bytes], list[bytes]]:
    """Return what goes to the client, and what goes to the server, before this datagram of the client's."""
    challenges, shares, confirms, results = counts
    if (hello := Hello.parse(datagram)) is not None:
        return [_challenge(hello) for _ in range(challenges)], []
    if (share_c := ShareC.parse(datagram)) is not None:
        return [_share(share_c) for _ in range(shares)], []
    if (confirm := Confirm.parse(datagram)) is not None:
        wrong = [Confirm(confirm.session, confirm.ct, confirm.sealed, os.urandom(32)) for _ in range(confirms)]
        denials = [Result(confirm.session, os.urandom(80), os.urandom(32)) for _ in range(results)]
        return [each.encode() for each in denials], [each.encode() for each in wrong]
    return [], []


def _challenge(hello: Hello) -> bytes:
    random = os.urandom
    return Challenge(hello.nonce_c, random(16), 5, random(16), random(32), random(32)).encode()


def _share(share_c: ShareC) -> bytes:
    share = generator(os.urandom(32), b"", b"")
    return ShareS(session_id(share_c.nonce_c, share_c.nonce_s, share, _ek[0]), share, _ek[0]).encode()


def main() -> None:
    """Run by itself."""
    here, port, server, server_port, source, *numbers = sys.argv[1:]
    challenges, shares, confirms, results = map(int, numbers)
    front, back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    front.bind((here, int(port)))
    back.bind((source, 0))
    back.connect((server, int(server_port)))
    print("ready", flush=True)
    client = None
    while True:
        for each in select.select([front, back], [], [])[0]:
            datagram, sender = each.recvfrom(65535)
            if each is front:
                client = sender
                to_client, to_server = forged(datagram, (challenges, shares, confirms, results))
                for datagrams, out in ((to_client, None), (to_server, back)):
                    for one in datagrams:
                        out.send(one) if out is not None else front.sendto(one, client)
                back.send(datagram)
            elif client is not None:
                if (share_s := ShareS.parse(datagram)) is not None:
                    _ek[0] = share_s.ek
                front.sendto(datagram, client)


if __name__ == "__main__":
    main()
