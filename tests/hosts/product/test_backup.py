"""A server is backed up while it runs, lost, and restored on another machine; its clients come back by themselves."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import InUseError
from rustguard_py.model.sudo import as_root
from support.product import INNER, OPEN, POOL, Site, eventually


@pytest.mark.timeout(180)
def test_a_client_comes_back_to_a_server_that_was_restored_on_a_third_machine(tmp_path: Path, lab: Lab) -> None:
    site = Site(lab, tmp_path)
    home, third = site.home(), site.machine("third")
    first = site.client("first", home, own_run=True)
    there, _ = lab.link(third.host, first.host, ipv4="203.0.113.0/29", ipv6="2001:db8:9::/64")
    serving = home.serve(f"--pool {POOL} {OPEN}")
    first.name_server("198.51.100.1 home.example\n")
    joined = first.join("home.example")
    before = first.saved()["data"]["networks"]

    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("six words of a test that nobody guesses\n")
    file = tmp_path / "home.backup"
    saved = home.run(f"backup {file} --passphrase-file {passphrase}")
    assert "a server of 10.150.0.0/24 with 1 peer." in saved.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert not {b"state", b"private", b"10.150"} & set(file.read_bytes().split())

    # The first machine is lost, with all that it had.
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    shutil.rmtree(home.state)

    restored = third.run(f"restore {file} --passphrase-file {passphrase}")
    assert f"Start it: {as_root(f'rustguard serve --state {third.state}')}" in restored.stderr
    third.serve("", token=None)
    first.name_server(f"{there.ipv4} home.example\n")
    first.host.ip([f"link set {first.own_end.interface} down"])
    # Nobody typed anything on the client, and no window was open.
    assert eventually(lambda: first.alive(joined) and first.pings(INNER), what="the way back")
    assert first.saved()["data"]["networks"] == before
    assert third.status()["window"]["closed_because"] == "never-opened"
    assert third.peers()["first"]["address4"] == "10.150.0.2"

    # While it runs there, nothing is restored over it.
    refused = third.run(f"restore {file} --passphrase-file {passphrase} --overwrite", check=False)
    assert refused.returncode == InUseError.exit_code
    assert "rustguard stop third" in refused.stderr
    assert third.run("status").returncode == 0
