"""The control socket comes back when it is removed, and what a killed daemon must have undone outlives /run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import PATIENCE, Site, eventually
from support.quick import PORT, lan


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.mark.fault(45)
def test_a_removed_control_socket_is_back_and_nobody_is_told_that_no_daemon_runs(site: Site) -> None:
    home = site.home()
    server = home.serve()
    sockets = set(home.runtime.iterdir())
    for what in ("*.sock", "*.state", "."):
        if what == ".":
            shutil.rmtree(home.runtime)
        for path in home.runtime.glob(what) if what != "." else ():
            path.unlink()
        began = time.monotonic()
        # A command meanwhile waits for it.
        asked = home.run("status", check=False)
        assert (asked.returncode, asked.stderr) == (0, "")
        eventually(lambda: set(home.runtime.iterdir()) == sockets, 5.0)
        print(f"{what} of the runtime directory is back after {time.monotonic() - began:.2f} s")
    # A second one finds the first.
    second = home.run("serve", check=False)
    assert f"process {server.pid}" in second.stderr
    server.terminate()
    assert server.wait(PATIENCE) == 0
    assert "No daemon runs" in home.run("status", check=False).stderr
    assert list(home.runtime.iterdir()) == []


@pytest.mark.fault(45)
def test_what_a_killed_daemon_set_is_undone_after_run_was_emptied_but_not_after_a_reboot(lab: Lab) -> None:
    net = lan(lab)
    laptop = net.laptop
    peer = net.home.peer(f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = 192.0.2.2:{PORT}")
    laptop.file("Address = 10.9.0.1/24, fd09::1/64\nPostDown = touch /run/post-down", peer)
    before = laptop.system()

    def kill() -> None:
        laptop.kill()
        eventually(lambda: "wg0" not in laptop.says("ip", "link"), what="the end")

    laptop.run("up wg0")
    kill()
    shutil.rmtree(laptop.root / "run/rustguard")
    assert "51820" in laptop.says("ip", "rule")
    laptop.run("down wg0")
    assert laptop.system() == before
    assert (laptop.root / "run/post-down").exists()
    (laptop.root / "run/post-down").unlink()
    # Of another boot: what it names isn't there any more, so nothing is undone and no hook runs.
    laptop.run("up wg0")
    kill()
    [ledger] = (laptop.root / "var/lib/rustguard/tunnels").glob("wg0@*/undo.json")
    kept = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**kept, "boot": "another"}))
    refused = laptop.run("down wg0", check=False)
    assert (refused.returncode, "isn't up" in refused.stderr) == (3, True)
    assert not (laptop.root / "run/post-down").exists()
    ledger.write_text(json.dumps(kept))
    laptop.run("down wg0")
    (laptop.root / "run/post-down").unlink()
    assert not ledger.exists()
    assert laptop.system() == before
