"""The sessions of one peer: which key sends, which may still receive (whitepaper sections 6.1 to 6.3)."""

from __future__ import annotations

from collections import deque

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from rustguard_py.model.timers import (
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_AFTER_TIME_RECEIVING,
)
from rustguard_py.planes.contract import Keypair
from rustguard_py.planes.replay_window import ReplayWindow
from rustguard_py.protocol.wire import DATA_PREFIX

# How many sessions keep their two ciphers ready.
WARM_SESSIONS = 512


class WarmSessions:
    """The sessions that have ciphers made, a bounded number.

    A cipher object takes 2.3 KiB and a microsecond to make: 10,000 sessions with two each would be 46 MiB.
    """

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: deque[Session] = deque()

    def add(self, session: Session) -> None:
        """Note that `session` has its ciphers; the one that got its own first may lose them."""
        self._sessions.append(session)
        if len(self._sessions) > WARM_SESSIONS:
            self._sessions.popleft().cool()


class Session:
    """One keypair at work: counters, replay window, limits.

    Attributes:
        local_index: Ours, in what we receive.
        initiator: Whether we sent the initiation.
        birth: When the handshake ended.
        counter: The nonce of the next datagram to send.
        window: Of the counters received.
        header: The first 8 bytes of each data message: type 4 and the receiver's index.
        asked: Whether a datagram received late in its life has already asked for a handshake.
    """

    __slots__ = (
        "_ciphers",
        "_keys",
        "_warm",
        "asked",
        "birth",
        "counter",
        "header",
        "initiator",
        "local_index",
        "window",
    )

    def __init__(self, keypair: Keypair, warm: WarmSessions) -> None:
        self.local_index = keypair.local_index
        self.initiator = keypair.initiator
        self.birth = keypair.birth
        self.counter = 0
        self.window = ReplayWindow()
        self.header = DATA_PREFIX + keypair.remote_index.to_bytes(4, "little")
        self.asked = False
        self._keys = (keypair.send_key, keypair.receive_key)
        self._warm = warm
        self._ciphers: tuple[ChaCha20Poly1305, ChaCha20Poly1305] | None = None

    @property
    def sealer(self) -> ChaCha20Poly1305:
        """The AEAD for what we send."""
        return (self._ciphers or self._heat())[0]

    @property
    def opener(self) -> ChaCha20Poly1305:
        """The AEAD for what we receive."""
        return (self._ciphers or self._heat())[1]

    def _heat(self) -> tuple[ChaCha20Poly1305, ChaCha20Poly1305]:
        send, receive = self._keys
        self._ciphers = ChaCha20Poly1305(send), ChaCha20Poly1305(receive)
        self._warm.add(self)
        return self._ciphers

    def cool(self) -> None:
        """Give the ciphers back; they are made again when needed."""
        self._ciphers = None

    def expired(self, now: float) -> bool:
        """Say whether REJECT-AFTER-TIME is over: it may neither send nor receive."""
        return now - self.birth >= REJECT_AFTER_TIME

    def claim(self, count: int, now: float) -> int | None:
        """Take `count` nonces; give the first, or None where the session may no longer send that many."""
        first = self.counter
        if first + count > REJECT_AFTER_MESSAGES or now - self.birth >= REJECT_AFTER_TIME:
            return None
        self.counter = first + count
        return first

    def end_sending(self) -> None:
        """Have it send no more; what comes in on it is still taken."""
        self.counter = REJECT_AFTER_MESSAGES

    def room(self, now: float) -> int:
        """Give how many datagrams may still be sent."""
        return 0 if self.expired(now) else REJECT_AFTER_MESSAGES - self.counter

    def worn_by_sending(self, now: float) -> bool:
        """Say whether, after sending, a new handshake is due: REKEY-AFTER-TIME counts for the initiator only."""
        return self.counter > REKEY_AFTER_MESSAGES or (self.initiator and now - self.birth >= REKEY_AFTER_TIME)

    def worn_by_receiving(self, now: float) -> bool:
        """Say, once, whether a datagram that came this late calls for a new handshake."""
        if self.asked or not self.initiator or now - self.birth < REKEY_AFTER_TIME_RECEIVING:
            return False
        self.asked = True
        return True


class Keypairs:
    """The sessions of one peer.

    Attributes:
        current: Sends; None before the first handshake.
        next: Made by us as responder; current once a datagram has come on it.
        previous: The one before; may still receive what was under way.
    """

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.current: Session | None = None
        self.next: Session | None = None
        self.previous: Session | None = None

    def install(self, session: Session) -> list[Session]:
        """Put a new session in its place; give those that are now dead."""
        dead = [self.previous]
        if session.initiator:
            if self.next is not None:
                # Both ends started a handshake: the responder's is as new as the current one is old.
                dead.append(self.current)
                self.previous = self.next
                self.next = None
            else:
                self.previous = self.current
            self.current = session
        else:
            dead.append(self.next)
            self.next = session
            self.previous = None
        return [one for one in dead if one is not None]

    def confirm(self, session: Session) -> list[Session]:
        """An authenticated datagram came on `session`, which is `next`: it sends now. Give the dead ones."""
        dead = [] if self.previous is None else [self.previous]
        self.previous = self.current
        self.current = session
        self.next = None
        return dead

    def end_sending(self) -> None:
        """Have those that send, or would, send no more."""
        for session in (self.current, self.next):
            if session is not None:
                session.end_sending()

    def clear(self) -> list[Session]:
        """Drop all; give them."""
        dead = [one for one in (self.current, self.next, self.previous) if one is not None]
        self.current = self.next = self.previous = None
        return dead
