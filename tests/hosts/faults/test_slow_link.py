"""A slow link that TCP streams fill: a ping must not wait for what they have queued, nor for another peer's link."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from rustguard_py.lab.hosts import End, Host, Lab
from support.engines import needs_native
from support.product import INNER, Machine, Site

OUTSIDE = "192.0.2.1"


def narrow(end: End, mbit: int, queue_ms: int, verb: str = "add") -> None:
    """Have an interface send `mbit` Mbit/s, and queue what takes `queue_ms` ms to send."""
    shape = ["rate", f"{mbit}mbit", "burst", "8000", "latency", f"{queue_ms}ms"]
    end.host.run(["tc", "qdisc", verb, "dev", end.interface, "root", "tbf", *shape])


def begin_stream(home: Host, client: Host, port: int, *options: str) -> subprocess.Popen[str]:
    """Begin a TCP stream between a client and the server; its report is JSON."""
    home.popen(["iperf3", "-s", "-1", "-p", str(port)], stdout=subprocess.DEVNULL)
    home.wait_listening("tcp", port)
    # BBR would leave the queue almost empty by itself.
    argv = ["iperf3", "-J", "-c", INNER, "-p", str(port), "-C", "cubic", "-O", "1", *options]
    return client.popen(argv, stdout=subprocess.PIPE)


def rate_of(stream: subprocess.Popen[str]) -> float:
    """Return what arrived, in Mbit/s, once it has ended."""
    report = json.loads(stream.communicate(timeout=60)[0])
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def round_trips(host: Host, count: int) -> list[float]:
    """Return how long pings to the server took, in ms."""
    said = host.run(["ping", "-n", "-i", "0.02", "-c", str(count), "-W", "2", INNER], check=False).stdout
    return [float(each) for each in re.findall(r"time=([\d.]+) ms", said)]


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
    narrow(laptop.own_end, mbit, queue_ms)
    home.serve("--pool 10.150.0.0/24 --engine native --open")
    laptop.join(words="--engine native")
    stream = begin_stream(home.host, laptop.host, 5201, "-t", "4")
    time.sleep(2)
    times = round_trips(laptop.host, 100)
    rate = rate_of(stream)
    lost = laptop.status()["counters"]["drops"].get("send_queue", 0)
    print(f"{len(times)} pings, {median(times):.1f} ms, at most {max(times):.1f}; {rate:.1f} Mbit/s; lost: {lost}")
    assert len(times) >= 95
    assert median(times) < queue_ms / 3
    assert rate > mbit / 2
    # The stream is slowed down by losses among its own packets.
    assert lost > 0


@needs_native
@pytest.mark.fault(53)
def test_clients_share_a_slow_uplink_and_a_ping_to_each_is_fast(lab: Lab, tmp_path: Path) -> None:
    # One client has many streams. Later, the link becomes so slow that its own queue never holds what
    # the kernel may get on a fast one.
    site = Site(lab, tmp_path)
    home, router = site.home(), site.machine("router")
    uplink, _ = lab.link(home.host, router.host, ipv4="192.0.2.0/29")
    home.host.ip(["route add default via 192.0.2.2"])
    router.host.forward()
    narrow(uplink, 60, 100)
    clients = [site.client(name, router) for name in ("many", "one")]
    home.serve("--pool 10.150.0.0/24 --engine native --open")
    for client in clients:
        client.host.ip([f"route add default via {client.servers_end.ipv4}"])
        client.join(f"{OUTSIDE}:51820", "--engine native")
    hosts = [client.host for client in clients]
    many = begin_stream(home.host, hosts[0], 5201, "-R", "-t", "4", "-P", "8")
    one = begin_stream(home.host, hosts[1], 5202, "-R", "-t", "4")
    time.sleep(1.5)
    with ThreadPoolExecutor() as pool:
        times = list(pool.map(partial(round_trips, count=50), hosts))
        narrow(uplink, 6, 100, "change")
        time.sleep(0.5)
        slow = list(pool.map(partial(round_trips, count=30), hosts))
    rates = [rate_of(many), rate_of(one)]
    print([f"{median(each):.1f} ms" for each in times + slow], rates)
    assert all(len(each) >= 25 for each in times + slow)
    assert all(median(each) < 100 / 4 for each in times)
    # The one with many streams waits for a turn of each of its own.
    assert median(slow[1]) < 100 / 2
    assert min(rates) > max(rates) / 3


def _join_by_bridge(lab: Lab, site: Site, home: Machine, names: list[str]) -> list[tuple[Machine, End]]:
    """Make clients at ports of a bridge of the server; return each with the server's port."""
    home.host.ip(["link add br0 type bridge", "link set br0 up", f"addr add {OUTSIDE}/24 dev br0"])
    made = []
    for number, name in enumerate(names):
        client = site.machine(name)
        port, end = lab.link(home.host, client.host)
        home.host.ip([f"link set {port.interface} master br0"])
        client.host.ip([f"addr add 192.0.2.{10 + number}/24 dev {end.interface}"])
        made.append((client, port))
    return made


@needs_native
@pytest.mark.fault(53)
def test_a_slow_link_to_one_client_does_not_delay_another_on_the_same_interface(lab: Lab, tmp_path: Path) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    (slow, port), (fast, _) = _join_by_bridge(lab, site, home, ["slow", "fast"])
    narrow(port, 10, 400)
    home.serve("--pool 10.150.0.0/24 --engine native --open")
    for client in (slow, fast):
        client.join(f"{OUTSIDE}:51820", "--engine native")
    filled = begin_stream(home.host, slow.host, 5201, "-R", "-t", "4")
    time.sleep(1.5)
    alone = round_trips(fast.host, 50)
    stream = begin_stream(home.host, fast.host, 5202, "-R", "-t", "1", "-O", "0")
    behind = round_trips(slow.host, 50)
    rates = rate_of(filled), rate_of(stream)
    print(f"fast: {median(alone):.2f} ms; slow: {median(behind):.1f} ms; {rates} Mbit/s")
    assert len(alone) >= 45
    assert len(behind) >= 45
    assert median(alone) < 5
    assert median(behind) < 400 / 4
    assert rates[0] > 5
    assert rates[1] > 10 * 10
