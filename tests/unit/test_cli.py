"""The command line: exit codes, help, which daemon is meant, what is printed where."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner

from rustguard_py.cli import status
from rustguard_py.cli.app import VERBS, group, run
from rustguard_py.daemon.control.server import Handler
from rustguard_py.model.errors import (
    NotRunningError,
    RefusedError,
    RustGuardError,
    StateError,
    UnansweredError,
    UsageError,
)
from rustguard_py.model.sudo import as_root
from rustguard_py.state import paths
from support.answering import answering

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
PEERS: list[dict[str, Any]] = [
    {
        "name": "laptop",
        "public_key": KEY,
        "address4": "10.77.0.2",
        "address6": "fd77::2",
        "endpoint": "192.0.2.7:51820",
        "state": "active",
        "last_handshake": 40.0,
        "last_received": 12.3,
        "rx_bytes": 1536,
        "tx_bytes": 5 * 2**30,
        "keepalive": 25,
    },
    {
        "name": "pho\x1b[2Jne [bold]",
        "public_key": KEY,
        "address4": "10.77.0.3",
        "address6": None,
        "endpoint": None,
        "state": "never",
        "last_handshake": None,
        "last_received": None,
        "rx_bytes": 0,
        "tx_bytes": 0,
        "keepalive": 0,
    },
]
STATUS: dict[str, Any] = {
    "schema": 1,
    "role": "server",
    "name": None,
    "state_directory": "/var/lib/rustguard/server",
    "interface": "rg0",
    "engine": "portable",
    "engine_reason": "the only one here",
    "public_key": KEY,
    "fingerprint": "ABCDEFGHIJKLMNOP",
    "port": 51820,
    "addresses": ["10.77.0.1/24", "fd77::1/64"],
    "mtu": 1420,
    "pool": {"network4": "10.77.0.0/24", "network6": "fd77::/64", "size": 253, "used": 2},
    "window": {
        "open": True,
        "remaining": 41.7,
        "guesses_used": 1,
        "guesses_allowed": 20,
        "closed_because": None,
    },
    "peers": PEERS,
    "counters": {"handshakes": 3, "drops": {"replayed": 7}},
    "workers": [
        {
            "name": "in-0",
            "packets": 90,
            "bytes": 2048,
            "batches": 4,
            "batch_sizes": [1, 0, 0, 0, 2, 1],
            "system_calls": 17,
        }
    ],
    "notes": ["UDP GRO was refused."],
    "warnings": ["Forwarding is off."],
    "uptime": 7200.0,
}


class Daemon:
    """A control server that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.status = STATUS
        self.answer: dict[str, Any] = {}

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": lambda _: self.status,
            "peers": lambda _: {"peers": self.status["peers"]},
            "open": self.open,
            "close": lambda params: self.remember("close", params),
            "revoke": lambda params: self.remember("revoke", params) | {"peer": PEERS[0], **self.answer},
            "reset": lambda params: self.remember("reset", params) | {"peer": PEERS[0], **self.answer},
            "restore": lambda params: self.remember("restore", params),
            "rename": lambda params: self.remember("rename", params),
        }

    def open(self, params: dict[str, Any]) -> dict[str, Any]:
        if params["seconds"] > 86400:
            raise UsageError("A window of more than a day isn't a window.", "rustguard open 3600")
        return self.remember("open", params) | self.answer

    def remember(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((method, params))
        return {}


@contextlib.contextmanager
def running(state: Path) -> Iterator[Daemon]:
    """A daemon on a state directory."""
    daemon = Daemon()
    with answering(state, daemon.handlers()):
        yield daemon


@pytest.fixture(autouse=True)
def as_wide_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as wide as the terminal of whoever runs the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


def rustguard(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command line here; return exit code, standard output and standard error."""
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RustGuardError, 1),
        (StateError, 1),
        (UsageError, 2),
        (NotRunningError, 3),
        (RefusedError, 4),
        (UnansweredError, 5),
    ],
)
def test_an_error_goes_to_stderr_with_its_fix_and_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[RustGuardError], code: int
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error("It broke.", "Fix it.")

    monkeypatch.setattr("rustguard_py.cli.status.statuses", fail)
    assert rustguard(capsys, "status") == (code, "", "rustguard: It broke.\n  Fix it.\n")


def test_a_health_check_ends_with_0_or_1_alone(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    words = ("status", "--healthy", "--state", str(state))
    with running(state) as daemon:
        assert rustguard(capsys, *words) == (0, "rg0 is healthy, engine portable.\n", "")
        daemon.status = {**STATUS, "healthy": True}
        assert rustguard(capsys, *words)[0] == 0
        daemon.status = {**STATUS, "healthy": False, "warnings": ["The data plane doesn't answer (rg-in)."]}
        code, out, err = rustguard(capsys, *words)
        assert (code, out) == (1, "")
        assert err.startswith("rustguard: It isn't healthy. The data plane doesn't answer (rg-in).\n")
    # Nothing runs: `status` itself ends with 3.
    code, _, err = rustguard(capsys, *words)
    assert code == 1
    assert "No daemon runs" in err


@pytest.mark.parametrize("arguments", [["nothing"], ["status", "--nothing"], ["open", "0"], ["open", "soon"]])
def test_a_wrong_command_line_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = rustguard(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Usage: rustguard" in err


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("serve", "--token-file", "/"), "Name a file."),
        (("serve", "--state", "/proc/version"), "Name a directory."),
        (("restore", "/nonexistent"), "Check the path: a file has to be there."),
    ],
)
def test_a_wrong_path_is_answered_with_what_to_name(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], fix: str
) -> None:
    code, _, err = rustguard(capsys, *words)
    assert code == 2
    assert err.splitlines()[1] == f"  {fix}"


@pytest.mark.parametrize("group", [(), ("service",)])
def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str], group: tuple[str, ...]) -> None:
    asked = rustguard(capsys, *group, "--help")
    assert rustguard(capsys, *group) == asked
    assert (asked[0], asked[2]) == (0, "")
    assert "\n\nExamples:\n" in asked[1]


def test_ctrl_c_is_quiet_and_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("rustguard_py.cli.status.statuses", interrupt)
    code, out, err = rustguard(capsys, "status")
    assert (code, out, err.strip()) == (130, "", "")


def verbs() -> list[tuple[str, ...]]:
    """Every command line that names a command."""
    lines: list[tuple[str, ...]] = []
    for name, entry in VERBS.items():
        command = group.get_command(click.Context(group), name)
        lines.append((name,))
        lines += [(name, below) for below in getattr(command, "commands", ())]
        assert entry.summary.endswith(".")
    return lines


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb_works_by_both_names_and_shows_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module, _ = VERBS[name].target.split(":")
    import_module(module)
    code, out, _ = rustguard(capsys, name, "-h")
    assert code == 0
    assert "Examples:" in out
    assert f"rustguard {name}" in out.partition("Examples:")[2]
    assert rustguard(capsys, name, "--help")[1] == out


def test_the_list_of_verbs_shows_all_but_the_hidden_ones(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rustguard(capsys, "--help")
    assert code == 0
    for name, entry in VERBS.items():
        assert (f"\n  {name} " in out) is not entry.hidden


# What the daemons and a few verbs need. Each costs every start that imports it some milliseconds.
_HEAVY = {
    *("asyncio", "cryptography", "nacl", "numpy", "pyroute2", "rich", "ssl", "subprocess"),
    *("difflib", "logging", "tempfile", "traceback"),
    *("rustguard_py._native", "rustguard_py.data_path", "rustguard_py.model.memif", "rustguard_py.model.offloads"),
}


def seconds_without(heavy: set[str], *words: str) -> float:
    """Run a command that asks a daemon without peers and imports nothing heavy. Return how long it took."""
    code = (
        "import sys\n"
        "from rustguard_py.cli import daemon\n"
        "from rustguard_py.cli.app import run\n"
        "daemon.find_socket = lambda *_, **__: None\n"
        "daemon.call = lambda *_: {'peers': []}\n"
        f"assert run({list(words)}) == 0\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started


def test_help_is_there_soon_and_imports_nothing_heavy() -> None:
    took = min(seconds_without(_HEAVY, "--help") for _ in range(3))
    print(f"rustguard --help: {took * 1000:.0f} ms, the best of 3, the interpreter's start included")
    # Its goal is 150 ms, on a machine that does nothing else.
    assert took < 2


@pytest.mark.parametrize("words", [["--version"], ["status", "--json"], ["peers", "--json"], ["close"]])
def test_a_command_that_asks_a_daemon_imports_nothing_heavy(words: list[str]) -> None:
    # The help asks it how wide the terminal is.
    seconds_without(_HEAVY | {"shutil"}, *words)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from rustguard_py import __version__

    assert rustguard(capsys, "--version") == (0, f"rustguard, version {__version__}\n", "")


def test_no_daemon_is_exit_code_3_and_tells_how_to_start_one(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    for arguments in (["status"], ["peers"], ["open"], ["close"], ["status", "--state", str(state)]):
        code, out, err = rustguard(capsys, *arguments)
        assert (code, out) == (3, "")
        assert "rustguard serve" in err


def test_the_only_daemon_is_meant_without_saying_so(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state):
        code, out, _ = rustguard(capsys, "status", "--json")
    assert code == 0
    assert json.loads(out) == STATUS


def test_a_daemon_elsewhere_on_the_machine_is_not_seen_by_the_tests(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_SYSTEM_RUNTIME", tmp_path / "machine")
    with contextlib.ExitStack() as elsewhere:
        with monkeypatch.context() as root:
            root.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "machine"))
            elsewhere.enter_context(running(state))
        assert rustguard(capsys, "status")[0] == 3
        with monkeypatch.context() as outside:
            outside.delenv("RUSTGUARD_SYSTEM_RUNTIME")
            assert rustguard(capsys, "status")[0] == 0


def test_several_daemons_are_listed_with_the_line_to_type(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b c"
    with running(first), running(second) as meant:
        code, out, err = rustguard(capsys, "close")
        assert (code, out) == (2, "")
        assert f"rustguard close --state {first}\n" in err
        assert f"rustguard close --state '{second}'\n" in err
        assert rustguard(capsys, "close", "--state", str(second))[0] == 0
        assert meant.asked == [("close", {})]
        monkeypatch.setenv("RUSTGUARD_STATE", str(second))
        assert rustguard(capsys, "open")[0] == 0
        assert meant.asked[1:] == [("open", {"seconds": 60})]


def test_a_daemon_that_was_killed_isnt_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with running(tmp_path / "a"):
        import socket

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(paths.announce(tmp_path / "dead")))
        assert len(paths.running()) == 2
        assert rustguard(capsys, "close")[0] == 0


def test_an_open_window_without_a_token_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = tmp_path / "server"
    code, _, err = rustguard(capsys, "serve", "--pool", "10.1.0.0/24", "--open", "--state", str(directory))
    assert code == 2
    assert "--open needs a token" in err
    assert not directory.exists()


def test_open_and_close_speak_on_stderr_only(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state) as daemon:
        code, out, err = rustguard(capsys, "open", "90")
        assert (code, out) == (0, "")
        assert "90 s" in err
        assert "sudo rustguard join HOST --server ABCDEFGHIJKLMNOP --token -" in err
        daemon.status = {**STATUS, "port": 4500}
        assert "join HOST:4500 --server" in rustguard(capsys, "open", "90")[2]
        assert rustguard(capsys, "close")[:2] == (0, "")
    assert daemon.asked == [("open", {"seconds": 90})] * 2 + [("close", {})]


def test_open_with_an_absurd_number_is_rejected_with_a_message(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    with running(state) as daemon:
        code, out, err = rustguard(capsys, "open", "9223372036854775807")
    assert (code, out) == (2, "")
    assert "more than a day" in err
    assert daemon.asked == []


def test_status_shows_a_person_summary_peers_and_warnings(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state):
        code, out, err = rustguard(capsys, "status")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "server rg0, up 2h",
        "address 10.77.0.1/24 fd77::1/64, port 51820, MTU 1420",
        "window open, 41s left, 1 of 20 guesses used",
        "pool 10.77.0.0/24 fd77::/64, 2 of 253 used",
        "key xTIBA5rb… fingerprint ABCDEFGHIJKLMNOP",
        "",
        "NAME ADDRESS STATE ENDPOINT ↓ ↑ KEY",
        "laptop 10.77.0.2 active 12s ago 192.0.2.7:51820 1.5 KiB 5.0 GiB xTIBA5rb…",
        "pho\\x1b[2Jne [bold] 10.77.0.3 never - 0 B 0 B xTIBA5rb…",
        "warning: Forwarding is off.",
    ]


def test_no_colour_where_no_terminal_is(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state):
        assert "\x1b" not in "".join(map(str, rustguard(capsys, "status", "-v")))


def test_a_terminal_gets_colour_and_whole_keys_when_asked(state: Path) -> None:
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 60))
    environment = {**os.environ, "TERM": "xterm"}
    with running(state):
        command = [sys.executable, "-m", "rustguard_py.cli", "status", "-v"]
        subprocess.run(command, env=environment, stdin=side, stdout=side, stderr=side, cwd="/", check=True)
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(main, 65536):
            shown += piece
    os.close(main)
    assert b"\x1b[32mactive" in shown
    assert shown.count(KEY.encode()) == 3


def test_verbose_status_shows_whole_keys_engine_and_notes(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state):
        _, out, _ = rustguard(capsys, "status", "-v")
    assert out.count(KEY) == 3
    assert "portable: the only one here" in out
    assert "note: UDP GRO was refused." in out
    assert "fd77::2" in out
    assert "handshakes 3, drops replayed 7" in out
    assert "in-0      90 datagrams, 2.0 KiB, 22.5 a batch, 17 system calls" in out


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("time", "closed (its time was up), 1 of 20"),
        ("asked", "closed (by `rustguard close`), 1 of 20"),
        ("unsaved", "closed (it couldn't be saved), 1 of 20"),
        (None, "closed, 1 of 20"),
    ],
)
def test_status_says_why_the_window_is_closed(
    capsys: pytest.CaptureFixture[str], state: Path, reason: str | None, words: str
) -> None:
    with running(state) as daemon:
        window = {**STATUS["window"], "open": False, "remaining": 0.0, "closed_because": reason}
        daemon.status = {**STATUS, "window": window}
        assert words in rustguard(capsys, "status")[1]


def test_status_shows_who_tried_and_who_was_stopped(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    window = STATUS["window"] | {
        "guesses_used": 27,
        "guessing_sources": 9,
        "blocked": ["192.0.2.1/32", "2001:db8::/64"],
        "from": ["192.0.2.0/24", "2001:db8::/32"],
        "new_peers": 50,
        "new_peers_allowed": 50,
        "waiting": 1,
        "unconfirmed": 12,
        "unconfirmed_sources": 1,
    }
    with running(state) as daemon:
        daemon.status = {**STATUS, "window": window}
        _, out, _ = rustguard(capsys, "status")
        _, verbose, _ = rustguard(capsys, "status", "-v")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[2:5] == [
        "window open to 192.0.2.0/24, 2001:db8::/32 only, 41s left, 27 guesses used by 9 sources: "
        "now one is checked every 10 s",
        "2 sources blocked after three wrong tokens; 1 machine waiting for a turn; "
        "12 pairings begun and never confirmed, by 1 source; 50 new peers admitted, so no further one is",
        "pool 10.77.0.0/24 fd77::/64, 2 of 253 used",
    ]
    assert "2 sources blocked after three wrong tokens: 192.0.2.1/32, 2001:db8::/64;" in verbose


def test_open_passes_its_limits_on_and_tells_of_the_guesses_before(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    arguments = ("--from", "192.0.2.0/24", "--from", "2001:db8::/32", "--most", "7")
    with running(state) as daemon:
        daemon.answer = {"before": {**STATUS["window"], "guesses_used": 5, "guessing_sources": 2}}
        _, _, err = rustguard(capsys, "open", "90", *arguments)
    assert daemon.asked == [("open", {"seconds": 90, "from": ["192.0.2.0/24", "2001:db8::/32"], "most": 7})]
    assert err.splitlines()[:2] == [
        "In the window before: 5 of 20 guesses used by 2 sources.",
        "Open to 192.0.2.0/24, 2001:db8::/32 only for 90 s. On the other machine:",
    ]


def test_most_without_open_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    directory = tmp_path / "server"
    arguments = ("--pool", "10.1.0.0/24", "--most", "7", "--token", "x y z", "--state", str(directory))
    code, _, err = rustguard(capsys, "serve", *arguments)
    assert code == 2
    assert "Add: --open" in err
    assert not directory.exists()


def test_a_clients_status_has_neither_window_nor_pool(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state) as daemon:
        daemon.status = {**STATUS, "role": "client", "name": "laptop", "window": None, "pool": None, "peers": []}
        code, out, _ = rustguard(capsys, "status")
    assert code == 0
    assert "client" in out
    assert "rg0 laptop" in out
    assert "window" not in out
    assert "no peers" in out


def test_watch_shows_it_again_and_ends_well_with_ctrl_c(
    capsys: pytest.CaptureFixture[str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    with running(state):
        code, out, _ = rustguard(capsys, "status", "--watch")
        assert code == 0
        assert out.count("laptop") == 3
        waits.clear()
        code, out, _ = rustguard(capsys, "status", "--watch", "--json")
    assert code == 0
    assert [json.loads(line)["schema"] for line in out.splitlines()] == [1, 1, 1]
    assert waits == [2.0] * 3


def test_watch_ends_with_exit_code_3_when_the_daemon_does(
    capsys: pytest.CaptureFixture[str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as daemon:
        daemon.enter_context(running(state))
        clock = type("Clock", (), {"sleep": staticmethod(lambda _: daemon.close())})
        monkeypatch.setattr(status, "time", clock)
        code, out, err = rustguard(capsys, "status", "--watch")
    assert code == 3
    assert out.count("laptop") == 1
    assert "No daemon" in err


def test_peers_lists_renames_revokes_and_restores(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state) as daemon:
        assert "laptop" in rustguard(capsys, "peers")[1]
        _, out, _ = rustguard(capsys, "peers", "--json")
        assert json.loads(out) == {"schema": 1, "peers": PEERS}
        assert rustguard(capsys, "peers", "rename", "laptop", "annas")[:2] == (0, "")
        assert rustguard(capsys, "peers", "--state", str(state), "revoke", "annas")[:2] == (0, "")
        code, out, err = rustguard(capsys, "peers", "revoke", KEY, "--state", str(state))
        assert (code, out) == (0, "")
        assert "10.77.0.2 is free again" in err
        assert rustguard(capsys, *err.split("rustguard ")[1].split())[:2] == (0, "")
        daemon.status = {**STATUS, "peers": []}
        assert rustguard(capsys, "peers")[:2] == (0, "")
    assert daemon.asked == [
        ("rename", {"old": "laptop", "new": "annas"}),
        ("revoke", {"who": "annas"}),
        ("revoke", {"who": KEY}),
        ("restore", {"key": KEY}),
    ]


def test_revoking_one_who_may_know_the_token_says_how_to_change_it(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    with running(state) as daemon:
        for may_know in (False, True):
            daemon.answer = {"may_know_token": may_know}
            err = rustguard(capsys, "peers", "revoke", "annas")[2]
            assert ("rustguard serve` with another --token" in err) == may_know
            assert ("joined so far stay joined" in err) == may_know


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"was": "2150-01-01T00:00:00Z", "added_again": False}, "at 2150-01-01T00:00:00Z: the next one is accepted"),
        ({"was": None, "added_again": False}, "no handshake of laptop to forget"),
        ({"was": None, "added_again": True}, "added it again"),
    ],
)
def test_peers_reset_says_what_it_did(
    capsys: pytest.CaptureFixture[str], state: Path, answer: dict[str, Any], said: str
) -> None:
    with running(state) as daemon:
        daemon.answer = answer
        code, out, err = rustguard(capsys, "peers", "reset", "laptop")
        assert (code, out) == (0, "")
        assert said in err
        assert daemon.asked == [("reset", {"who": "laptop"})]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = rustguard(capsys, "completion", shell)
    assert code == 0
    assert "_RUSTGUARD_COMPLETE" in out


def test_completion_of_verbs_leaves_out_the_hidden_ones() -> None:
    command = [sys.executable, "-m", "rustguard_py.cli"]
    environment = {
        **os.environ,
        "_RUSTGUARD_COMPLETE": "bash_complete",
        "COMP_WORDS": "rustguard ",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", check=False)
    offered = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert offered >= {name for name, entry in VERBS.items() if not entry.hidden}
    assert "man" not in offered


def test_the_manual_page_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = rustguard(capsys, "man")
    assert code == 0
    for line in verbs():
        if not VERBS[line[0]].hidden:
            assert f'.SS "rustguard {" ".join(line)} ' in out
    for number in range(6):
        assert f".TP\n\\fB{number}\\fR" in out
    requests = {line.split()[0] for line in out.splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".nf", ".fi", ".BR"}


def test_each_help_names_its_manual_page(capsys: pytest.CaptureFixture[str]) -> None:
    from rustguard_py.cli.wg import command as wg

    for words in (["--help"], ["serve", "--help"], ["peers", "revoke", "--help"]):
        assert "man rustguard" in rustguard(capsys, *words)[1].partition("\nMore:\n")[2]
    assert "rustguard man rustguard-wg" in CliRunner().invoke(wg, ["--help"]).output.partition("\nMore:\n")[2]


def test_on_a_terminal_the_manual_page_is_shown_by_man(tmp_path: Path) -> None:
    reader = tmp_path / "man"
    reader.write_text('#!/bin/sh\necho "asked: $*"; head -n 1\n')
    reader.chmod(0o755)
    main, side = pty.openpty()
    command = [sys.executable, "-m", "rustguard_py.cli", "man", "rustguard-wg"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, env=environment, stdin=side, stdout=side, stderr=side, cwd="/", check=True)
    os.close(side)
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert shown.startswith('asked: --local-file -\r\n.TH RUSTGUARD-WG 8 ""')


def test_a_reader_that_left_is_no_traceback() -> None:
    readable, writable = os.pipe()
    os.close(readable)
    command = [sys.executable, "-m", "rustguard_py.cli", "completion", "bash"]
    with os.fdopen(writable, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_one_verb_alone_takes_h_too() -> None:
    from rustguard_py.cli.status import command

    assert CliRunner().invoke(command, ["-h"]).exit_code == 0


def test_the_table_and_the_commands_have_the_same_names() -> None:
    for name in VERBS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.name == name


def test_down_names_the_daemon_that_it_wont_end(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    with running(state) as daemon:
        daemon.status = STATUS | {"interface": "rg7", "pid": 4711}
        code, _, err = rustguard(capsys, "down", "rg7")
        assert (code, rustguard(capsys, "down", "rg8")[0]) == (4, 3)
    assert "rg7 belongs to `rustguard serve`, process 4711" in err
    assert f"To end it: {as_root('rustguard stop /var/lib/rustguard/server')}" in err


def test_join_with_a_name_and_no_token_says_that_the_server_keeps_the_name(
    capsys: pytest.CaptureFixture[str], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rustguard_py.cli.foreground.run", lambda _: None)
    (state / "state.json").touch()
    code, _, err = rustguard(capsys, "join", "--name", "Anna's laptop", "--state", str(state))
    assert code == 0
    assert """sudo rustguard peers rename OLD 'Anna'"'"'s laptop'""" in err
    assert "peers rename" not in rustguard(capsys, "join", "--state", str(state))[2]
