"""The steps that server and client share, without an interface."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rustguard_py.daemon import runtime
from rustguard_py.daemon.program import Program
from rustguard_py.engine import Engine
from rustguard_py.kernel import kernel_tunnel, napi, netlink
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.keys import generate_private_key, public_key

NATIVE, KERNEL = Engine("native", "asked for"), Engine("kernel", "asked for", threaded_napi=True)


def test_an_interface_needs_a_free_name_and_outside_the_kernel_a_tun_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(runtime, "require_tun", lambda: asked.append("tun"))
    monkeypatch.setattr(runtime, "interface_exists", lambda name: name == "taken")
    runtime.check_interface("rg0", KERNEL)
    assert asked == []
    runtime.check_interface("rg0", NATIVE)
    assert asked == ["tun"]
    with pytest.raises(RefusedError, match="There is an interface taken already") as caught:
        runtime.check_interface("taken", NATIVE, "Do this.")
    assert caught.value.fix == "Do this."
    with pytest.raises(RustGuardError):
        runtime.check_interface("x" * 16, KERNEL)


def test_a_tunnel_in_the_kernel_gets_its_key_sockets_and_settings_and_is_undone_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[object] = []
    device = SimpleNamespace(remove=lambda: done.append("removed"))

    def make(name: str, alias: str) -> object:
        done.append((name, alias))
        return device

    def settle(name: str, of: object, *, wanted: bool) -> list[str]:
        done.append((name, of is device, wanted))
        return ["a note"]

    def tunnel(*arguments: object, **options: object) -> object:
        assert callable(options.pop("make"))
        done.append((arguments[0], *arguments[2:], options))
        assert arguments[1] is device
        return SimpleNamespace(close=lambda: done.append("closed"))

    monkeypatch.setattr(netlink.KernelInterface, "make", make)
    monkeypatch.setattr(napi, "settle", settle)
    monkeypatch.setattr(kernel_tunnel, "KernelTunnel", tunnel)
    own, pairing = cast(Any, ["own"]), cast(Any, ["pairing"])
    program = Program("server", tmp_path, "rg0", KERNEL, 0.0)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            runtime.make_kernel_tunnel(stack, program, "rg1", b"k" * 32, own, pairing, several=True)

    asyncio.run(main())
    assert done == [
        ("rg1", f"rustguard {tmp_path}"),
        ("rg1", True, True),
        (b"k" * 32, ["own"], ["pairing"], {"several": True, "notes": ["a note"]}),
        "closed",
        "removed",
    ]


@pytest.mark.parametrize("found", [["rg0"], []])
def test_what_a_killed_run_left_is_removed_by_its_keys_and_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: list[str]
) -> None:
    asked: list[object] = []

    def remove(keys: object, alias: str) -> list[str]:
        asked.append((keys, alias))
        return found

    monkeypatch.setattr(netlink, "remove_leftovers", remove)
    private = generate_private_key()
    assert runtime.remove_leftovers([private], tmp_path) is bool(found)
    assert runtime.remove_leftovers(None, tmp_path) is bool(found)
    alias = f"rustguard {tmp_path}"
    assert asked == [([public_key(private)], alias), (None, alias)]


def test_one_of_several_tunnels_that_breaks_is_logged_and_only_the_last_ends_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        tunnels = [SimpleNamespace(stopped=asyncio.Event(), fault=None) for _ in range(2)]
        task = asyncio.ensure_future(runtime.until_all_stopped(asyncio.Event(), cast(Any, tunnels)))
        for tunnel, is_last in zip(tunnels, (False, True), strict=True):
            tunnel.fault = RustGuardError("The data plane stopped: gone")
            tunnel.stopped.set()
            await asyncio.wait({task}, timeout=0.05)
            assert task.done() is is_last
        with pytest.raises(RustGuardError, match="gone"):
            await task

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert caplog.text.count("one of several tunnels broke") == 1


def test_a_server_that_is_stopped_ends_without_an_error() -> None:
    async def main() -> None:
        stopped, tunnel = asyncio.Event(), SimpleNamespace(stopped=asyncio.Event(), fault=None)
        task = asyncio.ensure_future(runtime.until_all_stopped(stopped, cast(Any, [tunnel])))
        await asyncio.sleep(0)
        stopped.set()
        await asyncio.wait_for(task, 10)

    asyncio.run(main())
