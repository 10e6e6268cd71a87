"""The limits of the control socket: how many, how long, how often. The clock is virtual, the sockets are real."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py.daemon.control import server as control_server
from rustguard_py.daemon.control.client import call, listener, listens
from rustguard_py.daemon.control.listening import bind
from rustguard_py.daemon.control.server import ControlServer, Handler
from rustguard_py.model.errors import RefusedError, RustGuardError, UnansweredError
from support import virtual_loop
from support.virtual_loop import BEGAN

Main = Callable[[], Coroutine[Any, Any, None]]
Run = Callable[[Main], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda main: virtual_loop.run(monkeypatch, main)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


async def _forever(_: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", await asyncio.get_running_loop().create_future())


HANDLERS: dict[str, Handler] = {"echo": lambda params: params, "never": _forever}


class Client:
    """One connection, whose ends are in the same loop."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.socket.connect(str(path))

    async def ask(self, line: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, line)
        received = b""
        while not received.endswith(b"\n"):
            piece = await loop.sock_recv(self.socket, 1 << 20)
            assert piece, "it hung up"
            received += piece
        return cast("dict[str, Any]", json.loads(received))

    async def hung_up(self) -> float:
        """Wait for the end of the connection; return when it came."""
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(self.socket, 1 << 20):
            pass
        return _now()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _now() -> float:
    return asyncio.get_running_loop().time() - BEGAN


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _padded(size: int) -> bytes:
    """A request of so many bytes without its end."""
    empty = b'{"v":1,"id":1,"method":"echo","params":{"x":""}}'
    return empty.replace(b'""', b'"' + b"x" * (size - len(empty)) + b'"') + b"\n"


def test_a_request_may_have_64_kib_and_no_byte_more(run: Run, path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        with Client(path) as client:
            answer = await client.ask(_padded(64 * 1024))
            assert len(answer["result"]["x"]) > 65_000
            assert (await client.ask(_padded(64 * 1024 + 1)))["error"]["kind"] == "usage"
            await client.hung_up()
        await server.close()

    run(main)


def test_what_has_no_id_is_answered_with_none(run: Run, path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        with Client(path) as client:
            for line in (b"nonsense\n", b'{"v":1,"method":"nothing"}\n'):
                answer = await client.ask(line)
                assert (answer["v"], answer["id"], answer["error"]["kind"]) == (1, None, "usage")
            assert await client.ask(b'{"v":1,"method":"echo"}\n') == {"v": 1, "id": None, "result": {}}
        await server.close()

    run(main)


def test_only_what_changes_nothing_shares_an_answer(run: Run, path: Path) -> None:
    done: list[str] = []

    async def count(method: str) -> dict[str, Any]:
        done.append(method)
        await asyncio.sleep(1)
        return {"number": len(done)}

    async def main() -> None:
        handlers = {name: lambda _, name=name: count(name) for name in ("peers", "open")}
        server = ControlServer(path, cast("dict[str, Handler]", handlers))
        await server.start()
        with Client(path) as first, Client(path) as second:
            for method, times in (("open", 2), ("peers", 1)):
                line = b'{"v":1,"id":1,"method":"%s","params":{}}\n' % method.encode()
                await asyncio.gather(first.ask(line), second.ask(line))
                assert done == [method] * times
                done.clear()
            # With parameters it isn't the same question.
            lines = [b'{"v":1,"id":1,"method":"peers","params":{"x":%d}}\n' % number for number in (1, 2)]
            await asyncio.gather(first.ask(lines[0]), second.ask(lines[1]))
            assert done == ["peers"] * 2
        await server.close()

    run(main)


def test_there_are_64_places_and_the_one_idle_longest_makes_room(run: Run, path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        clients = []
        for _ in range(64):
            clients.append(Client(path))
            await asyncio.sleep(0.1)
        # The first asked since, so the second is the one that was idle longest.
        await clients[0].ask(b'{"v":1,"id":1,"method":"echo"}\n')
        assert len(server._connections) == 64
        began = _now()
        clients.append(Client(path))
        assert await clients[1].hung_up() == began
        assert (await clients[-1].ask(b'{"v":1,"id":1,"method":"echo"}\n'))["result"] == {}
        assert (await clients[0].ask(b'{"v":1,"id":1,"method":"echo"}\n'))["result"] == {}
        assert len(server._connections) == 64
        for each in clients:
            each.socket.close()
        await server.close()

    run(main)


def test_a_connection_is_closed_after_30_s_without_a_request(run: Run, path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        with Client(path) as client:
            await asyncio.sleep(20)
            await client.ask(b'{"v":1,"id":1,"method":"echo"}\n')
            assert await client.hung_up() == 50.0
        # One that is being answered isn't idle.
        with Client(path) as busy:
            await asyncio.get_running_loop().sock_sendall(busy.socket, b'{"v":1,"id":1,"method":"never"}\n')
            await asyncio.sleep(300)
            assert len(server._connections) == 1
            # And a request that never ends is no request.
            with Client(path) as half:
                await asyncio.get_running_loop().sock_sendall(half.socket, b'{"v":1')
                assert await half.hung_up() == 380.0
        await server.close()
        assert not server._connections

    run(main)


def test_it_ends_once_with_those_that_are_being_answered_and_those_that_are_idle(run: Run, path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.close()
        await server.start()
        number = cast(socket.socket, server._listener).fileno()
        with Client(path) as idle, Client(path) as busy:
            await asyncio.get_running_loop().sock_sendall(busy.socket, b'{"v":1,"id":1,"method":"never"}\n')
            await _settle()
            await server.close()
            await server.close()
            assert await idle.hung_up() == await busy.hung_up() == 0.0
        assert not asyncio.get_running_loop().remove_reader(number)
        assert not path.exists()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_where_the_socket_was_removed_the_next_start_listens_and_leaves_nothing_of_the_old(
    run: Run, path: Path
) -> None:
    async def main() -> None:
        server = ControlServer(path, HANDLERS)
        await server.start()
        old = cast(socket.socket, server._listener)
        assert server.is_there()
        path.unlink()
        assert not server.is_there()
        await server.start()
        assert (old.fileno(), server.is_there()) == (-1, True)
        with Client(path) as client:
            assert (await client.ask(b'{"v":1,"id":1,"method":"echo"}\n'))["result"] == {}
        assert not list(path.parent.glob("control.*"))
        await server.close()

    run(main)


class Exhausted:
    """A listener that has no descriptor left for whoever waits."""

    def __init__(self, code: int) -> None:
        self.tried: list[float] = []
        self._code = code
        self._number = os.eventfd(1, os.EFD_NONBLOCK)

    def accept(self) -> None:
        self.tried.append(_now())
        raise OSError(self._code, os.strerror(self._code))

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        os.close(self._number)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_without_a_descriptor_it_tries_again_each_second_and_not_more_often(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async def main() -> None:
        server, exhausted = ControlServer(path, HANDLERS), Exhausted(code)
        with monkeypatch.context() as patch:
            patch.setattr(control_server, "bind", lambda *_: (exhausted, (0, 0)))
            path.touch()
            await server.start()
        await asyncio.sleep(4.5)
        assert exhausted.tried == [0.0, 1.0, 2.0, 3.0, 4.0]
        await server.close()
        await asyncio.sleep(5)
        assert len(exhausted.tried) == 5

    run(main)


def test_a_slow_answer_has_a_beat_each_second(run: Run, path: Path) -> None:
    async def slow(_: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(3.5)
        return {}

    async def main() -> None:
        server = ControlServer(path, {"slow": slow})
        await server.start()
        with Client(path) as client:
            beats = [await client.ask(b'{"v":1,"id":4,"method":"slow","beats":true}\n')]
            times = [_now()]
            for _ in range(3):
                beats.append(await client.ask(b""))
                times.append(_now())
        assert beats == [{"v": 1, "id": 4, "beat": True}] * 3 + [{"v": 1, "id": 4, "result": {}}]
        assert times == [1.0, 2.0, 3.0, 3.5]
        await server.close()

    run(main)


def test_that_somebody_listens_is_known_at_once_also_where_the_queue_is_full(path: Path) -> None:
    assert not listens(path)
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as first:
        stopped.bind(str(path))
        assert not listens(path)
        stopped.listen(0)
        first.setblocking(False)
        first.connect(str(path))
        assert listens(path)
    assert not listens(path)


def test_the_process_that_listens_is_named_though_it_answers_nothing(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert listener(path) == os.getpid()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "hung up without an answer"),
        (b'{"v":1,"id":1,"resu', "hung up without an answer"),
        (b"\n", "isn't JSON"),
    ],
)
def test_a_daemon_that_hangs_up_or_sends_an_empty_line_did_not_answer(path: Path, said: bytes, why: str) -> None:
    def hang_up(rude: socket.socket) -> None:
        connection, _ = rude.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(said)

    with socket.socket(socket.AF_UNIX) as rude, ThreadPoolExecutor(1) as executor:
        rude.bind(str(path))
        rude.listen()
        done = executor.submit(hang_up, rude)
        with pytest.raises(RustGuardError, match=why):
            call(path, "echo", timeout=60)
        done.result()


def test_who_has_no_time_left_is_not_answered(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(UnansweredError, match="doesn't answer"):
            call(path, "echo", timeout=0.0)


@pytest.mark.parametrize("refused", ["rename", "listen"])
def test_a_socket_that_can_not_be_made_leaves_no_file_and_no_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    made: list[socket.socket] = []

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    class Watched(socket.socket):
        def __init__(self, *kind: int) -> None:
            super().__init__(*kind)
            made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(type(path) if refused == "rename" else Watched, refused, refuse)
        patch.setattr(socket, "socket", Watched)
        with pytest.raises(RefusedError, match="can't be made: Input/output error") as caught:
            bind(path, None)
    assert f"ls -ld {path.parent}" in caught.value.fix
    assert list(path.parent.iterdir()) == []
    assert [each.fileno() for each in made] == [-1]
