"""Hints that need root: sudo stands in front where this user needs it and has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rustguard_py.model import sudo
from rustguard_py.model.sudo import as_root


def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, uid: int, net_admin: bool, runner: str | None) -> None:
    """Pretend to be a user of a machine with one of these programs."""
    capabilities = (1 << 12 | 1 << 10) if net_admin else 1 << 10
    (tmp_path / "status").write_text(f"Name:\tpython\nCapEff:\t{capabilities:016x}\n")
    monkeypatch.setattr(sudo, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(sudo, "_runner", lambda: runner)


@pytest.mark.parametrize(
    ("uid", "net_admin", "runner", "ours", "other"),
    [
        # A person who came here by sudo has to type it again, and root may.
        (0, True, "sudo", "sudo rustguard stop", "sudo modprobe tun"),
        (0, True, None, "rustguard stop", "modprobe tun"),
        # doas may not let root do so.
        (0, True, "doas", "rustguard stop", "modprobe tun"),
        (1000, False, "sudo", "sudo rustguard stop", "sudo modprobe tun"),
        (1000, False, "doas", "doas rustguard stop", "doas modprobe tun"),
        (1000, False, None, "su -c 'rustguard stop'", "su -c 'modprobe tun'"),
        # Its daemon and state are its own; the module isn't.
        (1000, True, "sudo", "rustguard stop", "sudo modprobe tun"),
        (1000, True, None, "rustguard stop", "su -c 'modprobe tun'"),
    ],
)
def test_a_command_is_as_this_user_must_type_it(
    uid: int,
    net_admin: bool,
    runner: str | None,
    ours: str,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    on(monkeypatch, tmp_path, uid=uid, net_admin=net_admin, runner=runner)
    assert (as_root("rustguard stop"), as_root("modprobe tun")) == (ours, other)


def test_without_proc_a_user_is_taken_for_one_without_capabilities(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(monkeypatch, tmp_path, uid=1000, net_admin=True, runner="sudo")
    (tmp_path / "status").unlink()
    assert as_root("rustguard stop") == "sudo rustguard stop"
