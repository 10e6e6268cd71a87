"""What a client says of a server's name that isn't found at the start."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface
from typing import NoReturn

import pytest

from rustguard_py.daemon.console import Voice
from rustguard_py.enroll.client import connect
from rustguard_py.model.errors import UnansweredError
from rustguard_py.state.records import NetworkRecord


def network() -> NetworkRecord:
    return NetworkRecord(
        host="home.example",
        port=51820,
        server_key=b"s" * 32,
        preshared_key=b"p" * 32,
        name="laptop",
        address4=IPv4Interface("10.150.0.2/24"),
        address6=None,
        routes=(),
        mtu=1420,
        keepalive=25,
        gateway4=None,
        gateway6=None,
        joined=0.0,
    )


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (True, "The name home.example can't be resolved: no server. It is looked up again until it is found."),
        (False, "The name home.example isn't resolved yet. It is looked up again until it is found."),
    ],
)
def test_a_name_that_isnt_found_at_the_start_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, answers: bool, says: str
) -> None:
    async def resolve(host: str, _: int) -> NoReturn:
        if not answers:
            await asyncio.sleep(60)
        raise UnansweredError(f"The name {host} can't be resolved: no server.")

    said: list[str] = []
    monkeypatch.setattr(connect, "resolve", resolve)
    monkeypatch.setattr(connect, "FIRST_LOOK", 0.01)
    assert asyncio.run(connect.locate(network(), Voice(change=said.append, say=said.append))) is None
    assert said == [says]
