"""The envelope of a saved document: each of its members has its type, and damage is told from a newer schema."""

from __future__ import annotations

import json

import pytest

from rustguard_py.state import envelope
from rustguard_py.state.envelope import STATE_SCHEMA, DamagedError, NewerSchemaError


def changed(**members: object) -> bytes:
    return json.dumps({**json.loads(envelope.encode(3, {"a": [1]})), **members}).encode()


def test_what_was_encoded_is_decoded_again() -> None:
    assert envelope.decode(envelope.encode(3, {"a": [1]})) == (3, {"a": [1]})
    assert envelope.decode(changed()) == (3, {"a": [1]})


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"generation": "3"}, "outer members"),
        ({"generation": True}, "outer members"),
        ({"generation": None}, "outer members"),
        ({"data": [1]}, "outer members"),
        ({"data": None}, "outer members"),
        ({"more": 1}, "outer members"),
        ({"generation": 4}, "checksum"),
        ({"data": {"a": [2]}}, "checksum"),
        ({"checksum": ""}, "checksum"),
        ({"schema": 0}, "schema number is unknown"),
        ({"schema": True}, "schema number is unknown"),
        ({"schema": STATE_SCHEMA + 2}, "schema number was altered"),
    ],
)
def test_a_member_that_is_not_what_it_should_be_is_damage(members: dict[str, object], why: str) -> None:
    with pytest.raises(DamagedError, match=why):
        envelope.decode(changed(**members))


def test_a_newer_schema_with_a_checksum_of_its_own_is_no_damage() -> None:
    with pytest.raises(NewerSchemaError):
        envelope.decode(changed(schema=STATE_SCHEMA + 1, checksum="sha256:00"))
