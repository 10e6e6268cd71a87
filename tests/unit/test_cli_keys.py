"""`genkey` and `pubkey` compared with `wg` itself: the same bytes, the same exit codes."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rustguard_py.cli.genkey import clamp

OURS = [sys.executable, "-m", "rustguard_py.cli"]
ZERO_KEY = base64.b64encode(bytes(32))
# RFC 7748, section 6.1: Alice's.
ALICE = base64.b64encode(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4bc9c2c5c8e6a8b6f7f9b3b6b7c92a"))

needs_wg = pytest.mark.skipif(shutil.which("wg") is None, reason="needs wg: apt-get install wireguard-tools")


def ask(program: list[str], verb: str, stdin: bytes = b"") -> tuple[int, bytes]:
    done = subprocess.run([*program, verb], input=stdin, capture_output=True, cwd="/", check=False)
    return done.returncode, done.stdout


@needs_wg
@pytest.mark.parametrize(
    "text",
    [
        ZERO_KEY + b"\n",
        ALICE,
        base64.b64encode(b"\xff" * 32) + b"\n",
        ZERO_KEY + b" \n\t\r\v\f\n",
        b"",
        b"\n",
        b"abc\n",
        ZERO_KEY[:-1],
        b" " + ZERO_KEY,
        ZERO_KEY + b" x",
        ZERO_KEY + b"\0",
        b"\0" + ZERO_KEY,
        # Bits set beyond the 32 bytes.
        b"A" * 42 + b"B=",
        b"A" * 42 + b"C=",
        b"A" * 42 + b"E=",
        b"A" * 44,
        b"A" * 42 + b"==",
        b"A" * 42 + b"-=",
        b"A" * 20 + b"\n" + b"A" * 22 + b"=",
    ],
)
def test_pubkey_does_what_wg_does_with_any_input(text: bytes) -> None:
    assert ask(OURS, "pubkey", text) == ask(["wg"], "pubkey", text)


@needs_wg
def test_each_reads_the_others_private_keys() -> None:
    for maker in (OURS, ["wg"]):
        code, private = ask(maker, "genkey")
        assert (code, len(private), private[-2:]) == (0, 45, b"=\n")
        key = base64.b64decode(private)
        assert key == clamp(key)
        code, public = ask(OURS, "pubkey", private)
        assert (code, public) == ask(["wg"], "pubkey", private)
        assert code == 0


def test_a_private_key_is_clamped_as_rfc_7748_says() -> None:
    assert clamp(b"\xff" * 32) == b"\xf8" + b"\xff" * 30 + b"\x7f"
    assert clamp(bytes(32)) == bytes(31) + b"\x40"


def test_no_two_keys_are_alike() -> None:
    assert ask(OURS, "genkey")[1] != ask(OURS, "genkey")[1]


@needs_wg
@pytest.mark.parametrize("mode", [0o600, 0o610, 0o601, 0o604, 0o666])
def test_writing_a_key_where_the_world_reads_it_is_warned_about_as_wg_does(tmp_path: Path, mode: int) -> None:
    said = []
    for program in (OURS, ["wg"]):
        path = tmp_path / "key"
        path.touch()
        path.chmod(mode)
        with path.open("wb") as file:
            done = subprocess.run(
                [*program, "genkey"], stdout=file, stderr=subprocess.PIPE, text=True, cwd="/", check=True
            )
        said.append(done.stderr)
    assert said[0] == said[1]
    assert bool(said[0]) is bool(mode & 0o007)


def test_a_full_disk_is_an_error_not_a_lost_key() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*OURS, "genkey"], stdout=full, stderr=subprocess.PIPE, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (1, b"rustguard: No space left on device.\n")
