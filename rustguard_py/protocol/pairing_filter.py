"""What a pairing datagram must show before a server's Python looks at it (docs/internals/enrollment.md).

In order:

- Its length and its type. A HELLO of another revision is answered by REVISION.
- HELLO is answered here and leaves nothing behind. Anybody can send one in anybody's name, so there is one pace for
  all. A source that sends many has only half of it.
- SHARE_C must hold a cookie that we made for its source. Only then is its source charged, and then all sources.
- CONFIRM and FORGET must name a session. We learn the sessions from what Python sends. A session is charged, and then
  all sessions.

So nothing that somebody off the path sends is charged to a source or to a session.
"""

from __future__ import annotations

import hmac
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s

from rustguard_py.model.endpoint import Endpoint, address_of
from rustguard_py.model.pairing import (
    PAIRING_PREFIX,
    PAIRING_REVISION,
    PairingGate,
    pairing_cookie,
)

MAGIC = PAIRING_PREFIX
REVISION = PAIRING_REVISION
HELLO, CHALLENGE, SHARE_C, SHARE_S, CONFIRM, RESULT, FORGET, OTHER_REVISION = range(1, 9)
# Bytes of what a client sends.
SIZES = {HELLO: 128, SHARE_C: 132, CONFIRM: 1232, FORGET: 48}
# The reason that such an answer is counted under: the HELLO itself was of no use.
REVISION_REASON = "pairing_revision"
# Of a HELLO of any revision: the header and nonce_c.
_SHORTEST_HELLO = 24
_NONCE_SIZE = 16

# HELLOs answered per second and at once, for all sources together.
HELLO_RATE, HELLO_BURST = 10_000.0, 2048
# SHARE_Cs, and CONFIRMs and FORGETs, passed per second and at once, for all together. A crowd that joins at once is
# as fast as a flood for a moment.
PASS_RATE, PASS_BURST = 1000.0, 2048
# In a flood they are passed in runs of this many seconds' worth each: Python is woken per run, not per datagram.
RUN = 0.02
# Per second and at once, of a source (an IPv4 address or an IPv6 /64).
SOURCE_RATE, SOURCE_BURST = 20.0, 5
# Per second and at once, of a session. Whoever sees the session on the path can forge CONFIRMs in it, and the right
# one has to get through among them.
SESSION_RATE, SESSION_BURST = 256.0, 128
# Per second and at once, of an IPv6 /48.
SITE_RATE, SITE_BURST = 80.0, 20
# A source or session that has used its pace within so many seconds gets this much of the burst for all.
BUSY_SECONDS, BUSY_SHARE = 0.5, 0.5
# Sums of fractions of a second are off by less.
_ROUNDING = 1e-9
# Seconds that a session is known after Python sent a SHARE_S or RESULT of it: 15 until a CONFIRM, 120 for repeats.
SESSION_SECONDS = 135.0
SESSIONS = 32768
# Slots of the sources' levels, one float each: 128 KiB.
_SLOTS = 1 << 14


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop it, and count it under this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this back, and drop it."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass it to whoever pairs."""


Verdict = Drop | Answer | Pass
_MALFORMED, _COOKIE, _SESSION = Drop("pairing_malformed"), Drop("pairing_cookie"), Drop("pairing_session")
_PACE, _CLOSED, PASS = Drop("pairing_pace"), Drop("pairing_closed"), Pass()


class _Level:
    """A rate and a burst, as the time at which all so far would be done at the rate."""

    __slots__ = ("_burst", "_rate", "_until")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._until = float("-inf")

    def used_since(self, time: float) -> bool:
        """Return whether any was taken since then."""
        return self._until > time

    def take(self, now: float, *, busy: bool) -> bool:
        """Take one, or return False if none is left: for the busy already when half is taken."""
        until = max(self._until, now) + 1 / self._rate
        if until - now > self._burst * (BUSY_SHARE if busy else 1.0) / self._rate + _ROUNDING:
            return False
        self._until = until
        return True


class _SourceLevels:
    """A rate and a burst for each source, in a table of fixed size.

    Each has two slots, by a keyed hash that strangers can't aim at. The lower one counts: few sources share both
    with busy ones.
    """

    __slots__ = ("_interval", "_key", "_slack", "_until")

    def __init__(self, rate: float, burst: int, key: bytes) -> None:
        self._interval = 1 / rate
        self._slack = burst / rate + _ROUNDING
        self._key = key
        self._until = array("d", [float("-inf")]) * _SLOTS

    def take(self, source: bytes, now: float) -> tuple[bool, bool]:
        """Take one of a source's. Return whether one was left, and whether the source has taken another lately."""
        digest = blake2s(source, key=self._key, digest_size=8).digest()
        slots = [int.from_bytes(half, "little") % _SLOTS for half in (digest[:4], digest[4:])]
        before = min(self._until[slot] for slot in slots)
        until = max(before, now) + self._interval
        left = until - now <= self._slack
        if left:
            for slot in slots:
                self._until[slot] = max(self._until[slot], until)
        return left, before > now - BUSY_SECONDS


class PairingFilter:
    """The filter of one plane, or of the kernel engine's pairing sockets. The window is closed at first.

    Args:
        random: Gives n random bytes.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._gate: PairingGate | None = None
        self._lingers_until = float("-inf")
        key = random(16)
        self._hellos_by_source = _SourceLevels(SOURCE_RATE, SOURCE_BURST, key)
        self._shares_by_source = _SourceLevels(SOURCE_RATE, SOURCE_BURST, key)
        self._shares_by_site = _SourceLevels(SITE_RATE, SITE_BURST, key)
        self._hellos = _Level(HELLO_RATE, HELLO_BURST)
        self._shares = _Level(PASS_RATE, PASS_BURST)
        self._confirms = _Level(PASS_RATE, PASS_BURST)
        # When each is forgotten, the oldest first, and its level.
        self._sessions: dict[bytes, tuple[float, _Level]] = {}

    def set_gate(self, gate: PairingGate | None, now: float) -> None:
        """Open the window, change its epoch, or close it (None)."""
        if gate is None and self._gate is not None:
            self._lingers_until = now + self._gate.linger
        self._gate = gate

    def sent(self, datagram: bytes, now: float) -> None:
        """Note what Python sends: SHARE_S and RESULT name a session."""
        if datagram[:5] not in (MAGIC + REVISION + bytes([SHARE_S]), MAGIC + REVISION + bytes([RESULT])):
            return
        session = datagram[8:16]
        if len(session) != 8:
            return
        while self._sessions and next(iter(self._sessions.values()))[0] <= now:
            del self._sessions[next(iter(self._sessions))]
        expires, level = self._sessions.get(session, (now, None))
        # Not each time: a client repeats itself.
        if expires - now > SESSION_SECONDS / 2:
            return
        self._sessions.pop(session, None)
        if len(self._sessions) >= SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[session] = now + SESSION_SECONDS, level or _Level(SESSION_RATE, SESSION_BURST)

    def judge(self, datagram: bytes, source: Endpoint, now: float) -> Verdict:
        """Judge a datagram that begins with `RGE`."""
        if len(datagram) < 8 or datagram[:3] != MAGIC or any(datagram[5:8]):
            return _MALFORMED
        kind = datagram[4]
        if datagram[3:4] != REVISION:
            if kind != HELLO or len(datagram) < _SHORTEST_HELLO:
                return _MALFORMED
        elif SIZES.get(kind) != len(datagram) or (kind == HELLO and any(datagram[28:])):
            return _MALFORMED
        if kind in (CONFIRM, FORGET):
            return self._judge_confirm(datagram[8:16], now)
        if self._gate is None:
            return _CLOSED
        if kind == HELLO:
            return self._answer_hello(self._gate, datagram, source, now)
        return self._judge_share(self._gate, datagram, source, now)

    def _answer_hello(self, gate: PairingGate, datagram: bytes, source: Endpoint, now: float) -> Verdict:
        address = address_of(source).packed
        _, busy = self._hellos_by_source.take(address[:8], now)
        if not self._hellos.take(now, busy=busy):
            return _PACE
        nonce_c = datagram[8:24]
        if datagram[3:4] != REVISION:
            return Answer(_header(OTHER_REVISION) + nonce_c)
        nonce_s = self._random(_NONCE_SIZE)
        epoch = gate.current
        cookie = pairing_cookie(epoch.secret, address, source[1], nonce_c + nonce_s + datagram[24:28])
        number = epoch.number.to_bytes(4, "little")
        return Answer(_header(CHALLENGE) + nonce_c + nonce_s + number + cookie + gate.server_id + epoch.ephemeral)

    def _judge_share(self, gate: PairingGate, datagram: bytes, source: Endpoint, now: float) -> Verdict:
        number, cookie = int.from_bytes(datagram[40:44], "little"), datagram[44:60]
        epoch = next((each for each in (gate.current, gate.previous) if each and each.number == number), None)
        address = address_of(source).packed
        if epoch is None:
            return _COOKIE
        made = pairing_cookie(epoch.secret, address, source[1], datagram[8:40] + datagram[60:64])
        if not hmac.compare_digest(made, cookie):
            return _COOKIE
        left, busy = self._shares_by_source.take(address[:8], now)
        if left and len(address) == 16:
            left, busy = self._shares_by_site.take(address[:6], now)
        return PASS if left and self._shares.take(now // RUN * RUN, busy=busy) else _PACE

    def _judge_confirm(self, session: bytes, now: float) -> Verdict:
        if self._gate is None and now >= self._lingers_until:
            return _CLOSED
        expires, level = self._sessions.get(session, (now, None))
        if level is None or expires <= now:
            return _SESSION
        busy = level.used_since(now - BUSY_SECONDS)
        left = level.take(now, busy=False)
        return PASS if left and self._confirms.take(now // RUN * RUN, busy=busy) else _PACE


def is_revision(answer: bytes) -> bool:
    """Return whether an answer tells a client of another revision which one we speak."""
    return answer.startswith(_header(OTHER_REVISION))


def _header(kind: int) -> bytes:
    return MAGIC + REVISION + bytes([kind, 0, 0, 0])
