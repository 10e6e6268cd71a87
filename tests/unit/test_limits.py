"""Which error comes of which limit, however deep it lies, and how much memory a control group lets a process have."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from rustguard_py.model import limits
from rustguard_py.model.endpoint import at_once, heard, interface_of, is_same, local_of, plain
from rustguard_py.model.limits import MEMORY, THREADS, Limit, has_memory, limit_of

HERE = bytes([192, 0, 2, 1])


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _execute_child() -> None:
    """As `subprocess` names what starts a process."""
    raise _os_error(errno.EAGAIN)


def _raised(make: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any of them
        make()
    return caught.value


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (_os_error(errno.ENOMEM), MEMORY),
        (MemoryError(), MEMORY),
        (ImportError("libx.so: cannot allocate memory in static TLS block"), MEMORY),
        (ImportError("libx.so: failed to map segment from shared object"), MEMORY),
        (RuntimeError("can't start new thread"), THREADS),
        # A busy lock isn't a limit, nor a missing file, nor an import that failed for another reason.
        (_os_error(errno.EAGAIN), None),
        (_os_error(errno.ENOENT), None),
        (ImportError("no module"), None),
        (RuntimeError("out of memory"), None),
        (ValueError(errno.EMFILE), None),
    ],
)
def test_an_error_names_its_limit(error: BaseException, limit: Limit | None) -> None:
    assert limit_of(error) == limit


def test_a_process_that_can_not_be_started_is_told_from_a_busy_lock() -> None:
    def lock() -> None:
        raise _os_error(errno.EAGAIN)

    assert limit_of(_raised(_execute_child)) == THREADS
    assert limit_of(_raised(lambda: _execute_child())) == THREADS
    assert limit_of(_raised(lock)) is None


def test_open_files_of_the_process_and_of_the_machine_are_two_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (77, 99))
    mine, machines = limit_of(_os_error(errno.EMFILE)), limit_of(_os_error(errno.ENFILE))
    assert mine is not None
    assert machines is not None
    assert ("may have 77" in mine.message, "ulimit -n" in mine.fix) == (True, True)
    assert ("This machine" in machines.message, "fs.file-max" in machines.fix) == (True, True)


def test_a_limit_is_found_under_what_was_made_of_its_error() -> None:
    deep = _os_error(errno.ENOMEM)
    caused, during, hidden = RuntimeError("1"), RuntimeError("2"), RuntimeError("3")
    caused.__cause__ = deep
    during.__context__ = caused
    hidden.__context__ = deep
    hidden.__suppress_context__ = True
    assert limit_of(caused) == limit_of(during) == MEMORY
    assert limit_of(hidden) is None
    assert limit_of(BaseExceptionGroup("several", [ValueError("x"), during])) == MEMORY
    # Two errors that name each other are looked at once.
    during.__context__, hidden.__context__ = hidden, during
    hidden.__suppress_context__ = False
    assert limit_of(during) is None


@pytest.mark.parametrize(
    ("groups", "files", "allowed"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "memory.max": "max\n"}, None),
        ("0::/a\n", {"memory.max": "512\n"}, 512),
        ("0::/a\n", {"a/memory.max": "9000", "memory.max": "512"}, 512),
        ("3:memory:/a\n2:cpu:/c\n", {"memory/a/memory.limit_in_bytes": "77"}, 77),
        ("3:memory:/a\n", {"memory/memory.limit_in_bytes": "78"}, 78),
        ("2:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "77", "a/memory.max": "1"}, None),
        ("", {}, None),
    ],
)
def test_the_smallest_limit_of_the_control_group_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], allowed: int | None
) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "_ROOT", tmp_path / "root")
    assert limits._group_memory() == allowed
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "nothing")
    assert limits._group_memory() is None


def test_what_is_wanted_must_fit_beside_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    room = 1 << 24
    monkeypatch.setattr(limits, "_group_memory", lambda: taken + room)
    assert has_memory(room // 2)
    assert not has_memory(room * 2)
    monkeypatch.setattr(limits, "_group_memory", lambda: None)
    assert has_memory(1 << 60)


def test_where_a_datagram_was_heard_is_remembered_beside_the_endpoint_and_dropped_for_an_answer_at_once() -> None:
    bare = ("192.0.2.7", 1)
    known, by_route = heard(bare, HERE, 3), heard(bare, HERE)
    assert (local_of(known), interface_of(known)) == (HERE, 3)
    assert (local_of(by_route), interface_of(by_route)) == (HERE, 0)
    assert (local_of(bare), interface_of(bare), local_of(None), interface_of(None)) == (None, 0, None, 0)
    answered = at_once(known)
    assert (answered, local_of(answered), interface_of(answered)) == (bare, HERE, 0)
    assert at_once(bare) is bare
    assert type(plain(known)) is tuple
    assert known == by_route == bare
    assert not any(is_same(*pair) for pair in ((known, by_route), (known, bare), (known, None)))
    assert is_same(known, heard(bare, HERE, 3))
    assert is_same(None, None)
