"""The reports inside the tunnel: test vectors, and what another version may add."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.protocol.report import REPORT_LIMIT, Arrived, Hello, Item, Leave, Left, decode, encode

PROOF = bytes(range(32))
VECTORS: list[tuple[list[Item], str]] = [
    ([], "52475201"),
    ([Hello(asks=True)], "52475201 01 0001 01"),
    ([Hello(asks=False)], "52475201 01 0001 00"),
    (
        [Arrived(1, 0x01020304, 100, 500, 321)],
        "52475201 02 001d 01 01020304 0000000000000064 00000000000001f4 0000000000000141",
    ),
    ([Leave(PROOF)], f"52475201 03 0020 {PROOF.hex()}"),
    ([Left(PROOF)], f"52475201 04 0020 {PROOF.hex()}"),
]


@pytest.mark.parametrize(("items", "text"), VECTORS)
def test_vectors(items: list[Item], text: str) -> None:
    assert encode(items) == bytes.fromhex(text)
    assert decode(bytes.fromhex(text)) == items


def test_the_vectors_are_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/internals/reports.md").read_text()
    for _, text in VECTORS:
        assert re.sub(r"\s+", " ", text) in page


def test_unknown_kinds_and_longer_bodies_are_for_newer_versions() -> None:
    known = encode([Hello(asks=True)])
    unknown = b"\xfe\x00\x03abc"
    longer = b"\x01\x00\x02\x01\x99"
    assert decode(known + unknown + longer) == [Hello(asks=True)] * 2


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"RGR",
        b"RGR\x02",
        b"RGE\x01",
        b"RGR\x01\x01",
        b"RGR\x01\x01\x00\x02\x01",
        b"RGR\x01\x02\x00\x01\x01",
        b"RGR\x01\x03\x00\x1f" + bytes(31),
    ],
)
def test_what_is_cut_off_or_of_another_version_is_refused(datagram: bytes) -> None:
    with pytest.raises(ValueError, match=r"report|cut off|too short"):
        decode(datagram)


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="report"):
        decode(b"RGR\x01" + b"\xfe\x00\x00" * REPORT_LIMIT)


@given(st.binary(max_size=100))
def test_no_datagram_does_more_than_be_refused(body: bytes) -> None:
    try:
        decode(b"RGR\x01" + body)
    except ValueError:
        return
