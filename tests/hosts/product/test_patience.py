"""Situations that take long: a closed window, an outage, a server that moved. All run at the same time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, INNER, OPEN, PATIENCE, POOL, TOKEN, Site, eventually

# One worker plays it all.
pytestmark = [pytest.mark.xdist_group("patience"), pytest.mark.timeout(400)]

Scene = Callable[[Site], str]
_SCENES: dict[Scene, tuple[pytest.MarkDecorator, ...]] = {}


def _scene(*marks: pytest.MarkDecorator) -> Callable[[Scene], Scene]:
    def add(play: Scene) -> Scene:
        _SCENES[play] = marks
        return play

    return add


@_scene()
def a_closed_window_answers_nobody_and_is_named(site: Site) -> str:
    home = site.home()
    stranger = site.client("stranger", home)
    home.serve()
    before = stranger.network()
    began = time.monotonic()
    done = stranger.run(f"join {HOME4}", TOKEN, check=False)
    seconds = time.monotonic() - began
    assert done.returncode == 5, done.stderr
    assert re.search(r"pairing window is closed.\s+On the server, run: rustguard open 60", done.stderr), done.stderr
    assert (stranger.network(), stranger.sockets()) == (before, [])
    assert home.status()["window"]["guesses_used"] == 0
    return f"a closed window: exit code 5 after {seconds:.1f} s"


@_scene()
def a_token_while_the_window_is_closed_falls_back_to_what_was_kept(site: Site) -> str:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.run(f"join {HOME4} --save-only", TOKEN)
    home.run("close")
    began = time.monotonic()
    program = laptop.start(f"join {HOME4}", TOKEN)
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER, 0.2), what="the fallback")
    assert "It was joined before, so we connect with what was kept." in laptop.said()
    return f"with a token, the window closed: connected with what was kept after {time.monotonic() - began:.1f} s"


@_scene()
def a_revoked_client_is_warned_by_its_own_status(site: Site) -> str:
    home = site.home()
    laptop = site.client("laptop", home)
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.run(f"join {HOME4} --save-only --name laptop", TOKEN)
    home.run("peers revoke laptop")
    laptop.start("join")
    began = time.monotonic()
    warnings = eventually(lambda: laptop.status()["warnings"], what="a warning")
    assert "revoked this machine" in warnings[0]
    assert warnings[0].split()[0] in re.sub(r"\s+", " ", laptop.run("status").stdout)
    return f"a revoked client's status after {time.monotonic() - began:.1f} s: {warnings[0]}"


@_scene(pytest.mark.fault(33))
def a_server_that_was_away_for_ten_seconds(site: Site) -> str:
    home = site.home()
    laptop = site.client("laptop", home)
    server = home.serve(f"--pool {POOL} {OPEN}")
    laptop.join(HOME4)
    key = home.status()["public_key"]
    server.terminate()
    assert server.wait(PATIENCE) == 0
    again = time.monotonic() + 10
    while time.monotonic() < again:
        assert not laptop.pings(INNER, 0.5)
    began = time.monotonic()
    home.serve("", token=None)
    eventually(lambda: laptop.pings(INNER, 0.2), what="traffic")
    seconds = time.monotonic() - began
    # The row says 15, for a machine that does nothing else: here the scenes share it.
    assert seconds < 30
    assert home.status()["public_key"] == key
    return f"row 33: away for 10 s; traffic {seconds:.1f} s after the start, the same identity"


@_scene()
def a_server_that_moved_is_found_by_its_name(site: Site) -> str:
    home = site.home()
    laptop = site.client("laptop", home, own_run=True)
    laptop.name_server(f"{HOME4} home.test\n")
    home.serve(f"--pool {POOL} {OPEN}")
    program = laptop.join("home.test")
    # As behind any NAT or firewall: from its new address the server can't reach us before we have written to it.
    laptop.host.nft(
        "table inet firewall {\n chain arriving {\n  type filter hook input priority 0\n"
        f"  iifname {laptop.own_end.interface} meta l4proto udp ct state new drop\n }}\n}}\n"
    )
    laptop.servers_end.readdress("198.51.100.6/29")
    laptop.name_server("198.51.100.6 home.test\n")
    began = time.monotonic()
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER, 0.2), 120, "traffic to where it is now")
    seconds = time.monotonic() - began
    eventually(lambda: laptop.status()["peers"][0]["endpoint"] == "198.51.100.6:51820", what="its endpoint")
    return f"the server has another address: found by its name after {seconds:.1f} s, no restart"


@_scene()
def a_name_that_nobody_knows_yet_is_looked_for_until_it_is_there(site: Site) -> str:
    home = site.home()
    laptop = site.client("laptop", home, own_run=True)
    laptop.name_server(f"{HOME4} home.test\n")
    home.serve(f"--pool {POOL} {OPEN}")
    laptop.run("join home.test --save-only", TOKEN)
    laptop.name_server("")
    program = laptop.start("join")
    eventually(laptop.status, what="its control socket")
    assert not laptop.pings(INNER, 0.5)
    laptop.name_server(f"{HOME4} home.test\n")
    began = time.monotonic()
    eventually(lambda: laptop.alive(program) and laptop.pings(INNER, 0.2), what="traffic")
    return f"a name that was unknown at the start: connected {time.monotonic() - began:.1f} s after it was there"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """Every scene's outcome, by its name: each has a lab of its own, and mostly waits."""

    def play(scene: Scene, directory: Path) -> str:
        with Lab() as lab:
            return scene(Site(lab, directory))

    with ThreadPoolExecutor(len(_SCENES)) as stage:
        yield {each.__name__: stage.submit(play, each, tmp_path_factory.mktemp("scene")) for each in _SCENES}


@pytest.mark.parametrize(
    "scene", [pytest.param(each, id=each.__name__, marks=marks) for each, marks in _SCENES.items()]
)
def test_it_takes_its_time_and_no_longer(played: dict[str, Future[str]], scene: Scene) -> None:
    print(played[scene.__name__].result(300))
