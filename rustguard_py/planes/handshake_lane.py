"""Datagrams without a session: handshake messages and enrollment's. Most are judged before Python hears of them."""

from __future__ import annotations

from collections.abc import Callable

from rustguard_py.model.endpoint import Endpoint, at_once
from rustguard_py.model.pairing import PairingGate
from rustguard_py.planes.contract import Event, ForeignReceived, HandshakeReceived
from rustguard_py.planes.foreign_pace import ForeignPace
from rustguard_py.planes.gate import Gate, Verdict
from rustguard_py.planes.indices import Indices
from rustguard_py.protocol import pairing_filter, wire
from rustguard_py.protocol.pairing_filter import PairingFilter

_TOO_FAST = pairing_filter.Drop("foreign_rate")


class HandshakeLane:
    """The gate in front of Python.

    Args:
        public_key: Our own, 32 bytes, for MAC1.
        indices: The receiver indices in use.
        emit: Called with each event at once.
        drop: Called with the reason of each drop.
        answer: Called with each datagram to send at once, and where to.
        random: Returns n random bytes.
        backlog: Returns how many emitted HandshakeReceived wait for Python.
    """

    def __init__(
        self,
        public_key: bytes,
        indices: Indices,
        *,
        emit: Callable[[Event], None],
        drop: Callable[[str], None],
        answer: Callable[[Endpoint, bytes], None],
        random: Callable[[int], bytes],
        backlog: Callable[[], int],
    ) -> None:
        self.backlog = backlog
        self._indices = indices
        self._emit, self._drop, self._answer = emit, drop, answer
        self._random = random
        self._gate = Gate(public_key, random)
        self._foreign = ForeignPace()
        # Of a server.
        self._pairing: PairingFilter | None = None

    def set_public_key(self, public_key: bytes) -> None:
        """See `Plane.set_public_key`."""
        self._gate.set_public_key(public_key)

    def set_pairing(self, gate: PairingGate | None, now: float) -> None:
        """See `Plane.set_pairing`."""
        if self._pairing is None:
            self._pairing = PairingFilter(self._random)
        self._pairing.set_gate(gate, now)

    def sent(self, datagram: bytes, now: float) -> None:
        """Note a datagram of Python's."""
        if self._pairing is not None:
            self._pairing.sent(datagram, now)

    def handle_foreign(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle one datagram of enrollment."""
        if self._pairing is None:
            verdict: pairing_filter.Verdict = pairing_filter.PASS if self._foreign.admit(datagram, now) else _TOO_FAST
        else:
            verdict = self._pairing.judge(datagram, source, now)
        match verdict:
            case pairing_filter.Pass():
                self._emit(ForeignReceived(datagram, source))
            case pairing_filter.Answer(answer):
                if pairing_filter.is_revision(answer):
                    self._drop(pairing_filter.REVISION_REASON)
                self._answer(at_once(source), answer)
            case pairing_filter.Drop(reason):
                self._drop(reason)

    def handle_handshake(self, datagram: bytes, source: Endpoint, now: float) -> None:
        """Handle one handshake message, or what is none."""
        kind = wire.message_type(datagram)
        if kind == wire.INITIATION:
            verdict = self._gate.judge(datagram, source, self.backlog(), now)
        elif kind == wire.RESPONSE and self._answers_us(datagram, wire.RESPONSE_SIZE, 8):
            verdict = self._gate.judge(datagram, source, self.backlog(), now)
            if verdict is Verdict.PASS:
                verdict = Verdict.PROVEN
        elif kind == wire.COOKIE_REPLY and self._answers_us(datagram, wire.COOKIE_REPLY_SIZE, 4):
            # It has no MAC1.
            verdict = self._gate.judge_cookie_reply(int.from_bytes(datagram[4:8], "little"), now)
        else:
            self._drop("unknown_index" if kind in (wire.RESPONSE, wire.COOKIE_REPLY) else "unknown_type")
            return
        if verdict in (Verdict.PASS, Verdict.PROVEN):
            self._emit(HandshakeReceived(datagram, source, proven=verdict is Verdict.PROVEN))
            return
        if verdict is Verdict.CHALLENGE:
            self._answer(at_once(source), self._gate.challenge(datagram, source, now))
        self._drop(verdict.value)

    def _answers_us(self, datagram: bytes, size: int, at: int) -> bool:
        """Return whether a datagram has this size, and an index that we gave out at `at`."""
        return len(datagram) == size and int.from_bytes(datagram[at : at + 4], "little") in self._indices
