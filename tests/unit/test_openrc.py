"""OpenRC: which service a daemon is, how it is stopped, and what the script makes of its settings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rustguard_py.cli import stop
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.service import openrc, systemd
from rustguard_py.state.paths import Candidate

SCRIPT = Path(__file__).parents[2] / "package/openrc/rustguard.initd"
SETTINGS = SCRIPT.with_name("rustguard.confd")
SUPERVISOR = b"supervise-daemon\0rustguard.second\0--start\0/usr/bin/rustguard\0--\0serve\0"


def processes(folder: Path, parent: bytes) -> Path:
    """Return a folder as /proc: process 30 is a child of 20, whose command line is given."""
    for number, stat in (("20", "20 (supervise-daemo) S 1 20"), ("30", "30 (a) S 7 (b) S 20 20")):
        (folder / number).mkdir(parents=True)
        (folder / number / "stat").write_text(stat)
    (folder / "20/cmdline").write_bytes(parent)
    return folder


@pytest.mark.parametrize(
    ("parent", "service"),
    [
        (SUPERVISOR, "rustguard.second"),
        (b"/sbin/supervise-daemon\0rustguard\0", "rustguard"),
        (b"-bash\0", None),
        (b"supervise-daemon", None),
        (b"", None),
        (b"/usr/bin/supervise-daemons\0rustguard\0", None),
        (b"\xff\xfe\0\xff\0", None),
    ],
)
def test_the_service_is_what_its_supervisor_was_started_as(
    tmp_path: Path, parent: bytes, service: str | None
) -> None:
    assert openrc.running_service(30, processes(tmp_path, parent)) == service


def test_a_process_that_has_ended_is_no_service(tmp_path: Path) -> None:
    assert openrc.running_service(31, processes(tmp_path, SUPERVISOR)) is None


@pytest.fixture
def rc_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command of that name that notes how it was called; a file `fails` makes it fail."""
    program = tmp_path / "bin/rc-service"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$*" >> called\n[ ! -e fails ] || {{ echo why >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path


def test_a_service_is_stopped_by_openrc_and_not_by_a_signal(
    rc_service: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stop, "listener", lambda _: 4711)
    monkeypatch.setattr(stop, "listens", lambda _: False)
    monkeypatch.setattr(openrc, "running_service", lambda _: "rustguard.second")
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("it was sent a signal"))
    stop.end(Candidate(Path("/var/lib/rustguard/second"), rc_service / "none.sock"))
    assert (rc_service / "called").read_text() == "rustguard.second stop\n"
    assert capsys.readouterr().err == "Ended rustguard.second on /var/lib/rustguard/second.\n"


def test_what_openrc_refuses_is_an_error(rc_service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (rc_service / "fails").touch()
    with pytest.raises(RustGuardError, match="rc-service rustguard stop` failed: why"):
        openrc.stop("rustguard")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RustGuardError, match="rc-service can't be run"):
        openrc.stop("rustguard")


def test_service_install_names_the_script_where_openrc_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "RUNNING", tmp_path / "systemd")
    monkeypatch.setattr(openrc, "RUNNING", tmp_path)
    with pytest.raises(RefusedError, match="runs OpenRC") as refused:
        systemd.require()
    assert "docs/guide/service.md" in refused.value.fix


def shell(settings: str, after: str) -> subprocess.CompletedProcess[str]:
    """Read settings and the script as openrc-run does, and run `after`."""
    stubs = 'eerror() { echo "$*" >&2; }; RC_SVCNAME=rustguard'
    return subprocess.run(
        ["sh", "-ec", f"{stubs}\n{settings}\n. {SCRIPT}\n{after}"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "state", "words", "log"),
    [
        ("serve --pool 10.150.0.0/24", "", "serve --pool 10.150.0.0/24", "/var/lib/rustguard/server"),
        ("join", "", "join", "/var/lib/rustguard/client"),
        ("up wg0 --foreground", "", "up wg0 --foreground", "/var/lib/rustguard/tunnels/wg0"),
        ("serve", "/srv/second", "serve --state /srv/second", "/srv/second"),
    ],
)
def test_the_settings_say_what_runs_and_where_it_logs(options: str, state: str, words: str, log: str) -> None:
    settings = f'rustguard_options="{options}"\n' + (f'rustguard_state="{state}"\n' if state else "")
    # As supervise-daemon.sh reads `command_args`.
    done = shell(settings, 'eval set -- $command_args; echo "$#|$*|$state|$output_log|$umask|$respawn_max"')
    count, *shown = done.stdout.strip().split("|")
    assert shown == [words, log, f"{log}.log", "077", "5"], done.stderr
    assert int(count) == len(options.split()) + 2 * bool(state)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "set rustguard_options"),
        ('rustguard_options="status"', "set rustguard_options"),
        ("rustguard_options=join rustguard_state=/nonexistent/client", "Join once"),
    ],
)
def test_what_can_not_start_is_told_before_it_is_tried(settings: str, said: str) -> None:
    done = shell(settings, "start_pre")
    assert done.returncode == 1
    assert said in done.stderr


def test_the_settings_that_come_with_it_serve() -> None:
    done = shell(SETTINGS.read_text(), 'echo "$command|$command_args"')
    assert done.stdout.strip() == (
        "/usr/bin/rustguard|serve --pool 10.150.0.0/24 --token-file /etc/rustguard/token"
    ), done.stderr
