"""What a client of the proxy asks for, whichever protocol it speaks."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from rustguard_py.model.errors import UsageError

_LONGEST: Final = 255
# A name or an address; an IPv6 address without brackets, and with its scope.
_HOST: Final = re.compile(r"[0-9A-Za-z_.:%-]{1,255}")


class Refusal(Exception):  # noqa: N818 - an answer of the protocol
    """A request that isn't served.

    Args:
        answer: The bytes that the client gets; empty where its protocol has no answer for it.
        why: The reason, for the log.
    """

    def __init__(self, answer: bytes, why: str) -> None:
        super().__init__(why)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client has to name to be served.

    Attributes:
        user: The username, without a colon (RFC 7617).
        password: The password. Each has 1 to 255 bytes (RFC 1929).

    Raises:
        UsageError: They can't be sent by SOCKS5 and HTTP.
    """

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if ":" in self.user or not all(1 <= len(each.encode()) <= _LONGEST for each in (self.user, self.password)):
            raise UsageError(
                "These credentials can't be sent to a proxy.",
                f"Username and password have 1 to {_LONGEST} bytes each, and a username has no colon.",
            )

    def match(self, user: bytes, password: bytes) -> bool:
        """Return whether these are the ones. It takes as long for wrong ones, wherever they differ."""
        same_user = hmac.compare_digest(self.user.encode(), user)
        return hmac.compare_digest(self.password.encode(), password) and same_user


def is_host(text: str) -> bool:
    """Return whether a text may be a name or an address."""
    return _HOST.fullmatch(text) is not None
