"""The helper of `up` runs what it has read itself, and nothing that it is sent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.daemon import steps
from rustguard_py.daemon.dns import Dns
from rustguard_py.daemon.steps import Firewall
from rustguard_py.daemon.vouched import digest
from rustguard_py.quick import conf_files
from rustguard_py.quick.helper_process import HelperProcess

FIREWALL = {"kind": "Firewall", "interface": "wg0", "version": 4, "addresses": ["10.9.0.1"], "mark": 51820}
DNS = {"kind": "Dns", "interface": "wg0", "servers": ["10.9.0.1"], "search": ["lan"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.touch(0o600)
    path.write_text(f"[Interface]\nPrivateKey = {'A' * 42}A=\nPostUp = touch {tmp_path}/known; echo %i\n")
    tmp_path.chmod(0o700)
    return path


@pytest.fixture
def helper(file: Path) -> Iterator[HelperProcess]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield HelperProcess(
            theirs, file, "wg0", file.parent / "state", [f"touch {file.parent}/known; echo %i"], trust=True
        )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that were started, none of which is."""
    found: list[list[str]] = []

    def run(argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        found.append([*argv, stdin])
        return subprocess.CompletedProcess(argv, 0, "shown", "")

    monkeypatch.setattr(steps, "run", run)
    monkeypatch.setattr("rustguard_py.daemon.dns.run", run)
    return found


def ask(helper: HelperProcess, **request: Any) -> dict[str, Any]:
    output = os.open("/dev/null", os.O_WRONLY)
    try:
        answer = helper.answer(json.dumps(request).encode(), [output])
    finally:
        os.close(output)
    assert answer is not None
    return answer


def test_a_hook_is_run_by_its_digest_and_no_text_is(helper: HelperProcess, file: Path) -> None:
    for hook in (f"touch {file.parent}/text", digest(f"touch {file.parent}/text"), "", None, ["x"]):
        assert ask(helper, do="hook", hook=hook)["code"] == 127
    assert not (file.parent / "text").exists()
    assert ask(helper, do="hook", hook=digest(f"touch {file.parent}/known; echo %i"))["code"] == 0
    assert (file.parent / "known").exists()


def test_hooks_of_a_changed_file_are_read_from_the_file(helper: HelperProcess, file: Path) -> None:
    file.write_text(file.read_text() + "PostDown = exit 7\n")
    assert ask(helper, do="hook", hook=digest("exit 7"))["code"] == 127
    assert ask(helper, do="read") == {"error": None}
    assert ask(helper, do="hook", hook=digest("exit 7"))["code"] == 7
    file.write_text("nonsense\n")
    message, _ = ask(helper, do="read")["error"]
    assert "wg0.conf" in message


def test_a_file_that_others_can_change_is_not_read_again(file: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper = HelperProcess(theirs, file, "wg0", file.parent / "state", [], trust=False)
        file.chmod(0o666)
        message, fix = ask(helper, do="read")["error"]
    assert ("can write" in message, "--trust-file" in fix) == (True, True)


def test_the_file_is_saved_only_with_hooks_that_it_had_and_if_it_asks_for_that(
    helper: HelperProcess, file: Path
) -> None:
    plain = file.read_text()
    asking = plain + "SaveConfig = true\n"
    wanted = asking + "ListenPort = 7\n"
    # It didn't ask when the helper began, and doesn't now.
    for text in (wanted, plain, "nonsense", ""):
        assert ask(helper, do="save", text=text)["error"] is not None
        assert file.read_text() == plain
    file.write_text(asking)
    assert ask(helper, do="read") == {"error": None}
    for text in (
        wanted + "PostUp = touch /tmp/more\n",
        wanted.replace("known", "other"),
        plain,
        wanted + "PreUp = x\n",
    ):
        assert ask(helper, do="save", text=text)["error"] is not None
        assert file.read_text() == asking
    assert ask(helper, do="save", text=wanted) == {"error": None}
    assert "ListenPort = 7" in file.read_text()
    assert conf_files.load(file) == conf_files.parse(wanted, file)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("step", "memo"),
    [
        ({**FIREWALL, "interface": "eth0"}, ""),
        ({**FIREWALL, "addresses": ['10.9.0.1 accept; include "/etc/shadow"']}, ""),
        ({**FIREWALL, "addresses": ["fd00::1"]}, ""),
        ({**FIREWALL, "version": "ip"}, ""),
        ({**FIREWALL, "mark": "1 accept"}, ""),
        ({**FIREWALL, "mark": 0}, ""),
        ({**FIREWALL, "more": 1}, ""),
        ({**DNS, "interface": "eth0"}, "resolvectl"),
        ({**DNS, "servers": ["10.9.0.1\nnameserver 6.6.6.6"]}, "resolvectl"),
        ({**DNS, "search": ["--help"]}, "resolvectl"),
        ({**DNS, "search": ["lan\nnameserver 6.6.6.6"]}, "resolvconf"),
        (DNS, "/usr/local/bin/resolvectl"),
        (DNS, ""),
        ({"kind": "Sysctl", "name": "kernel.core_pattern", "value": "|/tmp/x"}, ""),
        ({"kind": "Rule", "version": 4, "priority": 1, "table": 1, "mark": 1}, ""),
        ("Firewall", ""),
        (None, ""),
    ],
)
def test_a_step_that_is_not_this_tunnels_starts_no_program(
    helper: HelperProcess, started: list[list[str]], step: Any, memo: str
) -> None:
    for what in ("apply", "undo", "put_back", "look"):
        assert ask(helper, do="step", step=step, what=what, memo=memo)["error"] is not None
    assert started == []


@pytest.mark.parametrize("what", ["prepare", "put_back", "__class__", "", None])
def test_rules_of_the_firewall_have_three_methods(helper: HelperProcess, started: list[list[str]], what: Any) -> None:
    assert ask(helper, do="step", step=FIREWALL, what=what, memo="")["error"] is not None
    assert started == []


def test_a_step_of_this_tunnel_is_done_as_without_a_helper(helper: HelperProcess, started: list[list[str]]) -> None:
    rules = Firewall("wg0", 4, ("10.9.0.1",), 51820)
    answer = ask(helper, do="step", step=steps.to_json(rules), what="apply", memo="")
    assert answer == {"lines": ["[#] nft add table ip rustguard-wg0"], "seen": None, "error": None}
    assert started.pop() == ["nft", "-f", "-", rules._rules()]
    assert ask(helper, do="step", step=steps.to_json(rules), what="look", memo="")["seen"] == "shown"
    names = Dns("wg0", ("10.9.0.1", "fd00::1"), ("lan", "example.org"))
    answer = ask(helper, do="step", step=steps.to_json(names), what="apply", memo="resolvectl")
    assert answer["error"] is None
    assert started[-2:] == [
        ["resolvectl", "dns", "wg0", "10.9.0.1", "fd00::1", ""],
        ["resolvectl", "domain", "wg0", "~.", "lan", "example.org", ""],
    ]
    answer = ask(helper, do="step", step=steps.to_json(names), what="put_back", memo="resolvconf")
    assert (answer["lines"][-1], answer["error"]) == ("[#] resolvconf -u", None)
    assert started[-1] == ["resolvconf", "-u", ""]


def test_what_is_no_request_is_answered_and_the_helper_goes_on(helper: HelperProcess) -> None:
    for line in (b"", b"[]", b"null", b"\xff", b'{"do": "exec"}', b'{"do": "hook"}', b'{"do": "step"}'):
        answer = helper.answer(line, [])
        assert answer is not None
        assert answer["error"] is not None
    assert helper.answer(b'{"do": "cancel"}', []) is None


SCRIPT = """
import asyncio, os, signal, sys
from pathlib import Path
from rustguard_py import conf
from rustguard_py.model.errors import RustGuardError
from rustguard_py.quick.helper import Helper

root = Path(sys.argv[1])
hooks = conf.Hooks(pre_up=("echo said by %i >&2; exit 3", f"echo $$ > {root}/pid; kill -TERM 0; sleep 60",
    f"trap 'touch {root}/ended; exit 1' TERM; touch {root}/began; while :; do sleep 0.01; done"))

async def main():
    helper = Helper.start(root / "wg0.conf", "wg0", root, hooks, trust=True)
    # As systemd does to the whole service, and a terminal to the whole group.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(helper._forked.process, number)
    print(await helper.run(hooks.pre_up[0]), await helper.run(hooks.pre_up[1]))
    endless = asyncio.ensure_future(helper.run(hooks.pre_up[2]))
    while not (root / "began").exists():
        await asyncio.sleep(0.01)
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)
    print(endless.cancelled())
    for _ in range(500):
        if (root / "ended").exists():
            break
        await asyncio.sleep(0.01)
    print((root / "ended").exists(), await helper.run(hooks.pre_up[0]))
    os.kill(helper._forked.process, signal.SIGKILL)
    try:
        await helper.run(hooks.pre_up[0])
    except RustGuardError as error:
        print(error.message)
    helper.close()

asyncio.run(main())
"""


def test_a_helper_survives_signals_runs_hooks_ends_one_that_is_cancelled_and_is_missed(tmp_path: Path) -> None:
    argv = [sys.executable, "-P", "-c", SCRIPT, str(tmp_path)]
    environment = {**os.environ, "RUSTGUARD_RUNTIME": str(tmp_path / "run")}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.stdout.splitlines() == [
        "3 -15",
        "True",
        "True 3",
        "The process that runs the hooks of wg0 is gone.",
    ], done.stderr
    assert done.stderr.count("said by wg0\n") == 2
