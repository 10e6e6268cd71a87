"""One end of the tunnel that `rustguard bench generate` measures: an engine with a generator and a sink.

    python -m rustguard_py.cli.generate.end

The first line of standard input is the configuration (`Configuration`), each further one an order; each answer is a
line of JSON on standard output:

    {"do": "send", "trial": 1, "sizes": [64], "flows": 16, "rate": 1000, "seconds": 1}    a rate of 0: no limit
    {"do": "receive", "trial": 1, "flows": 16}
    {"do": "report", "sent": 1000}

It ends with its standard input. `bench/wireguard-go` is the same with wireguard-go.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from rustguard_py.cli.generate import layout, threads
from rustguard_py.cli.generate.portable import Generator, PortableGenerator
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine, choose
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RustGuardError, UnansweredError
from rustguard_py.model.memif import MemifOptions
from rustguard_py.model.peer import PeerConfig
from rustguard_py.node import Node
from rustguard_py.planes.contract import EventfulPlane, Fault
from rustguard_py.planes.offload import wanted_gso_segments
from rustguard_py.protocol.noise import StaticKey
from rustguard_py.system.interface import InterfaceSetup, set_up
from rustguard_py.system.sockets import bind

INTERFACE = "rg0"
_ETH_P_IP = 0x0800
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
_CONNECT_SECONDS = 5.0
_NOT_XDP = "AF_XDP is not used"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What an end gets first.

    Attributes:
        private_key: Base64.
        peer_key: The other end's public key, base64.
        port: UDP port of both ends.
        endpoint: Of the other end, `192.0.2.2:51820`.
        address: Inside the tunnel.
        peer_address: The other end's inside.
        mtu: Of the tunnel.
        capacity: Packets that may wait in the channel, each way.
        device: `channel`, `memif` or `tun`.
        engine: `native` or `portable`.
        uring: Whether the engine uses io_uring.
        xdp: The interface of AF_XDP, or None.
        memif: The path of a memif's socket, if that is the device.
        offloads: The list of `--offloads`, or None.
    """

    private_key: str
    peer_key: str
    port: int
    endpoint: str
    address: str
    peer_address: str
    mtu: int
    capacity: int
    device: str
    engine: str
    uring: bool
    xdp: str | None
    memif: str = ""
    offloads: str | None = None


class Timestamps:
    """`rustguard_py.node.Timestamps` that end with the process. Both ends have new keys in each run."""

    def __init__(self) -> None:
        self._greatest: dict[bytes, bytes] = {}

    def greatest(self, key: bytes) -> bytes | None:
        """Return the greatest timestamp of a key, or None."""
        return self._greatest.get(key)

    def record(self, key: bytes, timestamp: bytes) -> None:
        """Record the greatest timestamp (12 bytes) of a key (32 bytes)."""
        self._greatest[key] = timestamp

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        """Return whether a peer can't have sent it before."""
        return timestamp > self._greatest.get(key, b"")


@dataclass(frozen=True, slots=True)
class Started:
    """What an end consists of.

    Attributes:
        engine: The engine.
        plane: Its plane.
        generator: What sends and counts.
        costs: Returns the nanoseconds of the device's reads and writes so far, or None if nobody knows.
    """

    engine: Engine
    plane: EventfulPlane
    generator: Generator
    costs: Callable[[], tuple[float, float] | None] = lambda: None


def start(given: Configuration) -> Started:
    """Start the engine and its generator.

    Raises:
        RustGuardError: The engine can't be started, or not with what was asked for.
    """
    engine = choose(DataPath(given.engine, uring=given.uring, xdp=given.xdp, offloads=given.offloads))
    public = StaticKey(b64decode(given.private_key)).public
    sockets = bind(given.port, ["0.0.0.0"])  # noqa: S104 - in a network namespace with one link
    if given.device == "tun":
        plane = engine.make_plane(public, INTERFACE, sockets, given.mtu)
        address, peer = IPv4Interface(f"{given.address}/32"), IPv4Network(f"{given.peer_address}/32")
        set_up(
            InterfaceSetup(INTERFACE, given.mtu, (address,), (peer,), wanted_gso_segments(given.mtu)), lambda _: None
        )
        return Started(engine, plane, _on_interface(given))
    if given.device == "memif":
        from rustguard_py.planes.native import NativePlane

        memif = MemifOptions(Path(given.memif), server=True, queues=engine.queues, metered=True)
        plane = engine.on_memif(memif).make_plane(public, INTERFACE, sockets, given.mtu)
        costs = plane.memif_costs if isinstance(plane, NativePlane) else lambda: None
        return Started(engine, plane, _on_memif(given, memif), costs)
    memory = given.capacity * given.mtu
    if engine.name == "portable":
        channel = engine.make_channel(given.capacity, memory)
        plane = engine.make_plane(public, INTERFACE, sockets, given.mtu, channel=channel)
        return Started(engine, plane, PortableGenerator(channel, given.address, given.peer_address))
    from rustguard_py import _native

    metered = _native.Channel(queues=engine.queues, capacity=given.capacity, memory=memory, metered=True)
    plane = engine.make_plane(public, INTERFACE, sockets, given.mtu, channel=metered)
    generator = _native.Generator(given.address, given.peer_address, channel=metered)
    return Started(engine, plane, generator, metered.costs)


def _on_memif(given: Configuration, memif: MemifOptions) -> Generator:
    """Return a generator that is the client of the engine's memif, once it is connected."""
    from rustguard_py import _native

    far = _native.Memif(
        given.memif,
        listener=None,
        number=memif.number,
        secret=memif.secret,
        queues=memif.queues,
        ethernet=None,
        interface="generator",
    )
    generator = _native.Generator(given.address, given.peer_address, memif=far)
    deadline = now() + _CONNECT_SECONDS
    while far.state()[0] is None:
        if now() > deadline:
            raise UnansweredError(f"The generator's memif isn't connected: {far.state()[2]}")
        time.sleep(0.01)
    return generator


def _on_interface(given: Configuration) -> Generator:
    """Return a generator whose packets go into the interface as IP packets, and come out of a UDP socket."""
    from rustguard_py import _native

    into = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    into.bind((INTERFACE, _ETH_P_IP))
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        out.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:
        # In a user namespace the system's limit applies.
        out.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    out.bind((given.address, layout.TARGET_PORT))
    with into, out:
        return _native.Generator(
            given.address, given.peer_address, packet_socket=into.fileno(), udp_socket=out.fileno()
        )


class End:
    """The control thread: handshakes, and orders from standard input.

    Args:
        given: The configuration.
        begin: Starts the engine and its generator.
    """

    def __init__(self, given: Configuration, begin: Callable[[Configuration], Started] = start) -> None:
        started = begin(given)
        self._plane, self._generator, self._engine = started.plane, started.generator, started.engine
        self._costs = started.costs
        self._node = Node(
            StaticKey(b64decode(given.private_key)),
            self._plane,
            Timestamps(),
            wall=time.time_ns,
            random=os.urandom,
        )
        host, _, port = given.endpoint.rpartition(":")
        self._node.set_peer(
            PeerConfig(
                b64decode(given.peer_key),
                (IPv4Network(IPv4Address(given.peer_address)),),
                endpoint=(host, int(port)),
            )
        )
        self._before: dict[str, threads.Time] = {}
        self._process = 0, 0
        self._device = 0.0, 0.0
        self._drops: dict[str, int] = {}
        self._saying = threading.Lock()
        notes = self._plane.stats().notes
        if given.xdp and (why := [note for note in notes if note.startswith(_NOT_XDP)]):
            raise RustGuardError(why[0])
        self._say({"ready": True, "about": self._engine.reason, "notes": [*self._engine.notes, *notes]})

    def run(self) -> None:
        """Serve until the end of standard input."""
        orders = sys.stdin.fileno()
        rest = b""
        while True:
            deadline = self._node.poll_timeout()
            patience = None if deadline is None else max(0.0, deadline - now())
            readable, _, _ = select.select([orders, self._plane.fileno()], [], [], patience)
            for event in self._plane.poll_events():
                if isinstance(event, Fault) and event.fatal:
                    raise RustGuardError(event.message)
                self._node.handle_event(event, now())
            self._node.handle_timeout(now())
            while self._node.poll_event() is not None:
                pass
            if orders in readable:
                read = os.read(orders, 65536)
                if not read:
                    self._plane.close()
                    return
                *lines, rest = (rest + read).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        match order.pop("do"):
            case "send":
                rate = order.pop("rate") or None
                self._begin()
                # In a thread of its own: the handshakes go on meanwhile.
                self._in_thread(lambda: self._generator.send(**order, rate=rate), "generator")
            case "receive":
                self._begin()
                self._generator.receive(**order)
                self._say({"receiving": True})
            case "report":
                self._in_thread(lambda: self._generator.report(**order), "sink")

    def _begin(self) -> None:
        self._before, self._process = threads.read(), _process_time()
        self._device = self._costs() or (0.0, 0.0)
        self._drops = dict(self._plane.stats().drops)

    def _in_thread(self, act: Callable[[], dict[str, Any]], part: str) -> None:
        def work() -> None:
            try:
                done = act()
                drops = self._plane.stats().drops
                since = {reason: count - self._drops.get(reason, 0) for reason, count in drops.items()}
                used, device = self._used(done[part]), self._device_costs(part)
                self._say({**done, "engine": used, "device": device, "drops": since})
            except Exception as error:
                self._say({"error": f"{type(error).__name__}: {error}"})

        threading.Thread(target=work, daemon=True).start()

    def _used(self, part: dict[str, int]) -> dict[str, dict[str, int]]:
        """Return what the engine used since the order: by thread, or the process less the generator or sink."""
        if self._engine.name == "native":
            return threads.used(self._before, threads.read())
        user, system = (after - before for after, before in zip(_process_time(), self._process, strict=True))
        return {"all": {"user": max(0, user - part["user"]), "system": max(0, system - part["system"])}}

    def _device_costs(self, part: str) -> dict[str, float]:
        """Return what the device's reads (of the end that sends) or writes cost since the order."""
        costs = self._costs()
        if costs is None:
            return {}
        way, place = ("read", 0) if part == "generator" else ("write", 1)
        return {way: costs[place] - self._device[place]}

    def _say(self, what: dict[str, Any]) -> None:
        with self._saying:
            print(json.dumps(what), flush=True)


def _process_time() -> tuple[int, int]:
    times = os.times()
    return int(times.user * 1e9), int(times.system * 1e9)


def main(begin: Callable[[Configuration], Started] = start) -> int:
    """Run an end; return 1 if it failed, with a line of JSON that says why.

    Args:
        begin: See `End`.
    """
    try:
        End(Configuration(**json.loads(sys.stdin.buffer.readline())), begin).run()
    except (RustGuardError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
