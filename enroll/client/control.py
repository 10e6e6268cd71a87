"""Answers of a client's control socket: the status with its warnings, and its one peer."""

from __future__ import annotations

import os
from typing import Any

from rustguard_py.daemon.control.asker import asker
from rustguard_py.daemon.control.protocol import WithDescriptors
from rustguard_py.daemon.control.server import Handler
from rustguard_py.daemon.keeper import Keeper
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.status import PeerLine, broken, common, peers
from rustguard_py.enroll.client.client import RunningClient
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.keys import fingerprint
from rustguard_py.rootless.helper import Helper

_OF_A_SERVER = ("open", "close", "revoke", "restore", "rename", "reset", "admit")


class ClientControl:
    """Answers requests about a client.

    Args:
        client: The client.
        program: Its role, directory, interface and engine.
        keeper: Puts back what other programs remove; None where no other program can.
        private_key: The client's, 32 bytes.
        port: The client's own UDP port.
        inside: The helper of `--rootless`, or None.
        ways: With it, the proxy and the forwarded ports, for the status.
    """

    def __init__(
        self,
        client: RunningClient,
        program: Program,
        keeper: Keeper | None,
        private_key: bytes,
        port: int,
        inside: Helper | None = None,
        ways: dict[str, Any] | None = None,
    ) -> None:
        self._inside = inside
        self._ways = ways
        self._private_key = private_key
        self._port = port
        self._client = client
        self._program = program
        self._keeper = keeper

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by method."""
        here: dict[str, Handler] = {
            "status": self._status,
            "peers": self._peers,
            "leave": self._leave,
            "enter": self._enter,
        }
        return {**here, **dict.fromkeys(_OF_A_SERVER, _not_here)}

    def _enter(self, _params: dict[str, Any]) -> dict[str, Any]:
        """Hand out the namespaces, and the files that a program there sees."""
        if self._inside is None:
            raise RefusedError(
                "This client runs with root, so every program of this machine reaches its tunnel.",
                "Start the program as it is, or join with --rootless.",
            )
        if asker() != os.geteuid():
            raise RefusedError("Only the user who runs the client may start programs inside.", "Run it as that user.")
        files = {str(path): text for path, text in self._inside.files.items()}
        return WithDescriptors({"files": files}, (self._inside.user, self._inside.network))

    async def _leave(self, params: dict[str, Any]) -> dict[str, Any]:
        network = self._client.network
        if asker() not in (0, os.geteuid()):
            raise RefusedError(
                "Only root and the user who runs the client may leave its network.", "Run it with sudo."
            )
        if params != {"host": network.host, "port": network.port}:
            raise RefusedError(f"This daemon is connected to another network, of {network.host}.")
        return {"answered": await self._client.leave(self._private_key)}

    def _peers(self, _params: dict[str, Any]) -> dict[str, Any]:
        network = self._client.network
        gateway4, gateway6 = (None if g is None else str(g) for g in (network.gateway4, network.gateway6))
        known = f"{network.host}:{network.port}"
        line = PeerLine(
            network.host, network.server_key, gateway4, gateway6, known, network.keepalive, was_heard=False
        )
        return peers(self._client.tunnels, [line], now(), keys=self._client.server_keys)

    def _status(self, _params: dict[str, Any]) -> dict[str, Any]:
        network = self._client.network
        return {
            **common(self._program, self._client.tunnels, now(), self._client.reports),
            **self._peers({}),
            "tunnels": [] if self._client.bundle is None else self._client.bundle.report(now()),
            "name": network.name,
            "port": network.port,
            "listen_port": self._port,
            "addresses": [str(each) for each in network.addresses],
            "routes": [str(each) for each in network.routes],
            "mtu": network.mtu,
            "pool": None,
            "window": None,
            "warnings": self._warnings(),
            "rootless": self._ways,
        }

    def _warnings(self) -> list[str]:
        network, unanswered = self._client.network, self._client.unanswered
        warnings = broken(self._client.tunnels)
        if self._keeper is not None:
            warnings += self._keeper.warnings()
        if unanswered < 2:
            return warnings
        return [
            *warnings,
            f"{network.host} does not answer handshakes ({unanswered} tried): it is down or unreachable, or it has "
            f"revoked this machine. Its fingerprint was {fingerprint(network.server_key)}.",
        ]


def _not_here(_params: dict[str, Any]) -> dict[str, Any]:
    raise RefusedError(
        "This daemon is a client; the window and the peers belong to its server.", "Run it on the server."
    )
