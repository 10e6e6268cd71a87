"""What `rustguard-wg` says before it makes anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rustguard_py.daemon.console import Voice
from rustguard_py.engine import Engine
from rustguard_py.model.errors import InUseError
from rustguard_py.quick.wg_daemon import WgOptions, serve
from rustguard_py.state.document import Document


def test_a_second_one_of_the_same_name_says_how_to_end_the_first(tmp_path: Path) -> None:
    said: list[str] = []
    options = WgOptions("wg0", tmp_path / "wg0", Engine("portable", ""), None, None)
    first = Document.open(options.directory)
    try:
        with pytest.raises(InUseError) as refused:
            asyncio.run(serve(options, Voice(change=said.append, say=said.append), lambda: said.append("ready")))
    finally:
        first.close()
    assert "wg0" in refused.value.message
    # It has no --state.
    assert "--state" not in str(refused.value.fix)
    assert "rm /var/run/wireguard/wg0.sock" in str(refused.value.fix)
    assert said == []
