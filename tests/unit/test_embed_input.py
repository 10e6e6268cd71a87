"""What a program may ask `connect` for, and how it learns what is wrong: before anything is opened, with the fix."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, cast

import pytest

import rustguard_py
from rustguard_py import InUseError, RefusedError, RustGuardError, UsageError
from rustguard_py.engine import has_native
from rustguard_py.model.keys import encode_key
from rustguard_py.state.document import Document
from support.embedded import Belongings, Ends, free_port, to_one
from support.engines import on_both_engines
from support.other_user import as_user, needs_other_users

CONFIG = Ends().other()
# `connect` is typed, and here it is called as by a program without types.
connect = cast(Callable[..., Any], rustguard_py.connect)


def _with(*lines: str) -> str:
    """The configuration with more lines in its [Interface]."""
    return CONFIG.replace("[Interface]", "\n".join(("[Interface]", *lines)))


@pytest.mark.parametrize(
    ("source", "arguments", "what", "fix"),
    [
        ("wg0.conf", {}, "'wg0.conf' is not the text of a wg-quick", r"connect\(Path\('wg0.conf'\)\)"),
        ("vpn.example", {}, "is not the text", r"connect\('vpn.example', token=…\)"),
        (Path("/nowhere/wg0.conf"), {}, "There is no file /nowhere/wg0.conf", "path of a wg-quick file"),
        (Path("/"), {}, "/ is a folder", "path of a wg-quick file in it"),
        (Path(), {}, r"\. is a folder", "path of a wg-quick file in it"),
        (Path("a\0b"), {}, "holds a zero byte", "Pass the path"),
        (Path("x" * 300), {}, "xx… can't be read: File name too long", "path of a wg-quick file"),
        (Path("~nobody-here/wg0.conf"), {}, "no known user", "in full"),
        (5, {}, "is of type int", "Pass a str or a Path"),
        (CONFIG.encode(), {}, "is of type bytes", "Pass a str or a Path"),
        (CONFIG, {"engine": 5}, "engine= is of type int", "Pass a str"),
        (CONFIG, {"timeout": float("inf")}, "timeout=inf is no number", "None"),
        (CONFIG, {"timeout": 1e9}, "timeout=1000000000.0 is no number", "None"),
        ("vpn.example", {"token": "x", "name": 5}, "name= is of type int", "Pass a str"),
        ("vpn.example", {"token": "x", "fingerprint": 5}, "fingerprint= is of type int", "Pass a str"),
        ("vpn.example", {"token": "x", "routes": 5}, "routes=5 is no list of networks", "192.168.7.0/24"),
        ("vpn.example", {"token": "x", "routes": b"all"}, "routes=b'all' is no list", "192.168.7.0/24"),
        ("vpn.example", {"token": "x", "state": 5}, "state= is of type int", "Pass a str or a Path"),
        ("vpn.example", {"token": "x", "state": b"folder"}, "state= is of type bytes", "Pass a str or a Path"),
        ("vpn.example", {"token": "x", "state": ""}, "state= is empty", "Pass the path"),
        ("vpn.example", {"state": "a\0b"}, "state= holds a zero byte", "Pass the path"),
        ("vpn.example", {"state": "~nobody-here/x"}, "no known user", "in full"),
        ("[Interface]\nPrivateKey = x\n", {}, "the configuration, line 2: PrivateKey is no key", "Copy it again"),
        (_with("PostUp = nft -f x"), {}, "has commands to run", "ignore_hooks=True"),
        (_with("Tabel = 1"), {}, "no key Tabel", "Did you mean Table"),
        ("[Interface]\nPostUp = wg set\n", {"ignore_hooks": True}, "has no PrivateKey", r"below \[Interface\]"),
        (CONFIG, {"name": "laptop"}, "name= is for a server", "token= or state="),
        (CONFIG, {"fingerprint": "x"}, "fingerprint= is for a server", "token= or state="),
        (CONFIG, {"routes": "all"}, "routes= is for a server", "token= or state="),
        (CONFIG, {"engine": "kernel"}, "needs an interface", "'native' or 'portable'"),
        (CONFIG, {"engine": "fastest"}, "There is no engine 'fastest'", "Choose one of"),
        (CONFIG, {"capacity": 1.5}, "capacity=1.5 is no number", "change it"),
        (CONFIG, {"capacity": "5"}, "capacity=5 is no number", "change it"),
        (CONFIG, {"timeout": -1}, "timeout=-1 is no number", "None"),
        (CONFIG, {"timeout": float("nan")}, "timeout=nan is no number", "None"),
        (CONFIG, {"timeout": "5"}, "timeout='5' is no number", "None"),
        (CONFIG, {"capacity": 0}, "capacity=0 is no number", "change it"),
        ("vpn.example", {"token": ""}, "The token is empty", "rustguard serve"),
        ("vpn.example", {"token": "\n"}, "The token is empty", "rustguard serve"),
        ("vpn.example", {"token": b"x"}, "The token is of type bytes", "Pass a str"),
        ("vpn.example", {"token": "a\nb"}, "holds control characters", "rustguard serve"),
        ("vpn.example:70000", {"token": "x"}, "70000 is not a UDP port", "1 to 65535"),
        ("a home", {"token": "x"}, "is not an address", "home.example:51820"),
        ("vpn.example", {"token": "x", "name": "a\nb"}, "name='a\\\\nb'", "such as laptop"),
        ("vpn.example", {"token": "x", "fingerprint": "abc"}, "fingerprint has 16", "Copy it"),
        ("vpn.example", {"token": "x", "routes": "some"}, "neither 'all' nor 'none'", "a list"),
        ("vpn.example", {"token": "x", "routes": ["10.0.0.1/8"]}, "10.0.0.1/8 has host bits", "192.168.7.0/24"),
        ("vpn.example", {"token": "x", "ignore_hooks": True}, "ignore_hooks is for a configuration", "Leave it out"),
    ],
)
def test_what_is_wrong_is_said_with_the_fix(source: object, arguments: dict[str, Any], what: str, fix: str) -> None:
    before = Belongings.look()
    with pytest.raises(UsageError) as caught:
        connect(source, **arguments)
    assert re.search(what, caught.value.message)
    assert re.search(fix, caught.value.fix)
    # A traceback shows both.
    shown = "".join(traceback.format_exception(caught.value))
    assert caught.value.message in shown
    assert caught.value.fix in shown
    assert Belongings.look().more_than(before) == set()


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rustguard_py.engine.has_native", lambda: False)
    with pytest.raises(RefusedError, match="has no native engine"):
        connect(CONFIG, engine="native")
    with connect(CONFIG, timeout=None) as tunnel:
        assert tunnel.engine == "portable"


@needs_other_users
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(CONFIG)
    file.chmod(0o600)
    with pytest.raises(RefusedError, match="no permission to read"):
        as_user(lambda: connect(file))


def test_a_file_is_read_with_everything_in_it(tmp_path: Path) -> None:
    file, port = tmp_path / "wg0.conf", free_port()
    text = _with(
        "DNS = 10.9.0.1, fd09::1, office.example", f"ListenPort = {port}", "MTU = 1300", "Table = off", "PostUp = :"
    )
    file.write_bytes(b"# caf\xe9\n" + text.encode())
    with rustguard_py.connect(file, ignore_hooks=True, timeout=None) as tunnel:
        assert tunnel.addresses == (ip_interface("10.9.0.2/24"), ip_interface("fd09::2/64"))
        assert tunnel.dns == (ip_address("10.9.0.1"), ip_address("fd09::1"))
        assert tunnel.search == ("office.example",)
        assert (tunnel.mtu, tunnel.port, tunnel.name) == (1300, port, "")
        assert tunnel.engine == ("native" if has_native() else "portable")


def test_a_file_without_an_mtu_has_the_usual_one() -> None:
    with rustguard_py.connect(CONFIG, timeout=None) as tunnel:
        assert tunnel.mtu == 1420


def test_a_port_that_is_taken_is_an_error_with_the_fix() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        text = _with(f"ListenPort = {taken.getsockname()[1]}")
        with pytest.raises(RefusedError, match="can't be bound") as caught, rustguard_py.connect(text):
            pass
        assert "ListenPort" in caught.value.fix


@needs_other_users
def test_a_mark_needs_a_capability() -> None:
    def attempt() -> None:
        with rustguard_py.connect(_with("FwMark = 51820"), timeout=None):
            pass

    attempt()
    with pytest.raises(RefusedError, match=r"FwMark.*CAP_NET_ADMIN"):
        as_user(attempt)


@on_both_engines
@pytest.mark.parametrize("more", [4, 7, 9, 11])
def test_a_limit_of_open_files_is_named(engine: str, more: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(CONFIG, timeout=None, engine=engine):
        pass  # what a first use opens and keeps
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        while (filler := os.open("/dev/null", os.O_RDONLY)) < highest:
            stack.callback(os.close, filler)
        stack.callback(os.close, filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (filler + 1 + more, limits[1]))
        with pytest.raises(RustGuardError, match="Too many open files") as caught:
            connect(CONFIG, timeout=None, engine=engine).__enter__()
        assert "ulimit -n" in caught.value.fix


def test_one_packet_in_place_of_a_list_is_refused() -> None:
    with connect(CONFIG, timeout=None) as tunnel, pytest.raises(UsageError, match="not a list") as caught:
        tunnel.write_batch(to_one())
    assert caught.value.fix == "Write [packet]."


@on_both_engines
@pytest.mark.parametrize(
    "packets",
    [
        None,
        5,
        [None],
        [5],
        "text",
        [memoryview(bytes(4000)).cast("I")],
        [memoryview(bytes(4000)).cast("B", (40, 100))],
        [memoryview(bytes(200))[::2]],
    ],
)
def test_what_is_no_packet_is_refused(engine: str, packets: object) -> None:
    with connect(CONFIG, timeout=None, engine=engine) as tunnel, pytest.raises(UsageError):
        tunnel.write_batch(packets)


def test_no_packets_can_t_be_asked_for() -> None:
    with connect(CONFIG, timeout=None) as tunnel, pytest.raises(UsageError, match="most=0 is no number"):
        tunnel.read_batch(0)


def test_a_server_without_token_has_to_be_in_the_state(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"vpn\.example was not joined before") as caught:
        rustguard_py.connect("vpn.example", state=tmp_path / "state").__enter__()
    assert "token=" in caught.value.fix
    assert list(tmp_path.iterdir()) == [], "a mistyped folder isn't made"


def test_a_state_whose_name_is_too_long_is_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(RustGuardError, match="File name too long") as caught:
        rustguard_py.connect("vpn.example", state=tmp_path / ("x" * 300)).__enter__()
    assert caught.value.fix


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1, -0.001, 1e9, "5"])
def test_every_wait_takes_only_a_number_of_seconds(timeout: object) -> None:
    async def ask() -> None:
        async with connect(CONFIG, timeout=None) as tunnel:
            waits: list[Callable[[], Awaitable[object]]] = [
                lambda: tunnel.read_batch(timeout=timeout),
                lambda: tunnel.write_batch([to_one()], timeout=timeout),
                lambda: tunnel.wait_connected(timeout),
            ]
            for wait in waits:
                with pytest.raises(UsageError, match="is no number of seconds") as caught:
                    await wait()
                assert "None" in caught.value.fix

    asyncio.run(ask())
    with connect(CONFIG, timeout=None) as tunnel:
        uses: list[Callable[[], object]] = [
            lambda: tunnel.read_batch(timeout=timeout),
            lambda: tunnel.write_batch([to_one()], timeout=timeout),
            lambda: tunnel.wait_connected(timeout),
        ]
        for use in uses:
            with pytest.raises(UsageError, match="is no number of seconds"):
                use()


def test_a_state_is_used_by_one_tunnel_at_a_time(tmp_path: Path) -> None:
    document = Document.open(tmp_path / "state")
    try:
        with pytest.raises(InUseError):
            rustguard_py.connect("vpn.example", state=tmp_path / "state").__enter__()
    finally:
        document.close()


def test_the_exceptions_are_exported_and_of_one_family() -> None:
    for name in ("UsageError", "RefusedError", "UnansweredError", "StateError", "InUseError", "ClosedError"):
        assert issubclass(getattr(rustguard_py, name), RustGuardError)
    for name in rustguard_py.__all__:
        assert getattr(rustguard_py, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = rustguard_py.conect


def test_importing_the_package_imports_none_of_it() -> None:
    code = "import sys; import rustguard_py; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert [each for each in loaded if each.startswith("rustguard")] == ["rustguard_py"]
    assert {"asyncio", "cryptography", "numpy"} & set(loaded) == set()


def test_secrets_are_in_no_representation() -> None:
    ends = Ends()
    connecting = rustguard_py.connect(ends.other())
    token = rustguard_py.connect("vpn.example", token="maple-comet-fjord")  # noqa: S106
    for each in (connecting, token):
        shown = f"{each!r} {vars(each)!r}"
        assert encode_key(ends.other_key) not in shown
        assert repr(ends.other_key)[2:-1] not in shown
        assert "maple" not in shown


@pytest.mark.parametrize("most", [0, 1.5, 2**70])
def test_most_is_a_number_of_packets(most: object) -> None:
    with connect(CONFIG, timeout=None) as tunnel, pytest.raises(UsageError, match="is no number"):
        tunnel.read_batch(most)


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (CONFIG, {"token": "x"}),
        (CONFIG, {"state": "folder"}),
        (CONFIG.replace("\n", " "), {"token": "x"}),
        ("PrivateKey = " + encode_key(bytes(range(32))), {"token": "x"}),
        ("PrivateKey = " + encode_key(bytes(range(32))), {}),
        (encode_key(bytes(range(32))), {}),
    ],
)
def test_no_message_quotes_a_configuration(source: str, arguments: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        connect(source, **arguments)
    shown = "".join(traceback.format_exception_only(caught.value)) + caught.value.fix
    assert "PrivateKey" not in shown
    assert all(word not in shown for word in source.split() if len(word) == 44)


def test_a_long_source_is_cut_where_a_message_quotes_it() -> None:
    with pytest.raises(UsageError, match="is not the text") as caught:
        connect("x" * 1000)
    assert "x" * 61 not in caught.value.message + caught.value.fix


def test_a_token_loses_the_line_end_of_a_file() -> None:
    made = connect("vpn.example", token="maple-comet-fjord\n")  # noqa: S106
    assert made._plan.applicant.token == "maple-comet-fjord"  # noqa: S105
