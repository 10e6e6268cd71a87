"""The programs in examples/ and on the page about embedding run as they stand, and pass a strict type check."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import rustguard_py
from support.embedded import ONE4, OTHER4, Ends, in_loop, to_one
from support.packets import checksums_hold, udp_packet

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/guide/embedding.md").read_text(), re.DOTALL | re.MULTILINE
)
PATIENCE = 60.0


def _config(folder: Path, text: str) -> Path:
    file = folder / "wg0.conf"
    file.write_text(text)
    file.chmod(0o600)
    return file


@contextmanager
def running(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """An example that runs until Ctrl-C, which isn't an error."""
    argv = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield program
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=PATIENCE)
        assert (program.returncode, said) == (0, "")
    finally:
        program.kill()
        program.communicate()


async def _answer_pings(tunnel: rustguard_py.AsyncTunnel) -> None:
    """Answer as a host does."""
    while True:
        for packet in await tunnel.read_batch():
            assert (packet[9], packet[20]) == (1, 8)
            reply = bytearray(packet)
            reply[12:16], reply[16:20] = packet[16:20], packet[12:16]
            reply[20] = 0
            # One word less, which the checksum makes up for.
            total = int.from_bytes(reply[22:24], "big") + 0x0800
            reply[22:24] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
            await tunnel.write_batch([reply])


@in_loop
async def test_ping_is_answered_through_the_tunnel(tmp_path: Path) -> None:
    ends = Ends()
    async with rustguard_py.connect(ends.one()) as one:
        answering = asyncio.create_task(_answer_pings(one))
        argv = [sys.executable, str(EXAMPLES / "ping.py"), str(_config(tmp_path, ends.other())), ONE4]
        program = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        said = (await program.communicate())[0].decode()
        assert not answering.done()
        answering.cancel()
    assert program.returncode == 0
    assert re.findall(r"answer (\d) from 10\.9\.0\.1 after [\d.]+ ms", said) == ["0", "1", "2"]


def test_echo_sends_back_what_comes_to_its_port(tmp_path: Path) -> None:
    ends = Ends()
    with running("echo.py", _config(tmp_path, ends.one()), 5000) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "UDP port 5000 of 10.9.0.1, fd09::1\n"
        with rustguard_py.connect(ends.other(), timeout=PATIENCE) as other:
            other_port = to_one(b"not for it")[:22] + (5001).to_bytes(2, "big") + to_one(b"not for it")[24:]
            other.write_batch([other_port, to_one(b"four"), to_one(b"six", source="fd09::2")])
            came: list[bytes] = []
            while len(came) < 2:
                came += map(bytes, other.read_batch(timeout=PATIENCE))
    four, six = came
    assert (four[12:16], four[16:20]) == (bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2]))
    assert (four[20:22], four[22:24]) == ((5000).to_bytes(2, "big"), (4000).to_bytes(2, "big"))
    assert (four[28:], six[48:]) == (b"four", b"six")
    assert checksums_hold(four)
    assert checksums_hold(six)


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="needs tcpdump, which reads what is written")
def test_a_capture_is_read_by_tcpdump(tmp_path: Path) -> None:
    ends, target = Ends(), tmp_path / "traffic.pcapng"
    with running("capture.py", _config(tmp_path, ends.one()), target) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == f"capturing to {target}\n"
        with rustguard_py.connect(ends.other(), timeout=PATIENCE) as other:
            other.write_batch([to_one(b"a"), to_one(b"bcdefg"), to_one(b"xy", source="fd09::2")])
            size = 0
            while target.stat().st_size < 100 or target.stat().st_size != size:
                size = target.stat().st_size
                other.read_batch(timeout=0.3)
    with target.open("rb") as file:
        argv = ["tcpdump", "-nn", "-tt", "-r", "-"]
        done = subprocess.run(argv, stdin=file, capture_output=True, text=True, check=True)
    assert "link-type RAW (Raw IP)" in done.stderr
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert lines == [
        f"IP {OTHER4}.4000 > {ONE4}.5000: UDP, length 1",
        f"IP {OTHER4}.4000 > {ONE4}.5000: UDP, length 6",
        "IP6 fd09::2.4000 > fd09::1.5000: UDP, length 2",
    ]
    at = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert at == sorted(at)
    assert abs(at[0] - target.stat().st_mtime) < PATIENCE


def test_the_pages_programs_run(tmp_path: Path) -> None:
    """Those with a wg-quick file; the one that pairs is tests/hosts/product/test_embed.py's."""
    ends = Ends()
    _config(tmp_path, ends.other())
    programs = [block for block in BLOCKS if 'Path("wg0.conf")' in block]
    assert len(programs) == 2
    with rustguard_py.connect(ends.one()) as one:
        said = []
        for program in programs:
            argv = [sys.executable, "-c", program]
            with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
                while running.poll() is None:
                    one.write_batch([udp_packet(ONE4, OTHER4, b"hello")])
                    time.sleep(0.1)
                assert running.returncode == 0
                assert running.stdout is not None
                said.append(running.stdout.read())
    assert "(IPv4Interface('10.9.0.2/24'), IPv6Interface('fd09::2/64')) 1420\n" in said[0]
    assert "33 bytes, IP version 4" in said[0]
    assert re.fullmatch(rf"\d+ packets\none 127\.0\.0\.1:{ends.port} True \d+ \d+\n", said[1])


def test_examples_and_a_users_program_pass_a_strict_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "import rustguard_py\n"
        "from pathlib import Path\n\n"
        "async def main() -> None:\n"
        "    async with rustguard_py.connect(Path('wg0.conf')) as tunnel:\n"
        "        reveal_type(tunnel)\n"
        "        reveal_type(await tunnel.read_batch())\n"
        "    joining = rustguard_py.connect('vpn.example', token='x', state='kept', routes=['10.0.0.0/8'])\n"
        "    async with joining as joined:\n"
        "        reveal_type(await joined.write_batch([b'', bytearray()]))\n"
        "    with rustguard_py.connect('vpn.example', state=Path('kept')) as kept:\n"
        "        reveal_type(kept)\n"
        "        reveal_type(kept.stats().peers[0].endpoint)\n"
        "    rustguard_py.connect('text', name='for a server only')\n"
    )
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)]
    argv += [str(each) for each in sorted(EXAMPLES.glob("*.py"))]
    for number, block in enumerate(BLOCKS):
        page = tmp_path / f"page_{number}.py"
        page.write_text(block)
        argv.append(str(page))
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    print(done.stdout)
    names = re.findall(r"AsyncTunnel|SyncTunnel|memoryview|int|str", " ".join(revealed))
    assert names[:5] == ["AsyncTunnel", "memoryview", "int", "int", "SyncTunnel"]
    # The last line is wrong, and nothing else.
    assert len(errors) == 1
    assert "No overload variant" in errors[0]
