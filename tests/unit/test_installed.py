"""What a user gets: the installed package and its archives. The tests never import the checkout."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

import rustguard_py
from rustguard_py.engine import has_native

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rustguard_py"


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


def modules() -> set[str]:
    """Return the Python files that the package has in the checkout, behind symbolic links too."""
    found = [Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names]
    return {str(path.relative_to(ROOT)) for path in found if path.suffix in {".py", ".pyi"}}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.skipif("RUSTGUARD_INSTALLED" not in os.environ, reason="an editable install: run by make test")
def test_an_installation_has_the_package_its_metadata_and_two_commands_and_nothing_else() -> None:
    files = {str(path) for path in distribution("rustguard-py").files or ()}
    package = {name for name in files if name.startswith("rustguard_py/")}
    others = {name for name in files - package if not re.match(r"rustguard_py-[\d.]+\.dist-info/", name)}
    assert {Path(name).name for name in others} == {"rustguard", "rustguard-wg"}
    assert {Path(name).parent.name for name in others} == {"bin"}
    assert {name for name in package if name.endswith((".py", ".pyi"))} == modules()
    # The folders that the checkout has at its top are inside the package alone.
    assert (distribution("rustguard-py").read_text("top_level.txt") or "").split() == ["rustguard_py"]


def test_an_sdist_has_the_package_once_and_what_the_native_plane_is_built_from(tmp_path: Path) -> None:
    pytest.importorskip("setuptools_rust")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout")
    checkout = tmp_path / "checkout"
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    # What builds leave in a checkout.
    for name in ("rustguard_py/_native.abi3.so", "native/target/release/lib_native.so", "cli/__pycache__/app.pyc"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, capture_output=True, check=True, timeout=120)
    (archive,) = (checkout / "dist").iterdir()
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
    files = [member.name.partition("/")[2] for member in members if not member.isdir()]
    assert all(member.isfile() or member.isdir() for member in members)
    assert len(files) == len(set(files))
    assert {
        name for name in files if name.startswith("rustguard_py/") and name.endswith((".py", ".pyi"))
    } == modules()
    native = {name for name in listed.split("\0") if name.startswith("native/")}
    assert {name for name in files if name.startswith("native/")} == {
        name for name in native if not name.startswith(("native/fuzz/", "native/model/"))
    }
    tops = {name.partition("/")[0] for name in files if "/" in name}
    assert tops == {"native", "package", "rustguard_py", "rustguard_py.egg-info"}
    assert not [name for name in files if name.endswith((".so", ".pyc"))]


def test_every_requirement_is_pinned_for_development() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    lists = [
        document["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
    ]
    wanted = {canonical(re.split(r"[<>=~\[; ]", line)[0]) for each in lists for line in each}
    lines = (ROOT / "requirements/dev.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)] == []
    assert wanted - {canonical(line.partition("==")[0]) for line in pins} == set()
