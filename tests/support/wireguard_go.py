"""wireguard-go in a host of the lab, set up with wireguard-tools: a WireGuard that nobody here wrote."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.lab.hosts import Host
from support import machine, preloaded

START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer as `wg` takes it: keys are raw, the endpoint is `192.0.2.1:51820` or `[2001:db8::1]:51820`."""

    public_key: bytes
    allowed_ips: Sequence[str]
    endpoint: str | None = None
    preshared_key: bytes | None = None
    keepalive: int = 0

    def section(self) -> str:
        """The [Peer] section of a configuration file."""
        lines = [
            "[Peer]",
            f"PublicKey = {b64encode(self.public_key).decode()}",
            f"AllowedIPs = {', '.join(self.allowed_ips)}",
            f"PersistentKeepalive = {self.keepalive}",
        ]
        if self.endpoint:
            lines.append(f"Endpoint = {self.endpoint}")
        if self.preshared_key:
            lines.append(f"PresharedKey = {b64encode(self.preshared_key).decode()}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class PeerState:
    """What `wg show INTERFACE dump` tells of a peer; the handshake in seconds of the epoch, 0 for never."""

    endpoint: str
    last_handshake: int
    received: int
    sent: int


class WireGuardGo:
    """A running wireguard-go, ended with its lab or by `stop`.

    Args:
        host: Made with `own_run`: wireguard-go puts a socket under a fixed name there.
        addresses: Of the tunnel interface, with prefix lengths.
        peers: Whom it knows from the start.
        private_key: 32 bytes; a fresh one by default.
        port: To listen on; 0 for any.
        mtu: Of the tunnel interface.
        interface: Its name.
        log: A file for what it says, which is little.
        argv: Another program that is started, set up and ended like it; the interface's name is added. It logs as
            `WG_LOG_LEVEL` says.
    """

    def __init__(
        self,
        host: Host,
        addresses: Sequence[str],
        peers: Sequence[Peer] = (),
        *,
        private_key: bytes | None = None,
        port: int = 0,
        mtu: int = 1420,
        interface: str = "wg0",
        log: Path | None = None,
        argv: Sequence[str] | None = None,
    ) -> None:
        if argv is None:
            program = machine.wireguard_go()
            assert program is not None, "the test isn't marked needs_wireguard_go"
            argv = [program, "--foreground"]
        key = X25519PrivateKey.from_private_bytes(private_key) if private_key else X25519PrivateKey.generate()
        self.public_key = key.public_key().public_bytes_raw()
        self.host = host
        self.interface = interface
        levels = {"LOG_LEVEL": "verbose" if log else "error", "WG_LOG_LEVEL": "error"}
        self.process = preloaded.popen(host, [*argv, interface], log=log, env=levels)
        self._wait_until_there()
        section = f"[Interface]\nPrivateKey = {b64encode(key.private_bytes_raw()).decode()}\nListenPort = {port}\n"
        self._wg("setconf", section + "".join(peer.section() for peer in peers))
        host.ip(
            [
                *(f"address add {address} dev {interface}" for address in addresses),
                f"link set dev {interface} mtu {mtu} up",
            ]
        )
        for peer in peers:
            self._route(peer)
        self._wait_for_its_port()

    def set_peer(self, peer: Peer) -> None:
        """Add a peer, or change it."""
        self._wg("addconf", peer.section())
        self._route(peer)

    def peer(self, public_key: bytes) -> PeerState:
        """What it knows of a peer."""
        wanted = b64encode(public_key).decode()
        for line in self.host.run(["wg", "show", self.interface, "dump"]).stdout.splitlines()[1:]:
            key, _, endpoint, _, handshake, received, sent, _ = line.split("\t")
            if key == wanted:
                return PeerState(endpoint, int(handshake), int(received), int(sent))
        raise LookupError(wanted)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.host.run(["wg", "show", self.interface, "listen-port"]).stdout)

    def stop(self) -> None:
        """End it; its interface goes with it."""
        self.process.terminate()
        self.process.wait(START_SECONDS)

    def _wg(self, verb: str, config: str) -> None:
        self.host.run(["wg", verb, self.interface, "/dev/stdin"], stdin=config)

    def _route(self, peer: Peer) -> None:
        self.host.ip([f"route replace {network} dev {self.interface}" for network in peer.allowed_ips])

    def _wait_for_its_port(self) -> None:
        """It opens its sockets on its own time, after it was told that the interface is up."""
        deadline = time.monotonic() + START_SECONDS
        while not self.port:
            assert time.monotonic() < deadline, "wireguard-go has no port"
            time.sleep(0.01)
        self.host.wait_listening("udp", self.port, START_SECONDS)

    def _is_there(self) -> bool:
        """Whether it can be set up: it makes its socket last."""
        return Path(f"/proc/{self.host.pid}/root/run/wireguard/{self.interface}.sock").exists()

    def _wait_until_there(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_there():
            assert self.process.poll() is None, f"{self.process.args!r} ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"{self.process.args!r} is not there to be set up"
            time.sleep(0.01)
