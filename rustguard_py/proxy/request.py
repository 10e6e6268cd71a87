"""What a client of the proxy asks for, whichever protocol it speaks."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Final

# A name or an address; an IPv6 address without brackets, and with its scope.
_HOST: Final = re.compile(r"[0-9A-Za-z_.:%-]{1,255}")


class Refusal(Exception):  # noqa: N818 - an answer of the protocol
    """A request that isn't served.

    Args:
        answer: What the client is told; empty where its protocol has no word for it.
        why: The reason, for the log.
    """

    def __init__(self, answer: bytes, why: str) -> None:
        super().__init__(why)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client has to name to be served."""

    user: str
    password: str = field(repr=False)

    def match(self, user: bytes, password: bytes) -> bool:
        """Return whether these are the ones. It takes as long for wrong ones, wherever they differ."""
        same_user = hmac.compare_digest(self.user.encode(), user)
        return hmac.compare_digest(self.password.encode(), password) and same_user


def is_host(text: str) -> bool:
    """Return whether a text may be a name or an address."""
    return _HOST.fullmatch(text) is not None
