"""The sessions of one peer: which one sends and which ones may receive (whitepaper sections 6.1 to 6.3)."""

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
from rustguard_py.planes.contract import Flow, Keypair
from rustguard_py.planes.replay_window import ReplayWindow
from rustguard_py.protocol.wire import DATA_PREFIX

# How many sessions keep their two cipher objects.
WARM_SESSIONS = 512


class WarmSessions:
    """The sessions that have cipher objects, a bounded number.

    A cipher object takes 2.3 KiB and a microsecond to make. For 10,000 sessions with two each that would be 46 MiB.
    """

    __slots__ = ("_sessions",)

    def __init__(self) -> None:
        self._sessions: deque[Session] = deque()

    def add(self, session: Session) -> None:
        """Add a session that made its ciphers. If there are too many, the oldest one drops its own."""
        self._sessions.append(session)
        if len(self._sessions) > WARM_SESSIONS:
            self._sessions.popleft().cool()


class Session:
    """A keypair in use, with its counters, replay window and limits.

    Attributes:
        local_index: Our index, in datagrams that we receive.
        initiator: Whether we sent the initiation.
        birth: When the handshake ended.
        counter: The nonce of the next datagram to send.
        window: The replay window of the received counters.
        header: The first 8 bytes of each data message: type 4 and the receiver's index.
        asked: Whether a datagram received late in the session has already asked for a handshake.
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
        """The AEAD for sending."""
        return (self._ciphers or self._heat())[0]

    @property
    def opener(self) -> ChaCha20Poly1305:
        """The AEAD for receiving."""
        return (self._ciphers or self._heat())[1]

    def _heat(self) -> tuple[ChaCha20Poly1305, ChaCha20Poly1305]:
        send, receive = self._keys
        self._ciphers = ChaCha20Poly1305(send), ChaCha20Poly1305(receive)
        self._warm.add(self)
        return self._ciphers

    def cool(self) -> None:
        """Drop the ciphers. They are made again when needed."""
        self._ciphers = None

    def expired(self, now: float) -> bool:
        """Return whether REJECT-AFTER-TIME is over, so the session may neither send nor receive."""
        return now - self.birth >= REJECT_AFTER_TIME

    def claim(self, count: int, now: float) -> int | None:
        """Take `count` nonces. Return the first, or None if the session may no longer send that many."""
        first = self.counter
        if first + count > REJECT_AFTER_MESSAGES or now - self.birth >= REJECT_AFTER_TIME:
            return None
        self.counter = first + count
        return first

    def end_sending(self) -> None:
        """Stop sending with this session. It still receives."""
        self.counter = REJECT_AFTER_MESSAGES

    def flow(self) -> Flow:
        """Return what was sent and received so far."""
        remote_index = int.from_bytes(self.header[4:], "little")
        return Flow(self.local_index, remote_index, self.counter, self.window.next, self.window.marked)

    def room(self, now: float) -> int:
        """Return how many datagrams the session may still send."""
        return 0 if self.expired(now) else REJECT_AFTER_MESSAGES - self.counter

    def worn_by_sending(self, now: float) -> bool:
        """Return whether a new handshake is due after sending. REKEY-AFTER-TIME applies only to the initiator."""
        return self.counter > REKEY_AFTER_MESSAGES or (self.initiator and now - self.birth >= REKEY_AFTER_TIME)

    def worn_by_receiving(self, now: float) -> bool:
        """Return whether a datagram that was received now requires a new handshake. True only once."""
        if self.asked or not self.initiator or now - self.birth < REKEY_AFTER_TIME_RECEIVING:
            return False
        self.asked = True
        return True


class Keypairs:
    """The sessions of one peer.

    Attributes:
        current: The session that sends, or None before the first handshake.
        next: Made as responder. It becomes current when a datagram comes in on it.
        previous: The session before. It may still receive datagrams that were under way.
    """

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.current: Session | None = None
        self.next: Session | None = None
        self.previous: Session | None = None

    def install(self, session: Session) -> list[Session]:
        """Install a new session. Return the sessions that are now dead."""
        dead = [self.previous]
        if session.initiator:
            if self.next is not None:
                # Both ends started a handshake: the responder's session is newer than the current one.
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
        """Make `session`, the next one, current. Return the sessions that are now dead."""
        dead = [] if self.previous is None else [self.previous]
        self.previous = self.current
        self.current = session
        self.next = None
        return dead

    def end_sending(self) -> None:
        """Stop sending with the current and the next session."""
        for session in (self.current, self.next):
            if session is not None:
                session.end_sending()

    def clear(self) -> list[Session]:
        """Remove all sessions and return them."""
        dead = [one for one in (self.current, self.next, self.previous) if one is not None]
        self.current = self.next = self.previous = None
        return dead
