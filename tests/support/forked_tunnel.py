"""A tunnel on any engine in a fork, peers given by hand: no enrollment. It is told what to do over a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.daemon import runtime
from rustguard_py.daemon.program import Program
from rustguard_py.engine import Engine
from rustguard_py.lab.hosts import Host
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Endpoint, endpoint_text
from rustguard_py.model.keys import NO_PRESHARED_KEY
from rustguard_py.model.peer import PeerConfig
from rustguard_py.model.tunnel import AnyTunnel, Listeners
from rustguard_py.system.interface import InterfaceSetup, set_up
from rustguard_py.system.sockets import bind
from support.forked import Forked

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a tunnel says of a peer."""

    endpoint: str | None
    rx_bytes: int
    tx_bytes: int
    handshakes: int
    sessions: int
    moves: int


class ForkedTunnel:
    """A tunnel in a host.

    Args:
        host: Where.
        engine: `kernel`, `native` or `portable`.
        addresses: Of the interface, with prefix lengths.
        folder: For what it says.
        port: UDP.
        options: Further ones of `Engine`.
    """

    def __init__(
        self, host: Host, engine: str, addresses: list[str], folder: Path, port: int, **options: Any
    ) -> None:
        private = X25519PrivateKey.generate()
        self.public_key = private.public_key().public_bytes_raw()
        self.host = host
        self._ours, theirs = multiprocessing.Pipe()
        state = folder / f"{host.name}-{engine}"
        state.mkdir(exist_ok=True)
        made = Engine(engine, "asked for", **options)
        self.log = folder / f"{host.name}-{engine}.said"
        self.process = Forked(
            host,
            lambda: asyncio.run(_run(theirs, made, private.private_bytes_raw(), addresses, state, port)),
            self.log,
        )
        theirs.close()
        self._answer()

    def set_peer(
        self,
        other: bytes,
        allowed: list[str],
        *,
        endpoint: Endpoint | None = None,
        psk: bytes = NO_PRESHARED_KEY,
        keepalive: int = 0,
    ) -> None:
        """Add a peer, or change it; back when it holds."""
        networks = tuple(ip_network(each) for each in allowed)
        self._ask("set", PeerConfig(other, networks, psk, endpoint, keepalive))

    def remove_peer(self, other: bytes) -> None:
        """Forget a peer."""
        self._ask("remove", other)

    def told(self, other: bytes) -> Told:
        """What it knows of a peer now."""
        told: Told = self._ask("tell", other)
        return told

    def stop(self) -> None:
        """End it in order."""
        self._ours.send(("stop", None))
        assert self.process.wait() == 0, self.log.read_text()
        self._ours.close()

    def _ask(self, what: str, argument: Any) -> Any:
        self._ours.send((what, argument))
        return self._answer()

    def _answer(self) -> Any:
        assert self._ours.poll(PATIENCE), f"no answer: {self.log.read_text()}"
        try:
            return self._ours.recv()
        except EOFError as error:
            raise AssertionError(self.log.read_text()) from error


async def _run(
    pipe: Connection, engine: Engine, private_key: bytes, addresses: list[str], state: Path, port: int
) -> None:
    sessions: list[bytes] = []
    moves: list[bytes] = []
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        program = Program("client", state, "rg0", engine, now())
        tunnel, _ = runtime.make_tunnel(stack, program, private_key, bind(port), 1420)
        tunnel.listeners = Listeners(
            session=lambda peer: sessions.append(peer.config.public_key),
            moved=lambda peer, _: moves.append(peer.config.public_key),
        )
        layout = InterfaceSetup("rg0", 1420, tuple(ip_interface(each) for each in addresses))
        stack.callback(set_up(layout, lambda _: None).undo, lambda _: None)
        tunnel.start()

        def on_order() -> None:
            what, argument = pipe.recv()
            if what == "stop":
                stop.set()
            elif what == "set":
                tunnel.node.set_peer(argument)
                pipe.send(None)
            elif what == "remove":
                tunnel.node.remove_peer(argument)
                pipe.send(None)
            else:
                pipe.send(_tell(tunnel, argument, sessions, moves))
            tunnel.wake()

        asyncio.get_running_loop().add_reader(pipe.fileno(), on_order)
        pipe.send(None)
        await stop.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())


def _tell(tunnel: AnyTunnel, other: bytes, sessions: list[bytes], moves: list[bytes]) -> Told:
    stats = tunnel.plane.stats().peers
    peer = tunnel.node.get(other)
    assert peer is not None
    counters = stats[peer.id]
    return Told(
        endpoint_text(counters.endpoint),
        counters.rx_bytes,
        counters.tx_bytes,
        counters.handshakes,
        sessions.count(other),
        moves.count(other),
    )
