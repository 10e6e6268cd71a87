"""The language of the control socket: one JSON object a line, each way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rustguard_py.model.errors import (
    NotRunningError,
    RefusedError,
    RustGuardError,
    StateError,
    UnansweredError,
    UsageError,
)

VERSION = 1


# A request's line, in bytes. Answers may be longer: 10,000 peers are about 3 MB.
MAX_REQUEST = 64 * 1024


MAX_RESPONSE = 64 * 1024 * 1024


KINDS: Mapping[str, type[RustGuardError]] = {
    "failed": RustGuardError,
    "usage": UsageError,
    "not-running": NotRunningError,
    "refused": RefusedError,
    "unanswered": UnansweredError,
    "state": StateError,
}


def encode(message: Mapping[str, Any]) -> bytes:
    """Write one message as a line, in ASCII: JSON may hold halves of characters that UTF-8 can't."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Read one line.

    Raises:
        UsageError: It isn't one JSON object of this version.
    """
    try:
        message = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise UsageError("The line isn't JSON.") from None
    if not isinstance(message, dict):
        raise UsageError("The line isn't a JSON object.")
    if message.get("v") != VERSION:
        raise UsageError(
            f"This control socket speaks version {VERSION}, the other end doesn't.",
            "Restart the daemon so that it and the command are of the same release.",
        )
    return message


def error_document(error: RustGuardError) -> dict[str, str]:
    """Say an error on the wire."""
    kind = next(name for cls in type(error).__mro__ for name, known in KINDS.items() if known is cls)
    # The key keeps its old name, because older daemons and commands know it by that.
    return {"kind": kind, "message": error.message, "mend": error.fix}


def error_from(document: Any) -> RustGuardError:
    """Make the error that the wire said; an unknown kind is a plain failure."""
    if not isinstance(document, dict):
        return RustGuardError("The daemon answered with something that can't be read.")
    cls = KINDS.get(str(document.get("kind")), RustGuardError)
    return cls(str(document.get("message", "")), str(document.get("mend", "")))


def check_length(path: Path) -> None:
    """Refuse a path that can't be a Unix socket's.

    Raises:
        UsageError: It's longer than 107 bytes (unix(7)).
    """
    if len(bytes(path)) > 107:
        raise UsageError(
            f"{path} is too long for a control socket: Unix sockets take 107 bytes.",
            "Choose a shorter directory (`--state DIR`, XDG_RUNTIME_DIR).",
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
