"""DPDK's testpmd with a memif: the other end of ours, which nobody here wrote."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# An emulated processor takes long to start it.
START_SECONDS = 60.0
# What it calls itself on the control channel.
INTERFACE = "net_memif0"


@cache
def program() -> str | None:
    """The one that `scripts/testpmd` unpacked beside our Python, else the system's."""
    unpacked = Path(sys.prefix, "testpmd", "testpmd")
    return str(unpacked) if unpacked.exists() else shutil.which("dpdk-testpmd")


@cache
def why_not() -> str:
    """testpmd is here."""
    if program() is not None:
        return ""
    noted = Path(sys.prefix, "testpmd.why")
    return noted.read_text().strip() if noted.exists() else "no testpmd (scripts/testpmd)"


@dataclass(frozen=True, slots=True)
class Counts:
    """Packets that testpmd received and sent since `start`, and what it couldn't send."""

    received: int
    sent: int
    dropped: int


class Testpmd:
    """A running testpmd with a memif, its port 0. One of its threads spins: end it soon.

    Args:
        socket: Of the control channel.
        server: Whether it listens.
        queues: Of each direction.
        log2: The exponent of 2 of its rings' size, if it is the client.
        mode: What it does with packets, from `start` on. 5tswap sends each back, with the addresses of all layers
            exchanged.
        more: Further words of the command line.
        wire: A network interface of the kernel, which is its port 1.
        enter: The words in front of its command line that take it to where the interface is.
    """

    __test__ = False

    def __init__(
        self,
        socket: Path,
        *,
        server: bool,
        queues: int = 1,
        log2: int = 10,
        mode: str = "5tswap",
        more: tuple[str, ...] = (),
        wire: str | None = None,
        enter: Sequence[str] = (),
    ) -> None:
        found = program()
        assert found is not None
        self._socket, self._server, self._queues = socket, server, queues
        self.log = socket.with_name(f"testpmd-{time.monotonic_ns()}.log")
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        role = "server" if server else "client"
        device = f"{INTERFACE},role={role},socket-abstract=no,socket={socket},id=5,secret=psst,rsize={log2}"
        eal = ["--lcores", f"(0-1)@({cores})", "--no-huge", "--no-pci", "-m", "256", "--no-telemetry", "--no-shconf"]
        devices = [f"--vdev={device}", *([f"--vdev=net_af_packet0,iface={wire}"] if wire else [])]
        # What waits in a ring at `start` isn't thrown away.
        own = ["-i", "--no-flush-rx", "--total-num-mbufs=8192", "--nb-cores=1", f"--rxq={queues}", f"--txq={queues}"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*enter, "stdbuf", "-oL", found, *eal, *devices, "--", *own, f"--forward-mode={mode}", *more],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
        try:
            self._wait_for(r"testpmd> $")
        except AssertionError:
            self.kill()
            raise

    def start(self) -> None:
        """Begin to move packets."""
        self._say("start", r"RX Offloads")

    def stop(self) -> Counts:
        """Move no more packets, and count those that were moved."""
        said = self._say("stop", r"Done\.\s")
        found = re.search(
            r"RX-packets: (\d+) +RX-dropped: \d+ .*?TX-packets: (\d+) +TX-dropped: (\d+) ", said, re.DOTALL
        )
        assert found is not None, said
        return Counts(*map(int, found.groups()))

    def received(self) -> int:
        """Packets received so far. It may go on."""
        said = self._say("show port stats 0", r"TX-bytes")
        found = re.search(r"NIC statistics for port 0.*?RX-packets: (\d+)", said, re.DOTALL)
        assert found is not None, said
        return int(found[1])

    def queues(self) -> list[tuple[int, int]]:
        """Packets received and sent so far by each queue. It may go on."""
        said = self._say("show port xstats 0", rf"tx_q{self._queues - 1}_bytes: \d+\s")
        counts = {name: int(count) for name, count in re.findall(r"([rt]x_q\d+_packets): (\d+)", said)}
        return [(counts[f"rx_q{each}_packets"], counts[f"tx_q{each}_packets"]) for each in range(self._queues)]

    def set_size(self, size: int) -> None:
        """Send frames of so many bytes in mode `txonly`, from the next `start` on."""
        self._say(f"set txpkts {size}", r"testpmd> $")

    def connect_again(self) -> None:
        """Connect once more, as a client does only when it is told to. It moves no packets then."""
        self._say("port stop 0", r"Done\s")
        self._say("port start 0", r"Done\s")

    def kill(self) -> None:
        """Kill it, as `kill -9` does. The socket of a server is removed, or the next one couldn't start."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._server:
            self._socket.unlink(missing_ok=True)

    def _say(self, line: str, answer: str) -> str:
        """Type a line, and return what it says until the answer."""
        before = self.log.stat().st_size
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        return self._wait_for(answer, before)

    def _wait_for(self, pattern: str, skip: int = 0) -> str:
        until = time.monotonic() + START_SECONDS
        while not re.search(pattern, said := self.log.read_bytes()[skip:].decode(errors="replace")):
            ended = self._process.poll()
            assert ended is None, f"testpmd ended with {ended}: {said[-2000:]}"
            assert time.monotonic() < until, f"testpmd doesn't say {pattern!r}: {said[-2000:]}"
            time.sleep(0.02)
        return said
