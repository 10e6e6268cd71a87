"""The envelope of the data in `state.json`: a schema number, a generation, and a checksum of all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256

STATE_SCHEMA = 1

_MEMBERS = {"schema", "generation", "checksum", "data"}


class Canonical(bytes):
    """A value's JSON in the form that is saved and checksummed. Make it once for values that seldom change."""

    @classmethod
    def of(cls, value: object) -> Canonical:
        """Return the canonical form of JSON values."""
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return cls(text.encode())

    @classmethod
    def array(cls, items: Iterable[Canonical]) -> Canonical:
        """Return the canonical form of an array from those of its items."""
        return cls(b"[" + b",".join(items) + b"]")


class DamagedError(Exception):
    """The bytes aren't what was written. The message says how."""


class NewerSchemaError(Exception):
    """A later version of this program wrote the document.

    Args:
        schema: Its schema number.
    """

    def __init__(self, schema: int) -> None:
        super().__init__(f"schema {schema}")
        self.schema = schema


def encode(generation: int, data: Mapping[str, object]) -> bytes:
    """Return data in its envelope: one line of JSON in UTF-8.

    Args:
        generation: The number of the save, from 1.
        data: JSON values. A member may be `Canonical` instead. NaN and infinity raise ValueError.
    """
    body = _canonical(data)
    head = b'{"schema":%d,"generation":%d,"checksum":"' % (STATE_SCHEMA, generation)
    checksum = _checksum(STATE_SCHEMA, generation, body).encode()
    return b"".join((head, checksum, b'","data":', body, b"}\n"))


def decode(content: bytes) -> tuple[int, dict[str, object]]:
    """Return the generation and the data of an envelope.

    Raises:
        DamagedError: The content isn't from `encode`. Only white space between JSON tokens may differ.
        NewerSchemaError: The schema number is above ours, and damage doesn't explain it.
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
    # A flipped bit can turn 1 into 3, 5 or 9. If the checksum is right with our number, that happened.
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
