"""What a daemon with the kernel's engine may write, and that a client of it can leave: an older kernel's Landlock."""

from __future__ import annotations

import shutil

from rustguard_py.sandbox import writing
from support.forked import ForkedSite
from support.product import HOME4, INNER, eventually

PATIENCE = 60.0


def test_a_client_leaves_and_sockets_that_somebody_removes_come_back(site: ForkedSite) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    serving = home.start("serve --pool 10.150.0.0/24 --open --engine kernel", "maple-comet-fjord")
    eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
    joining = laptop.start(f"join {HOME4} --name laptop --engine kernel", "maple-comet-fjord")
    eventually(lambda: laptop.alive(joining) and laptop.pings(INNER, 2.0), PATIENCE, "the join")
    for machine in (home, laptop):
        sandbox = machine.status()["sandbox"]
        assert ("writing only to its own files" in sandbox["applied"]) == (writing.why_not() is None)
        sockets = machine.sockets()
        shutil.rmtree(machine.runtime)
        eventually(lambda machine=machine, sockets=sockets: machine.sockets() == sockets, PATIENCE, "the sockets")  # type: ignore[misc]

    left = laptop.run("leave --yes")
    assert "The server has removed laptop, and its address is free." in left.stderr
    assert home.peers() == {}
    assert joining.wait(PATIENCE) == 0
    serving.terminate()
    assert serving.wait(PATIENCE) == 0
    assert home.sockets() == laptop.sockets() == []
