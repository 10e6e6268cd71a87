"""Both ends of a pairing as an attacker has them: programs for a host of the lab.

    python hostile_pairing.py serve PORT       a server that knows the token, and says what its input tells it to
    python hostile_pairing.py impostor PORT    one that doesn't: it tries a list of tokens on each client that asks
    python hostile_pairing.py join HOST PORT   a client that may claim another's key, or a name that is none

Each reads one JSON object from its input, and writes JSON lines. They speak the wire through the package's modules.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from rustguard_py.enroll.client.pair import ask
from rustguard_py.enroll.pairing import messages
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.enroll.pairing.key_schedule import stretch
from rustguard_py.enroll.pairing.outputs import Admit, Forgotten, Output, Reply
from rustguard_py.enroll.pairing.server import PairingServer
from rustguard_py.enroll.pairing.window import Window
from rustguard_py.lab.hosts import Host
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RustGuardError

PORT = 51820


class Attacker:
    """A program of this file on a host, ended with its lab.

    Args:
        host: Where it runs.
        argv: What it is to be, with its arguments.
        given: Its input.
    """

    def __init__(self, host: Host, argv: list[str], given: dict[str, Any]) -> None:
        environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self.program = host.popen(
            [sys.executable, __file__, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(given) + "\n")
        self.program.stdin.flush()

    def line(self) -> dict[str, Any]:
        """Return the next line that it writes."""
        assert self.program.stdout is not None
        line: dict[str, Any] = json.loads(self.program.stdout.readline())
        return line

    def end(self) -> list[dict[str, Any]]:
        """End it; return the lines that it wrote and that nobody has read."""
        self.program.terminate()
        said, _ = self.program.communicate(timeout=60)
        return [json.loads(line) for line in said.splitlines()]


def hostile_server(host: Host, token: str, outcomes: dict[str, dict[str, Any]]) -> Attacker:
    """Start a server that answers a client with the outcome that is listed under the name that it asks for.

    It writes `{"forgotten": NAME}` when a client takes its admission back.
    """
    made = Attacker(host, ["serve", f"{PORT}"], {"token": token, "outcomes": outcomes})
    assert made.line() == {"ready": True}
    return made


def impostor(host: Host, tokens: list[str], server_id: bytes) -> Attacker:
    """Start one who answers in a server's place, with each of these tokens at once.

    It writes `{"confirmed": TOKEN, "right": …}` for each CONFIRM that tests one.
    """
    made = Attacker(host, ["impostor", f"{PORT}"], {"tokens": tokens, "server_id": server_id.hex()})
    assert made.line() == {"ready": True}
    return made


def hostile_client(
    host: Host, server: str, token: str, *, name: bytes = b"guest", public_key: bytes | None = None, source: str = ""
) -> Attacker:
    """Start a join with a name as bytes, and another's public key if one is given.

    It writes `{"outcome": …}`: `joined`, or why not.
    """
    given = {"token": token, "name": name.hex(), "public_key": None if public_key is None else public_key.hex()}
    return Attacker(host, ["join", server, f"{PORT}"], {**given, "source": source})


# -- the programs --------------------------------------------------------------------------------------------


def _write(**line: object) -> None:
    print(json.dumps(line), flush=True)


class _Socket:
    """A UDP socket that answers from the address that was asked."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self.socket.bind(("", port))
        self._asked: dict[Endpoint, bytes] = {}

    def receive(self) -> tuple[bytes, Endpoint] | None:
        if not select.select([self.socket], [], [], 0.05)[0]:
            return None
        datagram, control, _, source = self.socket.recvmsg(65536, 512)
        # struct in_pktinfo: the interface, the local address, the address in the header.
        self._asked[source] = next(data[8:12] for _, kind, data in control if kind == _IP_PKTINFO)
        return datagram, (source[0], source[1])

    def send(self, reply: Reply) -> None:
        here = struct.pack("i4s4s", 0, self._asked[reply.destination], bytes(4))
        control = [(socket.IPPROTO_IP, _IP_PKTINFO, here)]
        self.socket.sendmsg([reply.datagram], control, 0, reply.destination)


_IP_PKTINFO = 8
_stretched = cache(stretch)


def _pairing_server(token: str, server_id: bytes, private_key: bytes) -> PairingServer:
    window = Window()
    window.open(3600, time.monotonic())
    tokens = {0: _stretched(token, server_id)}
    return PairingServer(server_id, private_key, tokens, window, os.urandom, time.monotonic())


def _serve(port: int, given: dict[str, Any]) -> None:
    pairing, out = _pairing_server(given["token"], os.urandom(32), os.urandom(32)), _Socket(port)
    names: dict[bytes, str] = {}

    def carry_out(outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply():
                    out.send(output)
                case Admit():
                    names[output.public_key] = output.name
                    outcome = given["outcomes"][output.name]
                    carry_out(pairing.answer(output.session, outcome, time.monotonic(), created=True))
                case Forgotten():
                    _write(forgotten=names[output.public_key])

    _write(ready=True)
    while True:
        if (got := out.receive()) is not None:
            carry_out(pairing.handle(*got, time.monotonic()))


def _impostor(port: int, given: dict[str, Any]) -> None:
    server_id, private_key = bytes.fromhex(given["server_id"]), os.urandom(32)
    pairings = [_pairing_server(token, server_id, private_key) for token in given["tokens"]]
    for each in pairings:
        # One challenge, which all of them accept: so each makes its own share with its own token.
        each._cookies = pairings[0]._cookies
    out, tested = _Socket(port), set()
    _write(ready=True)
    while True:
        if (got := out.receive()) is None:
            continue
        kind = messages.kind_of(got[0])
        for token, each in zip(given["tokens"], pairings[:1] if kind == messages.HELLO else pairings, strict=False):
            known = got[0][8:16] in each._sessions
            outputs = each.handle(*got, time.monotonic())
            if kind == messages.CONFIRM and known and got[0][8:16] not in tested:
                tested.add(got[0][8:16])
                _write(confirmed=token, right=any(isinstance(output, Admit) for output in outputs))
            for output in outputs:
                reply = output if isinstance(output, Reply) else getattr(output, "reply", None)
                if reply is not None:
                    out.send(reply)


async def _join(host: str, port: int, given: dict[str, Any]) -> None:
    here = socket.socket(socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    here.bind((given["source"], 0))
    client = PairingClient(given["token"], os.urandom(32), "guest", os.urandom, time.monotonic())
    name, own = bytes.fromhex(given["name"]), client._static.public_key().public_bytes_raw()
    key = own if given["public_key"] is None else bytes.fromhex(given["public_key"])
    client._details = struct.pack("<32sHB45s", key, 0, len(name), name)
    try:
        joined = await ask(client, [here], [(host, port)])
    except RustGuardError as error:
        _write(outcome=error.message)
    else:
        _write(outcome="joined", name=joined.admission.name)


def main() -> None:
    """Run by itself."""
    given = json.loads(sys.stdin.readline())
    match sys.argv[1:]:
        case ["serve", port]:
            _serve(int(port), given)
        case ["impostor", port]:
            _impostor(int(port), given)
        case ["join", host, port]:
            asyncio.run(_join(host, int(port), given))


if __name__ == "__main__":
    main()
