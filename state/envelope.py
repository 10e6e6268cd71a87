"""What is around the data in `state.json`: a schema number, a generation and a checksum over all of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256

STATE_SCHEMA = 1

_MEMBERS = {"schema", "generation", "checksum", "data"}


class Canonical(bytes):
    """A value's JSON as it is saved and summed: what seldom changes is made into it once, for many saves."""

    @classmethod
    def of(cls, value: object) -> Canonical:
        """Make it of JSON values."""
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return cls(text.encode())

    @classmethod
    def array(cls, items: Iterable[Canonical]) -> Canonical:
        """Make an array's of its items'."""
        return cls(b"[" + b",".join(items) + b"]")


class DamagedError(Exception):
    """The bytes aren't what was written; the text says in which way."""


class NewerSchemaError(Exception):
    """A later version of this program wrote it.

    Args:
        schema: Its schema number.
    """

    def __init__(self, schema: int) -> None:
        super().__init__(f"schema {schema}")
        self.schema = schema


def encode(generation: int, data: Mapping[str, object]) -> bytes:
    """Wrap data: one line of JSON, UTF-8.

    Args:
        generation: Counts saves, from 1.
        data: JSON values, or a member's `Canonical` in place of one; a NaN or an infinity is a ValueError.
    """
    body = _canonical(data)
    head = b'{"schema":%d,"generation":%d,"checksum":"' % (STATE_SCHEMA, generation)
    checksum = _checksum(STATE_SCHEMA, generation, body).encode()
    return b"".join((head, checksum, b'","data":', body, b"}\n"))


def decode(content: bytes) -> tuple[int, dict[str, object]]:
    """Unwrap: the generation and the data.

    Raises:
        DamagedError: Anything but what `encode` gives (the space between JSON's tokens is free).
        NewerSchemaError: A schema number above ours, not explained by damage.
    """
    envelope = _parse(content)
    schema, generation, data = (envelope.get(name) for name in ("schema", "generation", "data"))
    if type(schema) is not int or schema < 1:
        raise DamagedError("its schema number is unknown")
    if schema > STATE_SCHEMA:
        _refuse_schema(schema, envelope)
    if envelope.keys() != _MEMBERS or type(generation) is not int or not isinstance(data, dict):
        raise DamagedError("its outer members aren't schema, generation, checksum and data")
    if envelope["checksum"] != _checksum(schema, generation, _canonical(data)):
        raise DamagedError("its checksum doesn't match")
    return generation, data


def _refuse_schema(schema: int, envelope: dict[str, object]) -> None:
    # A flipped bit turns 1 into 3, 5 or 9: if the checksum holds with our number, that's what happened.
    generation, data = envelope.get("generation"), envelope.get("data")
    if (
        type(generation) is int
        and isinstance(data, dict)
        and envelope.get("checksum") == _checksum(STATE_SCHEMA, generation, _canonical(data))
    ):
        raise DamagedError("its schema number was altered")
    raise NewerSchemaError(schema)


def _parse(content: bytes) -> dict[str, object]:
    if not content:
        raise DamagedError("it is empty")
    try:
        envelope = json.loads(content.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError("it isn't whole JSON") from error
    if not isinstance(envelope, dict):
        raise DamagedError("it isn't a JSON object")
    return envelope


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _canonical(data: Mapping[str, object]) -> bytes:
    members = (b"%b:%b" % (Canonical.of(name), _of_member(data[name])) for name in sorted(data))
    return b"{" + b",".join(members) + b"}"


def _of_member(value: object) -> Canonical:
    return value if isinstance(value, Canonical) else Canonical.of(value)


def _checksum(schema: int, generation: int, body: bytes) -> str:
    digest = sha256(b'{"data":')
    digest.update(body)
    digest.update(b',"generation":%d,"schema":%d}' % (generation, schema))
    return f"sha256:{digest.hexdigest()}"
