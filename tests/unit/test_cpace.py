"""CPace against the draft's vectors, what it must refuse, and that both libraries agree."""

from __future__ import annotations

import os
import random

import pytest

from rustguard_py.enroll.pairing import cpace
from rustguard_py.enroll.pairing.cpace import Share, generator, intermediate_session_key, lv, lv_cat
from rustguard_py.enroll.pairing.ristretto import Group, libsodium, native

# draft-irtf-cfrg-cpace-21, appendix B.3: group ristretto255 and hash SHA-512.
PRS = b"Password"
CI = lv_cat(b"A_initiator", b"B_responder")
SID = bytes.fromhex("7e4b4791d6a8ef019b936c79fb7f2c57")
GENERATOR = bytes.fromhex("222b6b195fe84b1652badb6f6a3ae3d24341e7306967f0b8115b40d5698c7e56")
YA_SECRET = bytes.fromhex("da3d23700a9e5699258aef94dc060dfda5ebb61f02a5ea77fad53f4ff0976d08")
YB_SECRET = bytes.fromhex("d2316b454718c35362d83d69df6320f38578ed5984651435e2949762d900b80d")
YA = bytes.fromhex("d6bac480f2c386c394efc7c47adb9925dcd2630b64f240c50f8d0eec482b9157")
YB = bytes.fromhex("3ea7e0b19560d7c0b0f5734f63b955286dfa8232b5ebe63324e2d9e7433f7258")
K = bytes.fromhex("80b69a8a76457ab6a4d7f887a4bf6b55a2f80ac19c333f917a05fc9887c8b40f")
ISK = bytes.fromhex(
    "b69effbf61b51d56401c0f65601abe428de8206feaaf0e32198896dcae7b35cd"
    "2b38950a39dfd5d4a79164614c2984f7daa460b588c1e80c3fa2068af7900447"
)
# B.3.10 and B.3.11: scalar_mult_vfy with valid and with invalid inputs.
SCALAR = bytes.fromhex("7cd0e075fa7955ba52c02759a6c90dbbfc10e6d40aea8d283e407d88cf538a05")
POINT = bytes.fromhex("2c3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c")
PRODUCT = bytes.fromhex("7c13645fe790a468f62c39beb7388e541d8405d1ade69d1778c5fe3e7f6b600e")
INVALID = bytes.fromhex("2b3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c")
NEUTRAL = bytes(32)

GROUPS = [group for group in (native(), libsodium()) if group is not None]


@pytest.fixture(params=GROUPS, ids=lambda group: group.name, autouse=True)
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Run each test with each library."""
    chosen: Group = request.param
    monkeypatch.setattr(cpace, "GROUP", chosen)
    return chosen


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
    assert k == b.exchange(YA) == K
    assert intermediate_session_key(SID, k, YA, b"ADa", YB, b"ADb") == ISK


def test_multiplication_is_the_drafts(group: Group) -> None:
    assert group.multiply(SCALAR, POINT) == PRODUCT


@pytest.mark.parametrize("point", [INVALID, NEUTRAL, b"\xff" * 32], ids=["no element", "neutral", "not canonical"])
def test_an_invalid_share_ends_the_run(group: Group, point: bytes) -> None:
    assert group.multiply(SCALAR, point) is None
    assert share(YA_SECRET).exchange(point) is None


def test_a_scalar_of_zero_ends_the_run(group: Group) -> None:
    assert group.multiply(bytes(32), POINT) is None


def test_a_random_scalar_is_below_the_groups_order() -> None:
    taken = []

    def largest(size: int) -> bytes:
        taken.append(size)
        return b"\xff" * size

    assert len(Share(GENERATOR, largest).public) == 32
    assert taken == [32]


def test_both_libraries_compute_the_same() -> None:
    ours, theirs = GROUPS[0], GROUPS[-1]
    dice = random.Random(255)
    for _ in range(200):
        uniform = dice.randbytes(64)
        scalar = dice.randbytes(31) + bytes([dice.randrange(16)])
        element = ours.from_hash(uniform)
        assert element == theirs.from_hash(uniform)
        assert ours.multiply(scalar, element) == theirs.multiply(scalar, element)
        noise = os.urandom(32)
        assert ours.multiply(scalar, noise) == theirs.multiply(scalar, noise)


def test_lengths_are_leb128() -> None:
    assert lv(b"") == b"\x00"
    assert lv(bytes(127))[:1] == b"\x7f"
    assert lv(bytes(128))[:2] == b"\x80\x01"
    assert lv(bytes(300))[:2] == b"\xac\x02"


def test_lv_cat_keeps_parts_apart() -> None:
    assert lv_cat(b"ab", b"c") != lv_cat(b"a", b"bc")
