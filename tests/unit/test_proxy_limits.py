"""The native relay goes on where the kernel gives it no pipes, small ones, or fewer system calls."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import resource
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from rustguard_py.engine import has_native
from rustguard_py.proxy.relay import Relay
from support.other_user import as_user, needs_other_users
from support.proxied import PATIENCE, descriptors, ends, make, nothing_left, until

pytestmark = pytest.mark.skipif(not has_native(), reason="the native plane isn't built")
BODY = random.Random(7).randbytes(8 << 20)


def joined(relay: Relay) -> tuple[socket.socket, socket.socket]:
    (client, outside), (inside, server) = socket.socketpair(), socket.socketpair()
    for each in (client, server):
        each.setblocking(False)
    relay.add(outside.detach(), inside.detach(), b"")
    return client, server


async def carries(relay: Relay) -> None:
    """Check that a new connection carries bytes unchanged, and close it."""
    loop = asyncio.get_running_loop()
    client, server = joined(relay)

    async def send() -> None:
        await loop.sock_sendall(client, BODY)
        client.shutdown(socket.SHUT_WR)

    async with asyncio.timeout(PATIENCE):
        sending = asyncio.create_task(send())
        got = bytearray()
        while data := await loop.sock_recv(server, 1 << 18):
            got += data
        await sending
    assert got == BODY
    client.close()
    server.close()


def test_without_descriptors_for_pipes_bytes_go_through_a_buffer() -> None:
    async def main() -> None:
        relay = make("native")
        client, server = joined(relay)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        filler = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 1, limits[1]))
        try:
            while True:
                try:
                    filler.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            client.sendall(b"hello")
            assert await asyncio.get_running_loop().sock_recv(server, 100) == b"hello"
            assert relay.statistics().bytes_copied == 5
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for each in filler:
                os.close(each)
        # And by pipes again once there are some.
        await carries(relay)
        client.close()
        server.close()
        await ends(relay, 2)
        assert relay.statistics().bytes_copied == 5
        relay.close()

    with nothing_left():
        asyncio.run(main())


@needs_other_users
@pytest.mark.timeout(120)
def test_an_ordinary_user_gets_smaller_pipes_beyond_the_limit_of_all() -> None:
    # pipe-user-pages-soft, in pages; a pipe of ours has 64. The threads keep the credentials they are made with.
    most = 16384 // 64

    def sizes() -> list[int]:
        pipes = [int(number) for number, what in descriptors().items() if what.startswith("pipe:")]
        return [fcntl.fcntl(each, fcntl.F_GETPIPE_SZ) for each in pipes]

    async def main() -> None:
        before = len(sizes())
        relay = as_user(lambda: make("native", pipes=4096))
        stuck = [joined(relay) for _ in range(most + 60)]

        def each_has_a_pipe() -> bool:
            for client, _ in stuck:
                with suppress(BlockingIOError):
                    while True:
                        client.send(bytes(1 << 16))
            return len(sizes()) >= before + 2 * len(stuck)

        await until("each has a pipe", each_has_a_pipe)
        small = [each for each in sizes() if each < 1 << 16]
        assert len(small) >= 2 * 30, "the limit was never reached"
        await carries(relay)
        assert relay.statistics().bytes_copied == 0
        for client, server in stuck:
            client.close()
            server.close()
        relay.close()

    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[1], held[1]))
    try:
        with nothing_left():
            asyncio.run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, held)


def test_the_filter_of_system_calls_leaves_the_proxy_its_own() -> None:
    program = """
import asyncio
import ctypes

from rustguard_py import _native
from support.proxied import echo, proxy, served, talk

ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert _native.refuse_system_calls(uring=False, xdp=False, modes=True) > 50


async def main():
    for kind in ("native", "portable"):
        async with served(echo) as port, proxy(kind) as (made, at):
            connect = bytes([5, 1, 0, 1, 127, 0, 0, 1]) + port.to_bytes(2)
            answer = await talk(at, bytes([5, 1, 0]), connect + b"hello", end=True)
            assert answer[12:] == b"hello", answer
            print(kind, made.statistics().relay.bytes_copied)


asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # Spliced, not copied.
    assert done.stdout.splitlines() == ["native 0", "portable 10"]
