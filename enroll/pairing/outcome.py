"""How a client's join ends, and the error that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from rustguard_py.enroll.pairing.admission import Admission
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError
from rustguard_py.model.keys import fingerprint


class UnprovenError(RefusedError):
    """The other end lacks the token, or the private key of the server that it should be."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The server admitted us, and proved that it knows the token.

    Attributes:
        admission: What the server assigned; `admission.server_key` is its public key.
        preshared_key: For the WireGuard peer, 32 bytes.
        server: The socket address that answered.
        forget: The datagram that takes the admission back, for a client that can't use it.
    """

    admission: Admission
    preshared_key: bytes = field(repr=False)
    server: Endpoint
    forget: bytes = field(repr=False)


class Failure(Enum):
    """Why a join ended."""

    SILENT = "nobody answered"
    IGNORED = "the server answered at first, then stopped"
    UNCONFIRMED = "the server never answered the confirmation"
    WRONG_TOKEN = "the other end doesn't know the token"  # noqa: S105 - not a secret, the lack of one
    WRONG_SERVER = "the server has another key than expected"
    FULL = "the server's pool is full"
    WINDOW_FULL = "the server's window has admitted as many machines as it may"
    REVOKED = "the server has revoked this key"
    INVITE_USED = "the invite has been used"
    OTHER_REVISION = "the server speaks another revision of the pairing"
    INCOMPATIBLE = "the server's answer isn't understood"


@dataclass(frozen=True, slots=True)
class Failed:
    """The join ended without a peer.

    Attributes:
        failure: Why.
        detail: One more sentence, or empty: the fingerprint of the wrong server.
        key: Our own public key in base64, where the fix names it.
    """

    failure: Failure
    detail: str = ""
    key: str = field(default="KEY", compare=False)

    def error(self) -> RustGuardError:
        """Return the error that says what happened and how to fix it."""
        kind, message, fix = _ERRORS[self.failure]
        return kind(f"{message} {self.detail}".rstrip(), fix.replace("KEY", self.key))


_ERRORS: Final[dict[Failure, tuple[type[RustGuardError], str, str]]] = {
    Failure.SILENT: (
        UnansweredError,
        "Nobody answered, and from here three causes look alike: no server runs at this address and port, a firewall "
        "on the way drops UDP, or the pairing window is closed.",
        "On the server, run: rustguard open 60\n"
        "If it says that no daemon runs there: sudo rustguard serve. Compare the port: rustguard status\n"
        "If the window is open, let the UDP port through the firewalls and routers on the way.",
    ),
    Failure.IGNORED: (
        UnansweredError,
        "The server answered at first, then stopped: its window closed or is open to other networks only, too many "
        "clients are joining, or there were too many wrong tokens from this address.",
        "On the server, run: rustguard status; then: rustguard open 60",
    ),
    Failure.UNCONFIRMED: (
        UnansweredError,
        "The server paired with us but never confirmed it: its window closed, others are guessing so that we wait "
        "for a turn, it can't save its state, or large datagrams don't get through.",
        "On the server, run: rustguard status; then join again, which gives the same address.",
    ),
    Failure.WRONG_TOKEN: (
        UnprovenError,
        "The other end doesn't know this token.",
        "Check the token with whoever runs the server, where each wrong guess is counted.",
    ),
    Failure.WRONG_SERVER: (
        RefusedError,
        "Somebody who knows the token answered, but with another key than the expected server's.",
        "Compare it with the line that `rustguard serve` printed. If the server was set up again, give its new "
        "fingerprint with --server.",
    ),
    Failure.FULL: (
        RefusedError,
        "The server's pool has no address left.",
        "On the server, run: rustguard peers revoke NAME; or serve a larger --pool.",
    ),
    Failure.WINDOW_FULL: (
        RefusedError,
        "The server's pairing window has admitted as many new machines as it may.",
        "On the server, open another one: rustguard open 60; or a larger one: rustguard open 60 --most 100",
    ),
    Failure.REVOKED: (
        RefusedError,
        "The server has revoked this machine's key.",
        "On the server, to let it join again: rustguard peers restore KEY",
    ),
    Failure.INVITE_USED: (RefusedError, "This invite has been used already.", "Ask for another one."),
    Failure.OTHER_REVISION: (
        RefusedError,
        "The server speaks another revision of the pairing, so one of the two programs is older.",
        "Install the same version of rustguard on both machines; `rustguard --version` prints it.",
    ),
    Failure.INCOMPATIBLE: (
        RefusedError,
        "The server's answer isn't understood, so it is probably newer than this program.",
        "Update rustguard here.",
    ),
}
# By the status of a RESULT.
REFUSALS: Final = {
    "full": Failure.FULL,
    "window-full": Failure.WINDOW_FULL,
    "revoked": Failure.REVOKED,
    "invite-used": Failure.INVITE_USED,
}


def wrong_server(key: bytes, expected: str | None, known: bytes | None) -> Failed | None:
    """Return the failure if a server's key isn't the expected one, else None.

    Args:
        key: The server's public key, 32 bytes.
        expected: The fingerprint given with `--server`, as `parse_fingerprint` returns it, or None.
        known: The public key from an earlier join, or None.
    """
    met = fingerprint(key)
    if (known is None or known == key) and expected in (None, met):
        return None
    return Failed(Failure.WRONG_SERVER, f"Its fingerprint is {met}.")
