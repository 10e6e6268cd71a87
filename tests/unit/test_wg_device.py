"""An interface that wg(8) sets up: a `set` is done entirely or not at all, and every failure has an errno."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState, format_device, parse_set
from rustguard_py.daemon.uapi.socket import VARIABLE, UapiSocket
from rustguard_py.model.endpoint import Endpoint, Network, PeerId
from rustguard_py.planes.contract import Event
from rustguard_py.quick.wg_device import WgDevice
from support.examples import examples
from support.memory_plane import MemoryPlane

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


KEYS = [bytes([place] * 32).hex() for place in range(1, 5)]


class UnsurePlane(MemoryPlane):
    """A plane in memory that refuses a command when `refusals` says so, unless it took the same before."""

    def __init__(self, public_key: bytes) -> None:
        super().__init__(public_key)
        self.refusals: list[bool] = []
        self.mark = 0
        self._taken: set[object] = set()
        self._pipe = os.pipe()

    def _maybe_refuse(self, command: object) -> None:
        if command not in self._taken and self.refusals and self.refusals.pop(0):
            self.refusals.clear()
            raise OverflowError("the plane refuses that")
        self._taken.add(command)

    def set_peer(
        self, peer: PeerId, endpoint: Endpoint | None, allowed_ips: Sequence[Network], persistent_keepalive: int
    ) -> None:
        self._maybe_refuse((endpoint, tuple(allowed_ips), persistent_keepalive))
        super().set_peer(peer, endpoint, allowed_ips, persistent_keepalive)

    def set_fwmark(self, mark: int) -> None:
        self._maybe_refuse(mark)
        self.mark = mark

    def rebind(self, sockets: Sequence[socket.socket]) -> None:
        self._maybe_refuse(object())
        for each in sockets:
            each.close()

    def fileno(self) -> int:
        return self._pipe[0]

    def poll_events(self) -> list[Event]:
        return self.take_events()

    def close(self) -> None:
        if not self.closed:
            for each in self._pipe:
                os.close(each)
        super().close()


class Timestamps(dict[bytes, bytes]):
    greatest = dict.get
    record = dict.__setitem__

    def is_new(self, key: bytes, timestamp: bytes) -> bool:
        return timestamp > self.get(key, b"")


class Bench:
    """A device on an `UnsurePlane`, and its socket."""

    def __init__(self) -> None:
        def make_plane(key: bytes, _name: str, sockets: Sequence[socket.socket], *_: Any) -> UnsurePlane:
            for each in sockets:
                each.close()
            return UnsurePlane(key)

        engine, queue = SimpleNamespace(make_plane=make_plane, memif=None), SimpleNamespace(name="wgt0", fd=-1)
        self.device = WgDevice(cast(Any, engine), queue.name, cast(Any, [queue]), 1420, Timestamps())
        self.plane = cast(UnsurePlane, self.device._tunnel.plane)

    def set(self, text: str) -> None:
        self.device.change(parse_set(text.splitlines()))

    def get(self) -> str:
        return format_device(self.device.show())

    def everything(self) -> tuple[Any, ...]:
        """What `get` shows, what the plane has, and what the device would plan from."""
        node = self.device._tunnel.node
        configs = [(peer.id, peer.config) for peer in node]
        return (
            self.get(),
            configs,
            sorted(self.plane.transport.peers),
            self.plane.mark,
            dict(self.device._settings.peers),
        )


@asynccontextmanager
async def answering(show: Callable[[], DeviceState], change: Callable[[DeviceChange], None]) -> AsyncIterator[Any]:
    """Answer at a socket; gives what sends one request and returns the answer."""
    wg = UapiSocket("wgt0", show, change)
    await wg.start()

    async def ask(request: bytes, *, end: bool = False) -> str:
        reader, writer = await asyncio.open_unix_connection(str(wg.path))
        writer.write(request)
        if end:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)
        writer.close()
        return answer.decode()

    try:
        yield ask
    finally:
        await wg.close()


FIRST = f"""\
private_key={"5a" * 32}
fwmark=7
public_key={KEYS[0]}
endpoint=192.0.2.1:51820
allowed_ip=10.0.0.1/32
public_key={KEYS[1]}
preshared_key={"77" * 32}
allowed_ip=10.0.0.2/32
persistent_keepalive_interval=25
"""

KEY_LINES = st.sampled_from(KEYS).map("public_key={}".format)
PEER_LINES = st.sampled_from(
    [
        "remove=true",
        "update_only=true",
        f"preshared_key={'33' * 32}",
        f"preshared_key={'00' * 32}",
        "endpoint=198.51.100.7:1",
        "endpoint=[fe80::1%1]:51820",
        "endpoint=[fe80::1%4294967296]:51820",
        "persistent_keepalive_interval=0",
        "persistent_keepalive_interval=9",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.1/32",
        "allowed_ip=-10.0.0.1/32",
        "allowed_ip=10.0.0.2/32",
        "allowed_ip=10.0.0.0/99",
        "colour=blue",
    ]
)
OWN_LINES = st.sampled_from(
    [
        "replace_peers=true",
        "fwmark=0",
        "fwmark=9",
        f"private_key={'5b' * 32}",
        f"private_key={'00' * 32}",
        "listen_port=0",
    ]
)
SETS = st.tuples(
    st.lists(OWN_LINES, max_size=2),
    st.lists(st.tuples(KEY_LINES, st.lists(PEER_LINES, max_size=4)), max_size=4),
    st.lists(st.booleans(), max_size=6),
)


def lines_of(own: list[str], peers: list[tuple[str, list[str]]]) -> str:
    return "\n".join([*own, *(line for key, rest in peers for line in (key, *rest))])


@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([([], [(f"public_key={KEYS[0]}", ["endpoint=[fe80::1%4294967296]:51820"])], [])])
@example([([], [(f"public_key={KEYS[0]}", ["allowed_ip=10.0.0.2/32"])], [False, True])])
@example([(["replace_peers=true"], [(f"public_key={KEYS[1]}", []), (f"public_key={KEYS[3]}", [])], [False, True])])
@given(st.lists(SETS, min_size=1, max_size=5))
def test_a_set_that_fails_changes_nothing(
    sets: list[tuple[list[str], list[tuple[str, list[str]]], list[bool]]],
) -> None:
    async def run() -> None:
        bench = Bench()
        bench.set(FIRST)
        try:
            for own, peers, refusals in sets:
                before = bench.everything()
                bench.plane.refusals = list(refusals)
                try:
                    bench.set(lines_of(own, peers))
                except Exception:
                    bench.plane.refusals.clear()
                    assert bench.everything() == before
                bench.plane.refusals.clear()
                shown = [network for peer in bench.device.show().peers for network in peer.allowed_ips]
                assert len(shown) == len(set(shown))
        finally:
            bench.device.close()

    asyncio.run(run())


@in_loop
async def test_a_set_that_fails_leaves_the_networks_where_packets_go() -> None:
    bench = Bench()
    bench.set(FIRST)
    allowed = bench.plane.transport.allowed
    first = bench.device._tunnel.node.get(bytes.fromhex(KEYS[0]))
    bench.plane.refusals = [False, True]
    with pytest.raises(OverflowError):
        bench.set(f"public_key={KEYS[1]}\nallowed_ip=10.0.0.1/32")
    owner = allowed.find(bytes([10, 0, 0, 1]))
    assert first is not None
    assert owner is not None
    assert owner.id == first.id
    bench.device.close()


@in_loop
async def test_a_replaced_peer_loses_its_session_and_a_kept_one_does_not() -> None:
    bench = Bench()
    bench.set(FIRST)
    node = bench.device._tunnel.node
    kept = node.get(bytes.fromhex(KEYS[0]))
    bench.set(f"public_key={KEYS[0]}\npersistent_keepalive_interval=3")
    assert node.get(bytes.fromhex(KEYS[0])) is kept
    bench.set(f"replace_peers=true\npublic_key={KEYS[0]}\nallowed_ip=10.0.0.1/32")
    assert node.get(bytes.fromhex(KEYS[0])) is not kept
    assert [peer.public_key.hex() for peer in bench.device.show().peers] == [KEYS[0]]
    bench.device.close()


@in_loop
async def test_a_port_that_is_taken_changes_nothing() -> None:
    bench = Bench()
    bench.set(FIRST)
    before = bench.everything()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        with pytest.raises(Exception, match="can't be bound") as caught:
            bench.set(f"listen_port={taken.getsockname()[1]}\nfwmark=1\npublic_key={KEYS[0]}\nremove=true")
    assert getattr(caught.value, "code", None) == errno.EADDRINUSE
    assert bench.everything() == before
    bench.device.close()


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        (f"set=1\npublic_key={KEYS[0]}\nendpoint=[fe80::1%4294967296]:1\n\n", errno.EINVAL),
        (f"set=1\npublic_key={KEYS[0]}\nendpoint=[fe80::1%\0]:1\n\n", errno.EINVAL),
        (f"set=1\npublic_key={KEYS[0]}\nendpoint=[fe80::1%\u0661]:1\n\n", errno.EINVAL),
        ("set=1\nlisten_port=\u0661\n\n", errno.EINVAL),
        ("set=1\nlisten_port= 1\n\n", errno.EINVAL),
        ("set=1\nlisten_port=+1\n\n", errno.EINVAL),
        (f"set=1\npublic_key={KEYS[0]}\nallowed_ip=fe80::1%lo/64\n\n", errno.EINVAL),
        (f"set=1\npublic_key={KEYS[0]}\nallowed_ip=10.0.0.0/255.0.0.0.0\n\n", errno.EINVAL),
        ("give=1\n\n", errno.EINVAL),
        ("\n", errno.EINVAL),
    ],
)
@in_loop
async def test_every_failure_is_an_errno_and_a_line_in_the_log(
    request_text: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    bench = Bench()
    async with answering(bench.device.show, bench.device.change) as ask:
        before = bench.get()
        with caplog.at_level(logging.WARNING):
            assert await ask(request_text.encode()) == f"errno=-{code}\n\n"
        assert any(record.message.startswith("wg: ") for record in caplog.records)
        assert bench.get() == before
        assert (await ask(b"get=1\n\n")).endswith("errno=0\n\n")
    bench.device.close()


@pytest.mark.parametrize(("error", "code"), [(OverflowError("too much"), errno.EIO), (PermissionError(1, "no"), 1)])
@in_loop
async def test_a_failure_that_nobody_foresaw_is_an_errno_too(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def fail(*_: Any) -> Any:
        raise error

    async with answering(fail, fail) as ask:
        for request in (b"get=1\n\n", b"set=1\n\n"):
            assert await ask(request) == f"errno=-{code}\n\n"
    assert "wg: internal error" in caplog.text


@in_loop
async def test_a_request_that_is_cut_is_an_errno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    bench = Bench()
    async with answering(bench.device.show, bench.device.change) as ask:
        assert await ask(b"set=1\nfwmark=9\n", end=True) == f"errno=-{errno.EPROTO}\n\n"
        assert "fwmark" not in bench.get()
    bench.device.close()
