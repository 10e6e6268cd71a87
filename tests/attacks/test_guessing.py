"""Strangers who guess the token from a few addresses, so that nobody else can join."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from support.attack_table import Row
from support.faults import guess
from support.product import OPEN, POOL, TOKEN, Site, eventually

SOURCES = [f"203.0.113.{number}" for number in range(1, 8)]


@pytest.mark.fault(40)
@pytest.mark.attack("seven sources that guess")
def test_who_knows_the_token_joins_beside_seven_sources_that_burn_guesses(
    site: Site, long_form: bool, row: Row
) -> None:
    home = site.home()
    laptop, stranger = site.client("laptop", home), site.client("stranger", home)
    stranger.host.ip([f"addr add {each}/32 dev {stranger.own_end.interface}" for each in SOURCES])
    home.host.ip([f"route add 203.0.113.0/24 via {stranger.own_end.ipv4}"])
    home.serve(f"--pool {POOL} {OPEN}")
    joined = Event()
    with ThreadPoolExecutor(1) as beside:
        # They go on until the right ones have joined.
        server, tries = f"{stranger.servers_end.ipv4}", 8 if long_form else 4
        told = beside.submit(guess, stranger.host, server, SOURCES, tries, 0.0, lambda _: joined.is_set())
        eventually(lambda: home.status()["window"]["guesses_used"] >= 20, what="twenty wrong tokens")
        seconds = []
        for number in range(6 if long_form else 1):
            machine = site.machine(f"laptop-{number}", laptop.host)
            began = time.monotonic()
            machine.run(f"join {laptop.servers_end.ipv4} --save-only", TOKEN)
            seconds.append(time.monotonic() - began)
        joined.set()
        told.result()
        window = home.status()["window"]
        shown = home.run("status").stdout
    assert (window["open"], window["guesses_used"] >= 20) == (True, True)
    assert len(window["blocked"]) >= 6
    assert f"{len(window['blocked'])} sources blocked after three wrong tokens" in " ".join(shown.split())
    assert max(seconds) < 30
    row.seen(
        f"{window['guesses_used']} guesses spent, {len(window['blocked'])} sources blocked and shown; "
        f"{len(seconds)} right clients joined in {max(seconds):.1f} s at most"
    )
    row.control("recorded when 20 guesses closed a window: closed 0.6 s after each `open`, no join")
