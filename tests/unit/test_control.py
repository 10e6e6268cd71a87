"""The control socket: who may ask, how much, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.daemon.control import server as control_server
from rustguard_py.daemon.control.client import call
from rustguard_py.daemon.control.permission import fix_for, fix_for_strangers
from rustguard_py.daemon.control.protocol import KINDS, MAX_REQUEST, decode, encode, error_document, error_from
from rustguard_py.daemon.control.server import MAX_CONNECTIONS, ControlServer, Handler
from rustguard_py.model.errors import (
    NotRunningError,
    RefusedError,
    RustGuardError,
    StateError,
    UnansweredError,
    UsageError,
)
from support.other_user import NOBODY, as_user, needs_other_users

JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.just("v")


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.sampled_from(["v", "id", "method", "params", "error", "kind", "message", "mend"])
    return st.lists(inner, max_size=4) | st.dictionaries(names, inner | st.just(1), max_size=4)


async def answer_later(params: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"later": params}


def refuse(_: dict[str, Any]) -> NoReturn:
    raise RefusedError("The pool is full.", "Revoke somebody: `rustguard peers revoke NAME`.")


def break_down(_: dict[str, Any]) -> NoReturn:
    raise ValueError("the key is hunter2")


FINISHED = threading.Event()


async def work(params: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(params["seconds"])
    FINISHED.set()
    return {"worked": params["seconds"]}


async def refuse_later(_: dict[str, Any]) -> NoReturn:
    await asyncio.sleep(0.2)
    raise RefusedError("No, in the end.")


HANDLERS: dict[str, Handler] = {
    "slow": work,
    "refuse-later": refuse_later,
    "echo": lambda params: params,
    "later": answer_later,
    "refuse": refuse,
    "break": break_down,
    "never": lambda _: asyncio.get_running_loop().create_future(),
}


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[ControlServer]:
    """Run a server in a thread with a loop of its own, and yield it."""
    started = threading.Event()
    ended: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, ControlServer]] = []
    failure: list[RustGuardError] = []

    async def main() -> None:
        server = ControlServer(path, HANDLERS, **options)
        stop = asyncio.Event()
        ended.append((asyncio.get_running_loop(), stop, server))
        try:
            await server.start()
        except RustGuardError as error:
            failure.append(error)
            return
        finally:
            started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    started.wait()
    loop, stop, server = ended[0]
    try:
        if failure:
            raise failure[0]
        yield server
    finally:
        if not failure:
            loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


def talk(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send raw lines; return the answers up to the hang-up or the last line's answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"".join(lines))
        stream = connection.makefile("rb")
        return [json.loads(stream.readline()) for _ in lines]


def test_a_call_gets_its_result_from_plain_and_awaitable_handlers(path: Path) -> None:
    with serving(path):
        assert call(path, "echo", {"seconds": 60}) == {"seconds": 60}
        assert call(path, "later", {"a": 1}) == {"later": {"a": 1}}
        assert call(path, "echo") == {}


def test_one_connection_may_ask_several_times_and_each_answer_carries_its_id(path: Path) -> None:
    with serving(path):
        answers = talk(
            path,
            b'{"v":1,"id":7,"method":"echo","params":{"x":"\xc3\xa9"}}\n',
            b'{"v":1,"id":"b","method":"echo"}\n',
        )
    assert answers == [{"v": 1, "id": 7, "result": {"x": "é"}}, {"v": 1, "id": "b", "result": {}}]


def test_half_a_character_comes_back_as_it_went(path: Path) -> None:
    with serving(path):
        [answer] = talk(path, b'{"v":1,"id":"\\ud800","method":"echo","params":{"x":"\\udfff"}}\n')
    assert answer == {"v": 1, "id": "\ud800", "result": {"x": "\udfff"}}


def test_an_error_comes_back_with_its_class_message_and_fix(path: Path) -> None:
    with serving(path):
        with pytest.raises(RefusedError, match="The pool is full") as caught:
            call(path, "refuse")
        assert caught.value.fix.startswith("Revoke somebody")
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("cls", KINDS.values())
def test_every_class_of_error_survives_the_wire(cls: type[RustGuardError]) -> None:
    error = error_from(error_document(cls("what", "mend")))
    assert type(error) is cls
    assert (error.message, error.fix) == ("what", "mend")


def test_an_error_class_of_its_own_travels_as_the_nearest_known_one() -> None:
    class PoolFullError(RefusedError):
        pass

    assert error_document(PoolFullError("full"))["kind"] == "refused"


def test_a_bug_in_a_handler_is_a_plain_failure_without_its_text(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path):
        with pytest.raises(RustGuardError) as caught:
            call(path, "break")
        assert type(caught.value) is RustGuardError
        assert "hunter2" not in caught.value.message + caught.value.fix
        assert call(path, "echo") == {}
    assert "'break' failed" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"[]\n",
        b"{}\n",
        b'{"v":2,"id":1,"method":"echo"}\n',
        b'{"v":1,"id":1}\n',
        b'{"v":1,"id":1,"method":["echo"]}\n',
        b'{"v":1,"id":1,"method":"nothing"}\n',
        b'{"v":1,"id":1,"method":"echo","params":[]}\n',
        b'{"v":1,"id":1,"method":"echo","params":{"x":NaN}}\n',
        b"\xff\xfe\n",
        b"[" * 30_000 + b"\n",
    ],
)
def test_a_line_that_means_nothing_is_a_usage_error_and_the_connection_goes_on(path: Path, line: bytes) -> None:
    with serving(path):
        first, second = talk(path, line, b'{"v":1,"id":2,"method":"echo","params":{}}\n')
    assert first["error"]["kind"] == "usage"
    assert second == {"v": 1, "id": 2, "result": {}}


@given(st.one_of(st.binary(max_size=200), st.recursive(JSON_LEAVES, nested).map(lambda it: json.dumps(it).encode())))
def test_any_line_is_a_message_or_a_usage_error(line: bytes) -> None:
    try:
        message = decode(line)
    except UsageError:
        return
    assert decode(encode(message)) == message


@given(st.recursive(JSON_LEAVES, nested))
def test_any_error_document_makes_an_error_that_can_be_shown(document: object) -> None:
    error = error_from(document)
    assert isinstance(error.message + error.fix, str)


def test_a_line_beyond_the_limit_ends_the_connection_and_nothing_else(path: Path) -> None:
    with serving(path):
        [answer] = talk(path, b"x" * (MAX_REQUEST + 1) + b"\n")
        assert answer["error"]["kind"] == "usage"
        assert call(path, "echo") == {}


def test_numbers_beyond_what_a_machine_holds_arrive_as_they_are(path: Path) -> None:
    with serving(path):
        assert call(path, "echo", {"seconds": 2**63 - 1}) == {"seconds": 2**63 - 1}


def test_an_answer_may_be_far_longer_than_a_request(path: Path) -> None:
    names = [f"peer-{number}" for number in range(3000)]
    with serving(path) as server:
        server._handlers = {"peers": lambda _: {"peers": names * 50}}
        assert len(call(path, "peers")["peers"]) == 150_000


def test_nobody_there_tells_how_to_start(path: Path) -> None:
    with pytest.raises(NotRunningError) as caught:
        call(path, "status")
    assert caught.value.exit_code == 3
    assert "rustguard serve" in caught.value.fix
    assert "rustguard join" in caught.value.fix


def test_a_dead_socket_counts_as_nobody_and_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunningError):
        call(path, "status")
    with serving(path):
        assert call(path, "echo") == {}


def test_no_answer_in_time_is_exit_code_5(path: Path) -> None:
    with serving(path), pytest.raises(UnansweredError) as caught:
        call(path, "never", timeout=0.05)
    assert caught.value.exit_code == 5


def test_a_living_daemon_keeps_its_socket(path: Path) -> None:
    with serving(path):
        with pytest.raises(StateError, match="Another daemon"), serving(path):
            pass
        assert call(path, "echo") == {}


@pytest.mark.fault(29)
def test_a_symlink_or_file_in_its_place_is_refused_unfollowed_and_left_alone(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(RefusedError, match="isn't a socket"), serving(path):
        pass
    assert path.is_symlink()
    assert target.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RefusedError), serving(path):
        pass
    assert path.is_symlink()
    path.unlink()
    path.write_text("a file")
    with pytest.raises(RefusedError), serving(path):
        pass
    assert path.read_text() == "a file"
    print("row 29: a symlink to a file, one to nothing, a file in the socket's place: 3 of 3 refused and left alone")


def test_the_socket_is_never_more_open_than_0660(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | str] = []
    chmod, listen = type(path).chmod, socket.socket.listen

    def watch_chmod(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(self.stat().st_mode))
        chmod(self, mode)

    def watch_listen(self: socket.socket, backlog: int) -> None:
        seen.append("listen")
        listen(self, backlog)

    monkeypatch.setattr(type(path), "chmod", watch_chmod)
    monkeypatch.setattr(socket.socket, "listen", watch_listen)
    old = os.umask(0)
    try:
        with serving(path):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    finally:
        os.umask(old)
    assert seen == [0o600, "listen"]


def test_a_path_too_long_for_a_socket_is_said_so(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with pytest.raises(UsageError, match="too long"), serving(long):
        pass
    with pytest.raises(UsageError, match="too long"):
        call(long, "status")


def test_a_daemon_too_stopped_to_take_connections_is_exit_code_5_not_3(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stopped, contextlib.ExitStack() as stack:
        stopped.bind(str(path))
        stopped.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        with pytest.raises(UnansweredError):
            call(path, "status", timeout=0.1)
        with pytest.raises(StateError, match="Another daemon"), serving(path):
            pass


def test_it_is_gone_after_close_unless_it_is_somebody_elses_by_then(path: Path) -> None:
    with serving(path):
        pass
    assert not path.exists()
    with serving(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_an_unknown_group_is_a_usage_error(path: Path) -> None:
    with pytest.raises(UsageError, match="no group"):
        ControlServer(path, {}, "no-such-group-here")


def test_a_stranger_learns_which_group_may_ask() -> None:
    assert fix_for(None) == "Run the same command as root."
    assert "usermod -aG wheel" in fix_for("wheel")


@needs_other_users
def test_the_group_of_a_socket_is_named_to_strangers(public_path: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in {0, NOBODY})
    with serving(public_path, group=group.gr_name):
        assert f"join the group {group.gr_name}:" in fix_for_strangers(public_path)
    with serving(public_path):
        assert "join the group" not in fix_for_strangers(public_path)


def ask_as_nobody(path: Path, gid: int = NOBODY, groups: Sequence[int] = ()) -> str:
    """Return the message of the error, or "answered"."""
    try:
        as_user(lambda: call(path, "echo"), gid=gid, groups=groups)
    except RustGuardError as error:
        return error.message
    return "answered"


@pytest.fixture
def public_path() -> Iterator[Path]:
    """In a directory that everybody may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "control"


@pytest.mark.fault(29)
@needs_other_users
def test_another_user_is_kept_out_by_the_mode_and_by_its_credentials(public_path: Path) -> None:
    with serving(public_path):
        by_mode = ask_as_nobody(public_path)
        # Who is let in by the mode, as everybody or by group, isn't heard for that alone.
        in_the_sockets_group = ask_as_nobody(public_path, groups=[public_path.stat().st_gid])
        public_path.chmod(0o666)
        by_credentials = ask_as_nobody(public_path)
    assert "belongs to another user" in by_mode
    assert in_the_sockets_group == by_credentials == "You have no permission to use this daemon."
    print("row 29: another user: refused by the mode, and by its credentials where the mode lets it in, 3 of 3")


@needs_other_users
def test_a_member_of_the_group_may_ask_by_its_first_group_or_a_further_one(public_path: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in {0, NOBODY})
    with serving(public_path, group=group.gr_name):
        assert public_path.stat().st_gid == group.gr_gid
        assert ask_as_nobody(public_path, gid=group.gr_gid) == "answered"
        assert ask_as_nobody(public_path, groups=[5, group.gr_gid]) == "answered"
        assert "belongs to another user" in ask_as_nobody(public_path)


@contextlib.contextmanager
def held(path: Path, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for connection in connections:
            connection.connect(str(path))
        yield connections


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.fault(29)
def test_an_answer_comes_soon_beside_1000_idle_connections(path: Path) -> None:
    with serving(path) as server, held(path, 1000):
        slowest = 0.0
        for _ in range(20):
            started = time.perf_counter()
            assert call(path, "echo") == {}
            slowest = max(slowest, time.perf_counter() - started)
        assert len(server._connections) <= MAX_CONNECTIONS
    print(f"row 29: 1,000 idle connections: {slowest * 1000:.1f} ms, the slowest of 20 answers")
    # The row says 100 ms, for a machine that does nothing else.
    assert slowest <= 3


def test_members_of_the_group_cant_take_the_places_of_root(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(path, max_connections=4) as server, socket.socket(socket.AF_UNIX) as root:
        root.settimeout(60)
        root.connect(str(path))
        root.sendall(b'{"v":1,"id":1,"method":"echo"}\n')
        assert json.loads(root.recv(100))["id"] == 1
        monkeypatch.setattr(control_server, "_is_privileged", lambda _: False)
        monkeypatch.setattr(control_server, "_is_member", lambda *_: True)
        with held(path, 50):
            root.sendall(b'{"v":1,"id":2,"method":"echo"}\n')
            assert json.loads(root.recv(100))["id"] == 2
            assert len(server._connections) <= 5


def test_who_is_being_answered_is_not_pushed_out_and_more_are_told_to_come_back(path: Path) -> None:
    with serving(path, max_connections=2) as server, held(path, 2) as busy:
        for connection in busy:
            connection.sendall(b'{"v":1,"id":1,"method":"never"}\n')
        wait_until(lambda: [entry.idle_since for entry in list(server._connections)] == [None, None])
        with pytest.raises(RefusedError, match="Too many"):
            call(path, "echo")


def test_an_idle_connection_is_closed(path: Path) -> None:
    with serving(path, idle_seconds=0.05), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(60)
        assert connection.recv(1) == b""


def test_a_crowd_that_leaves_before_it_is_served_leaves_no_descriptor(path: Path) -> None:
    with serving(path) as server:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with held(path, 300):
            pass
        call(path, "echo")
        wait_until(lambda: not server._connections)
        wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_asking_needs_no_asyncio() -> None:
    code = "import sys, rustguard_py.daemon.control.client; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "BEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_beats")
def test_a_slow_daemon_gives_signs_of_life_and_a_silent_one_is_given_up(path: Path) -> None:
    beats: list[float] = []
    with serving(path):
        answer = call(path, "slow", {"seconds": 1.5}, timeout=1.0, on_beat=lambda: beats.append(time.monotonic()))
        assert answer == {"worked": 1.5}
        # Who doesn't ask for beats has one limit for the whole call, and is sent the answer alone.
        with pytest.raises(UnansweredError):
            call(path, "slow", {"seconds": 1.5}, timeout=0.2)
        assert talk(path, encode({"v": 1, "id": 7, "method": "slow", "params": {"seconds": 0.3}})) == [
            {"v": 1, "id": 7, "result": {"worked": 0.3}}
        ]
    assert len(beats) > 2
    with socket.socket(socket.AF_UNIX) as dead:
        silent = path.with_name("silent")
        dead.bind(str(silent))
        dead.listen()
        with pytest.raises(UnansweredError):
            call(silent, "slow", timeout=0.2, on_beat=lambda: beats.append(0.0))


@pytest.mark.usefixtures("quick_beats")
def test_an_error_after_beats_is_raised_and_work_outlives_the_client_that_asked(path: Path) -> None:
    with serving(path):
        with pytest.raises(RefusedError, match="in the end"):
            call(path, "refuse-later", timeout=1.0, on_beat=lambda: None)
        FINISHED.clear()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            request = {"v": 1, "id": 1, "method": "slow", "params": {"seconds": 0.5}, "beats": True}
            connection.sendall(encode(request))
            assert json.loads(connection.makefile("rb").readline()) == {"v": 1, "id": 1, "beat": True}
        assert FINISHED.wait(10)


def test_clients_that_do_not_read_hold_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def status(_: dict[str, Any]) -> dict[str, Any]:
        nonlocal made
        made += 1
        time.sleep(0.05)  # as for thousands of peers
        return {"made": made, "filler": "x" * 2**20}

    monkeypatch.setitem(HANDLERS, "status", status)
    request = b'{"v":1,"id":7,"method":"status","params":{}}\n'
    with serving(path), contextlib.ExitStack() as stack:
        for _ in range(50):
            holder = stack.enter_context(socket.socket(socket.AF_UNIX))
            holder.connect(str(path))
            holder.sendall(request)
        began = time.monotonic()
        assert call(path, "status")["made"] >= 1
        seconds = time.monotonic() - began
        [answer] = talk(path, request)
        # One by one they would have taken 50.
        assert made <= 20
        assert answer == {"v": 1, "id": 7, "result": {"made": made, "filler": "x" * 2**20}}
    print(f"50 that don't read: answered after {seconds:.2f} s, {made} computed")
    assert seconds < 2.5


def test_an_answer_that_is_no_document_is_an_error(path: Path) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b'{"v":1,"id":1,"result":[1]}\n')

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with ThreadPoolExecutor(1) as executor:
            answered = executor.submit(answer, listener)
            with pytest.raises(RustGuardError, match="something that can't be read"):
                call(path, "echo", timeout=5)
            answered.result()


def test_a_daemon_that_takes_no_request_is_given_up_in_time_with_what_to_check(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(UnansweredError, match="doesn't answer") as caught:
            call(path, "echo", {"much": "x" * 1_000_000}, timeout=0.5)
    assert caught.value.fix == "Check whether it is stopped or overloaded."
