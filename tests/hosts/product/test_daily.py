"""What a person types every day: start in the background, start what runs, read its log, stop it, leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import NotRunningError, UsageError
from support.product import HOME4, INNER, OPEN, POOL, TOKEN, Machine, Site

# As a person does it, from the start on.
pytestmark = pytest.mark.fresh


def ran(machine: Machine, words: str) -> tuple[int, str]:
    """Run a command that names its state by itself."""
    done = machine.run(words, state=False, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_server_and_a_client_in_the_background_from_start_to_leaving(tmp_path: Path, lab: Lab) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    home.run(f"serve --pool {POOL} {OPEN} --daemon", TOKEN)
    first.run(f"join {HOME4} --daemon", TOKEN)
    assert first.reaches(INNER)

    # A second start finds the first, says so, and is no error.
    again = home.run(f"serve --pool {POOL} --daemon", TOKEN)
    assert f"process {home.status()['pid']}" in again.stderr
    before = first.status()["pid"]
    assert "runs already" in first.run(f"join {HOME4}").stderr
    assert first.status()["pid"] == before
    # Options that can't count now are named, each time with the way to make them count.
    said = home.run("serve --pool 10.151.0.0/24 --port 4000 --open 10m --most 3", TOKEN).stderr
    assert "The server runs already" in said
    assert "Its window stays as it is. To open it: rustguard open 600" in said
    assert "To change --pool, --port, end it first: " in said
    said = first.run(f"join {HOME4} --name other --interface rg7 --token {TOKEN}").stderr
    assert f"A client of {HOME4} runs already" in said
    assert "peers rename OLD other" in said
    assert "To change --interface, end it first: " in said
    # Another network, or a server, isn't what runs.
    other = first.run("join 192.0.2.99", check=False)
    assert other.returncode != 0
    assert f"A client of {HOME4} runs on " in other.stderr
    server = first.run("serve", check=False)
    assert (server.returncode, "belongs to the client" in server.stderr) == (1, True)

    assert f"Connected to {HOME4}" in first.run("logs").stdout
    assert "joined" in home.run("logs").stdout.lower()

    # The first machine's runtime directory is its own, so one runs there.
    assert "joined" in ran(home, "logs home")[1].lower()
    assert ran(first, "stop nobody")[0] == NotRunningError.exit_code
    code, said = ran(first, "stop first")
    assert (code, said) == (0, f"Ended process {before} on {first.state}.\n")
    assert ran(first, "stop")[0] == NotRunningError.exit_code
    assert ran(first, "stop --all") == (0, "Nothing runs here.\n")
    assert first.network() == {line for line in first.network() if "rg0" not in line}
    server = first.run("serve", check=False)
    assert "This state directory is a client's, and a server needs another one." in server.stderr
    assert "To use the client's: rustguard join" in server.stderr

    assert first.run("leave other", check=False).returncode == UsageError.exit_code
    assert first.run("leave --yes").stderr.startswith(f"Left {HOME4}.")
    assert first.saved()["data"]["networks"] == [] if "data" in first.saved() else not first.saved()["networks"]
    assert first.run("join", check=False).returncode == UsageError.exit_code
    assert ran(home, "stop --all")[0] == 0
    assert home.sockets() == []


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_keep_no_daemon_from_the_background(tmp_path: Path, lab: Lab, closed: str) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first = site.client("first", home)
    for machine, words in ((home, f"serve --pool {POOL} {OPEN} --daemon"), (first, f"join {HOME4} --daemon")):
        argv = ["sh", "-c", f'exec "$@" {closed}', "sh", *machine.command(words)]
        done = machine.host.run(argv, env=machine.environment(TOKEN), check=False)
        assert done.returncode == 0, done.stderr
        assert machine.status()["pid"]
    assert first.reaches(INNER)
    for machine in (home, first):
        for words in ("status", "peers", "status -v"):
            argv = ["sh", "-c", f'exec "$@" {closed}', "sh", *machine.command(words)]
            done = machine.host.run(argv, env=machine.environment(None), check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        machine.run("stop --all", state=False)


def test_one_of_several_has_to_be_named(tmp_path: Path, lab: Lab) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    second = site.machine("second", home.host)
    home.run(f"serve --pool {POOL} --daemon", TOKEN)
    second.run("serve --pool 10.151.0.0/24 --port 4000 --daemon", TOKEN)
    code, said = ran(home, "stop")
    assert code == UsageError.exit_code
    assert f"rustguard stop {second.state}" in said
    assert ran(home, "stop second")[0] == 0
    assert home.status()["role"] == "server"
    assert ran(home, "stop --all")[0] == 0
