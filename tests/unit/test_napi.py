"""Where the kernel may receive in threads: from which Linux on, and what is set on a new interface."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rustguard_py.kernel import napi
from rustguard_py.kernel.messages import KernelPeerChange
from rustguard_py.kernel.napi import Version, linux_version, why_unsafe
from rustguard_py.model.errors import RefusedError

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian {} (2025-11-05)"


@pytest.mark.parametrize(
    ("release", "version", "linux"),
    [
        ("6.1.0-56-amd64", DEBIAN.format("6.1.192-2"), (6, 1, 192)),
        ("6.12.57+deb13-amd64", DEBIAN.format("6.12.57-1"), (6, 12, 57)),
        ("6.12.57+deb13-cloud-amd64", DEBIAN.format("6.12.57-1~bpo12+1"), (6, 12, 57)),
        ("6.17-amd64", DEBIAN.format("6.17-1~exp1"), (6, 17, 0)),
        ("6.8.0-117-generic", "#117-Ubuntu SMP PREEMPT_DYNAMIC Fri May 8 10:00:00 UTC 2026", (6, 8, 0)),
        ("6.17.9-arch1-1", "#1 SMP PREEMPT_DYNAMIC Mon, 24 Nov 2025 15:21:09 +0000", (6, 17, 9)),
        ("6.16.0-rc3+", "#2 SMP", (6, 16, 0)),
        ("5.15.190", "#1 SMP", (5, 15, 190)),
        ("mine", "#1 SMP", None),
    ],
)
def test_the_linux_that_a_kernel_was_made_of(release: str, version: str, linux: Version | None) -> None:
    assert linux_version(release, version) == linux


@pytest.mark.parametrize(
    ("series", "first", "last"), [((5, 15), 186, 200), ((6, 1), 142, 163), ((6, 6), 94, 126), ((6, 12), 34, 73)]
)
def test_each_series_stalls_from_its_first_release_to_its_last(
    series: tuple[int, int], first: int, last: int
) -> None:
    for patch in (first - 1, first, last, last + 1):
        unsafe = why_unsafe((*series, patch))
        assert unsafe is not None
        assert ("stalls reception" in unsafe) == (first <= patch <= last)
        assert f"{series[0]}.{series[1]}.{patch}" in unsafe


def test_it_is_safe_from_the_release_that_has_it_by_itself() -> None:
    assert [why_unsafe(each) for each in ((6, 16, 0), (6, 18, 7), (7, 0, 0))] == [None] * 3
    for older in ((5, 6, 0), (6, 13, 0), (6, 15, 99)):
        assert "from Linux 6.16 on" in str(why_unsafe(older))
    assert "doesn't tell" in str(why_unsafe(None))


def test_the_running_kernels_release_and_version_are_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SimpleNamespace(release="6.1.0-56-amd64", version="#1 SMP Debian 6.1.192-2 (2026-11-16)")
    monkeypatch.setattr(os, "uname", lambda: system)
    assert napi.this_linux() == (6, 1, 192)


class Fresh:
    """An interface: a kernel that takes the setting while there is a peer."""

    def __init__(self, directory: Path, value: str) -> None:
        self.peers: set[bytes] = set()
        self.file = directory / "rg0" / "threaded"
        self.file.parent.mkdir()
        self.file.write_text(f"{value}\n")
        self.with_peers: list[int] = []

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        for change in changes:
            (self.peers.discard if change.remove else self.peers.add)(change.public_key)
            self.with_peers.append(len(self.peers))

    def settle(self, *, wanted: bool) -> list[str]:
        return napi.settle("rg0", self, wanted=wanted)  # type: ignore[arg-type]

    @property
    def value(self) -> str:
        return self.file.read_text().strip()


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(napi, "_SYSFS", tmp_path)
    return tmp_path


def on(monkeypatch: pytest.MonkeyPatch, linux: Version) -> None:
    monkeypatch.setattr(napi, "this_linux", lambda: linux)


def test_it_is_turned_on_beside_a_peer_that_goes_again(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (6, 16, 0))
    fresh = Fresh(sysfs, "0")
    assert fresh.settle(wanted=True) == []
    assert (fresh.value, fresh.with_peers) == ("1", [1, 0])
    # Who has it already is left alone.
    assert fresh.settle(wanted=True) == fresh.settle(wanted=False) == []
    assert (fresh.value, fresh.with_peers) == ("1", [1, 0])


def test_a_refusal_is_told_with_the_fix(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (6, 16, 0))
    fresh = Fresh(sysfs, "0")
    fresh.file.unlink()
    fresh.file.parent.rmdir()
    with pytest.raises(RefusedError, match="another network namespace") as refused:
        fresh.settle(wanted=True)
    assert "Leave out --threaded-napi" in refused.value.fix
    assert fresh.peers == set()


def test_where_it_stalls_it_is_turned_off_and_said(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, (6, 12, 57))
    fresh = Fresh(sysfs, "1")
    [said] = fresh.settle(wanted=False)
    assert "CVE-2026-52945" in said
    assert "it is turned off" in said
    assert (fresh.value, fresh.peers) == ("0", set())
    assert fresh.settle(wanted=False) == []
