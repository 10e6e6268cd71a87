"""The UAPI socket of a tunnel that runs in a host with its own /run, asked without wg(8)."""

from __future__ import annotations

import socket
from base64 import b64encode

from rustguard_py.lab.hosts import Host

# Seconds, on a machine that is slow and busy.
PATIENCE = 60.0


def ask(host: Host, interface: str, request: str) -> dict[str, list[str]]:
    """Send a request, its last empty line included; return the values of the answer by their keys."""
    with socket.socket(socket.AF_UNIX) as here:
        here.settimeout(PATIENCE)
        here.connect(f"/proc/{host.pid}/root/run/wireguard/{interface}.sock")
        here.sendall(request.encode())
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += here.recv(65536)
    found: dict[str, list[str]] = {}
    for line in answer.decode().split():
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


def peers_of(host: Host, interface: str) -> set[str]:
    """Return the public keys of the peers in the tunnel, in base64."""
    keys = ask(host, interface, "get=1\n\n").get("public_key", [])
    return {b64encode(bytes.fromhex(each)).decode() for each in keys}
