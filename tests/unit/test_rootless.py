"""A tunnel without root: what is refused and why, names inside, and the helper's requests."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.cli import daemon, down
from rustguard_py.cli.app import run
from rustguard_py.enroll.client.start import names_of
from rustguard_py.model import sudo
from rustguard_py.model.errors import InUseError, UsageError
from rustguard_py.proxy.forward import parse_forward
from rustguard_py.rootless import names, refusals
from rustguard_py.rootless.names import Names
from rustguard_py.rootless.options import Rootless, parse_login, parse_place
from rustguard_py.rootless.process import HelperProcess
from rustguard_py.rootless.refusals import Step, refused
from rustguard_py.state import paths
from rustguard_py.system import container
from support.joined import NETWORK

# -- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a container's signs, whose settings a test makes."""
    monkeypatch.setattr(refusals, "_ROOT", tmp_path)
    monkeypatch.setattr(container, "kind", lambda: None)
    monkeypatch.setattr(sudo, "_runner", lambda: "sudo")
    return tmp_path


def _set(root: Path, name: str, value: str) -> None:
    place = root / "proc/sys" / name.replace(".", "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("step", "number", "setting", "value", "fix"),
    [
        (Step.USER, errno.EPERM, "kernel.unprivileged_userns_clone", "0", 1),
        (Step.IDS, errno.EPERM, "kernel.apparmor_restrict_unprivileged_userns", "1", 0),
        (Step.NETWORK, errno.EPERM, "kernel.apparmor_restrict_unprivileged_userns", "1", 0),
        (Step.USER, errno.ENOSPC, "user.max_user_namespaces", "0", 15000),
        (Step.NETWORK, errno.ENOSPC, "user.max_net_namespaces", "0", 15000),
        (Step.MOUNTS, errno.ENOSPC, "user.max_mnt_namespaces", "0", 15000),
    ],
)
def test_the_setting_that_refuses_is_named_with_the_line_that_allows_it(
    root: Path, step: Step, number: int, setting: str, value: str, fix: int
) -> None:
    _set(root, "kernel.unprivileged_userns_clone", "1")
    _set(root, "kernel.apparmor_restrict_unprivileged_userns", "0")
    _set(root, setting, value)
    error = refused(step, number)
    assert setting in error.message
    assert error.fix == f"To allow it: `sudo sysctl -w {setting}={fix}`."
    assert error.exit_code == 4


def test_what_has_no_setting_is_named_by_what_can_be_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "refused: Operation not permitted" in refused(Step.USER, errno.EPERM).message
    assert "SELinux" in refused(Step.USER, errno.EACCES).message
    assert "this kernel has none" in refused(Step.USER, errno.EINVAL).message
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text("Name:\tx\nSeccomp:\t2\n")
    assert "a filter of system calls (seccomp)" in refused(Step.USER, errno.EPERM).message
    assert "is used up" in refused(Step.USER, errno.ENOSPC).message
    monkeypatch.setattr(container, "kind", lambda: "docker")
    said = refused(Step.USER, errno.EPERM)
    assert "the container that this is refused it" in said.message
    assert "--security-opt seccomp=unconfined" in said.fix
    assert "LXC" not in said.fix
    monkeypatch.setattr(container, "kind", lambda: container.UNKNOWN)
    assert "LXC" in refused(Step.USER, errno.EPERM).fix


def test_a_device_that_cannot_be_used_is_named(root: Path) -> None:
    assert root.exists()
    assert refused(Step.DEVICE, errno.EACCES).fix.endswith("`sudo chmod 0666 /dev/net/tun`.")
    missing = refused(Step.DEVICE, errno.ENOENT)
    assert "/dev/net/tun is missing" in missing.message
    assert "sudo modprobe tun" in missing.fix
    assert "can't be opened: No such device" in refused(Step.DEVICE, errno.ENODEV).message
    assert "can't be made in a network namespace" in refused(Step.INTERFACE, errno.EPERM).message


# -- names --------------------------------------------------------------------------------------------------


def test_the_files_have_the_servers_and_names_of_the_tunnel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "nsswitch.conf"
    switch.write_text("passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files\nnetworks: files\n")
    monkeypatch.setattr(names, "_SWITCH", switch)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    given = Names(
        tuple(ip_address(f"10.9.0.{each}") for each in range(1, 6)),
        (("home.example", ip_address("10.9.0.1")), ("laptop", ip_address("fd00::2"))),
    )
    assert Names.from_json(json.loads(json.dumps(given.to_json()))) == given
    files = given.files()
    assert files[Path("/etc/resolv.conf")] == "nameserver 10.9.0.1\nnameserver 10.9.0.2\nnameserver 10.9.0.3\n"
    assert files[Path("/etc/hosts")].splitlines()[1:] == [
        "::1 localhost ip6-localhost ip6-loopback",
        "127.0.1.1 machine",
        "10.9.0.1 home.example",
        "fd00::2 laptop",
    ]
    assert files[switch] == "passwd: files systemd\nnetworks: files\nhosts: files dns\n"


@pytest.mark.parametrize(
    "value",
    [
        {"servers": ["10.9.0.1\noptions x"], "hosts": []},
        {"servers": [], "hosts": [["a b", "10.9.0.1"]]},
        {"servers": [], "hosts": [["a\n10.0.0.1 b", "10.9.0.1"]]},
        {"servers": [], "hosts": [["a", "home"]]},
        {"servers": [], "hosts": [["a", "10.9.0.1"]] * 65},
        {"servers": []},
    ],
)
def test_what_is_no_name_or_address_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        Names.from_json(value)


def test_the_server_is_asked_for_names_unless_others_are_given() -> None:
    found = names_of(NETWORK, ())
    assert found.servers == tuple(each for each in (NETWORK.gateway4, NETWORK.gateway6) if each is not None)
    assert ("laptop" in dict(found.hosts)) == (NETWORK.name == "laptop")
    other = ip_address("10.0.0.53")
    assert names_of(NETWORK, [other]).servers == (other,)


# -- the helper's requests ----------------------------------------------------------------------------------


@pytest.fixture
def channel() -> Iterator[tuple[HelperProcess, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(30)
        yield HelperProcess(theirs, "rg0"), ours


def _ask(channel: tuple[HelperProcess, socket.socket], request: object) -> tuple[dict[str, Any], list[int]]:
    helper, ours = channel
    helper.take(request if isinstance(request, bytes) else json.dumps(request).encode())
    answer, descriptors, _, _ = socket.recv_fds(ours, 1 << 16, 4)
    return json.loads(answer), descriptors


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff",
        b"[]",
        b"7",
        {"id": 1},
        {"id": 1, "do": "exec", "argv": ["/bin/sh"]},
        {"id": 1, "do": "socket", "family": "packet", "kind": "raw"},
        {"id": 1, "do": "socket", "family": "inet", "kind": 3},
        {"id": 1, "do": "resolve", "host": "", "port": 1},
        {"id": 1, "do": "resolve", "host": "a" * 256, "port": 1},
        {"id": 1, "do": "resolve", "host": "a\0b", "port": 1},
        {"id": 1, "do": "resolve", "host": "a", "port": 65536},
        {"id": 1, "do": "set_up", "layout": {}, "names": {}},
        {"id": 1, "do": "set_up", "layout": {"mtu": "x"}, "names": {"servers": [], "hosts": []}},
        {
            "id": 1,
            "do": "set_up",
            "layout": {"mtu": 1 << 40, "gso_max_segs": 1, "addresses": [], "routes": []},
            "names": {"servers": [], "hosts": []},
        },
        {
            "id": 1,
            "do": "set_up",
            "layout": {"mtu": 1420, "gso_max_segs": None, "addresses": ["10.0.0.1/24; x"], "routes": []},
            "names": {"servers": [], "hosts": []},
        },
    ],
    ids=str,
)
def test_what_is_no_request_is_refused_and_nothing_is_done(
    channel: tuple[HelperProcess, socket.socket], request_: object
) -> None:
    answer, descriptors = _ask(channel, request_)
    assert answer["error"] == ["The helper of --rootless doesn't know that request.", ""]
    assert descriptors == []


def test_a_socket_is_handed_over_and_a_name_is_looked_up(channel: tuple[HelperProcess, socket.socket]) -> None:
    for family, kind, wanted in (("inet", "stream", socket.SOCK_STREAM), ("inet", "datagram", socket.SOCK_DGRAM)):
        answer, [descriptor] = _ask(channel, {"id": 5, "do": "socket", "family": family, "kind": kind})
        assert answer == {"id": 5}
        with socket.socket(fileno=descriptor) as made:
            assert (made.family, made.type) == (socket.AF_INET, wanted)
            assert not os.get_blocking(made.fileno())
    answer, _ = _ask(channel, {"id": 6, "do": "resolve", "host": "127.0.0.1", "port": 80})
    assert answer == {"id": 6, "addresses": [[int(socket.AF_INET), ["127.0.0.1", 80]]]}


# -- what the user types ------------------------------------------------------------------------------------


def test_hints_name_what_this_user_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sudo._Rootless, "is_it", False)
    monkeypatch.setattr(sudo, "_runner", lambda: "sudo")
    monkeypatch.setattr(sudo, "_has_net_admin", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sudo.as_root("rustguard join home") == "sudo rustguard join home"
    sudo.need_no_root()
    assert sudo.as_root("rustguard join home") == "rustguard join --rootless home"
    assert sudo.as_root("rustguard stop") == "rustguard stop"
    assert sudo.as_root("modprobe tun") == "sudo modprobe tun"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["exec"], 2, "There is no program to run."),
        (["exec", "ping"], 2, "rustguard exec -- ping"),
        (["exec", "--"], 2, "There is no program to run."),
        (["exec", "--", ""], 2, "There is no program to run."),
        (["exec", "ping", "10.0.0.1"], 2, "rustguard exec -- ping 10.0.0.1"),
        (["exec", "--", "ping", "-c1", "10.0.0.1"], 3, "Nothing runs here."),
        (["exec", "work", "--", "true"], 3, "No work runs here."),
        (["join", "home", "--socks"], 2, "--socks needs --rootless."),
        (["join", "home", "-L", "80:a:80"], 2, "-L needs --rootless."),
        (["join", "home", "--rootless", "--socks", "x"], 2, "--socks 'x' isn't an address and a port."),
        (["join", "--rootless", "--socks", "home"], 2, "isn't an address and a port."),
        (["join", "home", "--rootless", "--socks", "70000"], 2, "isn't an address and a port."),
        (["join", "home", "--rootless", "--socks", "10.0.0.1:80"], 2, "Add --socks-login FILE"),
        (["join", "home", "--rootless", "-L", "80"], 2, "[ADDR:]PORT:HOST:PORT"),
        (["join", "home", "--rootless", "--dns", "x"], 2, "--dns"),
        (["join", "home", "--rootless", "--dns", "127.0.0.53"], 2, "of the loopback interface"),
        (["join", "home", "--rootless", "--dns", "::ffff:127.0.0.1"], 2, "of the loopback interface"),
        (["join", "home", "--rootless", "--dns", "::1"], 2, "of the loopback interface"),
        (["join", "home", "--rootless", "--dns", "0.0.0.0"], 2, "the unspecified one"),  # noqa: S104
        (["join", "home", "--rootless", "--dns", "::"], 2, "the unspecified one"),
        (["join", "home", "--rootless", "--dns", "ff02::fb"], 2, "of a multicast group"),
        (["join", "home", "--rootless", "--dns", "255.255.255.255"], 2, "reached through the tunnel"),
        (["join", "home", "--rootless", "--socks-login", "x"], 2, "--socks-login needs --socks."),
        (["join", "home", "--rootless", "--socks", "81", "--socks-login", "/none"], 2, "can't be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_at_once(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sudo._Rootless, "is_it", False)
    assert run(words) == code
    assert said in capsys.readouterr().err


def test_of_several_clients_with_the_same_interface_down_ends_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = [{"rootless": {}, "state_directory": str(tmp_path / name)} for name in ("client", "work")]
    monkeypatch.setattr(down, "daemons_of", lambda _: statuses)
    assert run(["down", "rg0", "--state", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "2 clients have an rg0." in said
    assert f"rustguard stop {tmp_path}/work" in said


def test_a_login_is_a_user_and_a_password() -> None:
    login = parse_login("ada:sec:ret", Path("login"))
    assert (login.user, login.password) == ("ada", "sec:ret")
    for text in ("ada", "ada:one\ntwo", "", ":x", "ada:"):
        with pytest.raises(UsageError):
            parse_login(text, Path("login"))


def test_a_place_without_an_address_is_on_this_machine_alone() -> None:
    assert parse_place("1080") == ("127.0.0.1", 1080)
    assert parse_place("[::1]:1080") == ("::1", 1080)
    assert parse_place("localhost:9") == ("localhost", 9)


def test_the_machines_own_name_means_its_address_in_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Laptop")
    inner = ip_address("10.150.0.2")
    assert "127.0.1.1" not in Names((), (("laptop", inner),)).files()[Path("/etc/hosts")]
    assert "127.0.1.1 Laptop\n" in Names((), (("other", inner),)).files()[Path("/etc/hosts")]


@pytest.mark.parametrize(
    ("started", "given", "others"),
    [
        (None, None, None),
        ({"--socks": ["127.0.0.1:1080"]}, {"--socks": ["127.0.0.1:1080"]}, None),
        ({}, {}, None),
        ({"--socks": ["127.0.0.1:1080"]}, None, None),
        # What isn't asked for goes on as it was started.
        ({"--socks": ["127.0.0.1:1080"], "-L": ["localhost:1:a:2"]}, {}, None),
        ({"--socks": ["127.0.0.1:1080"], "-L": ["localhost:1:a:2"]}, {"-L": ["localhost:1:a:2"]}, None),
        (None, {}, "without --rootless"),
        ({}, {"-L": ["localhost:1:a:2"]}, "with another -L"),
        ({"-L": ["localhost:1:a:2"], "--dns": ["10.0.0.1"]}, {"-L": ["localhost:1:b:2"]}, "with another -L"),
        ({}, {"--dns": ["10.0.0.1"], "-L": ["localhost:1:b:2"]}, "with other --dns and -L"),
        ({}, {"--dns": ["10.0.0.1"], "--socks": ["a:1"], "-R": [":1:b:2"]}, "with other --dns, --socks and -R"),
    ],
)
def test_a_second_join_is_answered_by_what_runs_only_if_it_asks_for_the_same(
    started: dict[str, list[str]] | None,
    given: dict[str, list[str]] | None,
    others: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = None if started is None else {"proxy": [], "forwards": [], "options": started}
    status = {"interface": "rg0", "pid": 7, "role": "client", "peers": [{"name": "home"}], "rootless": ways}
    monkeypatch.setattr(daemon, "_status_of", lambda *_: status)
    if others is None:
        assert daemon.runs_already(tmp_path, "client", "home", rootless=given)
        assert capsys.readouterr().err == "A client of home runs already on rg0, process 7.\n"
    else:
        with pytest.raises(InUseError, match=f"runs already on rg0, process 7, {others}.") as caught:
            daemon.runs_already(tmp_path, "client", "home", rootless=given)
        assert "rustguard stop" in caught.value.fix


def test_the_options_are_kept_as_they_may_be_typed() -> None:
    asked = Rootless(
        (ip_address("10.0.0.1"),),
        (("::1", 1080),),
        ins=(parse_forward("-L", "80:[fd00::7]:81"),),
        outs=(parse_forward("-R", "82:localhost:83"), parse_forward("-R", "[::]:8:a:9")),
    )
    assert asked.words() == {
        "--dns": ["10.0.0.1"],
        "--socks": ["[::1]:1080"],
        "-L": ["localhost:80:[fd00::7]:81"],
        "-R": [":82:localhost:83", "[::]:8:a:9"],
    }


def test_root_learns_whose_client_it_would_have_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = pwd.getpwuid(os.geteuid())
    state, runtime = tmp_path / "work", tmp_path / "users" / str(max(user.pw_uid, 1)) / "rustguard"
    runtime.mkdir(parents=True, mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    digest = paths._digest(state)
    listener.bind(str(runtime / f"{digest}.sock"))
    (runtime / f"{digest}.state").write_text(f"{state}\n")
    monkeypatch.setattr(paths, "_USERS_RUNTIME", tmp_path / "users")
    monkeypatch.setattr(paths, "_trouble", lambda *_: None)
    monkeypatch.setattr(paths, "running", list)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    for words in (["stop"], ["stop", "work"]):
        assert run(words) != 0
        said = capsys.readouterr().err
        assert f"sudo -u {user.pw_name} XDG_RUNTIME_DIR={runtime.parent} rustguard stop {state}" in said
    assert run(["stop", "another"]) != 0
    assert "sudo -u" not in capsys.readouterr().err
    assert run(["status"]) != 0
    assert f"rustguard status --state {state}" in capsys.readouterr().err
    listener.close()
