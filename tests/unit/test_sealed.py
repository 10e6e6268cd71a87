"""A sealed file opens with its passphrase alone, and says what is wrong with any other file."""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py.model.errors import RefusedError, RustGuardError, StateError, UsageError
from rustguard_py.state import sealed
from rustguard_py.state.backup import Backup
from rustguard_py.state.records import ServerState
from rustguard_py.state.sealed import FORMAT, MAGIC, Cost, Sealed, key, seal

QUICK = Cost(log_n=4, r=8, p=1)
# Those of a sealed file's header that say how dear the passphrase is: with other ones it would take long.
COST_BYTES = range(18, 27)
WORDS = "five random words as usual"


def rehashed(file: bytes) -> bytes:
    """Return a changed file with the checksum that it then needs: somebody changed it on purpose."""
    return file[:-32] + sha256(file[:-32]).digest()


@pytest.mark.parametrize(
    ("passphrase", "salt", "cost", "expected"),
    [
        (
            "password",
            b"NaCl",
            Cost(10, 8, 16),
            "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162",
        ),
        (
            "pleaseletmein",
            b"SodiumChloride",
            Cost(14, 8, 1),
            "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2",
        ),
    ],
)
def test_the_key_is_scrypts_by_the_vectors_of_rfc_7914(
    passphrase: str, salt: bytes, cost: Cost, expected: str
) -> None:
    # The vectors have 64 bytes. PBKDF2-SHA256, scrypt's last step, makes them in two blocks of 32.
    assert key(passphrase, salt, cost).hex() == expected


@given(content=st.binary(max_size=300), passphrase=st.text(min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_what_is_sealed_comes_back_with_its_passphrase_alone(content: bytes, passphrase: str) -> None:
    passphrase = passphrase.encode(errors="replace").decode()
    file = seal(content, passphrase, QUICK)
    assert Sealed.parse(file).open(passphrase) == content
    with pytest.raises(RefusedError, match="passphrase is wrong"):
        Sealed.parse(file).open(passphrase + "x")
    assert seal(content, passphrase, QUICK) != file
    assert len(content) < 16 or content not in file


def test_equal_passphrases_in_different_forms_of_unicode_are_the_same() -> None:
    assert Sealed.parse(seal(b"x", "caf\u00e9", QUICK)).open("cafe\u0301") == b"x"


def test_without_a_passphrase_anybody_can_open_it_and_with_one_it_is_needed() -> None:
    file = Sealed.parse(seal(b"content", None))
    assert file.cost is None
    assert file.open(None) == b"content"
    with pytest.raises(RefusedError, match="has a passphrase") as told:
        Sealed.parse(seal(b"content", WORDS, QUICK)).open(None)
    assert "--no-passphrase" in told.value.fix


@pytest.mark.parametrize("passphrase", [None, WORDS])
def test_a_file_cut_at_any_byte_says_so(passphrase: str | None) -> None:
    file = seal(b"a few bytes", passphrase, QUICK)
    for size in range(len(file)):
        with pytest.raises(StateError, match=r"cut off|no backup") as told:
            Sealed.parse(file[:size])
        assert told.value.message.startswith("This is no backup") is (size == 0)
        assert told.value.fix
    with pytest.raises(StateError, match="1 byte after its end"):
        Sealed.parse(file + b"\n")


@pytest.mark.parametrize("passphrase", [None, WORDS])
def test_any_flipped_bit_is_found_and_a_forged_checksum_helps_nobody(passphrase: str | None) -> None:
    file = seal(b"bytes", passphrase, QUICK)
    for place in range(len(file) * 8):
        changed = bytearray(file)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(StateError):
            Sealed.parse(bytes(changed))
        if passphrase is None or place >= (len(file) - 32) * 8 or place % 5 or place // 8 in COST_BYTES:
            continue
        # Whoever makes the checksum right still can't open it as something else: the header is authenticated.
        with pytest.raises(RustGuardError):
            Sealed.parse(rehashed(bytes(changed))).open(passphrase)


def test_another_file_and_one_of_a_later_version_are_told_apart() -> None:
    with pytest.raises(StateError, match="no backup of RustGuard"):
        Sealed.parse(b"PK\x03\x04 something else")
    newer = bytearray(seal(b"", WORDS, QUICK))
    newer[len(MAGIC)] = FORMAT + 1
    with pytest.raises(StateError, match=rf"later version .*format {FORMAT + 1}") as told:
        Sealed.parse(bytes(newer))
    assert told.value.fix == "Upgrade RustGuard on this machine, then restore it."
    older = bytearray(newer)
    older[len(MAGIC)] = 0
    with pytest.raises(StateError, match="header is invalid"):
        Sealed.parse(bytes(older))


@pytest.mark.parametrize(
    ("log_n", "r", "p"),
    [
        (30, 8, 1),
        (255, 8, 1),
        (20, 2**32 - 1, 1),
        (18, 16, 1),
        (16, 8, 2**32 - 1),
        (17, 8, 9),
        (0, 8, 1),
        (4, 0, 1),
        (17, 1, 1),
    ],
)
def test_a_hostile_file_cannot_ask_for_all_memory_or_an_hour(
    log_n: int, r: int, p: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "key", lambda *_: pytest.fail("it was tried"))
    file = bytearray(seal(b"", None))
    file[17] = 1
    hostile = bytes(file[:18]) + struct.pack(">BII16s24s", log_n, r, p, bytes(16), bytes(24))
    hostile += struct.pack(">Q", 16) + bytes(16) + bytes(32)
    with pytest.raises(StateError, match=r"asks for|invalid"):
        Sealed.parse(rehashed(hostile)).open(WORDS)


def test_what_backup_writes_is_within_the_bounds_and_dear_enough() -> None:
    usual = Cost()
    assert usual.memory == 64 << 20
    assert usual.memory * usual.p >= 128 << 20
    file = seal(b"content", WORDS)
    assert Sealed.parse(file).cost == usual
    assert Sealed.parse(file).open(WORDS) == b"content"


def test_too_little_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "has_memory", lambda _: False)
    with pytest.raises(RustGuardError, match="64 MiB"):
        seal(b"", WORDS)


def test_what_is_too_long_is_refused_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MOST_CONTENT", 3)
    with pytest.raises(UsageError, match="at most"):
        seal(b"1234", None)


def test_a_backup_of_the_first_format_opens() -> None:
    kept = Sealed.parse((Path(__file__).parents[1] / "data/backups/format-1.backup").read_bytes())
    taken = Backup.decode(kept.open("test keys only, of no network"))
    assert (taken.version, taken.directories, taken.services) == ("0.2.0", ["server"], (("serve", "--port", "4000"),))
    server = taken.states()["server"]
    assert isinstance(server, ServerState)
    assert [peer.name for peer in server.peers.values()] == ["laptop", "Anna's Phone"]
