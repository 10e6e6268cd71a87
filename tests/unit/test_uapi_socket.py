"""Where wg(8) is answered, and who answers where network namespaces share the directory. The clock is virtual."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.daemon.uapi import namespaces
from rustguard_py.daemon.uapi import socket as uapi_socket
from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState
from rustguard_py.daemon.uapi.socket import DIRECTORY, VARIABLE, UapiSocket, given_listener
from rustguard_py.model.errors import RustGuardError, StateError
from rustguard_py.system import place
from support import virtual_loop

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
OWN, OTHER = 4026531840, 4026531999


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda main: virtual_loop.run(monkeypatch, main)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "wg"))
    monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OWN)
    return tmp_path / "wg"


def _wg(port: int = 1, listener: socket.socket | None = None) -> UapiSocket:
    def change(_: DeviceChange) -> None:
        raise OSError(errno.EBUSY, "busy")

    return UapiSocket("wg0", lambda: DeviceState(None, port), change, listener)


async def _ask(path: Path, request: bytes = b"get=1\n\n") -> str:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    answer = await reader.readuntil(b"\n\n")
    writer.close()
    return answer.decode().strip()


def test_it_answers_at_two_paths_that_only_root_may_use_and_removes_both(run: Run, directory: Path) -> None:
    async def main() -> None:
        wg = _wg(7)
        await wg.start()
        paths = sorted(directory.iterdir())
        assert [each.name for each in paths] == [f"wg0.{OWN}", "wg0.sock"]
        assert [stat.S_IMODE(each.stat().st_mode) for each in paths] == [0o600, 0o600]
        assert stat.S_IMODE(directory.stat().st_mode) & 0o022 == 0
        for path in paths:
            assert await _ask(path) == "listen_port=7\nerrno=0"
            assert await _ask(path, b"set=1\nfwmark=1\n\n") == f"errno=-{errno.EBUSY}"
        assert wg.is_there()
        await wg.close()
        await wg.close()
        assert list(directory.iterdir()) == []

    run(main)


def test_what_somebody_removed_is_made_again_and_what_is_anothers_is_left(run: Run, directory: Path) -> None:
    async def main() -> None:
        wg = _wg()
        await wg.start()
        kept = (directory / f"wg0.{OWN}").lstat().st_ino
        wg.path.unlink()
        assert not wg.is_there()
        await wg.make_again()
        assert wg.is_there()
        assert (directory / f"wg0.{OWN}").lstat().st_ino == kept
        assert await _ask(wg.path) == "listen_port=1\nerrno=0"
        wg.path.unlink()
        wg.path.write_text("another's")
        await wg.close()
        assert [each.name for each in directory.iterdir()] == ["wg0.sock"]

    run(main)


@pytest.mark.usefixtures("directory")
def test_the_end_of_it_ends_what_is_connected(run: Run) -> None:
    async def main() -> None:
        wg = _wg()
        await wg.start()
        reader, writer = await asyncio.open_unix_connection(str(wg.path))
        writer.write(b"get=1\n\n")
        await reader.readuntil(b"\n\n")
        await wg.close()
        assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


@pytest.mark.parametrize("asked", [b"get=1\n", b"get=", b"set=1\nfwmark=" + b"9" * 5000 + b"\n\n"])
@pytest.mark.usefixtures("directory")
def test_what_is_cut_or_too_long_ends_the_connection_with_an_errno(run: Run, asked: bytes) -> None:
    async def main() -> None:
        wg = _wg()
        await wg.start()
        reader, writer = await asyncio.open_unix_connection(str(wg.path))
        writer.write(asked)
        writer.write_eof()
        assert await reader.read() == f"errno=-{errno.EPROTO}\n\n".encode()
        writer.close()
        await wg.close()

    run(main)


@pytest.mark.usefixtures("directory")
def test_a_line_may_have_four_thousand_bytes_and_a_connection_several_requests(run: Run) -> None:
    async def main() -> None:
        wg = _wg()
        await wg.start()
        reader, writer = await asyncio.open_unix_connection(str(wg.path))
        writer.write(b"x" * 4000 + b"=1\n\n" + b"get=1\n\n")
        assert await reader.readuntil(b"\n\n") == f"errno=-{errno.EINVAL}\n\n".encode()
        assert await reader.readuntil(b"\n\n") == b"listen_port=1\nerrno=0\n\n"
        writer.close()
        await wg.close()

    run(main)


def test_an_empty_directory_means_none_and_one_that_can_not_be_made_is_an_error(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        before = _wg()
        await before.start()
        shutil.rmtree(directory)
        directory.write_text("a file")
        for attempt in (_wg().start, before.make_again):
            with pytest.raises(RustGuardError, match="can't be made: File exists"):
                await attempt()
        await before.close()
        monkeypatch.setenv(VARIABLE, "")
        with pytest.raises(RustGuardError, match="is empty"):
            await _wg().start()
        monkeypatch.delenv(VARIABLE)
        assert _wg().path == Path(DIRECTORY) / "wg0.sock"

    run(main)


def test_a_given_listener_is_used_and_nothing_else_made(run: Run, directory: Path) -> None:
    async def main() -> None:
        directory.mkdir()
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(directory / "given"))
        made.listen()
        os.set_inheritable(made.fileno(), True)
        listener = given_listener(made.detach())
        assert not listener.get_inheritable()
        wg = _wg(9, listener)
        await wg.start()
        assert await _ask(directory / "given") == "listen_port=9\nerrno=0"
        # It isn't ours: nobody looks for it, and it stays.
        assert wg.is_there()
        await wg.close()
        assert [each.name for each in directory.iterdir()] == ["given"]

    run(main)


def test_the_daemon_of_another_namespace_keeps_the_path_until_it_ends_and_then_ours_takes_it(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OTHER)
        theirs = _wg(2)
        await theirs.start()
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OWN)
        monkeypatch.setattr(namespaces, "answers", lambda path: OTHER if path.exists() else None)
        # Whoever asks is in ours.
        monkeypatch.setattr(namespaces, "of_peer", lambda *_: OWN)
        ours = _wg(1)
        await ours.start()
        assert await _ask(directory / f"wg0.{OWN}") == "listen_port=1\nerrno=0"
        await asyncio.sleep(10.5)
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OTHER)
        assert await _ask(directory / "wg0.sock") == "listen_port=1\nerrno=0"
        await theirs.close()
        assert not ours.path.exists()
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OWN)
        # It looks each second, counted from its start.
        await asyncio.sleep(0.3)
        assert not ours.path.exists()
        await asyncio.sleep(0.2)
        assert await _ask(ours.path) == "listen_port=1\nerrno=0"
        before = ours.path.lstat().st_ino
        await asyncio.sleep(10)
        assert ours.path.lstat().st_ino == before
        await ours.close()
        assert list(directory.iterdir()) == []

    run(main)


def test_one_that_waits_for_the_path_can_be_closed_and_never_takes_it(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OTHER)
        theirs = _wg(2)
        await theirs.start()
        monkeypatch.setattr(uapi_socket, "namespace_number", lambda: OWN)
        monkeypatch.setattr(namespaces, "answers", lambda path: OTHER if path.exists() else None)
        ours = _wg(1)
        await ours.start()
        await asyncio.sleep(1.5)
        await ours.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await theirs.close()
        await asyncio.sleep(5)
        assert list(directory.iterdir()) == []

    run(main)


@pytest.mark.parametrize(("theirs", "passes"), [(None, False), (OWN, True), (OTHER, False)])
def test_where_nobody_would_pass_our_callers_on_it_is_an_error(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, theirs: int | None, *, passes: bool
) -> None:
    async def main() -> None:
        directory.mkdir()
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(directory / "wg0.sock"))
            taken.listen()
            shared = directory / "wg0.sock"
            monkeypatch.setattr(namespaces, "answers", lambda path: theirs if path == shared or passes else None)
            wg = _wg()
            with pytest.raises(StateError, match="Another daemon"):
                await wg.start()
            await wg.close()

    run(main)


def test_a_namespace_has_the_name_that_ip_gives_it_else_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("blue", "red"):
        (tmp_path / name).touch()
    number = (tmp_path / "red").stat().st_ino
    monkeypatch.setattr(place, "_NAMED", tmp_path)
    for own, first, expected in ((number, 1, "red"), (7, 1, "7"), (1, 1, None), (None, 1, None)):
        numbers: dict[int | str, int | None] = {"self": own, 1: first}
        monkeypatch.setattr(place, "namespace_number", lambda process="self", numbers=numbers: numbers[process])
        assert place.namespace_name() == expected


def test_who_answers_at_a_path_is_known_by_its_process(tmp_path: Path) -> None:
    path = tmp_path / "wg0.sock"
    assert namespaces.answers(path) is None
    assert place.namespace_number("no-such") is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert namespaces.answers(path) is None
        listener.listen()
        assert namespaces.answers(path) == place.namespace_number() == os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
    assert namespaces.path_of(path, 7) == tmp_path / "wg0.7"
