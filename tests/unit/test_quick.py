"""The decisions of `rustguard up`: routes and rules, names of files, names of peers."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rustguard_py import conf, conf_reader
from rustguard_py.cli.app import run
from rustguard_py.daemon import steps, vouched
from rustguard_py.daemon.ledger import Ledger, Left
from rustguard_py.model.errors import RefusedError, RustGuardError, StateError, UnansweredError, UsageError
from rustguard_py.model.limits import lack_of_files, limit_of
from rustguard_py.model.sudo import as_root
from rustguard_py.quick import conf_files, peers, routing
from rustguard_py.quick.helper import _left_behind
from rustguard_py.quick.up import repair
from rustguard_py.state import paths
from rustguard_py.system.interface import RT_TABLE_MAIN

KEY = bytes([7]) * 32


def config(*allowed: str, addresses: str = "10.9.0.1/24 fd09::1/64", **more: object) -> conf.Config:
    text = f"[Interface]\nPrivateKey = {'A' * 43}=\nAddress = {addresses}\n"
    text += "".join(f"{key} = {value}\n" for key, value in more.items())
    return conf_reader.parse(f"{text}[Peer]\nPublicKey = {'A' * 43}=\nAllowedIPs = {','.join(allowed)}\n")


def plan(given: conf.Config, *priorities: tuple[int, int]) -> list[steps.Step]:
    return routing.plan("wg0", given, routing.Scheme(51820 if priorities else 0, priorities))


def test_each_network_gets_a_route_but_those_that_an_address_has_made() -> None:
    made = plan(config("10.9.0.7/32", "10.8.0.0/16", "fd09::/64", "10.0.0.0/8"))
    assert made == [steps.Route("wg0", "10.8.0.0/16"), steps.Route("wg0", "10.0.0.0/8")]


def test_table_off_and_a_number() -> None:
    assert plan(config("10.8.0.0/16", "::/0", Table="off")) == []
    assert routing.default_versions(config("::/0", Table="off")) == []
    made = plan(config("10.9.0.0/24", "::/0", Table="9"))
    assert made == [steps.Route("wg0", "10.9.0.0/24", 9), steps.Route("wg0", "::/0", 9)]


def test_a_default_route_is_the_table_two_rules_the_firewall_and_for_ipv4_a_variable() -> None:
    given = config("0.0.0.0/0", "::/0", "10.8.0.0/16")
    assert routing.default_versions(given) == [4, 6]
    made = plan(given, (4, 100), (6, 200))
    assert made == [
        steps.Route("wg0", "10.8.0.0/16"),
        steps.Route("wg0", "0.0.0.0/0", 51820),
        steps.Route("wg0", "::/0", 51820),
        steps.Firewall("wg0", 4, ("10.9.0.1",), 51820),
        steps.Sysctl("net.ipv4.conf.all.src_valid_mark", "1"),
        steps.Rule(4, 100, RT_TABLE_MAIN, 0),
        steps.Rule(4, 101, 51820, 51820),
        steps.Firewall("wg0", 6, ("fd09::1",), 51820),
        steps.Rule(6, 200, RT_TABLE_MAIN, 0),
        steps.Rule(6, 201, 51820, 51820),
    ]


def test_what_outlives_the_interface_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = plan(config("0.0.0.0/0", "::/0"), (4, 100), (6, 200))
    left = Left("wg0", conf.Hooks(post_down=("echo gone",)), memif="/run/m")
    ledger = Ledger(tmp_path / "x.undo", left)
    ledger._done = dict.fromkeys(made, "1")
    ledger.save()
    assert (tmp_path / "x.undo").stat().st_mode & 0o777 == 0o600
    again = Ledger.load(tmp_path / "x.undo")
    assert again is not None
    assert again.left == left
    assert again._done == {step: "1" for step in made if step.outlives}
    assert [path.name for path in tmp_path.iterdir()] == ["x.undo"]


def test_a_ledger_in_a_directory_that_is_gone_advises_what_helps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gone/undo.json", Left("wg0", conf.Hooks()))
    with pytest.raises(StateError, match="can't be written: No such file") as refused:
        ledger.save()
    assert f"Is {tmp_path / 'gone'} still there?" in refused.value.fix


def test_what_cannot_be_undone_names_the_command_with_its_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_SYSTEM_STATE", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def refuse(*_: object) -> None:
        raise RustGuardError("Refused.")

    monkeypatch.setattr(Ledger, "_take_back", refuse)
    monkeypatch.setattr("rustguard_py.daemon.ledger.with_netlink", lambda work: work(None))
    usual, other = paths.tunnel_directory("wg0"), tmp_path / "other one"
    for directory, option in ((usual, ""), (other, f" --state '{other}'")):
        directory.mkdir(parents=True)
        ledger = Ledger(paths.undo_file(directory), Left("wg0", conf.Hooks()))
        ledger._done = {steps.Rule(4, 100, RT_TABLE_MAIN, 0): ""}
        with pytest.raises(RustGuardError, match="Refused") as failed:
            ledger.undo(print)
        assert failed.value.fix == f"Undo the rest: {as_root(f'rustguard down wg0{option}')}"


def test_a_ledger_of_an_earlier_version_moves_to_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "run"))
    state = tmp_path / "state"
    state.mkdir()
    Ledger.bring_home(state)
    assert not (tmp_path / "run").exists()
    paths.runtime_directory()
    here, earlier = paths.undo_files(state)
    left = Left("wg0", conf.Hooks(post_down=("echo gone",)))
    Ledger(earlier, left).save()
    Ledger.bring_home(state)
    moved = Ledger.load(here)
    assert moved is not None
    assert (moved.left, earlier.exists()) == (left, False)
    # What is there already stays.
    Ledger(earlier, Left("wg1", conf.Hooks())).save()
    Ledger.bring_home(state)
    kept = Ledger.load(here)
    assert kept is not None
    assert (kept.left, earlier.exists()) == (left, True)


@pytest.mark.parametrize(
    "change",
    [
        {"interface": "wg0;id"},
        {"interface": "../x"},
        {"interface": ".."},
        {"interface": "-F"},
        {"interface": 5},
        {"mark": float("inf")},
        {"mark": 1 << 32},
        {"hooks": {"post_down": [5]}},
        {"steps": [[{"kind": "Sysctl", "name": "kernel.core_pattern", "value": "1"}, "|/tmp/x"]]},
        {"steps": [[{"kind": "Sysctl", "name": "/etc/shadow", "value": "1"}, "1"]]},
        {"steps": [[{"kind": "Sysctl", "name": "net.ipv4.conf.all.src_valid_mark", "value": "1"}, "|x"]]},
        {"steps": [[{"kind": "Dns", "interface": "-x", "servers": [], "search": []}, "resolvconf"]]},
        {"steps": [[{"kind": "Dns", "interface": "eth0", "servers": [], "search": []}, "resolvectl"]]},
        {"steps": [[{"kind": "Firewall", "interface": "wg1", "version": 4, "addresses": [], "mark": 1}, ""]]},
        {"steps": [[{"kind": "Rule", "version": 4, "priority": "x", "table": 1, "mark": 0}, ""]]},
        {"steps": [[{"kind": "Rule", "version": 4, "priority": 1, "table": 1, "mark": 1 << 32}, ""]]},
        {"steps": [[{"kind": "Rule", "version": 4, "priority": -1, "table": 1, "mark": 0}, ""]]},
    ],
)
def test_a_ledger_with_what_no_tunnel_of_its_name_does_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """The daemon can write it, and root undoes what it says."""
    path = tmp_path / "undo.json"
    Ledger(path, Left("wg0", conf.Hooks())).save()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StateError, match="can't be read"):
        Ledger.load(path)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUSTGUARD_RUNTIME", str(tmp_path / "run"))
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


def test_only_hooks_that_root_started_the_tunnel_with_are_run_for_a_killed_one(tmp_path: Path, state: Path) -> None:
    ran = tmp_path / "ran"
    ours, strange = f"echo %i >> {ran}", f"echo strange >> {ran}"
    vouched.vouch(state, "wg0", [ours])
    assert (tmp_path / "state.hooks").stat().st_mode & 0o777 == 0o600
    left = Left("wg0", conf.Hooks(pre_down=(strange,), post_down=(ours, strange)))
    Ledger(paths.undo_file(state), left).save()
    assert tuple(_left_behind(state)) == (ours,)
    with pytest.raises(RustGuardError, match="was not run: nothing shows that it is of the tunnel's file"):
        asyncio.run(repair(state, "wg0", lambda _: None))
    assert ran.read_text() == "wg0\n"
    assert not paths.undo_file(state).exists()
    # The next start has vouched for its own by then, and the tunnel may be killed again.
    assert (tmp_path / "state.hooks").exists()
    vouched.forget(state)
    assert not (tmp_path / "state.hooks").exists()


def test_a_hook_is_run_only_with_the_interface_that_root_named(tmp_path: Path, state: Path) -> None:
    """`%i` in it is what the daemon wrote, and `ip link delete %i` is another command with `eth0` there."""
    ran = tmp_path / "ran"
    hook = f"echo %i >> {ran}"
    vouched.vouch(state, "wg0", [hook])
    Ledger(paths.undo_file(state), Left("eth0", conf.Hooks(post_down=(hook,)))).save()
    with pytest.raises(StateError, match="nothing shows that it had that name") as caught:
        asyncio.run(repair(state, "wg0", lambda _: None))
    assert "rustguard down eth0 --state" in caught.value.fix
    with pytest.raises(RustGuardError, match="was not run"):
        asyncio.run(repair(state, "eth0", lambda _: None))
    assert not ran.exists()
    # `up` of another file with the same state directory undoes what the first one left.
    Ledger(paths.undo_file(state), Left("wg0", conf.Hooks(post_down=(hook,)))).save()
    vouched.forget(state)
    vouched.vouch(state, "wg1", [])
    assert asyncio.run(repair(state, "wg1", lambda _: None))
    assert ran.read_text() == "wg0\n"


def test_hooks_are_kept_besides_those_of_before_and_an_unwritable_place_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = conf.Hooks(post_up=("one",), post_down=("two", "three"))
    vouched.vouch(tmp_path / "wg0", "wg0", ["one"])
    vouched.vouch(tmp_path / "wg0", "wg0", ["two"])
    known = conf.Hooks(post_up=("one",), post_down=("two",))
    assert vouched.known_of(tmp_path / "wg0", "wg0", hooks) == (known, ["three"])
    vouched.vouch(tmp_path / "gone/wg0", "wg0", ["one"])
    assert "can't be written" in caplog.text
    (tmp_path / "wg0.hooks").chmod(0o644)
    assert vouched.known_of(tmp_path / "wg0", "wg0", hooks)[0] == conf.Hooks()


@pytest.mark.parametrize("name", ["boot", "namespace"])
def test_a_ledger_of_another_boot_or_namespace_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / "undo.json"
    Ledger(path, Left("wg0", conf.Hooks())).save()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, name: "another"}))
    assert Ledger.load(path) is None
    # One of a version that didn't say where it was from.
    path.write_text(json.dumps({key: value for key, value in kept.items() if key not in ("boot", "namespace")}))
    assert Ledger.load(path) is not None


def test_a_variable_that_another_tunnel_has_set_keeps_its_first_value(tmp_path: Path) -> None:
    step = steps.Sysctl("net.ipv4.conf.all.src_valid_mark", "1")
    for name in ("wg0", "wg1"):
        (tmp_path / name).mkdir()
    first = Ledger(tmp_path / "wg0/undo.json", Left("wg0", conf.Hooks()))
    first._done = {step: "0"}
    first.save()
    assert Ledger(tmp_path / "wg1/undo.json", Left("wg1", conf.Hooks()))._memo(step) == "0"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("wg0", "wg0"),
        ("./office.conf", "office"),
        ("/etc/wireguard/a-b_c.conf", "a-b_c"),
        ("wg.1", "wg.1"),
        ("x.conf", "x"),
    ],
)
def test_a_files_name_is_the_interfaces(given: str, name: str) -> None:
    assert conf_files.interface_of(given) == name


@pytest.mark.parametrize("given", ["a name", "much-too-long-name", "", "/etc/.conf", "..", "täg"])
def test_what_can_not_name_an_interface_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="can't name an interface"):
        conf_files.interface_of(given)


def test_a_file_is_found_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf_files, "DIRECTORIES", (tmp_path / "one", tmp_path / "two"))
    (tmp_path / "two").mkdir()
    path = tmp_path / "two/wg0.conf"
    path.touch()
    assert conf_files.find("wg0") == conf_files.find(str(path)) == path
    for given, said in (
        ("wg1", "no file for wg1"),
        (str(tmp_path / "x.conf"), "no file"),
        (f"{tmp_path}/two", "no file"),
    ):
        with pytest.raises(UsageError, match=said):
            conf_files.find(given)


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text("old")
    conf_files.save(path, config("::/0"))
    assert conf_files.load(path) == config("::/0")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_who_else_may_read_a_file_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.touch(0o644)
    tmp_path.chmod(0o755)
    assert "chmod 600" in (conf_files.warning(path) or "")
    path.chmod(0o600)
    assert conf_files.warning(path) is None


# -- names --------------------------------------------------------------------------------------------------

HOST = conf.HostPort("gate.example", 5)


def look_up(must: bool, answers: list[str | None], monkeypatch: pytest.MonkeyPatch) -> tuple[peers.Found, list[str]]:
    async def resolve(_host: str, port: int) -> list[tuple[str, int]]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            raise UnansweredError("none")
        return [(answer, port)]

    monkeypatch.setattr(peers, "resolve", resolve)
    for name in ("PATIENCE", "PATIENCE_FOR_A_DEFAULT_ROUTE", "_RETRY"):
        monkeypatch.setattr(peers, name, 0.05 if name == "_RETRY" else 0.5)
    said: list[str] = []
    found = asyncio.run(peers.look_up([conf.PeerSection(KEY, endpoint=HOST)], must=must, say=said.append))
    return found, said


def test_a_name_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_up(True, [None, None, "192.0.2.1"], monkeypatch) == ({HOST: [("192.0.2.1", 5)]}, [])


def test_without_a_default_route_it_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = look_up(False, [None], monkeypatch)
    assert found == {}
    assert "tried again" in said[0]


def test_with_one_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnansweredError, match=r"gate\.example can't be resolved"):
        look_up(True, [None], monkeypatch)


@pytest.mark.parametrize("must", [True, False])
def test_a_name_for_which_no_descriptor_is_left_ends_with_the_limit(
    must: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    lack = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", refuse)
    monkeypatch.setattr("rustguard_py.system.resolve.lack_of_files", lambda _: lack)
    for name in ("PATIENCE", "PATIENCE_FOR_A_DEFAULT_ROUTE"):
        monkeypatch.setattr(peers, name, 0.0)
    with pytest.raises(UnansweredError, match="Too many open files") as caught:
        asyncio.run(peers.look_up([conf.PeerSection(KEY, endpoint=HOST)], must=must, say=lambda _: None))
    limit = limit_of(caught.value)
    assert limit is not None
    assert "ulimit -n" in limit.fix


def descriptors() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir()}


def test_a_lack_of_descriptors_is_found_and_leaves_none_open() -> None:
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    assert lack_of_files(4) is None
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1, held[1]))
    try:
        lack = lack_of_files(1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, held)
    assert lack is not None
    assert lack.errno == errno.EMFILE
    assert descriptors() == before


# -- who else can change a file ---------------------------------------------------------------------------------

HOOKS = f"[Interface]\nPrivateKey = {'A' * 43}=\nPostDown = true\n"


@pytest.fixture
def hooked(tmp_path: Path) -> Path:
    path = tmp_path / "safe/wg0.conf"
    path.parent.mkdir(mode=0o700)
    path.write_text(HOOKS)
    path.chmod(0o600)
    return path


def test_hooks_of_a_file_that_only_we_can_change_are_run(hooked: Path) -> None:
    assert conf_files.load_to_run(hooked, trust=False).hooks.post_down == ("true",)
    # Others may read it, and a sticky directory above it, such as /tmp, lets nobody replace it.
    hooked.chmod(0o644)
    hooked.parent.chmod(0o1777)
    assert conf_files.load_to_run(hooked, trust=False).hooks.post_down == ("true",)


@pytest.mark.parametrize(("at", "mode"), [("file", 0o666), ("file", 0o602), ("directory", 0o777), ("above", 0o757)])
def test_hooks_of_a_file_that_others_can_change_are_refused(hooked: Path, at: str, mode: int) -> None:
    place = {"file": hooked, "directory": hooked.parent, "above": hooked.parent.parent}[at]
    place.chmod(mode)
    with pytest.raises(RefusedError, match="has hooks") as refused:
        conf_files.load_to_run(hooked, trust=False)
    assert f"other users can write to {place}" in refused.value.message
    assert f"chmod go-w {place}" in refused.value.fix
    assert "Or start it with: --trust-file" in refused.value.fix
    # To a tunnel that runs, the option of the second `up` doesn't get.
    with pytest.raises(RefusedError, match="has hooks") as refused:
        conf_files.load_to_run(hooked, trust=False, runs=True)
    assert "Or end the tunnel, and start it again with: --trust-file" in refused.value.fix
    assert conf_files.load_to_run(hooked, trust=True).hooks.post_down == ("true",)
    hooked.write_text(HOOKS.replace("PostDown = true", ""))
    assert conf_files.load_to_run(hooked, trust=False).hooks == conf.Hooks()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("at", "owner", "group", "mode"), [
    ("file", 1234, 0, 0o600), ("directory", 1234, 0, 0o700), ("directory", 1234, 0, 0o1777),
    ("file", 0, 1234, 0o660), ("directory", 0, 1234, 0o770),
])  # fmt: skip
def test_hooks_of_a_file_that_belongs_to_somebody_else_are_refused(
    hooked: Path, at: str, owner: int, group: int, mode: int
) -> None:
    place = hooked if at == "file" else hooked.parent
    os.chown(place, owner, group)
    place.chmod(mode)
    with pytest.raises(RefusedError, match="has hooks") as refused:
        conf_files.load_to_run(hooked, trust=False)
    assert ("chown 0" if owner else "chmod go-w") in refused.value.fix


def test_up_refuses_before_it_starts_anything(hooked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooked.chmod(0o666)
    assert run(["up", str(hooked), "--state", str(hooked.parent / "state")]) == 4
    assert f"chmod go-w {hooked}" in capsys.readouterr().err
    assert not (hooked.parent / "state").exists()
