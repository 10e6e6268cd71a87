"""The protocol of the control socket: one JSON object per line, both ways.

A request, an answer, and an error in its place:

    {"v": 1, "id": 1, "method": "open", "params": {"seconds": 60}}
    {"v": 1, "id": 1, "result": {"remaining": 60.0}}
    {"v": 1, "id": 1, "error": {"kind": "refused", "message": "…", "mend": "…"}}

A request with `"beats": true` that takes long is answered with a beat each second until then, so that the client can
tell a slow daemon from a dead one:

    {"v": 1, "id": 1, "beat": true}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
# Time between two beats, seconds.
BEAT_SECONDS = 1.0
# Bytes of a line. Answers may be longer than requests: 10,000 peers take about 3 MB.
MAX_REQUEST = 64 * 1024
MAX_RESPONSE = 64 * 1024 * 1024
# Kinds of errors, by the class that the client raises.
KINDS: Mapping[str, type[RustGuardError]] = {
    "failed": RustGuardError,
    "usage": UsageError,
    "not-running": NotRunningError,
    "refused": RefusedError,
    "unanswered": UnansweredError,
    "state": StateError,
}


class WithDescriptors(dict[str, Any]):
    """A result that open files go with: they come with the first byte of the answer (unix(7), SCM_RIGHTS).

    Attributes:
        descriptors: The files. They stay open here.
    """

    def __init__(self, result: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        super().__init__(result)
        self.descriptors = tuple(descriptors)


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line of ASCII. JSON may have unpaired surrogates, which UTF-8 can't encode."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message in a line.

    Raises:
        UsageError: The line isn't a JSON object of this version.
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
    """Return an error as the JSON object for it."""
    kind = next(name for cls in type(error).__mro__ for name, known in KINDS.items() if known is cls)
    # The key keeps its old name, because older daemons and commands know it by that.
    return {"kind": kind, "message": error.message, "mend": error.fix}


def error_from(document: Any) -> RustGuardError:
    """Return the error in a JSON object. An unknown kind becomes a RustGuardError."""
    if not isinstance(document, dict):
        return RustGuardError("The daemon answered with something that can't be read.")
    cls = KINDS.get(str(document.get("kind")), RustGuardError)
    return cls(str(document.get("message", "")), str(document.get("mend", "")))


def check_length(path: Path) -> None:
    """Check that a path can be a Unix socket's.

    Raises:
        UsageError: It is longer than 107 bytes (unix(7)).
    """
    if len(bytes(path)) > 107:
        raise UsageError(
            f"{path} is too long for a control socket: Unix sockets take 107 bytes.",
            "Choose a shorter directory (`--state DIR`, XDG_RUNTIME_DIR).",
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
