"""The wheel and the source distribution in a fresh Debian 13 without a compiler or a network: by pip and by pipx."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.debian_root import CHECKOUT, DIST, Root, archive

pytestmark = [pytest.mark.needs_packages, pytest.mark.timeout(600)]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
# What pip needs to build from source, and pipx to make its environments.
BUILD = ("setuptools", "setuptools-rust", "wheel", "pip")
HAS_NATIVE = "from rustguard_py.engine import has_native; print(has_native())"


def newest(pattern: str) -> Path:
    return max(DIST.glob(pattern), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheel and all that it needs from PyPI, for Debian 13's Python."""
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "-d", folder,
         "-c", CHECKOUT / "requirements/dev.lock",
         "--implementation=cp", "--python-version=313", "--abi=cp313", "--abi=abi3", "--abi=none",
         *(f"--platform={each}" for each in PLATFORMS), newest("rustguard_py-*_x86_64.whl"), *BUILD],
        check=True, timeout=500,
    )  # fmt: skip
    return folder


@pytest.fixture
def root(tmp_path: Path, found: Path) -> Root:
    made = Root(tmp_path / "root", archive("trixie", include=("python3", "python3-venv", "pipx")))
    for file in (*found.iterdir(), newest("rustguard_py-*.tar.gz")):
        (made.folder / "root" / file.name).write_bytes(file.read_bytes())
    return made


def offline(*words: str) -> list[str]:
    return ["env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/root", "PIP_ROOT_USER_ACTION=ignore", *words]


def test_the_wheel_is_installed_by_pip_and_by_pipx(root: Root) -> None:
    root.run(["python3", "-m", "venv", "/opt/rustguard"])
    root.run(offline("/opt/rustguard/bin/pip", "install", "-q", f"/root/{newest('rustguard_py-*_x86_64.whl').name}"))
    assert root.run(["/opt/rustguard/bin/rustguard", "--version"]).stdout.startswith("rustguard, version ")
    assert root.run(["/opt/rustguard/bin/python", "-c", HAS_NATIVE]).stdout == "True\n"

    root.run(offline("pipx", "install", f"/root/{newest('rustguard_py-*_x86_64.whl').name}"))
    for name in ("rustguard", "rustguard-wg"):
        assert root.run([f"/root/.local/bin/{name}", "--version"]).stdout.startswith(f"{name}, version ")


def test_the_source_is_installed_by_pip_and_without_cargo_its_engine_is_the_portable_one(root: Root) -> None:
    source = newest("rustguard_py-*.tar.gz")
    with tarfile.open(source) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"native/Cargo.lock", "native/plane/src/lib.rs", "package/openrc/rustguard.initd", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith(("tests/", "native/target/"))]
    root.run(["python3", "-m", "venv", "/opt/rustguard"])
    root.run(offline("/opt/rustguard/bin/pip", "install", "-q", f"/root/{source.name}"))
    assert root.run(["/opt/rustguard/bin/rustguard", "--version"]).stdout.startswith("rustguard, version ")
    assert root.run(["/opt/rustguard/bin/python", "-c", HAS_NATIVE]).stdout == "False\n"


def test_the_build_of_the_native_engine_shows_what_it_compiles(soak: bool, tmp_path: Path) -> None:
    """`pip install -v`, as docs/guide/install.md says."""
    if not soak:
        pytest.skip("in the long form alone")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", tmp_path,
         newest("rustguard_py-*.tar.gz")],
        capture_output=True, text=True, check=True, timeout=3000,
    )  # fmt: skip
    said = done.stdout + done.stderr
    for crate in ("ring", "transport", "plane"):
        assert f"Compiling {crate} v" in said
    assert [path.name for path in tmp_path.glob("rustguard_py-*-abi3-manylinux_*.whl")]
