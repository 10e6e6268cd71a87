"""Which engine is chosen, with how many queues, and what is reported about it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from rustguard_py import engine
from rustguard_py.data_path import DataPath
from rustguard_py.kernel import napi
from rustguard_py.model.counted import counted
from rustguard_py.model.errors import RefusedError, UsageError


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's kernel has."""
    monkeypatch.setattr(engine, "why_no_kernel", lambda: "This kernel has none.")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, no_kernel: None) -> None:  # noqa: ARG001 - it comes after that
    monkeypatch.setattr(engine, "why_no_kernel", lambda: None)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_native", lambda: True)
    monkeypatch.setattr(engine, "_aead", lambda: "ring")


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_native", lambda: False)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("cores", "queues"), [(1, 1), (2, 1), (4, 2), (8, 4), (64, 8)])
def test_auto_is_native_with_two_threads_a_queue(monkeypatch: pytest.MonkeyPatch, cores: int, queues: int) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    chosen = engine.choose(DataPath())
    assert (chosen.name, chosen.queues) == ("native", queues)
    assert f"for {counted(cores, 'core')}" in chosen.reason


@pytest.mark.usefixtures("native")
def test_a_number_of_queues_is_taken_as_it_is() -> None:
    assert engine.choose(DataPath("native", "3")).queues == 3
    assert engine.choose(DataPath("portable", "3")).queues == 1
    assert "one queue" in engine.choose(DataPath("portable", "3")).reason


@pytest.mark.usefixtures("no_native")
def test_without_the_native_one_auto_is_portable_and_says_why() -> None:
    chosen = engine.choose(DataPath())
    assert chosen.name == "portable"
    assert "not built" in chosen.reason
    with pytest.raises(RefusedError, match="no native engine"):
        engine.choose(DataPath("native"))


@pytest.mark.parametrize(("name", "queues"), [("vpp", "auto"), ("auto", "0"), ("auto", "257"), ("auto", "many")])
def test_what_cannot_be_meant_is_refused(name: str, queues: str) -> None:
    with pytest.raises(UsageError):
        engine.choose(DataPath(name, queues))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("refusal", "said"),
    [(None, "; io_uring"), ("Operation not permitted", "refuses io_uring (Operation not permitted)")],
)
def test_io_uring_is_asked_for_and_the_reason_says_whether_it_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch, refusal: str | None, said: str
) -> None:
    monkeypatch.setattr(engine, "uring_refusal", lambda: refusal)
    chosen = engine.choose(DataPath("auto", "1", uring=True))
    assert (chosen.name, chosen.uring) == ("native", True)
    assert said in chosen.reason
    assert not engine.choose(DataPath("auto", "1")).uring


def test_the_portable_engine_has_no_io_uring() -> None:
    with pytest.raises(UsageError, match="no io_uring") as refused:
        engine.choose(DataPath("portable", uring=True))
    assert "--uring" in refused.value.fix


@pytest.mark.usefixtures("no_native")
def test_without_the_native_engine_io_uring_is_refused() -> None:
    with pytest.raises(RefusedError, match="no native engine") as refused:
        engine.choose(DataPath(uring=True))
    assert "--uring" in refused.value.fix


@pytest.mark.usefixtures("native")
def test_an_aead_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTGUARD_AEAD", "ring")
    assert engine.choose(DataPath()).reason.endswith("AEAD: ring")
    monkeypatch.setenv("RUSTGUARD_AEAD", "")
    assert "AEAD: " in engine.choose(DataPath()).reason
    monkeypatch.setenv("RUSTGUARD_AEAD", "rign")
    with pytest.raises(UsageError, match="RUSTGUARD_AEAD"):
        engine.choose(DataPath())


@pytest.mark.parametrize("variable", ["auto", "lanes8", "ring"])
def test_the_variable_decides_what_the_native_plane_seals_with(variable: str) -> None:
    pytest.importorskip("rustguard_py._native", reason="the native plane isn't built here")
    told = subprocess.run(
        [sys.executable, "-c", "from rustguard_py import _native; print(_native.aead())"],
        env={**os.environ, "RUSTGUARD_AEAD": variable},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    sixteen = "AVX-512 for 16 packets at once, AVX2 for 2 short ones, ring for the rest"
    eight = "AVX2 for several short packets at once, ring for the rest"
    possible = {"auto": ("ring", eight, sixteen), "lanes8": ("ring", eight), "ring": ("ring",)}
    assert told.stdout.strip() in possible[variable]


@pytest.mark.usefixtures("native")
def test_xdp_takes_an_ethernet_interface_that_is_there() -> None:
    for name in ("lo", "none-such", "longer-than-any-name"):
        with pytest.raises(RefusedError) as refused:
            engine.choose(DataPath("native", "1", xdp=name))
        assert name in str(refused.value)
        assert "ip " in str(refused.value.fix)
    with pytest.raises(UsageError):
        engine.choose(DataPath("portable", "1", xdp="lo"))
    with pytest.raises(UsageError):
        engine.choose(DataPath("native", "1", uring=True, xdp="lo"))


@pytest.mark.usefixtures("no_native")
def test_xdp_needs_the_native_one() -> None:
    with pytest.raises(RefusedError, match="no native engine"):
        engine.choose(DataPath("auto", "1", xdp="lo"))


@pytest.mark.usefixtures("kernel")
def test_auto_takes_the_kernels_where_it_is_and_says_so() -> None:
    chosen = engine.choose(DataPath())
    assert (chosen.name, chosen.in_kernel) == ("kernel", True)
    assert "this kernel has WireGuard" in chosen.reason
    assert engine.choose(DataPath("kernel")).reason == "asked for"
    assert not engine.choose(DataPath("portable")).in_kernel
    # Its offloads are the kernel's own. Whoever names some is told so.
    assert engine.choose(DataPath("kernel", offloads="auto")).reason == "asked for"
    named = engine.choose(DataPath("kernel", offloads="none"))
    assert named.reason == "asked for; it has offloads of its own, so --offloads has no effect"


@pytest.mark.usefixtures("kernel", "native")
@pytest.mark.parametrize(
    ("given", "option"),
    [({"queues": "2"}, "--queues"), ({"uring": True}, "--uring")],
)
def test_what_only_our_engines_have_makes_auto_take_one_and_is_refused_with_the_kernels(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], option: str
) -> None:
    monkeypatch.setattr(engine, "uring_refusal", lambda: None)
    asked = DataPath(**given)
    chosen = engine.choose(asked)
    assert chosen.name == "native"
    assert f"{option} needs it" in chosen.reason
    with pytest.raises(UsageError, match=option):
        engine.choose(replace(asked, engine="kernel"))


@pytest.mark.usefixtures("kernel", "native")
def test_threaded_napi_makes_auto_take_the_kernels_where_it_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(napi, "this_linux", lambda: (6, 16, 3))
    for wanted in ("auto", "kernel"):
        chosen = engine.choose(DataPath(wanted, threaded_napi=True))
        assert (chosen.name, chosen.threaded_napi) == ("kernel", True)
        assert "threaded NAPI" in chosen.reason
    for wanted in ("native", "portable"):
        with pytest.raises(UsageError, match=f"not of the {wanted} one") as refused:
            engine.choose(DataPath(wanted, threaded_napi=True))
        assert "--engine kernel" in refused.value.fix
    with pytest.raises(UsageError, match="--queues"):
        engine.choose(DataPath("auto", "2", threaded_napi=True))
    monkeypatch.setattr(napi, "this_linux", lambda: (6, 12, 57))
    with pytest.raises(RefusedError, match="CVE-2026-52945") as unsafe:
        engine.choose(DataPath(threaded_napi=True))
    assert "Leave out --threaded-napi" in unsafe.value.fix


def test_threaded_napi_is_refused_where_there_is_no_kernels() -> None:
    with pytest.raises(RefusedError, match="has none") as refused:
        engine.choose(DataPath(threaded_napi=True))
    assert "without --threaded-napi" in refused.value.fix


def test_the_kernels_is_refused_where_there_is_none_with_the_fix() -> None:
    with pytest.raises(RefusedError, match="has none") as refused:
        engine.choose(DataPath("kernel"))
    assert "modprobe wireguard" in refused.value.fix
    assert "--engine auto" in refused.value.fix


def test_an_engine_has_one_queue_and_nothing_that_was_not_asked_for() -> None:
    made = engine.Engine("native", "it is there")
    assert (made.queues, made.uring, made.xdp, made.threaded_napi, made.queues_asked, made.notes) == (
        *(1, False, None, False, False, ()),
    )
    assert not made.in_kernel
