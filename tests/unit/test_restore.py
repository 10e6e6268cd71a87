"""A restore puts back all that a backup has, or changes nothing, however it is interrupted."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.model.errors import InUseError, RefusedError, StateError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.state import restore
from rustguard_py.state.backup import Backup, Places, take
from rustguard_py.state.document import Document
from rustguard_py.state.durable_files import Files
from rustguard_py.state.journal import TimestampJournal
from support.backups import DEFAULTS, a_client, a_machine, a_server, again, do, loaded, places, save, tree
from support.disk import BreakableFiles, RecordingFiles, put


@pytest.fixture
def machine(tmp_path: Path) -> Places:
    return a_machine(tmp_path / "machine")


# -- restoring -------------------------------------------------------------------------------------------------


def test_a_machine_comes_back_on_another_one_with_owners_and_modes(machine: Places, tmp_path: Path) -> None:
    other = places(tmp_path / "other")
    assert other.defaults is not None
    (other.defaults / "rustguard").write_text(DEFAULTS)
    do(again(take(machine, "0.2.0", "vm")), other)
    expected = tree(tmp_path / "machine")
    for gone in ("state/server/state.json.bak", "state/client.log", "state/tunnels/wg0/undo.json", "default/grub"):
        del expected[gone]
    expected["state/server/audit.jsonl"] = b'{"event":"joined"}\n'
    assert tree(tmp_path / "other") == expected
    for path in expected:
        before, after = ((tmp_path / name / path).stat() for name in ("machine", "other"))
        assert (before.st_uid, before.st_gid, before.st_mode) == (after.st_uid, after.st_gid, after.st_mode)
    assert (other.state / "server").stat().st_mode & 0o777 == 0o700
    assert loaded(other.state / "server") == a_server(2).to_json()
    journal = TimestampJournal.open(other.state / "server")
    assert journal.greatest(b"k" * 32) == (5).to_bytes(12)
    journal.close()


def test_what_is_there_is_only_replaced_on_request_and_then_all_of_it(machine: Places, tmp_path: Path) -> None:
    other = places(tmp_path / "other")
    save(other.state / "server", a_server(5))
    save(other.state / "server", a_server(6))
    taken = take(Places(machine.state / "client", single=True), "0.2.0", "vm")
    here = Places(other.state / "server", single=True)
    before = tree(tmp_path / "other")
    with pytest.raises(RefusedError, match=r"There is .*state\.json already") as told:
        do(taken, here)
    assert "--overwrite" in told.value.fix
    assert tree(tmp_path / "other") == before
    do(taken, here, overwrite=True)
    # Not even the copy of the other network's keys is left next to it.
    assert sorted(tree(other.state / "server")) == ["state.json"]
    assert loaded(other.state / "server") == a_client().to_json()


@pytest.mark.parametrize("area", ["settings", "defaults"])
def test_settings_that_are_there_are_not_replaced_by_themselves(machine: Places, tmp_path: Path, area: str) -> None:
    other = places(tmp_path / "other")
    above = getattr(other, area)
    name = "rustguard" if area == "defaults" else "home.conf"
    (above / name).write_text("# a comment\nRUSTGUARD_LOG=error\n")
    before = tree(tmp_path / "other")
    with pytest.raises(RefusedError, match=re.escape(str(above / name))):
        do(take(machine, "0.2.0", "vm"), other)
    assert tree(tmp_path / "other") == before


def test_the_state_of_a_tunnel_does_not_remove_a_servers(machine: Places, tmp_path: Path) -> None:
    other = Places(tmp_path / "other", single=True)
    save(other.state, a_server(1))
    with pytest.raises(RefusedError, match=r"state\.json already"):
        do(take(Places(machine.state / "tunnels/wg0", single=True), "0.2.0", "vm"), other)


def test_nothing_is_restored_while_a_daemon_runs(machine: Places, tmp_path: Path) -> None:
    other = places(tmp_path / "other")
    held = Document.open(other.state / "client")
    taken = take(machine, "0.2.0", "vm")
    with pytest.raises(InUseError, match=r"A daemon runs on .*client") as told:
        do(taken, other, overwrite=True)
    assert told.value.fix == f"Stop it first: {as_root('rustguard stop client')}"
    assert tree(tmp_path / "other") == {}
    held.close()
    # One that starts between the check and the restore is noticed as well.
    todo = restore.plan(taken, other, overwrite=True)
    held = Document.open(other.state / "server")
    with pytest.raises(InUseError, match="A daemon runs on"):
        restore.carry_out(todo)
    held.close()
    assert tree(tmp_path / "other") == {}


def test_several_states_do_not_go_into_one_directory(machine: Places, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 state directories") as told:
        do(take(machine, "0.2.0", "vm"), Places(tmp_path / "one", single=True))
    assert "tunnels/wg0" in told.value.fix


def test_settings_are_left_out_where_one_directory_is_named_and_refused_to_a_user(
    machine: Places, tmp_path: Path
) -> None:
    for each in ("client", "tunnels"):
        (machine.state / each).rename(tmp_path / each)
    taken = take(machine, "0.2.0", "vm")
    todo = restore.plan(taken, Places(tmp_path / "one", single=True), overwrite=False)
    assert todo.left_out == ("settings/home.conf", "settings/rustguard-serve.token", "defaults/rustguard")
    with pytest.raises(RefusedError, match="only root can write"):
        restore.plan(taken, Places(tmp_path / "one"), overwrite=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
def test_root_is_sent_to_the_user_whose_backup_it_is(machine: Places, tmp_path: Path) -> None:
    taken = take(machine, "0.2.0", "vm")
    theirs = replace(taken, files=tuple(replace(each, owner="nobody") for each in taken.files))
    with pytest.raises(RefusedError, match="of the user nobody") as told:
        do(theirs, places(tmp_path / "other"))
    assert "sudo -u nobody" in told.value.fix
    # A user that this machine doesn't have is nobody to send it to.
    unknown = replace(taken, files=tuple(replace(each, owner="no-such-user") for each in taken.files))
    do(unknown, places(tmp_path / "other"))


# -- interruptions ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


class KilledAt(BreakableFiles):
    """Files of a process that is killed at one of its calls."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        # The kernel closes what a killed process had open, whatever happens.
        if name not in ("write", "rename", "unlink", "open", "fsync", "chmod", "chown", "mkdir"):
            return call

        def alive(*arguments: Any) -> Any:
            if len(self.calls) >= self.number:
                raise Killed
            return call(*arguments)

        return alive


def small(machine: Places) -> Backup:
    """Return a backup of two states and a setting, in which each call can be interrupted in seconds."""
    taken = take(machine, "0.2.0", "vm")
    wanted = {"state/client/state.json", "state/server/state.json", "state/server/timestamps", "settings/home.conf"}
    return replace(taken, files=tuple(each for each in taken.files if each.path in wanted))


OLD = {"server": a_server(7).to_json(), "client": a_client("old.example").to_json()}
NEW = {"server": a_server(2).to_json(), "client": a_client().to_json()}


def prepared(above: Path, *, overwrite: bool) -> Places:
    """Return a machine to restore on: with another server and client to overwrite, or with nothing."""
    other = places(above)
    if overwrite:
        save(other.state / "server", a_server(7))
        save(other.state / "client", a_client("old.example"))
    return other


def states_of(other: Places, first: str) -> dict[str, dict[str, object]]:
    """Return what daemons find that start on a machine one after the other."""
    found = {name: loaded(other.state / name) for name in (first, "server", "client")}
    return {name: state for name, state in found.items() if state is not None}


def left_by_a_restore(above: Path) -> list[str]:
    return [each for each in tree(above) if ".rest" in each]


@pytest.mark.fault(9)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_restore_that_is_killed_at_any_call_leaves_all_of_the_old_or_all_of_the_new(
    machine: Places, tmp_path: Path, overwrite: bool, soak: bool
) -> None:
    taken = small(machine)
    counts = {"old": 0, "new": 0}
    number, finished = 0, False
    while not finished:
        above = tmp_path / f"other {number}"
        other = prepared(above, overwrite=overwrite)
        try:
            do(taken, other, overwrite=overwrite, files=KilledAt(number))
            finished = True
        except Killed:
            pass
        # Whichever daemon starts first finishes it, or takes it back.
        found = states_of(other, ("client", "server")[number % 2])
        assert found in (OLD if overwrite else {}, NEW)
        counts["new" if found == NEW else "old"] += 1
        assert other.settings is not None
        assert (other.settings / "home.conf").exists() is (found == NEW)
        assert left_by_a_restore(above) == []
        # After all of that it can be restored.
        do(taken, other, overwrite=True)
        assert states_of(other, "client") == NEW
        number += 1 if soak else 2
    assert min(counts.values()) > (20 if soak else 5)
    print(f"row 9: {sum(counts.values())} of {sum(counts.values())} killed restores left all or nothing: {counts}")


@pytest.mark.fault(9)
def test_a_power_cut_at_any_moment_leaves_all_of_the_old_or_all_of_the_new(
    machine: Places, tmp_path: Path, soak: bool
) -> None:
    taken = take(Places(machine.state / "server", single=True), "0.2.0", "vm")
    taken = replace(taken, files=tuple(each for each in taken.files if "audit" not in each.name))
    directory = tmp_path / "here"
    directory.mkdir(mode=0o700)
    files = RecordingFiles(directory)
    save(directory, a_client(), files)
    save(directory, a_client("second.example"), files)
    begun = len(files.log)
    do(taken, Places(directory, single=True), overwrite=True, files=files)
    old, new = a_client("second.example").to_json(), a_server(2).to_json()
    states = [each for each in files.crash_states() if each[0] >= begun]
    for done, disk in states[:: 1 if soak else 3]:
        put(directory, disk)
        state = loaded(directory)
        assert state == new if done == len(files.log) else state in (old, new)
        assert ("timestamps" in tree(directory)) is (state == new)
        assert left_by_a_restore(directory) == []
    assert len(states) > 50
    print(f"row 9: {len(states)} power cuts during a restore left all or nothing")


@pytest.mark.fault(8)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_at_any_call_changes_nothing_or_says_how_to_finish(
    machine: Places, tmp_path: Path, overwrite: bool, soak: bool
) -> None:
    taken = small(machine)
    for number in range(0, 200, 1 if soak else 3):
        above = tmp_path / f"other {number}"
        other = prepared(above, overwrite=overwrite)
        files = BreakableFiles()
        files.break_call(number, errno.ENOSPC)
        finish = True
        try:
            do(taken, other, overwrite=overwrite, files=files)
        except StateError as error:
            assert error.fix  # noqa: PT017
            finish = "interrupted" in error.message
        assert states_of(other, "client") == (NEW if finish else OLD if overwrite else {})
        assert left_by_a_restore(above) == []
        if number > len(files.calls):
            break
    else:
        pytest.fail("it never came to its end")


def test_a_plan_that_is_damaged_is_refused_with_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "state", a_server(1))
    marker = {"plan": [str(tmp_path / "state/.restore-plan")], "fresh": []}
    for name, content in ((".restore-plan", b"[]"), (".restore", json.dumps(marker).encode() + b"\n")):
        (tmp_path / "state" / name).write_bytes(content)
        (tmp_path / "state" / name).chmod(0o600)
    with pytest.raises(StateError, match="is damaged") as told:
        loaded(tmp_path / "state")
    assert "--overwrite" in told.value.fix


def test_who_may_not_finish_a_restore_says_who_may_and_the_same_command_does(machine: Places, tmp_path: Path) -> None:
    taken = small(machine)
    other = prepared(tmp_path / "other", overwrite=False)
    # The plan is durable, and no file is in its place yet.
    todo = restore.plan(taken, other, overwrite=False)
    with pytest.raises(StateError, match="was interrupted"):
        restore.carry_out(todo, MayNotWriteInEtc())
    # A service can't write in /etc.
    with pytest.raises(StateError, match=r"interrupted and can't be finished: Read-only") as told:
        Document.open(other.state / "server", MayNotWriteInEtc())
    assert told.value.fix == "Run it again as root, with the same file: rustguard restore FILE"
    do(taken, other)
    assert states_of(other, "client") == NEW
    assert left_by_a_restore(tmp_path / "other") == []


class MayNotWriteInEtc(Files):
    """Files of a process that may write in state directories alone."""

    def rename(self, source: Path, target: Path) -> None:
        if target.parent.name == "etc":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().rename(source, target)
