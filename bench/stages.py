"""Where the native plane's time goes on one packet's way out and in: the shares in docs/internals/data-path.md.

    scripts/in-namespace .venv/bin/python bench/stages.py [--seconds N] [--ring]

Two hosts, one TCP stream at full rate, `perf record` on the sender's out thread and the receiver's in thread. Each
sample belongs to the innermost function on its stack that a stage knows. Needs perf (apt-get install linux-perf).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# What runs wireguard-go is shared with the tests; the engines use it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engines import ENGINES
from links import Way, make_pair

from rustguard_py.lab.hosts import Lab

# Samples per second and thread. Not a round number, so that nothing keeps step with it.
FREQUENCY = 2999
# Functions that tell a stage, the kernel's and ours. What the compiler took into its caller counts as the caller.
_CIPHER = r"ring_core_.*(seal|open|poly|chacha)|ring::|transport::(lanes|aead|keypairs)|CRYPTO_memcmp|memcmp"
_WAITING = r"sched_yield|do_sys_poll"
STAGES = {
    "out": {
        "read": r"tun_chr_read_iter|tun_do_read",
        "send": r"udpv?6?_sendmsg|____sys_sendmsg",
        "waiting": _WAITING,
        "look-up": r"transport::(allowed_ips|snapshot)",
        "seal": _CIPHER,
        "checksum, cut": r"transport::(checksum|segment|outbound)|memmove|memset|memcpy",
    },
    "in": {
        "receive": r"udpv?6?_recvmsg|___sys_recvmsg|do_recvmmsg",
        "write": r"tun_chr_write_iter|tun_get_user",
        "waiting": _WAITING,
        "allowed-IPs": r"transport::allowed_ips|is_owned_by",
        "open": _CIPHER,
        "verify, coalesce": r"transport::(checksum|coalesce)",
        "index, window": r"transport::(snapshot|window|inbound|transport)",
    },
}
OTHER = "everything else"


def _record(seconds: int, folder: Path, engine: str) -> Path:
    """Profile both planes while a stream runs; give perf's file."""
    with Lab() as lab:
        pair = make_pair(lab, Way())
        running = ENGINES[engine].start(pair, folder)
        server = pair.server.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        pair.server.wait_listening("tcp", 5201)
        argv = ["iperf3", "-c", running.target, "-t", str(seconds + 2)]
        stream = pair.client.popen(argv, stdout=subprocess.DEVNULL)
        time.sleep(1)
        samples = folder / "perf.data"
        record = ["perf", "record", "-q", "-g", "-e", "cpu-clock", "-F", str(FREQUENCY), "-o", str(samples)]
        pids = f"{running.client_pid},{running.server_pid}"
        subprocess.run([*record, "-p", pids, "--", "sleep", str(seconds)], check=True)
        for program in (stream, server):
            program.wait(seconds + 20)
        # The client's process first: it sends.
        (folder / "pids").write_text(f"{running.client_pid} {running.server_pid}")
        return samples


def stage_of(stack: Iterable[str], stages: dict[str, str]) -> str:
    """Return the stage of a sample; `stack` has function names, the innermost first."""
    for function in stack:
        for stage, pattern in stages.items():
            if re.search(pattern, function):
                return stage
    return OTHER


def _count(samples: Path, pids: list[str]) -> dict[str, Counter[str]]:
    """Sort the samples of the sender's out threads and the receiver's in threads into stages."""
    script = ["perf", "script", "-i", str(samples), "-F", "comm,pid,ip,sym"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    counts: dict[str, Counter[str]] = {way: Counter() for way in STAGES}
    for block in said.split("\n\n"):
        head, *frames = block.strip("\n").splitlines() or [""]
        words = head.split()
        for way, pid in zip(STAGES, pids, strict=True):
            if len(words) == 2 and words[0].startswith(f"rg-{way}-") and words[1] == pid:
                stack = [frame.strip().partition(" ")[2] for frame in frames]
                counts[way][stage_of(stack, STAGES[way])] += 1
    return counts


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10, metavar="N", help="how long to look (10)")
    parser.add_argument("--ring", action="store_true", help="with ring's AEAD, as on processors without AVX-512 IFMA")
    given = parser.parse_args()
    engine = "native-ring" if given.ring else "native"
    why = ENGINES[engine].why_not() if shutil.which("perf") else "perf is missing (apt-get install linux-perf)"
    if why:
        print(why, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="rustguard-stages-") as name:
        samples = _record(given.seconds, Path(name), engine)
        counts = _count(samples, (Path(name) / "pids").read_text().split())
    for way, count in counts.items():
        waiting = count.pop("waiting", 0)
        busy = count.total()
        print(f"{way}: {busy} samples at work, {waiting} on the way to sleep")
        for stage in [*(stage for stage in STAGES[way] if stage != "waiting"), OTHER]:
            print(f"  {stage:18} {count[stage] / max(1, busy):6.1%}")
    return 0 if all(counts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
