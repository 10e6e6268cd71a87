"""The program killed at any system call, and a server that dies under traffic."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.faults import (
    DEEDS,
    GATEWAY,
    Call,
    Site,
    Station,
    attached,
    calls_of,
    end,
    need_strace,
    site,
    spread,
    until,
)

# The rows say 2 and 15, for a machine that does nothing else and is not slow.
BACK_SECONDS = 10.0
TRAFFIC_SECONDS = 30.0


def _addresses(client: Station) -> tuple[str, str | None]:
    network = client.kept()["networks"][-1]
    return network["address4"].partition("/")[0], network["address6"].partition("/")[0]


def _key_of(client: Station) -> str | None:
    """The client's public key in base64, if it has made one yet."""
    return client.public_key() if (client.seen / "state.json").exists() else None


def _server_is_whole(where: Site, told: dict[str, tuple[str, str | None]]) -> None:
    """Whoever was told an address has it, and no address is anybody else's too."""
    peers = where.server.peers()
    for key, addresses in told.items():
        assert (peers[key]["address4"], peers[key]["address6"]) == addresses
    given = [peer["address4"] for peer in peers.values()]
    assert len(set(given)) == len(given)


def _waited(pid: int) -> float:
    """Seconds that a process was ready and had no core, as others had them: no fault of its own."""
    schedule = Path(f"/proc/{pid}/schedstat")
    return int(schedule.read_text().split()[1]) / 1e9 if schedule.exists() else 0.0


def _measure_server(where: Site, server: subprocess.Popen[str]) -> list[Call]:
    trace = where.folder / "trace"
    with attached(server.pid, "-o", str(trace)):
        where.client().run(f"join {where.address()} --save-only")
    return calls_of(trace)


def _one_ended(server: subprocess.Popen[str], client: subprocess.Popen[str]) -> bool:
    return server.poll() is not None or client.poll() is not None


@pytest.mark.fault(6)
def test_a_server_killed_at_any_call_of_a_join_has_lost_nobody_it_acknowledged(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    need_strace()
    where = site(lab, tmp_path)
    server = where.server.serve()
    calls = _measure_server(where, server)
    assert len(calls) > 30
    points = spread(calls, 4, all_of_them=soak)
    told: dict[str, tuple[str, str | None]] = {}
    backs, died = [], 0
    for name, nth in points:
        client = where.client()
        with attached(server.pid, "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={nth}"):
            program = client.start(f"join {where.address()} --save-only")
            until("the end of one of the two", partial(_one_ended, server, program))
        died += server.poll() is not None
        end(server, signal.SIGKILL)
        if program.poll() == 0:
            told[_key_of(client) or ""] = _addresses(client)
        began = time.monotonic()
        server = where.server.serve()
        backs.append(time.monotonic() - began - _waited(server.pid))
        _server_is_whole(where, told)
        end(program, signal.SIGKILL)
        client.run(f"join {where.address()} --save-only")
        told[_key_of(client) or ""] = _addresses(client)
        _server_is_whole(where, told)
    assert len(where.server.peers()) == len(points) + 1
    assert max(backs) <= BACK_SECONDS
    assert died >= (0.6 * len(points) if soak else 1)
    print(
        f"row 6: killed at {died} of {len(points)} chosen from the {len(calls)} calls of a join (the rest came "
        f"after it was through): no acknowledged peer lost, no address given twice; back within {max(backs):.2f} s "
        f"(not counting what it waited for a core)"
    )


def _client_calls(client: Station, words: str) -> list[Call]:
    trace = client.runtime.with_suffix(".trace")
    assert client.start(words, "strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={DEEDS}").wait(300) == 0
    return calls_of(trace)


def _kill_at(client: Station, words: str, call: Call) -> bool:
    """Run a command that dies at that call; say whether it did."""
    name, nth = call
    inject = ("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={nth}")
    program = client.start(words, "strace", "-f", "-qq", "-o", "/dev/null", *inject)
    return program.wait(300) != 0


def _quiet(client: Station) -> Station:
    # What Python writes beside its modules is no call of a join.
    client.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return client


@pytest.mark.fault(7)
def test_a_client_killed_at_any_deed_of_a_join_has_the_same_address_at_the_next_try(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    need_strace()
    where = site(lab, tmp_path)
    server = where.server.serve()
    words = f"join {where.address()} --save-only"
    calls = _client_calls(_quiet(where.client()), words)
    assert len(calls) > 20
    points = spread(calls, 3, all_of_them=soak)
    died = known = 0
    for point in points:
        client = _quiet(where.client())
        before = where.server.peers()
        died += _kill_at(client, words, point)
        key = _key_of(client)
        given = where.server.peers().get(key or "")
        known += given is not None
        client.run(words)
        assert given is None or _addresses(client)[0] == given["address4"]
        after = where.server.peers()
        assert set(after) == {*before, _key_of(client)}
    assert died >= (0.6 * len(points) if soak else 1)
    print(
        f"row 7: client killed at {died} of {len(points)} chosen from its {len(calls)} deeds; {known} were already "
        f"known to the server and had the same address at the next try, and none took up two: 100 %"
    )
    end(server)


@pytest.mark.fault(33)
def test_a_client_killed_while_it_joins_again_still_connects_with_what_it_has(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    need_strace()
    where = site(lab, tmp_path)
    server = where.server.serve()
    client = _quiet(where.client())
    words = f"join {where.address()} --save-only"
    program = client.start(f"join {where.address()}")
    until("a ping", client.reaches)
    assert end(program) == 0
    calls = _client_calls(client, words)
    # Before it has sent anything nobody knows that it joins again.
    first = next(n for n, call in enumerate(calls) if call[0] == "sendto")
    points = spread(calls[first:], 2, all_of_them=soak)
    waits = []
    for point in points:
        where.server.ask("open", seconds=60)
        # Twice: the server must keep the key that the client has, not the one before its newest.
        _kill_at(client, words, point)
        _kill_at(client, words, point)
        where.server.ask("close")
        client.token, token = None, client.token
        began = time.monotonic()
        program = client.start("join")
        until("a ping", client.reaches, TRAFFIC_SECONDS)
        waits.append(time.monotonic() - began)
        assert end(program) == 0
        client.token = token
    assert len(where.server.peers()) == 1
    print(
        f"row 33 (preshared keys out of step): {len(points)} of {len(points)} connected without token and window, "
        f"after {max(waits):.1f} s at most"
    )
    end(server)


def _answered(pings: Path) -> list[float]:
    """When answers came, in seconds of the epoch."""
    said = pings.read_text() if pings.exists() else ""
    return [float(at) for at in re.findall(r"^\[([\d.]+)\] \d+ bytes", said, re.MULTILINE)]


@pytest.mark.fault(33)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_started_again_is_the_same_and_carries_traffic_on(
    lab: Lab, tmp_path: Path, how: signal.Signals
) -> None:
    where = site(lab, tmp_path)
    server = where.server.serve()
    client = where.client()
    program = client.start(f"join {where.address()}")
    until("a ping", client.reaches)
    before = where.server.status()
    record = tmp_path / "pings"
    pings = client.host.popen(["ping", "-D", "-i", "0.05", "-W", "1", GATEWAY], log=record)
    until("some pings", lambda: len(_answered(record)) >= 5)
    end(server, how)
    server = where.server.serve("")
    before_it = len(_answered(record))
    until("some pings", lambda: len(_answered(record)) >= before_it + 5, TRAFFIC_SECONDS)
    after = where.server.status()
    end(pings)
    gap = max(b - a for a, b in pairwise(_answered(record)))
    assert gap <= TRAFFIC_SECONDS
    identity = ("public_key", "fingerprint", "addresses", "pool", "port")
    assert [after[name] for name in identity] == [before[name] for name in identity]
    assert not after["window"]["open"]
    print(
        f"row 33: ended by {how.name} under 20 pings/s and started again: the same identity, {gap:.2f} s of silence"
    )
    assert [end(program), end(server)] == [0, 0]
