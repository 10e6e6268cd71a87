"""Two hosts, a link, and a WireGuard of one implementation on each."""

from __future__ import annotations

import sys
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from rustguard_py.lab.hosts import End, Host, Lab
from support import kernel_wireguard, machine, refusing, rustguard_wg
from support.kernel_wireguard import KernelWireGuard
from support.wireguard_go import Peer, WireGuardGo

# The ends of the tunnel.
HERE4, THERE4, HERE6, THERE6 = "10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"


@dataclass(slots=True)
class Implementation:
    """One of them.

    Attributes:
        name: `portable`, `native`, `wireguard-go` or `kernel`.
        channel: If ours has a channel in place of an interface, its UDP side (`support.channel_wg`); else empty.
        folder: For the state of ours.
        refused: What wireguard-go is refused (`support.refusing`); nothing if empty.
    """

    name: str
    folder: Path
    refused: str = ""
    channel: str = ""
    started: int = 0

    def start(self, host: Host, *addresses: str, port: int = 0) -> WireGuardGo:
        """Start one without peers."""
        self.started += 1
        if self.name == "kernel":
            return KernelWireGuard(host, addresses, argv=kernel_wireguard.ARGV, port=port)
        argv = None
        if self.name != "wireguard-go":
            argv = rustguard_wg.argv(self.folder / str(self.started), engine=self.name, channel=self.channel)
        elif self.refused:
            argv = [sys.executable, refusing.__file__, self.refused, str(machine.wireguard_go()), "--foreground"]
        return WireGuardGo(host, addresses, argv=argv, port=port)


class Pair:
    """A WireGuard here and one there, which know each other; no handshake was made yet.

    Args:
        here: The end of a link that one starts at.
        there: The end of the same or of another link; it is reachable from `here`.
        implementation: Of both.
        knows: Whether the one there is told where the other is.
    """

    def __init__(self, here: End, there: End, implementation: Implementation, *, knows: bool = True) -> None:
        self.here, self.there = here, there
        self.one = implementation.start(here.host, f"{HERE4}/24", f"{HERE6}/64")
        self.other = implementation.start(there.host, f"{THERE4}/24", f"{THERE6}/64")
        to_one = f"{here.ipv4}:{self.one.port}" if knows else None
        self.one.set_peer(
            Peer(self.other.public_key, [f"{THERE4}/32", f"{THERE6}/128"], f"{there.ipv4}:{self.other.port}")
        )
        self.other.set_peer(Peer(self.one.public_key, [f"{HERE4}/32", f"{HERE6}/128"], to_one))

    def set_one(self, *words: str) -> None:
        """`wg set` here, of the peer there."""
        wg(self.one.host, "set", "wg0", "peer", text(self.other.public_key), *words)

    def set_other(self, *words: str) -> None:
        """`wg set` there, of the peer here."""
        wg(self.other.host, "set", "wg0", "peer", text(self.one.public_key), *words)

    def seen_by_one(self) -> str:
        """Where the other is, for the one here."""
        return self.one.peer(self.other.public_key).endpoint

    def seen_by_other(self) -> str:
        """Where the one here is, for the other."""
        return self.other.peer(self.one.public_key).endpoint


def linked(lab: Lab) -> tuple[End, End]:
    """Give the ends of a link between two hosts that a WireGuard can run on."""
    one, other = lab.host("one", own_run=True), lab.host("other", own_run=True)
    return lab.link(one, other, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")


def text(key: bytes) -> str:
    """A key as `wg` takes it."""
    return b64encode(key).decode()


def uapi(host: Host, *lines: str) -> list[str]:
    """Ask the WireGuard of a host in the words of wg(8), some of which the one here doesn't know; give the answer."""
    ask = (
        "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect('/run/wireguard/wg0.sock');"
        "s.sendall(sys.stdin.buffer.read());f=s.makefile()\n"
        "for line in f:\n if line=='\\n': break\n print(line,end='')"
    )
    return host.run([sys.executable, "-c", ask], stdin="\n".join(lines) + "\n\n").stdout.splitlines()


def wg(host: Host, *words: str) -> str:
    """Run `wg`."""
    return host.run(["wg", *words]).stdout


def at(address: object, port: int) -> str:
    """An endpoint as `wg` takes and gives it."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def ping(host: Host, address: object, *options: str, count: int = 5) -> None:
    """Have each of some pings answered; the first waits for a handshake."""
    host.run(["ping", f"-c{count}", "-i0.02", "-W10", *options, str(address)])


def reaches(host: Host, address: object, *options: str) -> bool:
    """Whether a ping is answered within a second."""
    return host.run(["ping", "-c1", "-W1", *options, str(address)], check=False).returncode == 0


def carry(sender: Host, receiver: Host, address: object, size: int = 2_000_000) -> None:
    """Carry bytes over TCP to an address of the receiver's; they arrive as they were sent."""
    family = "socket.AF_INET6" if ":" in str(address) else "socket.AF_INET"
    listen = (
        f"import socket,hashlib;s=socket.create_server(({str(address)!r},7000),family={family});print(flush=True);"
        "c,_=s.accept();h=hashlib.sha256()\nwhile d:=c.recv(65536): h.update(d)\nc.sendall(h.digest())"
    )
    send = (
        f"import socket,hashlib,os;d=os.urandom({size});c=socket.create_connection(({str(address)!r},7000),30);"
        "c.sendall(d);c.shutdown(1)\nassert c.recv(32,socket.MSG_WAITALL)==hashlib.sha256(d).digest()"
    )
    listener = receiver.popen([sys.executable, "-c", listen], stdout=-1)
    assert listener.stdout is not None
    listener.stdout.readline()
    sender.run([sys.executable, "-c", send])
    assert listener.wait(30) == 0
