"""Keys: WireGuard's text form and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import decode_key, encode_key, fingerprint, generate_private_key, public_key

KEYS = st.binary(min_size=32, max_size=32)


def test_a_public_key_is_that_of_rfc_7748() -> None:
    # RFC 7748, section 6.1: Alice.
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    assert public_key(private).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"


@given(KEYS)
def test_a_generated_key_is_clamped_and_otherwise_the_randomness(random: bytes) -> None:
    key = generate_private_key(lambda size: random[:size])
    assert key[1:31] == random[1:31]
    assert key[0] == random[0] & 0b11111000
    assert key[31] == random[31] & 0b00111111 | 0b01000000


def test_generated_keys_differ() -> None:
    assert generate_private_key() != generate_private_key()


@given(KEYS)
def test_a_key_comes_back_from_its_text(key: bytes) -> None:
    assert len(encode_key(key)) == 44
    assert decode_key(encode_key(key)) == key


@given(st.text(max_size=50).filter(lambda text: len(text) != 44))
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="44 characters"):
        decode_key(text)


def test_a_refusal_does_not_repeat_what_may_be_a_secret() -> None:
    text = encode_key(bytes(range(32)))[:-1]
    with pytest.raises(UsageError) as caught:
        decode_key(text)
    assert text not in caught.value.message + caught.value.fix + repr(caught.value)


@pytest.mark.parametrize("change", ["{}\n", " {}", "{}=", "{}AAAA"])
def test_space_and_padding_around_a_key_are_refused(change: str) -> None:
    with pytest.raises(UsageError, match="44 characters"):
        decode_key(change.format(encode_key(bytes(32))))


def test_the_bits_beyond_the_key_must_be_zero() -> None:
    with pytest.raises(UsageError, match="44 characters"):
        decode_key(encode_key(bytes(32))[:-2] + "B=")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_32_bytes_are_a_key(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        encode_key(bytes(size))


def test_a_fingerprint_is_the_head_of_the_keys_hash() -> None:
    # printf '\0%.0s' {1..32} | sha256sum | xxd -r -p | base32 | head -c 16
    assert fingerprint(bytes(32)) == "MZUHVLPYMK6XO3EP"
