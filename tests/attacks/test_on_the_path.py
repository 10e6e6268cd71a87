"""Somebody between a client and the server, who reads everything and writes faster than both, but drops nothing."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from support import icmp_forger, on_the_path
from support.attack_table import Row
from support.product import HOME4, INNER, OPEN, PATIENCE, POOL, TOKEN, Site, eventually

# Forged CHALLENGEs per HELLO, SHARE_Ss per SHARE_C, CONFIRMs and RESULTs per CONFIRM.
FORGERIES = {
    "8 CHALLENGEs": (8, 0, 0, 0),
    "3 SHARE_Ss": (0, 3, 0, 0),
    "64 CONFIRMs": (0, 0, 64, 0),
    "3 RESULTs": (0, 0, 0, 3),
}


@pytest.mark.attack("forged messages on the path")
def test_forged_messages_before_each_real_one_stop_no_join(site: Site, long_form: bool, row: Row) -> None:
    home, middle, outside = site.home(), site.lab.host("middle"), site.lab.host("outside")
    near, far = site.lab.link(home.host, middle, ipv4="198.51.100.0/29")
    entry, _ = site.lab.link(middle, outside, ipv4="192.0.2.0/26")
    home.serve(f"--pool {POOL} {OPEN}")
    home.host.ip([f"route add 203.0.113.0/24 via {far.ipv4}"])
    joins = []
    for number, (what, forged) in enumerate(list(FORGERIES.items()) * (8 if long_form else 1)):
        # An address of the middle for each, where its client asks, and another one, from which the server sees it.
        here, source = f"192.0.2.{10 + number}", f"203.0.113.{10 + number}"
        middle.ip([f"addr add {here}/26 dev {entry.interface}", f"addr add {source}/32 dev lo"])
        on_the_path.start(middle, here, f"{near.ipv4}", source, forged)
        client = site.machine(f"client{number}", outside)
        joins.append((what, client, client.start(f"join {here} --save-only", TOKEN)))
    began = time.monotonic()
    joined = dict.fromkeys(FORGERIES, 0)
    for what, client, program in joins:
        code = program.wait(2 * PATIENCE)
        assert code == 0, f"{what}: {client.said()}"
        joined[what] += 1
    seconds = time.monotonic() - began
    row.seen(
        f"{', '.join(f'{what}: {count} of {count}' for what, count in joined.items())} joined in {seconds:.1f} s"
    )
    assert home.status()["window"]["guesses_used"] == 0


@pytest.mark.attack("forged ICMP errors")
def test_forged_icmp_errors_do_not_end_a_join(site: Site, row: Row) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL}")
    log = site.directory / "icmp"
    home.host.popen([sys.executable, str(Path(icmp_forger.__file__)), "51820", "51821"], log=log)
    eventually(lambda: "ready" in log.read_text(), what="the forger")
    program = laptop.start(f"join {HOME4} --name laptop", TOKEN)
    # Three "port unreachable" were enough after two seconds.
    time.sleep(4)
    assert laptop.alive(program)
    home.run("open 60")
    began = time.monotonic()
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER, 0.2), what="the join")
    assert re.search("Joined", laptop.said())
    row.seen(f"still trying after 4 s, joined {time.monotonic() - began:.1f} s after the window opened")
    row.control("recorded when three refusals ended a join: 2 s")
