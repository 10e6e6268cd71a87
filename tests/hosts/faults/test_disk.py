"""The program on a disk that is full, fails, or has damaged the state."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.faults import OPEN, POOL, Site, Station, attached, end, need_strace, site, spread, until

# The row says 5, for a machine that does nothing else.
GOES_ON_SECONDS = 30.0


def _fill(station: Station) -> Path:
    """Leave no byte free on the file system of the state."""
    filler = station.seen / "filler"
    said = station.host.run(["dd", "if=/dev/zero", f"of={station.state}/filler", "bs=4096"], check=False)
    assert "No space left" in said.stderr
    return filler


def _warned(station: Station) -> bool:
    return any("can't be saved" in warning for warning in station.status()["warnings"])


def _small_disk(station: Station) -> None:
    station.state.mkdir(mode=0o700)
    station.host.run(["mount", "-t", "tmpfs", "-o", "size=96k,mode=700", "tmpfs", station.state])


def _join_against(where: Site, spoil_over: float) -> tuple[Station, subprocess.Popen[str]]:
    """Begin to join from the last host while the disk refuses; come back when the server has said so, and later."""
    nth = len(where.hosts) - 1
    client = where.client(nth)
    before = (where.server.seen / "state.json").read_bytes()
    joining = client.start(f"join {where.address(nth)} --save-only")
    until("a warning in status", lambda: _warned(where.server))
    # It may be another save that was refused: this client has a key, and so has begun, when there is a file of it.
    until("the client's key", (client.seen / "state.json").exists)
    time.sleep(spoil_over)
    assert joining.poll() is None
    assert client.kept()["networks"] == []
    assert (where.server.seen / "state.json").read_bytes() == before
    where.server.kept()
    return client, joining


@pytest.mark.fault(8)
def test_a_full_disk_acknowledges_no_join_and_stops_no_traffic_and_goes_on_once_there_is_room(
    lab: Lab, tmp_path: Path
) -> None:
    where = site(lab, tmp_path, hosts=2, own_run=True)
    _small_disk(where.server)
    server = where.server.serve()
    old = where.client()
    connected = old.start(f"join {where.address()}")
    until("a ping", old.reaches)
    # A crash of the server while the disk is full: who joined before gets through all the same.
    filler = _fill(where.server)
    end(server, 9)
    server = where.server.serve("")
    until("a ping through the new server", old.reaches)
    # And so does one that is started again, whose handshake's timestamp can't be written.
    assert end(connected) == 0
    connected = old.start("join")
    until("a ping of the new client", old.reaches)
    # Windows stay closed, and say why; joins that come through an open one aren't acknowledged.
    assert where.server.run("open 60", check=False).returncode == 1
    assert not where.server.status()["window"]["open"]
    filler.unlink()
    where.server.ask("open", seconds=600)
    filler = _fill(where.server)
    client, joining = _join_against(where, 1.5)
    assert set(where.server.peers()) == {old.status()["public_key"]}
    began = time.monotonic()
    filler.unlink()
    assert joining.wait(60) == 0
    took = time.monotonic() - began
    assert took <= GOES_ON_SECONDS
    until("the end of the warning", lambda: not _warned(where.server))
    assert len(where.server.kept()["peers"]) == 2
    print(f"row 8: full disk: not acknowledged, old file whole, traffic on; joined {took:.1f} s after there was room")
    assert client.kept()["networks"]
    assert [end(connected), end(server)] == [0, 0]


@pytest.mark.fault(8)
def test_a_client_whose_disk_is_full_says_so_and_leaves_nothing_on_the_server(lab: Lab, tmp_path: Path) -> None:
    where = site(lab, tmp_path)
    server = where.server.serve()
    client = where.client()
    client.host = lab.host("small", own_run=True)
    here, _ = lab.link(where.server.host, client.host, ipv4="198.51.100.64/29")
    _small_disk(client)
    # Its key is kept before it asks; what it is given then no longer fits.
    client.run(f"join {here.ipv4}:9 --save-only", check=False)
    filler = _fill(client)
    failed = [client.run(f"join {here.ipv4} --save-only", check=False) for _ in range(2)]
    assert [each.returncode for each in failed] == [1, 1]
    assert all("No space left" in each.stderr and "Free some space" in each.stderr for each in failed)
    # What the client couldn't keep, the server has forgotten again.
    assert where.server.peers() == {}
    filler.unlink()
    client.run(f"join {here.ipv4} --save-only")
    [given] = where.server.peers().values()
    assert client.kept()["networks"][-1]["address4"] == f"{given['address4']}/24"
    print("row 8: a client's full disk: said, twice, and nothing left on the server; it joined once there was room")
    end(server)


@pytest.mark.fault(8)
def test_a_call_that_the_disk_fails_acknowledges_no_join_and_the_next_one_goes_on(
    lab: Lab, tmp_path: Path, soak: bool
) -> None:
    need_strace()
    where = site(lab, tmp_path)
    server = where.server.serve()
    where.client().run(f"join {where.address()} --save-only")
    calls = ["openat", "pwrite64", "fsync", "linkat", "rename"]
    waits = []
    for call in calls if soak else ["fsync", "rename"]:
        # The temporary file's: of the directory's, which comes last, the new file is in place by then.
        failing = ("-P", str(where.server.state / "state.json.new")) if call == "openat" else ()
        with attached(server.pid, *failing, "-e", f"trace={call}", "-e", f"inject={call}:error=EIO"):
            _, joining = _join_against(where, 0.5)
        began = time.monotonic()
        assert joining.wait(60) == 0
        waits.append(time.monotonic() - began)
    assert max(waits) <= GOES_ON_SECONDS
    assert "internal error" not in where.server.said()
    print(f"row 8: EIO at {len(waits)} calls: not acknowledged, old file whole, joined {max(waits):.1f} s afterwards")
    end(server)


@pytest.mark.fault(8)
def test_a_sync_that_fails_is_tried_again_for_as_long_as_the_server_runs(lab: Lab, tmp_path: Path) -> None:
    need_strace()
    where = site(lab, tmp_path)
    server = where.server.serve()
    with attached(server.pid, "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"):
        until("a warning", lambda: any("Timestamps" in each for each in where.server.status()["warnings"]))
    until("the warning's end", lambda: where.server.status()["warnings"] == [])
    trace = tmp_path / "trace"
    with attached(server.pid, "-e", "trace=fdatasync", "-o", str(trace)):
        until("another sync", lambda: "= 0" in trace.read_text())
    assert "internal error" not in where.server.said()
    end(server)


def _spoil(content: bytes, how: int, of: int) -> bytes:
    """The nth of so many ways: cut shorter and shorter, and in between a bit flipped further and further in."""
    where = len(content) * how // of
    if how % 2 == 0:
        return content[:where]
    return content[:where] + bytes([content[where] ^ 1 << how % 8]) + content[where + 1 :]


@pytest.mark.fault(10)
def test_a_spoilt_state_is_refused_with_the_way_back_which_works(lab: Lab, tmp_path: Path, soak: bool) -> None:
    where = site(lab, tmp_path)
    server = where.server.serve()
    for _ in range(2):
        where.client().run(f"join {where.address()} --save-only")
    known = {key: peer["address4"] for key, peer in where.server.peers().items()}
    # Ended in good order, it has saved once more: the one before holds both peers.
    assert end(server) == 0
    path = where.server.seen / "state.json"
    whole, before = path.read_bytes(), path.with_suffix(".json.bak").read_bytes()
    ways = spread(list(range(1, 64)), 2, all_of_them=soak)
    for how in ways:
        path.write_bytes(_spoil(whole, how, 64))
        path.with_suffix(".json.bak").unlink(missing_ok=True)
        path.with_suffix(".json.bak").write_bytes(before)
        path.with_suffix(".json.bak").chmod(0o600)
        refused = where.server.run(f"serve --pool {POOL} {OPEN}", check=False)
        assert refused.returncode == 1
        assert "can't be trusted" in refused.stderr
        [command] = [line.split(": ", 1)[1] for line in refused.stderr.splitlines() if "mv " in line]
        assert shlex.split(command)[0] == "mv"
        where.server.host.run(["sh", "-c", command])
        server = where.server.serve("")
        assert {key: peer["address4"] for key, peer in where.server.peers().items()} == known
        assert end(server) == 0
    path.write_bytes(b"")
    for copy in path.parent.glob("state.json.*"):
        copy.unlink()
    refused = where.server.run(f"serve --pool {POOL}", check=False)
    assert refused.returncode == 1
    assert "No copy next to it is valid" in refused.stderr
    assert path.read_bytes() == b""
    print(
        f"row 10: state cut or flipped in {len(ways)} ways: refused each time, and the way back that it names works"
    )


@pytest.mark.fault(10)
def test_a_state_that_is_gone_is_never_taken_for_a_first_start_while_a_copy_is_there(
    lab: Lab, tmp_path: Path
) -> None:
    where = site(lab, tmp_path)
    assert end(where.server.serve()) == 0
    (where.server.seen / "state.json").unlink()
    refused = where.server.run(f"serve --pool {POOL}", check=False)
    assert refused.returncode == 1
    assert "is missing" in refused.stderr
