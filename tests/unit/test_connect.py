"""What a client says of a server's name that isn't found at the start."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from rustguard_py.daemon.console import Voice
from rustguard_py.enroll.client import connect
from rustguard_py.model.errors import UnansweredError
from support.joined import NETWORK


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
    assert asyncio.run(connect.locate(NETWORK, Voice(change=said.append, say=said.append))) is None
    assert said == [says]
