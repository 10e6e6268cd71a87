"""Names of interfaces when many daemons start at once, and joins that this machine itself refuses."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, OPEN, PATIENCE, POOL, TOKEN, Machine, Site, eventually

# The long form has the row's own number.
DAEMONS = 40 if os.environ.get("RUSTGUARD_SOAK") else 12


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.mark.fault(46)
def test_daemons_that_start_at_once_get_an_interface_each(site: Site) -> None:
    host = site.lab.host("crowd")
    machines = [site.machine(f"server-{number}", host) for number in range(DAEMONS)]
    began = time.monotonic()
    programs = [
        machine.start(f"serve --pool 10.{number}.0.0/24 --pool6 none --port {20000 + 4 * number}", TOKEN)
        for number, machine in enumerate(machines)
    ]
    eventually(lambda: all("Serving " in machine.said() for machine in machines), what="all servers")
    took = time.monotonic() - began
    assert all(program.poll() is None for program in programs)
    names = {machine.status()["interface"] for machine in machines}
    print(f"{DAEMONS} daemons at once: {len(names)} interfaces after {took:.1f} s")
    assert names == {f"rg{number}" for number in range(DAEMONS)}
    for program in programs:
        program.terminate()
    assert [program.wait(PATIENCE) for program in programs] == [0] * DAEMONS


def _known(home: Machine) -> set[str]:
    return set(home.peers())


def test_a_join_that_its_own_machine_refuses_leaves_nothing_on_the_server(site: Site) -> None:
    home = site.home()
    home.serve(f"--pool {POOL} {OPEN}")
    laptop = site.client("laptop", home)
    # The network is in use here. The server knows of the join for a moment.
    laptop.host.ip(["link add other type veth peer name another", "addr add 10.150.0.77/24 dev other"])
    refused = laptop.run(f"join {HOME4}", TOKEN, check=False)
    assert (refused.returncode, "collides with" in refused.stderr) == (4, True)
    eventually(lambda: _known(home) == set(), what="nothing left of the collision")
    laptop.host.ip(["link delete other"])
    # Something is in the place of the control socket, which is made last. The join is saved by then.
    laptop.runtime.mkdir(mode=0o700)
    in_the_way = laptop.runtime / f"{sha256(os.fsencode(laptop.state)).hexdigest()[:16]}.sock"
    in_the_way.write_text("not a socket")
    refused = laptop.run(f"join {HOME4}", TOKEN, check=False)
    assert (refused.returncode, "isn't a socket" in refused.stderr) == (4, True)
    eventually(lambda: _known(home) == set(), what="nothing left of the join without a control socket")
    assert "Nothing was joined before" in laptop.run("join", check=False).stderr
    in_the_way.unlink()
    # The server on the same machine.
    refused = Machine(home.host, laptop.state, laptop.runtime).run(f"join {HOME4}", TOKEN, check=False)
    assert refused.returncode != 0
    eventually(lambda: _known(home) == set(), what="nothing left of the server's own join")
    # What can be known before asks nobody.
    refused = laptop.run(f"join {HOME4} --group nobody-has-this", TOKEN, check=False)
    assert (refused.returncode, "Asking" in refused.stderr) == (2, False)
    refused = laptop.run(f"join {HOME4} --interface rg%d", TOKEN, check=False)
    assert (refused.returncode, "can't name an interface" in refused.stderr) == (2, True)
    assert _known(home) == set()
    laptop.join()
    assert _known(home) == {"laptop"}
