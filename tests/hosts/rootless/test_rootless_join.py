"""An ordinary user joins without root: a tunnel in a network namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, OPEN, Machine, Site, eventually
from support.rootless import User, processes, user_on


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


@pytest.fixture
def home(site: Site) -> Machine:
    made = site.home()
    made.serve(f"--pool 10.150.0.0/24 {OPEN}")
    return made


@pytest.fixture
def laptop(site: Site, home: Machine) -> Iterator[User]:
    with user_on(site, "laptop", home) as made:
        yield made


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_user_joins_and_pings(laptop: User, engine: str) -> None:
    program = laptop.join(HOME4, f"--rootless --engine {engine}")
    print(
        laptop.said(), processes(), laptop.inside("ip addr").stdout, laptop.inside("cat /etc/resolv.conf /etc/hosts")
    )
    print(laptop.status())
    program.terminate()
    assert program.wait(30) == 0
    eventually(lambda: not processes())
