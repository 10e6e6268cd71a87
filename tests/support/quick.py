"""Hosts whose tunnels are wg-quick files, brought up and down by the commands, and what can be seen of them.

laptop 192.0.2.2 ── 192.0.2.1 home, 198.51.100.1 ── 198.51.100.2 office        IPv6 likewise
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.daemon.control.client import call, listens
from rustguard_py.lab.hosts import End, Host, Lab
from support import preloaded
from support.product import eventually

PORT = 51820


def base64(key: bytes) -> str:
    return b64encode(key).decode()


@dataclass(slots=True)
class Key:
    """A private key and its public key, 32 bytes each."""

    private: bytes = field(default_factory=lambda: X25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        return X25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()


@dataclass(slots=True)
class Quick:
    """A host with files of its own, on which `rustguard up` and the like are run."""

    host: Host
    key: Key = field(default_factory=Key)

    @property
    def root(self) -> Path:
        """Its files, seen from here."""
        return Path(f"/proc/{self.host.pid}/root")

    def file(self, interface: str, *peers: str, name: str = "wg0") -> Path:
        """Write /etc/wireguard/NAME.conf: our key, these lines, these [Peer] sections."""
        path = self.root / f"etc/wireguard/{name}.conf"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(f"[Interface]\nPrivateKey = {base64(self.key.private)}\n{interface}\n{''.join(peers)}")
        path.chmod(0o600)
        return path

    def peer(self, lines: str, preshared_key: bytes | None = None) -> str:
        """The [Peer] section that others have for us."""
        secret = f"PresharedKey = {base64(preshared_key)}\n" if preshared_key else ""
        return f"\n[Peer]\nPublicKey = {base64(self.key.public)}\n{secret}{lines}\n"

    def run(self, words: str, *, check: bool = True, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` to its end; with `path`, programs are looked for there first."""
        return preloaded.run(self.host, self.command(words), check=check, env=self.environment(path))

    def start(self, words: str, log: Path) -> subprocess.Popen[str]:
        """Start `rustguard WORDS`."""
        return preloaded.popen(self.host, self.command(words), log=log)

    def command(self, words: str) -> list[str]:
        return [sys.executable, "-m", "rustguard_py.cli", *words.split()]

    def environment(self, path: Path | None) -> dict[str, str]:
        usual = "/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": f"{path}:{usual}"} if path is not None else {}

    def status(self) -> dict[str, Any]:
        """That of the one tunnel which runs here, asked for as the command does, without the start of one."""
        [socket] = self._sockets()
        return call(socket, "status")

    def _sockets(self) -> list[Path]:
        return [each for each in (self.root / "run/rustguard").glob("*.sock") if listens(each)]

    def kill(self) -> None:
        """Kill the daemon of that tunnel, and come back when nobody listens at its socket any more."""
        os.kill(self.status()["pid"], signal.SIGKILL)
        eventually(lambda: not self._sockets(), what="the daemon's end")

    def pings(self, address: str, *options: str) -> bool:
        done = self.host.run(["ping", "-n", "-c1", "-W1", *options, address], check=False)
        return done.returncode == 0

    def reaches(self, address: str) -> None:
        """Wait until a ping is answered."""
        eventually(lambda: self.pings(address), what=f"{self.host.name} reaching {address}")

    def says(self, *argv: str) -> str:
        return self.host.run(argv).stdout

    def system(self) -> str:
        """Everything that a tunnel could change: compared before and after."""
        return self.says(
            "sh",
            "-c",
            "ip -o link | cut -d' ' -f2; ip -o addr | sed 's/valid_lft.*//'; ip rule; ip -6 rule;"
            "ip route show table all; ip -6 route show table all | grep -v fe80 | sed 's/expires [0-9]*sec//';"
            "nft list ruleset; cat /proc/sys/net/ipv4/conf/all/src_valid_mark /etc/resolv.conf;"
            "find /run/rustguard /etc/wireguard -type f -o -type s 2> /dev/null | sort",
        )


@dataclass(slots=True)
class Lan:
    """`laptop` on a link with `home`, which forwards to `office` on another."""

    laptop: Quick
    home: Quick
    office: Host
    ends: tuple[End, End, End, End]


def lan(lab: Lab) -> Lan:
    """Make the three hosts, with routes between them."""
    laptop, home = (lab.host(name, own_files=True) for name in ("laptop", "home"))
    for host in (laptop, home):
        # Not the machine's, which may be a link that leads out of here, and says who has charge of names.
        host.run(["sh", "-c", "rm -f /etc/resolv.conf; : > /etc/resolv.conf"])
    office = lab.host("office")
    ends = lab.through(
        laptop,
        home,
        office,
        nets4=("192.0.2.0/24", "198.51.100.0/24"),
        nets6=("2001:db8:1::/64", "2001:db8:2::/64"),
    )
    return Lan(Quick(laptop), Quick(home), office, ends)
