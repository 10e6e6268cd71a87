"""A memif whose client sends two regions, as VPP does, and packets in several buffers."""

from __future__ import annotations

import mmap
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from support.channel_pair import PATIENCE, eventually, to_alice, to_bob
from support.engines import needs_native
from support.memif_client import MemifClient
from support.memif_pair import MemifPair, options

pytestmark = needs_native
# Of up to 23 buffers of 64 bytes each: the rings' indices wrap at 65,536.
PACKETS, BATCH = 6000, 10


def test_packets_cross_two_regions_in_chains_of_buffers_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with (
        closing(MemifPair(replace(options(path, server=True), ethernet=None))) as pair,
        closing(MemifClient(path, 5, b"psst", log2=8, buffer=64)) as client,
    ):
        pair.wait_for_connection()
        assert "connected to memif3/3 of VPP, played" in pair.alice.stats().device
        for start in range(0, PACKETS, BATCH):
            sizes = [8 + number * 37 % 1360 for number in range(start, start + BATCH)]
            down = [to_alice(size, 4 if size % 2 else 6) for size in sizes]
            up = [to_bob(1375 - size, 6 if size % 2 else 4) for size in sizes]
            pair.bob.write(down)
            for packet in up:
                client.send(packet)
            assert _receive(client) == down
            assert pair.bob.read(BATCH) == up
        assert client.longest == (23, 23)
        assert min(client.slots) > 65536, client.slots
        assert pair.drops() == {}


def test_pages_that_the_other_side_never_wrote_are_ours_only_while_it_is_connected(tmp_path: Path) -> None:
    """What `docs/internals/security.md` says of the memory that it can cost."""
    path, holes = tmp_path / "m", 16 << 20
    with closing(MemifPair(replace(options(path, server=True), ethernet=None))) as pair:
        with closing(MemifClient(path, 5, b"psst", log2=8, buffer=64, holes=holes)) as client:
            pair.wait_for_connection()
            before = _shared()
            client.send_holes()
            eventually(lambda: sum(pair.drops().values()) >= holes // mmap.PAGESIZE - 8, "all are read")
            assert 0.9 * holes <= _shared() - before <= 1.1 * holes
        eventually(lambda: _shared() <= before, "the pages are given back")


def _shared() -> int:
    """Return the bytes of shared memory in this process."""
    [found] = re.findall(r"RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) << 10


def _receive(client: MemifClient) -> list[bytes]:
    """Wait for a batch of packets."""
    packets: list[bytes] = []
    until = time.monotonic() + PATIENCE
    while len(packets) < BATCH:
        packets += client.receive()
        assert time.monotonic() < until, f"{len(packets)} of {BATCH} packets came"
        time.sleep(0.0002)
    return packets
