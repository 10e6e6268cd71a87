"""Secrets looked for wherever they must not be."""

from __future__ import annotations

import base64
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.enroll.pairing.key_schedule import stretch
from rustguard_py.lab.hosts import Host, Lab
from support.faults import POOL, Site, Station, end, site, until

# A secret may lie in what a process was started with.
pytestmark = pytest.mark.fresh

# Unlike anything else, and not in the environment of these tests.
SECRET = "quartz-9f1c-Émeraude-tidepool"  # noqa: S105 - that's what is looked for


def _forms(secrets: list[bytes]) -> list[bytes]:
    """Each secret as it could be written."""
    forms = set()
    for secret in secrets:
        forms |= {secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
        forms |= {secret.hex().upper().encode(), repr(secret)[2:-1].encode(), base64.b32encode(secret)}
    return sorted(forms)


def _secrets(where: Site, client: Station) -> list[bytes]:
    """The token, stretched too, and every key that is kept on both sides."""
    server, own = where.server.kept(), client.kept()
    texts = [server["private_key"], own["private_key"]]
    texts += [network["preshared_key"] for network in own["networks"]]
    for peer in server["peers"]:
        texts += [peer["preshared_key"], *peer["previous_preshared_keys"]]
    keys = [base64.b64decode(text) for text in texts]
    stretched = stretch(SECRET, base64.b64decode(server["server_id"]))
    return [SECRET.encode(), SECRET.encode("latin-1"), stretched, *keys]


def _of_processes(*hosts: Host) -> Iterator[tuple[str, bytes]]:
    """What others can read of every process in some hosts."""
    inside = {Path(f"/proc/{host.pid}/ns/net").stat().st_ino for host in hosts}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino in inside:
                for name in ("cmdline", "environ", "comm", "status"):
                    yield f"{process / name}", (process / name).read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # Gone, or in no host of ours.
            continue


def _clean(places: list[tuple[str, bytes]], secrets: list[bytes]) -> int:
    """Look everywhere; give how many bytes were read."""
    forms = _forms(secrets)
    found = [(place, form[:4]) for place, content in places for form in forms if form in content]
    assert found == []
    return sum(len(content) for _, content in places)


def _give(station: Station, manner: str) -> str:
    """Arrange for the token to be given in a manner; the option for it, if there is one."""
    station.token = SECRET if manner == "environment" else None
    if manner == "argument":
        return f" --token {SECRET}"
    if manner == "file":
        file = station.runtime.with_suffix(".token")
        file.write_text(SECRET + "\n")
        file.chmod(0o600)
        return f" --token-file {file}"
    return ""


def _said(stage: str, *done: subprocess.CompletedProcess[str]) -> list[tuple[str, bytes]]:
    return [(f"{stage} {n}", (each.stdout + each.stderr).encode()) for n, each in enumerate(done)]


@pytest.mark.fault(34)
@pytest.mark.parametrize("manner", ["argument", "environment", "file"])
def test_a_token_and_the_keys_are_nowhere_that_others_look(lab: Lab, tmp_path: Path, manner: str) -> None:
    where = site(lab, tmp_path)
    server = where.server.start(f"serve --pool {POOL} --open 3600{_give(where.server, manner)}")
    where.server.wait_answering(server)
    client = where.client()
    background = client.run(f"join {where.address()} --daemon{_give(client, manner)}")
    until("a ping", client.reaches)
    where.server.token = client.token = None
    places = [*_of_processes(where.server.host, client.host), *_said("join --daemon", background)]
    assert any(f"/proc/{server.pid}/cmdline" == place for place, _ in places)
    for station in (where.server, client):
        words = ("status --json", "status -v", "status", "peers --json", "peers -v")
        places += _said(f"{station.state.name}", *(station.run(word) for word in words))
    pid = client.status()["pid"]
    os.kill(pid, signal.SIGTERM)
    until("the client's end", lambda: not Path(f"/proc/{pid}").exists())
    assert end(server) == 0
    logs = [where.server.log, client.state.with_suffix(".log")]
    assert all(log.read_bytes() for log in logs)
    places += [(str(log), log.read_bytes()) for log in logs]
    read = _clean(places, _secrets(where, client))
    # In the state lie the keys, for its owner alone; the token lies nowhere.
    kept = [path for station in (where.server, client) for path in station.state.rglob("*") if path.is_file()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    _clean([(str(path), path.read_bytes()) for path in kept], [SECRET.encode()])
    print(f"row 34: token by {manner}: 0 secrets in {len(places)} places, {read} bytes")


# The command itself, with one function that fails as a bug would, its message as talkative as can be.
_BROKEN = """
import {module} as module
def fails(*arguments, **options):
    raise ValueError("that was unexpected")
module.{name} = fails
from rustguard_py.cli import main
main()
"""


def _broken(station: Station, words: str, module: str, name: str) -> subprocess.Popen[str]:
    program = _BROKEN.format(module=module, name=name)
    argv = [sys.executable, "-c", program, *station.argv(words)[3:]]
    return station.host.popen(argv, log=station.log, env=station.variables())


@pytest.mark.fault(34)
def test_an_error_of_our_own_tells_of_itself_and_of_no_secret(lab: Lab, tmp_path: Path) -> None:
    where = site(lab, tmp_path)
    where.server.token = SECRET
    # Known before, so that there are keys to tell.
    server = where.server.serve()
    client = where.client(token=SECRET)
    client.run(f"join {where.address()} --save-only")
    end(server)
    server = _broken(
        where.server, f"serve --pool {POOL} --open 3600", "rustguard_py.enroll.server.registry", "Registry.admit"
    )
    where.server.wait_answering(server)
    stuck = client.start(f"join {where.address()} --save-only")
    until("a report", lambda: "that was unexpected" in where.server.said())
    end(stuck, signal.SIGINT)
    end(server)
    server = where.server.serve()
    broken = _broken(client, f"join {where.address()}", "rustguard_py.enroll.client.start", "without_ipv6")
    assert broken.wait(120) == 1
    assert "report" in client.said()
    end(server)
    logs = [station.log for station in (where.server, client)]
    assert all(b"Traceback" not in log.read_bytes() for log in logs)
    written = [path for station in (where.server, client) for path in station.state.glob("rustguard-report-*.txt")]
    reports = [(str(path), path.read_bytes()) for path in (*logs, *written)]
    read = _clean(reports, _secrets(where, client))
    traces = sum(report.count(b"Traceback") for _, report in reports)
    assert traces >= 2
    print(f"row 34: {traces} reports of errors of our own, {read} bytes: 0 secrets")


def _leaves_core(station: Station, folder: Path, argv: list[str], ready: str) -> bool:
    """Run it with cores allowed, have it crash as by a bad pointer, and look for what that left."""
    folder.mkdir()
    shell = f"ulimit -c unlimited && cd {folder} && exec {' '.join(argv)}"
    program = station.host.popen(["sh", "-c", shell], log=station.log, env=station.variables())
    if ready:
        until("its start", lambda: ready in station.said())
        limits = Path(f"/proc/{program.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    else:
        until("its start", lambda: Path(f"/proc/{program.pid}/comm").read_text() == "sleep\n")
    assert end(program, signal.SIGSEGV) == -signal.SIGSEGV
    return any(folder.iterdir())


@pytest.mark.fault(34)
def test_a_crash_leaves_no_core(lab: Lab, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"cores don't go to the working folder here: core_pattern is {pattern}")
    where = site(lab, tmp_path)
    where.server.host.run(["true"])
    if not _leaves_core(where.server, tmp_path / "control", ["sleep", "600"], ""):
        pytest.skip("no program may leave a core here: the hard limit is 0")
    assert not _leaves_core(where.server, tmp_path / "cores", where.server.argv(f"serve --pool {POOL}"), "Serving")
    server = where.server.serve()
    client = where.client()
    assert not _leaves_core(client, tmp_path / "cores2", client.argv(f"join {where.address()}"), "Connected")
    end(server)
    print("row 34: server and client crashed with cores allowed: no core (and one of a program that allows it)")
