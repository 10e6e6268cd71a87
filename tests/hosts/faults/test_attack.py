"""Strangers at the running program: replays, forgeries, guesses, meddlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.enroll.pairing import messages
from rustguard_py.lab.hosts import Host, Lab
from support import relay
from support.faults import (
    GATEWAY,
    Site,
    Station,
    counted,
    end,
    guess,
    halt,
    meddle,
    recorded,
    send_all,
    settled,
    site,
    until,
)

PORT = 51820


def _is_challenge(datagram: bytes) -> bool:
    return messages.kind_of(datagram) == messages.CHALLENGE


def _only_peer(server: Station) -> tuple[Any, ...]:
    [peer] = server.peers().values()
    return counted(peer)


@dataclass(slots=True)
class _Heard:
    """A server and a client that has joined it, between them a relay that records, and a host beside them."""

    where: Site
    server: subprocess.Popen[str]
    client: Station
    program: subprocess.Popen[str]
    # Where the client finds the server.
    address: str
    record: Path
    mallory: Host


def _heard(lab: Lab, folder: Path) -> _Heard:
    where = site(lab, folder, hosts=2)
    middle, mallory = where.hosts
    client = where.client()
    client.host = lab.host("client")
    _, listening = lab.link(client.host, middle, ipv4="192.0.2.0/29")
    record = folder / "record"
    relay.start(middle, (str(listening.ipv4), PORT), (where.address(), PORT), record=record)
    server = where.server.serve()
    program = client.start(f"join {listening.ipv4}")
    until("a ping", client.reaches)
    return _Heard(where, server, client, program, str(listening.ipv4), record, mallory)


def _open_window(server: Station, *, wanted: bool) -> None:
    if wanted:
        server.ask("open", seconds=600)
    else:
        server.ask("close")


@pytest.mark.fault(17)
def test_nothing_recorded_is_accepted_again_from_anywhere_at_any_time(lab: Lab, tmp_path: Path) -> None:
    heard = _heard(lab, tmp_path)
    where, client, record, mallory = heard.where, heard.client, heard.record, heard.mallory
    server, program = heard.server, heard.program
    _, beside = lab.link(mallory, client.host, ipv4="192.0.2.8/29")
    client.host.run(["ping", "-q", "-i", "0.01", "-c", "100", GATEWAY])
    # A second session, so that there is more than one handshake to replay.
    assert end(program) == 0
    program = client.start(f"join {heard.address}")
    until("a ping", client.reaches)
    to_server, to_client = recorded(record, "to target"), recorded(record, "to client")
    kinds = {each[0] for each in to_server if each[:1] != b"R"}
    assert {1, 4} <= kinds
    tunnel = client.host.run(["ss", "-Hnul"]).stdout
    port = next(int(word.rpartition(":")[2]) for line in tunnel.splitlines() for word in line.split()[3:4])

    # To the client, while its server can't be heard.
    halt(server)
    before = settled(lambda: counted(client.status()["peers"][0]))
    assert send_all(mallory, str(beside.ipv4), port, to_client + to_server) == []
    assert counted(client.status()["peers"][0]) == before
    server.send_signal(signal.SIGCONT)

    # To the server, while its client can't be: window closed and open, before and after a restart.
    until("a ping", client.reaches)
    halt(program)
    replayed = 0
    for restarted in (False, True):
        if restarted:
            end(server, signal.SIGKILL)
            server = where.server.serve("")
        before = settled(lambda: _only_peer(where.server))
        for window in (False, True):
            _open_window(where.server, wanted=window)
            answers = send_all(mallory, str(where.here[1].ipv4), PORT, to_server + to_client)
            replayed += len(to_server + to_client)
            # A HELLO binds nobody to anything: it is answered to whoever sends it while the window is open.
            assert all(_is_challenge(each) for each in answers)
            assert len(answers) <= (
                sum(messages.kind_of(each) == messages.HELLO for each in to_server) if window else 0
            )
            assert _only_peer(where.server) == before
    program.send_signal(signal.SIGCONT)
    print(
        f"row 17: {replayed} datagrams replayed to the server (before and after a restart, window closed and open) "
    )
    print(f"        and {len(to_client + to_server)} to the client: none accepted, endpoints and counters unmoved")
    assert [end(program), end(server)] == [0, 0]


@pytest.mark.fault(17)
def test_what_a_peer_sent_before_it_was_revoked_is_not_accepted_when_it_is_back(lab: Lab, tmp_path: Path) -> None:
    heard = _heard(lab, tmp_path)
    where, client, record, mallory = heard.where, heard.client, heard.record, heard.mallory
    server, program = heard.server, heard.program
    assert end(program) == 0
    [key] = where.server.peers()
    where.server.ask("revoke", who=key)
    where.server.ask("restore", key=key)
    client.run(f"join {heard.address} --save-only")
    [before] = where.server.peers().values()
    handshakes = [each for each in recorded(record, "to target") if each[:1] == b"\1"]
    assert handshakes
    assert send_all(mallory, str(where.here[1].ipv4), PORT, handshakes) == []
    [after] = where.server.peers().values()
    assert counted(after) == counted(before)
    print(f"row 17: {len(handshakes)} initiations from before a revocation, replayed once it is back: none accepted")
    assert end(server) == 0


@pytest.mark.fault(18)
def test_forged_data_with_the_live_index_moves_nothing(lab: Lab, tmp_path: Path, soak: bool) -> None:
    heard = _heard(lab, tmp_path)
    where, client, record, mallory = heard.where, heard.client, heard.record, heard.mallory
    server, program = heard.server, heard.program
    data = [each for each in recorded(record, "to target") if each[:4] == b"\4\0\0\0"]
    index = data[-1][4:8]
    count = 1_000_000 if soak else 2000
    # Counters near and far: neither may the window move.
    forged = [b"\4\0\0\0" + index + (n << n % 60).to_bytes(16, "little")[:8] + os.urandom(32) for n in range(count)]
    halt(program)
    before = settled(lambda: _only_peer(where.server))
    assert send_all(mallory, str(where.here[1].ipv4), PORT, forged, 0.001, at_once=40) == []
    assert _only_peer(where.server) == before
    refused = _refused(where.server, "bad_tag") + _refused(where.server, "replayed")
    assert refused > count // 2
    program.send_signal(signal.SIGCONT)
    # After fifteen seconds of silence a new session would repair a moved window: the old one must do.
    assert until("a ping", client.reaches, 12)
    print(
        f"row 18: {count} forged datagrams with the live index from elsewhere, {refused} of them looked at: "
        "endpoint and counters unmoved"
    )
    assert [end(program), end(server)] == [0, 0]


_SPRAY = """
import socket, sys, time
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); here.bind((sys.argv[1], 0))
for n in range(int(sys.argv[3])):
    here.sendto(b"in your name", (sys.argv[2], 9))
    # The interface's queue holds 500.
    if n % 100 == 99: time.sleep(0.01)
"""


def _arrived(server: Station) -> int:
    listed = server.host.run(["nft", "list", "table", "inet", "watch"]).stdout
    return int(listed.split("packets ")[1].split()[0])


@pytest.mark.fault(20)
def test_one_peer_sends_nothing_in_the_name_of_another(lab: Lab, tmp_path: Path, soak: bool) -> None:
    where = site(lab, tmp_path, hosts=2)
    server = where.server.serve()
    alice, bob = where.client(0), where.client(1)
    programs = []
    for nth, each in enumerate((alice, bob)):
        programs.append(each.start(f"join {where.address(nth)}"))
        until("a ping", each.reaches)
    name = bob.status()["addresses"][0].partition("/")[0]
    where.server.host.nft(
        "table inet watch {\n chain arriving {\n  type filter hook prerouting priority raw\n"
        f"  iifname rg0 ip saddr {name} counter\n }}\n}}\n"
    )
    count = 100_000 if soak else 2000
    alice.host.ip([f"addr add {name}/32 dev rg0"])

    def in_anothers_name() -> int:
        return _refused(where.server, "inner_source")

    def spray() -> bool:
        # What finds a queue full on the way is lost before the server sees it.
        alice.host.run([*_python(_SPRAY), name, GATEWAY, "2000"])
        return in_anothers_name() >= count

    until("so many packets in another's name", spray, 600)
    assert bob.reaches(wait=30)
    # Bob's ping, and nothing besides.
    assert _arrived(where.server) == 1
    print(f"row 20: {in_anothers_name()} packets came in another peer's name: 0 delivered")
    assert [end(each) for each in (*programs, server)] == [0, 0, 0]


def _refused(server: Station, reason: str) -> int:
    return int(server.status()["counters"]["drops"].get(reason, 0))


def _python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.mark.fault(24)
def test_a_window_evaluates_few_wrong_tokens_then_one_each_ten_seconds_and_a_crash_resets_nothing(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    where = site(lab, tmp_path)
    host = where.hosts[0]
    sources = [f"203.0.113.{n}" for n in range(1, 41 if soak else 10)]
    tries = 25 if soak else 5
    host.ip([f"addr add {each}/32 dev {where.there[0].interface}" for each in sources])
    where.server.host.ip([f"route add 203.0.113.0/24 via {where.there[0].ipv4}"])
    server = where.server.serve()
    began = time.monotonic()
    first = set(sources[:3])
    told = guess(
        host, where.address(), [*first], tries, 4, lambda said: _guesses(where.server) >= 9 and set(said) == first
    )
    window = where.server.status()["window"]
    assert (window["open"], window["guesses_used"]) == (True, 9)
    end(server, signal.SIGKILL)
    server = where.server.serve()
    assert where.server.status()["window"]["guesses_used"] == 9
    assert guess(host, where.address(), sources[:3], 1, 1) == {}
    told += guess(host, where.address(), sources, tries, 4, lambda _: _guesses(where.server) >= 20)
    kept = where.server.kept()["guesses"]["by_source"]
    evaluated = {source.partition("/")[0]: count for source, count in kept.items()}
    assert max(evaluated.values()) == 3
    assert 20 <= sum(evaluated.values()) <= 20 + (time.monotonic() - began) / 10
    assert all(count <= evaluated[source] for source, count in told.items())
    status = where.server.status()
    window = status["window"]
    assert (window["open"], window["closed_because"]) == (True, None)
    assert window["guesses_used"] >= sum(evaluated.values())
    assert window["guessing_sources"] >= 7
    assert "now one is checked every 10 s" in where.server.run("status").stdout
    assert any("wrong tokens" in each for each in status["warnings"])
    end(server, signal.SIGKILL)
    server = where.server.serve()
    after = where.server.status()["window"]
    assert (after["open"], after["guesses_used"]) == (True, window["guesses_used"])
    # Who knows the token gets a turn, without a person's help.
    where.client().run(f"join {where.address()} --save-only")
    print(
        f"row 24: {sum(evaluated.values())} evaluated of {tries * (len(sources) + 3)}, {max(evaluated.values())} "
        f"a source at most, in {time.monotonic() - began:.0f} s; two kill -9 reset nothing; a right client joined"
    )
    assert end(server) == 0


def _guesses(server: Station) -> int:
    return int(server.status()["window"]["guesses_used"])


def _bits(kind: int, soak: bool) -> list[int]:
    size = {messages.HELLO: 128, messages.CHALLENGE: 124, messages.SHARE_C: 132}.get(kind, 1232)
    # Of what follows the header.
    return [64 + (8 * size - 64) * n // 16 + n % 8 for n in range(16)] if soak else [8 * (size * kind // 7) + kind]


@pytest.mark.fault(26)
def test_a_flipped_bit_in_any_pairing_message_leads_to_a_correct_join_or_to_none(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    where = site(lab, tmp_path)
    middle = where.hosts[0]
    outside = lab.host("outside")
    _, listening = lab.link(outside, middle, ipv4="192.0.2.0/29")
    # A source each: what one of them makes of a message may count as wrong tokens of its source.
    sources = {kind: f"203.0.113.{kind}" for kind in range(1, 7)}
    middle.ip([f"addr add {source}/32 dev lo" for source in sources.values()])
    where.server.host.ip([f"route add 203.0.113.0/24 via {where.there[0].ipv4}"])
    server = where.server.serve()
    outcomes: Counter[str] = Counter()
    # Each message once, whose sender tries again; in the long run also each time that it is sent.
    for times in (1, -1) if soak else (1,):
        for bits in zip(*(_bits(kind, soak) for kind in range(1, 7)), strict=True):
            where.server.ask("open", seconds=600)
            running: list[tuple[Station, subprocess.Popen[str], subprocess.Popen[str]]] = []
            for kind, bit in enumerate(bits, start=1):
                client = where.client()
                client.host = outside
                here = (str(listening.ipv4), 40_000 + kind)
                between = meddle(middle, here, (where.address(), PORT), kind, bit, times, sources[kind])
                running.append((client, client.start(f"join {here[0]}:{here[1]} --save-only"), between))
            for client, program, between in running:
                code = program.wait(300)
                between.terminate()
                changed, _ = between.communicate(timeout=60)
                assert "changed" in changed
                outcomes[_outcome(where.server, client, code, times)] += 1
    assert outcomes["joined"] >= (1 if soak else 5)
    print(f"row 26: one bit flipped in each of the six messages, {sum(outcomes.values())} joins: {dict(outcomes)}")
    assert end(server) == 0


def _outcome(server: Station, client: Station, code: int, times: int) -> str:
    """What became of a join; what both ends then hold must agree, or hold nothing."""
    networks = client.kept()["networks"]
    if code:
        assert networks == []
        return "no join"
    [network] = networks
    kept = {peer["preshared_key"]: peer for peer in server.kept()["peers"]}
    record = kept[network["preshared_key"]]
    assert network["address4"].partition("/")[0] == record["address4"]
    assert network["server_key"] == server.status()["public_key"]
    assert client.public_key() == record["public_key"]
    return "joined" if times == 1 else "joined all the same"


@pytest.mark.fault(29)
def test_a_window_longer_than_a_day_is_refused_in_words(lab: Lab, tmp_path: Path) -> None:
    where = site(lab, tmp_path)
    server = where.server.serve("")
    for seconds in ("9223372036854775807", "1e400", "nan", "-1", "0"):
        refused = where.server.host.run(
            [*where.server.argv("open"), "--", seconds], env=where.server.variables(), check=False
        )
        assert refused.returncode == 2, refused
        assert refused.stderr
        assert "Traceback" not in refused.stderr
    said = where.server.host.run(
        [sys.executable, "-c", _ASK, str(next(where.server.runtime.glob("*.sock")))], timeout=10
    ).stdout
    assert '"kind":"usage"' in said
    assert "at most 86400 seconds" in said
    assert not where.server.status()["window"]["open"]
    assert end(server) == 0


_ASK = """
import socket, sys
here = socket.socket(socket.AF_UNIX); here.connect(sys.argv[1])
here.sendall(b'{"v":1,"id":1,"method":"open","params":{"seconds":9223372036854775807}}\\n')
print(here.recv(65536).decode())
"""
