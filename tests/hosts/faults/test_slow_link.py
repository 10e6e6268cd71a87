"""A slow link that one TCP stream fills: a ping must not wait for what the stream has queued."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from statistics import median

import pytest

from rustguard_py.lab.hosts import Lab
from support.engines import needs_native
from support.product import INNER, Site


@needs_native
@pytest.mark.fault(53)
@pytest.mark.parametrize(("mbit", "queue_ms"), [(50, 400), (10, 200)])
def test_a_ping_does_not_wait_for_what_a_stream_has_queued(
    mbit: int, queue_ms: int, lab: Lab, tmp_path: Path
) -> None:
    # The second link's own queue never holds what a fast link may.
    site = Site(lab, tmp_path)
    home = site.home()
    laptop = site.client("laptop", home)
    shape = ["rate", f"{mbit}mbit", "burst", "8000", "latency", f"{queue_ms}ms"]
    laptop.host.run(["tc", "qdisc", "add", "dev", laptop.own_end.interface, "root", "tbf", *shape])
    home.serve("--pool 10.150.0.0/24 --engine native --open")
    laptop.join(words="--engine native")
    listener = home.host.popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    home.host.wait_listening("tcp", 5201)
    # BBR would leave the queue almost empty by itself.
    argv = ["iperf3", "-J", "-c", INNER, "-C", "cubic", "-t", "4", "-O", "1"]
    stream = laptop.host.popen(argv, stdout=subprocess.PIPE)
    time.sleep(2)
    said = laptop.host.run(["ping", "-n", "-i", "0.02", "-c", "100", "-W", "2", INNER], check=False).stdout
    report = json.loads(stream.communicate(timeout=60)[0])
    listener.wait(60)
    times = [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]
    rate = report["end"]["sum_received"]["bits_per_second"] / 1e6
    lost = laptop.status()["counters"]["drops"].get("send_queue", 0)
    print(f"{len(times)} pings, {median(times):.1f} ms, at most {max(times):.1f}; {rate:.1f} Mbit/s; lost: {lost}")
    assert len(times) >= 95
    assert median(times) < queue_ms / 3
    assert rate > mbit / 2
    # The stream is slowed down by losses among its own packets.
    assert lost > 0
