"""CPace against the draft's vectors, and what it must refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.enroll.pairing.cpace import Share, elligator2, generator, intermediate_session_key, lv, lv_cat

# draft-irtf-cfrg-cpace, "Test vector for CPace using group X25519 and hash SHA-512".
PRS = b"Password"
CI = lv_cat(b"A_initiator", b"B_responder")
SID = bytes.fromhex("7e4b4791d6a8ef019b936c79fb7f2c57")
GENERATOR = bytes.fromhex("d04bf6d41f6a289632a2e929fa29bebd51092512a7829fdde7d314b62f05a73f")
YA_SECRET = bytes.fromhex("21b4f4bd9e64ed355c3eb676a28ebedaf6d8f17bdc365995b319097153044080")
YB_SECRET = bytes.fromhex("848b0779ff415f0af4ea14df9dd1d3c29ac41d836c7808896c4eba19c51ac40a")
YA = bytes.fromhex("1d13c89278cdadd826f6d8d7f887701430f8380ddc17611cdd6dc989ce0c9f32")
YB = bytes.fromhex("248cccf6d5cdc3646f0ad593f9e6cef4e69d4945f8372e623512ecea32185623")
ISK = bytes.fromhex(
    "6e19b875f7a561d6b3ca3dbb9ef42ac55de3e717881018204b8922b4d5e53bb2"
    "aa82c300bea7b65d2b671da71922ddf6472301b79bc270adfa8bf413285f2263"
)

# Every u coordinate of small order, canonical and not (RFC 7748, section 7; the draft's own list of invalid points).
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def share(secret: bytes) -> Share:
    return Share(GENERATOR, lambda _size: secret)


@pytest.mark.fault(31)
def test_generator_is_the_drafts() -> None:
    assert CI.hex() == "0b415f696e69746961746f720b425f726573706f6e646572"
    assert generator(PRS, CI, SID) == GENERATOR


@pytest.mark.fault(31)
def test_shares_and_session_key_are_the_drafts() -> None:
    a, b = share(YA_SECRET), share(YB_SECRET)
    assert (a.public, b.public) == (YA, YB)
    k = a.exchange(YB)
    assert k is not None
    assert k == b.exchange(YA)
    assert intermediate_session_key(SID, k, YA, b"ADa", YB, b"ADb") == ISK


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_share_of_low_order_ends_the_run(point: str) -> None:
    assert share(YA_SECRET).exchange(bytes.fromhex(point)) is None
    with_high_bit = bytes.fromhex(point)[:31] + bytes([bytes.fromhex(point)[31] | 0x80])
    assert share(YA_SECRET).exchange(with_high_bit) is None


def test_lengths_are_leb128() -> None:
    assert lv(b"") == b"\x00"
    assert lv(bytes(127))[:1] == b"\x7f"
    assert lv(bytes(128))[:2] == b"\x80\x01"
    assert lv(bytes(300))[:2] == b"\xac\x02"


def test_lv_cat_keeps_parts_apart() -> None:
    assert lv_cat(b"ab", b"c") != lv_cat(b"a", b"bc")


@given(st.binary(min_size=32, max_size=32))
def test_elligator_lands_on_the_curve(data: bytes) -> None:
    p = 2**255 - 19
    u = int.from_bytes(elligator2(data), "little")
    v_squared = (u**3 + 486662 * u**2 + u) % p
    assert u < p
    assert pow(v_squared, (p - 1) // 2, p) in (0, 1)
