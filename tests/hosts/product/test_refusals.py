"""What is refused: the exit code, the message, and that nothing is left behind."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from rustguard_py.lab.hosts import Lab
from support.product import HOME4, OPEN, PATIENCE, TOKEN, Machine, Site, eventually

# They share a server.
pytestmark = pytest.mark.xdist_group("refusals")

OTHER_POOL = "--pool 10.151.0.0/24"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An open server at home, a stranger's machine beside it, and who else a test makes."""
    with Lab() as lab:
        made = Site(lab, tmp_path_factory.mktemp("site"))
        home = made.home()
        made.client("stranger", home)
        home.serve(f"--pool 10.150.0.0/24 {OPEN}")
        yield made


@pytest.fixture
def home(site: Site) -> Machine:
    return site.machines[0]


@pytest.fixture
def stranger(site: Site) -> Machine:
    """The stranger's machine, with nothing kept on it."""
    return site.machine(f"stranger{len(site.machines)}", site.machines[1].host)


def _refused(machine: Machine, words: str, code: int, says: str, token: str | None = TOKEN) -> CompletedProcess[str]:
    """Run what must be refused; check the code, the message and its way out, and that nothing is left."""
    network, sockets = machine.network(), machine.sockets()
    began = time.monotonic()
    done = machine.run(words, token, check=False)
    seconds = time.monotonic() - began
    said = re.sub(r"\s+", " ", done.stderr)
    assert (done.returncode, bool(re.search(says, said))) == (code, True), done.stderr
    assert "Traceback" not in said
    assert TOKEN not in said
    assert machine.network() == network
    assert machine.sockets() == sockets
    print(f"{words.replace(str(machine.state), 'DIR')}: exit code {code} after {seconds:.2f} s")
    return done


@pytest.mark.parametrize(
    ("words", "token", "code", "says"),
    [
        (f"join {HOME4}", "wrong-token-here", 4, "doesn't know this token"),
        (f"join {HOME4} --server AAAABBBBCCCCDDDD", TOKEN, 4, "[Ff]ingerprint"),
        (f"join {HOME4}:9", TOKEN, 5, "Nothing listens on UDP port 9 of .*Start the server there"),
        ("join no-such-host.invalid", TOKEN, 5, "no-such-host.invalid can't be resolved.*Check the name"),
        ("join 203.0.113.9", TOKEN, 5, "can't be reached from here: Network is unreachable"),
        ("join ho[me", TOKEN, 2, "is not an address.*Write it like"),
        (f"join {HOME4}:99999", TOKEN, 2, "not a UDP port"),
        ("join a:b:c:99999", TOKEN, 2, "is not an address.*Write it like"),
        ("join", None, 2, "Nothing was joined before.*rustguard join HOST --token"),
        ("serve", TOKEN, 2, "which addresses to give out.*--pool"),
        ("serve --pool 10.151.0.0/31", TOKEN, 2, "no room for a peer"),
        ("serve --pool 10.151.0.7/24", TOKEN, 2, "has host bits set"),
        (f"serve {OTHER_POOL} --interface a-name-of-16-byt", TOKEN, 2, "can't name an interface"),
        (f"serve {OTHER_POOL} --open", None, 2, "--open needs a token"),
        ("serve --pool 198.51.100.0/24", TOKEN, 4, "collides with what this machine has: address 198.51.100"),
        ("open 60", None, 3, "No daemon runs on"),
    ],
)
def test_a_command_that_cannot_work_says_so(
    stranger: Machine, words: str, token: str | None, code: int, says: str
) -> None:
    began = time.monotonic()
    _refused(stranger, words, code, says, token)
    # 4 s at most, on a machine that does nothing else.
    assert time.monotonic() - began < 40


def test_a_port_or_interface_of_somebody_else_is_refused_and_not_kept(site: Site, home: Machine) -> None:
    second = site.machine("second", home.host)
    _refused(second, f"serve {OTHER_POOL}", 4, r"UDP port 51820 can't be bound.*ss -ulnp.*--port")
    _refused(second, f"serve {OTHER_POOL} --port 4000 --interface rg0", 4, "an interface rg0 already.*--interface")
    program = second.serve(f"{OTHER_POOL} --port 4001")
    assert (second.status()["interface"], second.status()["port"]) == ("rg1", 4001)
    program.terminate()
    assert program.wait(PATIENCE) == 0


def test_a_colliding_pool_is_refused_with_a_free_one_that_works(stranger: Machine) -> None:
    said = _refused(stranger, "serve --pool 198.51.0.0/16", 4, "collides").stderr
    proposed = re.findall(r"--pool (\S+)", said)
    assert len(proposed) == 1
    program = stranger.serve(f"--pool {proposed[0]}")
    assert stranger.status()["pool"]["network4"] == proposed[0]
    program.terminate()
    assert program.wait(PATIENCE) == 0


def test_a_pool_that_collides_on_the_client_is_refused_before_anything_is_touched(site: Site, home: Machine) -> None:
    guest = site.client("guest", home)
    guest.host.ip([f"addr add 10.150.0.77/16 dev {guest.own_end.interface}"])
    _refused(guest, f"join {guest.servers_end.ipv4}", 4, "10.150.0.0/24 of .* collides .*: address 10.150.0.77/16")
    assert guest.saved()["data"]["networks"] == []
    guest.host.ip([f"addr del 10.150.0.77/16 dev {guest.own_end.interface}"])
    guest.run(f"join {guest.servers_end.ipv4} --save-only", TOKEN)
    assert len(guest.saved()["data"]["networks"]) == 1


def test_another_pool_than_the_peers_addresses_is_refused(site: Site, home: Machine, stranger: Machine) -> None:
    moved = site.machine("moved", home.host)
    program = moved.serve(f"{OTHER_POOL} --port 4002 {OPEN}")
    stranger.run(f"join {HOME4}:4002 --save-only", TOKEN)
    program.terminate()
    assert program.wait(PATIENCE) == 0
    before = moved.saved()
    _refused(moved, "serve --pool 10.152.0.0/24", 4, r"The pool 10\.152\.0\.0/24 lacks the addresses of 1 peer")
    _refused(moved, "serve --pool6 fd00:1::/64", 4, r"The pool fd00:1::/64 lacks the addresses of 1 peer")
    assert moved.saved() == before


@pytest.mark.needs_second_uid
@pytest.mark.parametrize("words", [f"serve {OTHER_POOL} --port 4003", f"join {HOME4}"])
def test_without_root_the_command_says_how_to_get_it(stranger: Machine, words: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rustguard-test-") as directory:
        os.chown(directory, 65534, 65534)
        before = stranger.network()
        argv = [sys.executable, "-m", "rustguard_py.cli", *words.split(), "--state", f"{directory}/state"]
        given = {"RUSTGUARD_RUNTIME": f"{directory}/run", "RUSTGUARD_TOKEN": TOKEN, "HOME": directory}
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--no-new-privs"]
        done = stranger.host.run([*nobody, *argv], env=given, check=False)
        assert done.returncode in (1, 4), done.stderr
        assert "root" in done.stderr
        assert "Traceback" not in done.stderr
        assert stranger.network() == before
        assert list(Path(directory, "run").glob("*")) == []
        print(f"{words} as another user: exit code {done.returncode}, {done.stderr.splitlines()[-2:]}")


@pytest.mark.fault(23)
def test_a_second_server_on_one_state_ends_within_a_second(home: Machine) -> None:
    network, sockets = home.network(), home.sockets()
    began = time.monotonic()
    done = home.run("serve --port 4004", TOKEN, check=False)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "The server runs already" in done.stderr
    assert (home.network(), home.sockets()) == (network, sockets)
    assert home.status()["port"] == 51820
    print(f"row 23: the second server ended with {done.returncode} after {seconds:.2f} s: {done.stderr.strip()}")
    assert seconds < 15  # its own goal is 1, on a machine that does nothing else


@pytest.mark.fault(22)
def test_a_full_pool_says_so_and_a_freed_address_is_given_at_once(site: Site, home: Machine) -> None:
    small = site.machine("small", home.host)
    small.serve(f"--pool 10.153.0.0/29 --port 4005 {OPEN}")
    guests = [site.machine(f"guest{number}", site.machines[1].host) for number in range(6)]
    programs = [
        guest.start(f"join {HOME4}:4005 --save-only --name {guest.state.name}", TOKEN) for guest in guests[:5]
    ]
    assert [program.wait(PATIENCE) for program in programs] == [0] * 5
    given = {name: peer["address4"] for name, peer in small.peers().items()}
    assert sorted(given.values()) == [f"10.153.0.{host}" for host in range(2, 7)]
    _refused(guests[5], f"join {HOME4}:4005", 4, "pool has no address left.*peers revoke")
    assert any("used up" in warning for warning in small.status()["warnings"])
    small.run("peers revoke guest3")
    began = time.monotonic()
    guests[5].run(f"join {HOME4}:4005 --save-only --name late", TOKEN)
    seconds = time.monotonic() - began
    assert small.peers()["late"]["address4"] == given["guest3"]
    _refused(guests[3], f"join {HOME4}:4005", 4, "revoked")
    print(f"row 22: full with 5 peers; the freed {given['guest3']} was given {seconds:.2f} s after its revocation")
    assert seconds < 20  # its own goal is 1, with the start of the command


def test_a_restored_key_may_join_again(site: Site, home: Machine, stranger: Machine) -> None:
    fond = site.machine("fond", home.host)
    fond.serve(f"--pool 10.154.0.0/24 --port 4006 {OPEN}")
    stranger.run(f"join {HOME4}:4006 --save-only --name stranger", TOKEN)
    key = fond.peers()["stranger"]["public_key"]
    assert key in fond.run("peers revoke stranger").stderr
    _refused(stranger, f"join {HOME4}:4006", 4, "revoked")
    fond.run(f"peers restore {key}")
    stranger.run(f"join {HOME4}:4006 --save-only --name stranger", TOKEN)
    assert fond.peers()["stranger"]["public_key"] == key


def test_several_daemons_on_one_machine_are_told_apart(site: Site, home: Machine) -> None:
    third = site.machine("third", home.host)
    third.serve("--pool 10.155.0.0/24 --port 4007")
    both = home.run("status", state=False).stdout
    done = home.run("peers", check=False, state=False)
    assert done.returncode == 2
    for machine in (home, third):
        assert f"state    {machine.state} " in both
        assert f"rustguard peers --state {machine.state}\n" in done.stderr
    assert eventually(lambda: (home.status()["port"], third.status()["port"])) == (51820, 4007)
    print(done.stderr.strip())
