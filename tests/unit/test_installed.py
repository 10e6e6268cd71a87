"""The tests use what a user gets: the installed package, never the checkout around them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

import rustguard_py
from rustguard_py.engine import has_native

ROOT = Path(__file__).resolve().parents[2]


def test_the_checkout_is_not_on_the_import_path() -> None:
    assert ROOT not in {Path(entry).resolve() for entry in sys.path}


@pytest.mark.skipif("RUSTGUARD_INSTALLED" not in os.environ, reason="an editable install: run by make test")
def test_the_package_under_test_is_the_installed_one() -> None:
    assert Path(rustguard_py.__file__).is_relative_to(sysconfig.get_path("purelib"))


def test_a_child_process_started_in_the_checkout_finds_the_same_package() -> None:
    script = "import rustguard_py, rustguard_py.state; print(rustguard_py.__file__)"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == rustguard_py.__file__


@pytest.mark.skipif("RUSTGUARD_INSTALLED" not in os.environ, reason="an editable install: run by make test")
@pytest.mark.skipif(has_native(), reason="the native plane is built here")
def test_a_wheel_without_the_native_plane_fits_every_machine() -> None:
    said = distribution("rustguard-py").read_text("WHEEL") or ""
    assert "Tag: py3-none-any\n" in said
    assert "Root-Is-Purelib: true\n" in said


@pytest.mark.skipif("RUSTGUARD_INSTALLED" not in os.environ, reason="an editable install: run by make test")
@pytest.mark.skipif(not has_native(), reason="without the native plane a wheel fits every machine")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="manylinux says which glibc a wheel needs")
def test_a_wheel_fits_every_python_from_3_11_and_every_linux_with_this_glibc() -> None:
    glibc = platform.libc_ver()[1].replace(".", "_")
    said = distribution("rustguard-py").read_text("WHEEL") or ""
    assert f"Tag: cp311-abi3-manylinux_{glibc}_{platform.machine()}\n" in said
