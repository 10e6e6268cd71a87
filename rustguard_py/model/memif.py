"""Which memif stands for the interface: the words of `--memif`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from rustguard_py.model.counted import counted
from rustguard_py.model.errors import UsageError
from rustguard_py.model.ethernet import EthernetOptions

# The kernel's sun_path has 108 bytes, the last of them zero.
LONGEST_PATH = 107
# DPDK's secret has 24 bytes, the last of them zero.
_LONGEST_SECRET = 23
_MOST_ID = (1 << 32) - 1
_MOST_QUEUES = 64
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
FORM = (
    "SOCKET[,id=N,role=client|server,secret=WORD,queues=N,mode=ip|ethernet,"
    "mac=MAC,gateway=MAC,answer=RANGE|none,learn=RANGE]"
)
_ETHERNET = ("mac", "gateway", "answer", "learn")
# As a range to answer for.
_NO_ANSWERS = "none"


@dataclass(frozen=True, slots=True)
class MemifOptions:
    """A memif.

    Attributes:
        socket: Of the control channel: an absolute path.
        number: Its id on that socket.
        server: Whether we listen. The other side is then the client, which makes the memory.
        secret: Up to 23 bytes that both sides need, or none.
        queues: Rings per direction.
        ethernet: Our side of the link if the other side wants Ethernet frames. None for IP packets.
        metered: Whether reads and writes are timed, for `bench generate`.
    """

    socket: Path
    number: int = 0
    server: bool = False
    secret: bytes = field(default=b"", repr=False)
    queues: int = 1
    ethernet: EthernetOptions | None = None
    metered: bool = False

    def __str__(self) -> str:
        """Return a few words for people."""
        return f"memif {self.number} at {self.socket}, {'server' if self.server else 'client'}"


@dataclass(frozen=True, slots=True)
class MemifState:
    """A memif, and how it is connected.

    Attributes:
        options: The memif.
        peer: The other side's program and interface, or None while nobody is connected.
        connections: How many there were, with this one.
        why: Why there is no connection, if that is known.
        seconds: For how long that is so.
    """

    options: MemifOptions
    peer: tuple[str, str] | None
    connections: int
    why: str | None
    seconds: float

    def __str__(self) -> str:
        """Return it in a sentence."""
        if self.peer is not None:
            program, interface = self.peer
            so_far = f"{counted(self.connections, 'connection')} so far"
            return f"{self.options}: connected to {interface} of {program} ({so_far})"
        return f"{self.options}: not connected" + (f" ({self.why})" if self.why else "")

    def to_json(self) -> dict[str, object]:
        """Return it for a status document. The secret stays here."""
        program, interface = self.peer or (None, None)
        options = self.options
        return {
            "socket": str(options.socket),
            "id": options.number,
            "role": "server" if options.server else "client",
            "mode": "ip" if options.ethernet is None else "ethernet",
            "queues": options.queues,
            "connected": self.peer is not None,
            "program": program,
            "interface": interface,
            "since": round(self.seconds, 3),
            "connections": self.connections,
            "why": None if self.peer is not None else self.why,
        }


def absolute(text: str) -> str:
    """Return the value of `--memif` with the path that it has from every directory. `parse` documents the errors."""
    path, comma, words = text.partition(",")
    return f"{parse(text).socket if path else path}{comma}{words}"


def parse(text: str) -> MemifOptions:
    """Parse the value of `--memif`.

    Raises:
        UsageError: It has another form.
    """
    path, *words = text.split(",")
    socket = Path(path).absolute()
    if not path or len(bytes(socket)) > LONGEST_PATH:
        raise UsageError(f"{path!r} can't be a socket's path: it has 1 to {LONGEST_PATH} bytes.", f"Form: {FORM}")
    given: dict[str, str] = {}
    ranges: dict[str, list[str]] = {"answer": [], "learn": []}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in ranges:
            ranges[name].append(value)
            continue
        if not equals or name not in ("id", "role", "secret", "queues", "mode", "mac", "gateway") or name in given:
            raise UsageError(f"--memif has a word that isn't known or comes twice: {name!r}.", f"Form: {FORM}")
        given[name] = value
    if (role := given.get("role", "client")) not in ("client", "server"):
        raise UsageError(f"A memif has no role {role!r}.", "Choose one of: client, server.")
    if (mode := given.get("mode", "ip")) not in ("ip", "ethernet"):
        raise UsageError(f"There is no mode {mode!r} of a memif.", "Choose one of: ip, ethernet, as the other side.")
    ethernet = _ethernet(given, ranges)
    if mode == "ip" and ethernet != EthernetOptions():
        raise UsageError(f"Only mode=ethernet has {', '.join(_ETHERNET)}.", "Add mode=ethernet.")
    secret = given.get("secret", "").encode()
    if len(secret) > _LONGEST_SECRET or b"\0" in secret:
        raise UsageError(f"A memif's secret has at most {_LONGEST_SECRET} bytes.", "Choose a shorter one.")
    return MemifOptions(
        socket,
        _number(given.get("id", "0"), "id", 0, _MOST_ID),
        role == "server",
        secret,
        _number(given.get("queues", "1"), "queues", 1, _MOST_QUEUES),
        ethernet if mode == "ethernet" else None,
    )


def _ethernet(given: dict[str, str], ranges: dict[str, list[str]]) -> EthernetOptions:
    fixed, named = bool(ranges["answer"]), [each for each in ranges["answer"] if each != _NO_ANSWERS]
    if named and named != ranges["answer"]:
        raise UsageError(f"answer={_NO_ANSWERS} and answer={named[0]} exclude each other.", "Leave one of them out.")
    answered, learnt = (
        tuple(_range(each, f"{name}={each}") for each in texts)
        for name, texts in (("answer", named), ("learn", ranges["learn"]))
    )
    both = set(answered) & set(learnt)
    if both:
        raise UsageError(f"{both.pop()} is in answer and in learn.", "Leave one of the two out.")
    mac, gateway = (None if (text := given.get(name)) is None else _mac(text, name) for name in ("mac", "gateway"))
    return EthernetOptions(mac, gateway, answered, learnt, fixed=fixed)


def _mac(text: str, name: str) -> bytes:
    mac = bytes.fromhex(text.replace(":", "")) if _MAC.fullmatch(text) else b""
    if not any(mac) or mac[0] & 1:
        raise UsageError(f"{name}={text} isn't the MAC address of one interface.", f"Form: {name}=02:00:00:00:00:01")
    return mac


def _range(text: str, word: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"{word} isn't a range of addresses: {error}.", "Form: 10.0.0.0/24, or fd00::/64") from None


def _number(text: str, name: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise UsageError(f"{name}={text} isn't a number from {least} to {most}.", f"Form: {FORM}")
    return int(text)
