"""The gate: what a handshake datagram must prove before it costs Python a Diffie-Hellman (sections 5.3, 5.4.7).

First its length is checked, then MAC1, which proves that the sender knows our public key. A source that sends too
often, and everybody while we are under load, must also send MAC2, which proves that the sender can receive at
its address. Any MAC2 but zero is checked before the datagram gets the place of a sender who proves something.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from ipaddress import IPv6Address

from rustguard_py.model.endpoint import Endpoint
from rustguard_py.protocol import cookie, wire

# Handshake datagrams that may wait for Python: the kernel's MAX_QUEUED_INCOMING_HANDSHAKES.
HANDSHAKE_QUEUE = 4096
# With this many waiting we are under load, and for LOAD_LASTS seconds afterwards. It also lasts while as many
# within that time would have passed without it.
LOADED_QUEUE = HANDSHAKE_QUEUE // 8
LOAD_LASTS = 1.0
# Budget of a source, a /32 or /64: datagrams per second, and at once (the kernel's ratelimiter).
RATE = 20.0
BURST = 5
# Sources remembered at once per kind of budget.
SOURCES = 8192
# Seconds between two searches for sources whose bucket is full again.
SWEEP_INTERVAL = 0.1


class Verdict(Enum):
    """What to do with a handshake datagram."""

    PASS = "pass"  # noqa: S105
    # The same, and MAC2 holds.
    PROVEN = "proven"
    CHALLENGE = "challenged"
    BAD_LENGTH = "bad_length"
    BAD_MAC1 = "bad_mac1"
    TOO_OFTEN = "handshake_rate"


class SourceBudget:
    """A token bucket per source: RATE tokens per second, BURST at once.

    One number is kept per source: when its bucket is full again. A source with a full bucket isn't kept.
    """

    __slots__ = ("_full_at", "_swept_at")

    def __init__(self) -> None:
        self._full_at: dict[bytes | str | int, float] = {}
        self._swept_at = float("-inf")

    def spend(self, source: bytes | str | int, now: float) -> bool:
        """Take a token of `source`. Return False if there is none.

        If SOURCES buckets aren't full, a new source gets False too: that is a flood from forged addresses.
        """
        full_at = self._full_at.get(source)
        if full_at is None:
            if len(self._full_at) >= SOURCES and not self._forget_full(now):
                return False
            full_at = now
        elif full_at < now:
            full_at = now
        if full_at - now > (BURST - 1) / RATE + 1e-9:
            return False
        self._full_at[source] = full_at + 1 / RATE
        return True

    def _forget_full(self, now: float) -> bool:
        # A search for each datagram would make the flood more expensive for us.
        if now - self._swept_at < SWEEP_INTERVAL:
            return False
        self._swept_at = now
        self._full_at = {source: at for source, at in self._full_at.items() if at > now}
        return len(self._full_at) < SOURCES


def source_network(source: Endpoint) -> bytes | str:
    """Return the key of a source's budget: the IPv4 address, or the first 64 bits of an IPv6 one."""
    host = source[0]
    if ":" not in host:
        return host
    return IPv6Address(host.partition("%")[0]).packed[:8]


class Gate:
    """The gate of one plane.

    Each source has two budgets: one for datagrams that prove their address with MAC2, one for all others. So a flood
    from a forged address can only cause its real owner to be challenged.

    Args:
        public_key: Our own, 32 bytes.
        random: Returns n random bytes.
    """

    __slots__ = (
        "_answers",
        "_cookie_key",
        "_loaded_until",
        "_mac1_key",
        "_pressing",
        "_proven",
        "_random",
        "_secrets",
        "_unproven",
    )

    def __init__(self, public_key: bytes, random: Callable[[int], bytes]) -> None:
        self.set_public_key(public_key)
        self._secrets = cookie.CookieSecrets(random)
        self._random = random
        self._unproven = SourceBudget()
        self._proven = SourceBudget()
        # Of each receiver index of ours, for cookie replies.
        self._answers = SourceBudget()
        self._loaded_until = float("-inf")
        # Datagrams that would have passed without load.
        self._pressing = 0

    def set_public_key(self, public_key: bytes) -> None:
        """Use another public key (32 bytes) from now on."""
        self._mac1_key = cookie.mac1_key(public_key)
        self._cookie_key = cookie.cookie_key(public_key)

    def judge(self, datagram: bytes, source: Endpoint, backlog: int, now: float) -> Verdict:
        """Return what to do with a datagram of type 1 or 2.

        Args:
            datagram: The whole datagram.
            source: Where it came from.
            backlog: Number of handshake datagrams that wait for Python.
            now: The time.
        """
        size = wire.INITIATION_SIZE if datagram[0] == wire.INITIATION else wire.RESPONSE_SIZE
        if len(datagram) != size:
            return Verdict.BAD_LENGTH
        if not cookie.mac1_holds(datagram, self._mac1_key):
            return Verdict.BAD_MAC1
        if backlog >= LOADED_QUEUE:
            self._loaded_until = now + LOAD_LASTS
        network = source_network(source)
        # A sender without a cookie leaves MAC2 zero (section 5.4.4). Most of a flood does.
        proven = any(datagram[-wire.MAC_SIZE :]) and self._secrets.mac2_holds(datagram, source, now)
        if proven and self._proven.spend(network, now):
            return Verdict.PROVEN
        if self._passes(network, now):
            return Verdict.PASS
        return Verdict.TOO_OFTEN if proven else Verdict.CHALLENGE

    def judge_cookie_reply(self, receiver: int, now: float) -> Verdict:
        """Judge a cookie reply to the index `receiver`.

        We gave out that index, and only those who saw a datagram of ours know it.
        """
        return Verdict.PROVEN if self._answers.spend(receiver, now) else Verdict.TOO_OFTEN

    def _passes(self, network: bytes | str, now: float) -> bool:
        """Return whether a datagram passes without proving its address."""
        in_budget = self._unproven.spend(network, now)
        if now >= self._loaded_until:
            self._pressing = 0
            return in_budget
        self._pressing += in_budget
        if self._pressing >= LOADED_QUEUE:
            # Ending the load now would pass as many again at once.
            self._pressing = 0
            self._loaded_until = now + LOAD_LASTS
        return False

    def challenge(self, datagram: bytes, source: Endpoint, now: float) -> bytes:
        """Return the cookie reply (64 bytes) to a challenged datagram of type 1 or 2."""
        sender = int.from_bytes(datagram[4:8], "little")
        mac1 = datagram[-2 * wire.MAC_SIZE : -wire.MAC_SIZE]
        given = self._secrets.cookie_for(source, now)
        return cookie.cookie_reply(sender, given, mac1, self._cookie_key, self._random)
