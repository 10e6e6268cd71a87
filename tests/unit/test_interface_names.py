"""Which names an interface can have, and which pools a server can give out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rustguard_py.cli.app import run
from rustguard_py.daemon import runtime
from rustguard_py.model.errors import NameTakenError, UsageError
from rustguard_py.system.interface import check_interface_name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a/b",
        "a:b",
        ".",
        "..",
        "all",
        "default",
        "rg%d",
        "%",
        "a\tb",
        "a\u00a0b",
        "a" * 16,
        "\u00e4" * 8,
        "-x",
        "-",
    ],
)
def test_a_name_that_the_kernel_or_ip_refuses_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't name an interface"):
        check_interface_name(name)


@pytest.mark.parametrize("name", ["rg0", "a" * 15, "wg-home.1", "\u00e4", "..."])
def test_a_name_that_the_kernel_takes_is_taken(name: str) -> None:
    check_interface_name(name)


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--pool", "10.1.0.0/24", "--interface", "a b"],
        ["join", "h", "--interface", "rg%d"],
        ["serve", "--pool", "10.1.0.0/24", "--interface", "-x"],
    ],
)
def test_a_bad_name_ends_the_command_at_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUSTGUARD_TOKEN", "maple-comet-fjord")
    assert run([*words, "--state", str(tmp_path / "state")]) == 2
    assert "can't name an interface" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("option", "pool", "what"),
    [
        ("--pool", "224.5.0.0/24", "multicast"),
        ("--pool", "240.0.0.0/24", "reserved"),
        ("--pool", "127.0.0.0/24", "own"),
        ("--pool", "0.0.0.0/0", "multicast"),
        ("--pool", "169.254.0.0/24", "link-local"),
        ("--pool6", "ff05::/64", "multicast"),
        ("--pool6", "fe80::/64", "link-local"),
    ],
)
def test_a_pool_of_addresses_that_no_host_can_have_is_refused(
    option: str, pool: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", option, pool, "--state", str(tmp_path / "state")]) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_taken_name_is_followed_by_the_next_one_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(f"rg{number}" for number in range(100))
    monkeypatch.setattr(runtime, "free_interface_name", lambda **_: next(names))
    undone: list[str] = []

    def make(stack: AsyncExitStack, name: str) -> str:
        stack.callback(undone.append, name)
        if name in ("rg0", "rg1"):
            raise NameTakenError(f"{name} is taken.")
        return name

    async def main(asked: str | None) -> str:
        async with AsyncExitStack() as stack:
            made = await runtime.with_free_name(stack, asked, make)
            assert made not in undone
        return made

    assert asyncio.run(main(None)) == "rg2"
    assert undone == ["rg0", "rg1", "rg2"]
    # One that was asked for is not replaced.
    with pytest.raises(NameTakenError):
        asyncio.run(main("rg1"))
