"""The attacks of a campaign: floods, garbage, guesses, and whoever uses up what a daemon has."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from support.campaign import PORT, Campaign
from support.campaign_faults import fault
from support.campaign_invariants import processor_seconds, udp_ports

# Sends datagrams of random sizes, some with the head of a WireGuard message, for some seconds.
_GARBAGE = """
import os, random, socket, sys, time
address, seconds, fresh = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "fresh"
ports = [int(each) for each in sys.argv[4:]]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
until, here = time.monotonic() + seconds, socket.socket(family, socket.SOCK_DGRAM)
while time.monotonic() < until:
    for port in ports:
        if fresh:
            here.close()
            here = socket.socket(family, socket.SOCK_DGRAM)
        kind = random.choice([1, 1, 2, 3, 4, 255])
        data = bytes([kind, 0, 0, 0]) + os.urandom(random.choice([0, 12, 28, 60, 88, 144, 1000, 1400]))
        try: here.sendto(data[: random.choice([0, 1, 3, len(data), len(data)])], (address, port))
        except OSError: pass
    time.sleep(0.0005)
"""


@fault
def wrong_tokens_tried(campaign: Campaign) -> None:
    stranger = campaign.stranger
    campaign.open_window()
    for _ in range(2):
        wrong = stranger.run(f"join {stranger.servers_end.ipv4} --save-only", "no-such-token", check=False)
        assert wrong.returncode != 0, "joined with a wrong token"
    campaign.close_window()
    shutil.rmtree(stranger.state)


@fault
def port_changing_flood(campaign: Campaign) -> None:
    stranger = campaign.stranger
    words = [str(stranger.servers_end.ipv4), str(campaign.seconds(1.0, 10.0)), "fresh", str(PORT)]
    stranger.host.run([sys.executable, "-c", _GARBAGE, *words], timeout=60)


@fault
def garbage_to_every_port(campaign: Campaign) -> None:
    """To the server from a stranger, and to a client from where its server is."""
    stranger, client = campaign.stranger, campaign.with_own_link()
    for sender, address, receiver in (
        (stranger, stranger.servers_end.ipv4, campaign.home),
        (campaign.home, client.own_end.ipv4, client),
    ):
        ports = [str(port) for port in udp_ports(receiver)]
        words = [str(address), str(campaign.seconds(0.5, 5.0)), "same", *ports]
        sender.host.run([sys.executable, "-c", _GARBAGE, *words], timeout=60)


@fault
def hundred_idle_control_connections(campaign: Campaign) -> None:
    member = campaign.anybody()
    with ExitStack() as stack:
        for _ in range(100):
            each = stack.enter_context(socket.socket(socket.AF_UNIX))
            each.settimeout(5)
            with suppress(OSError):
                each.connect(str(member.control))
        began = time.monotonic()
        member.status()
        assert time.monotonic() - began < 5


@fault
def descriptors_used_up(campaign: Campaign) -> None:
    """No descriptor is left for those who ask, and that costs no more than when there are."""
    member = campaign.anybody()
    pid = member.daemon.pid
    limits = ["prlimit", f"--pid={pid}"]
    before = member.host.run([*limits, "--nofile", "--output=SOFT,HARD", "--noheadings", "--raw"]).stdout.split()
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    member.host.run([*limits, f"--nofile={used}:{before[1]}"])
    with ExitStack() as stack:
        for _ in range(20):
            each = stack.enter_context(socket.socket(socket.AF_UNIX))
            each.settimeout(5)
            with suppress(OSError):
                each.connect(str(member.control))
        burnt = processor_seconds(pid)
        time.sleep(1.0)
        burnt = processor_seconds(pid) - burnt
        assert burnt < 0.3, f"{burnt:.2f} s of a core in a second without descriptors"
    member.host.run([*limits, f"--nofile={before[0]}:{before[1]}"])


@fault
def garbage_to_the_control_socket(campaign: Campaign) -> None:
    member = campaign.anybody()
    for line in (
        b"{" * 10_000,
        b"\x00\xff\n",
        b'{"v": 1}\n',
        b'{"v": 1, "id": 1, "method": 7, "params": []}\n',
        b"\n",
    ):
        with socket.socket(socket.AF_UNIX) as each, suppress(OSError):
            each.settimeout(0.5)
            each.connect(str(member.control))
            each.sendall(line)
            each.recv(100)
