"""The datagrams: sizes, one encoding each, and silence about anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.enroll.pairing.admission import Admission, encode_outcome, parse_outcome
from rustguard_py.enroll.pairing.messages import (
    Challenge,
    Confirm,
    Details,
    Forget,
    Hello,
    Result,
    Revision,
    ShareC,
    ShareS,
    kind_of,
    other_revision,
)

Message = Hello | Challenge | ShareC | ShareS | Confirm | Result | Forget
u32 = st.integers(0, 2**32 - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, exactly(16), u32),
    st.builds(Challenge, exactly(16), exactly(16), u32, exactly(16), exactly(32), exactly(32)),
    st.builds(
        ShareC, exactly(16), exactly(16), u32, exactly(16), u32, st.sampled_from([0, 1]), exactly(32), exactly(32)
    ),
    st.builds(ShareS, exactly(8), exactly(32), exactly(1184)),
    st.builds(Confirm, exactly(8), exactly(1088), exactly(96), exactly(32)),
    st.builds(Result, exactly(8), st.integers(1, 18).flatmap(lambda blocks: exactly(64 * blocks + 16)), exactly(32)),
    st.builds(Forget, exactly(8), exactly(32)),
)
SIZES = {Hello: 128, Challenge: 124, ShareC: 132, ShareS: 1232, Confirm: 1232, Forget: 48}
PARSERS: list[Callable[[bytes], object]] = [
    Hello.parse,
    Challenge.parse,
    ShareC.parse,
    ShareS.parse,
    Confirm.parse,
    Result.parse,
    Forget.parse,
    Revision.parse,
    other_revision,
    Details.parse,
    parse_outcome,
    kind_of,
]
ADMISSION = Admission(
    name="läptop",
    address4=IPv4Interface("10.150.0.2/24"),
    address6=IPv6Interface("fd00::2/64"),
    server_key=bytes(range(32)),
    port=51820,
    mtu=1420,
    keepalive=25,
    routes=(IPv4Network("192.168.7.0/24"),),
    gateway4=IPv4Address("10.150.0.1"),
    gateway6=IPv6Address("fd00::1"),
)


@given(MESSAGES)
def test_each_message_survives_the_wire(message: Message) -> None:
    datagram = message.encode()
    assert type(message).parse(datagram) == message
    assert len(datagram) == SIZES.get(type(message), len(datagram))
    assert len(datagram) <= 1232


@given(MESSAGES, st.data())
def test_another_length_or_header_is_no_message(message: Message, data: st.DataObject) -> None:
    datagram = message.encode()
    assert type(message).parse(datagram + b"\0") is None
    assert type(message).parse(datagram[:-1]) is None
    at = data.draw(st.integers(0, 7))
    changed = bytearray(datagram)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert type(message).parse(bytes(changed)) is None


@pytest.mark.parametrize(("message", "zeros"), [(Hello(bytes(16), 7), 28)])
def test_padding_that_is_not_zero_is_refused(message: Hello, zeros: int) -> None:
    datagram = message.encode()
    for at in range(zeros, len(datagram)):
        assert type(message).parse(datagram[:at] + b"\1" + datagram[at + 1 :]) is None


@given(st.one_of(st.binary(max_size=200), st.sampled_from(range(7)).flatmap(
    lambda kind: st.sampled_from([96, 128, 1232]).flatmap(
        lambda size: st.binary(min_size=size - 8, max_size=size - 8).map(
            lambda body: b"RGE3" + bytes([kind, 0, 0, 0]) + body)))))  # fmt: skip
def test_parsers_take_any_bytes(data: bytes) -> None:
    for parse in PARSERS:
        parse(data)
    for parser in (Hello, Challenge, ShareC, ShareS, Confirm, Result):
        message = parser.parse(data)
        assert message is None or message.encode() == data


@given(st.binary(min_size=80, max_size=80))
def test_details_have_one_encoding(data: bytes) -> None:
    details = Details.parse(data)
    assert details is None or details.encode() == data


def test_details_carry_names_of_45_bytes_and_no_more() -> None:
    details = Details(bytes(range(32)), "ä" * 22 + "x", flags=3)
    assert len(details.encode()) == 80
    assert Details.parse(details.encode()) == details
    with pytest.raises(ValueError, match="45"):
        Details(bytes(32), "ä" * 23).encode()


@pytest.mark.parametrize("name", [b"\x1b[2J", b"a\nb", b"\xff", b"\xe2\x80\xae"])
def test_a_name_that_would_play_with_a_terminal_is_refused(name: bytes) -> None:
    assert Details.parse(bytes(34) + bytes([len(name)]) + name.ljust(45, b"\0")) is None


def test_an_admission_survives_the_wire_and_new_members() -> None:
    members = {**ADMISSION.to_mapping(), "new": {"from": "a later version"}}
    parsed = parse_outcome(encode_outcome(members))
    assert parsed is not None
    assert Admission.from_mapping(parsed) == ADMISSION
    assert len(encode_outcome(members)) % 64 == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(ADMISSION.to_mapping())), JSON)
def test_an_admission_with_any_member_replaced_is_checked(member: str, value: Any) -> None:
    admission = Admission.from_mapping({**ADMISSION.to_mapping(), member: value})
    assert admission is None or Admission.from_mapping(admission.to_mapping()) == admission


@pytest.mark.parametrize("member", sorted(set(ADMISSION.to_mapping()) - {"status", "address6", "gateway6", "routes"}))
def test_an_admission_without_a_needed_member_is_refused(member: str) -> None:
    members = ADMISSION.to_mapping()
    del members[member]
    assert Admission.from_mapping(members) is None


@pytest.mark.parametrize(
    "text", [b"[" * 1152, b"", b"{", b"[]", b'{"status":1}', b'{"status":"ok"}x', b"9" * 1152, b"\xff"]
)
def test_json_that_is_no_outcome_is_refused(text: bytes) -> None:
    assert parse_outcome(text) is None


def test_an_outcome_too_long_for_a_datagram_is_an_error_here() -> None:
    assert (
        len(encode_outcome({"status": "x" * (1152 - len(json.dumps({"status": ""}, separators=(",", ":"))))})) == 1152
    )
    with pytest.raises(ValueError, match="1152"):
        encode_outcome({"status": "x" * 1152})


def test_an_answer_of_another_revision_has_a_whole_header() -> None:
    answer = Revision(bytes(16), b"9").encode()
    assert Revision.parse(answer) == Revision(bytes(16), b"9")
    for place in range(4, 8):
        assert Revision.parse(answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]) is None
