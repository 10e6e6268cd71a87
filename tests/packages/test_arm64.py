"""The package for arm64 on an emulated processor, in the long form alone: it is loaded, and does a whole pairing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from support.arm64 import extracted, why_no_arm64
from support.debian_root import CHECKOUT, Root
from support.product import eventually

SUITES = ("bookworm", "trixie")
TARGET = "aarch64-unknown-linux-gnu"
INNER = "10.150.0.1"
# What starts takes half a minute where the emulator has a processor to itself.
SECONDS = 300.0
BYTES = 4 << 20
_IMPORTS = """
import importlib, importlib.machinery, pathlib, platform, sys
root = pathlib.Path("/usr/lib/rustguard")
sys.path.insert(0, str(root))
own = importlib.machinery.EXTENSION_SUFFIXES
for file in sorted(root.rglob("*.so")):
    suffix = next(each for each in own if file.name.endswith(each))
    if suffix == ".so" and ".cpython-" in file.name:
        continue  # of another Python
    name = ".".join([*file.relative_to(root).parent.parts, file.name.removesuffix(suffix)])
    assert importlib.import_module(name).__file__ == str(file)
    print(name)
print(platform.machine())
"""
_TAKE = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 7000)) as listener:
    print("ready", flush=True)
    stream, _ = listener.accept()
digest = hashlib.sha256()
while data := stream.recv(65536):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""
_SEND = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], 7000)) as stream:
    stream.sendall(data)
print(hashlib.sha256(data).hexdigest(), flush=True)
"""


@pytest.fixture(autouse=True)
def _emulated(soak: bool) -> None:
    if not soak:
        pytest.skip("in the long form alone")
    if why := why_no_arm64():
        pytest.skip(why)


@pytest.mark.parametrize("suite", SUITES)
def test_each_extension_is_loaded_by_debians_python(tmp_path: Path, suite: str) -> None:
    root = extracted(tmp_path / "root", suite)
    assert root.run(["rustguard", "--version"]).stdout.startswith("rustguard, version ")
    assert root.run(["rustguard-wg", "--version"]).returncode == 0
    *names, machine = root.run(["python3", "-I", "-c", _IMPORTS]).stdout.splitlines()
    assert machine == "aarch64"
    assert {"_cffi_backend", "nacl._sodium", "rustguard_py._native"} <= set(names)


@pytest.mark.parametrize(("suite", "engine"), [("bookworm", "native"), ("trixie", "native"), ("trixie", "portable")])
def test_a_whole_pairing_and_a_transfer(tmp_path: Path, lab: Lab, suite: str, engine: str) -> None:
    home, laptop = lab.host("home"), lab.host("laptop")
    there, _ = lab.link(home, laptop, ipv4="192.0.2.0/24")
    include = ("python3-numpy",) if engine == "portable" else ()
    server, client = (extracted(tmp_path / name, suite, *include) for name in ("server", "client"))
    own = ["--token", "correct horse", "--engine", engine]
    began = time.monotonic()
    daemons = [home.popen(server.command(["rustguard", "serve", "--pool", "10.150.0.0/24", "--open", "3600", *own]))]
    _until(daemons, lambda: _status(server) is not None, "the server")
    daemons.append(laptop.popen(client.command(["rustguard", "join", str(there.ipv4), *own])))
    ping = ["ping", "-n", "-q", "-c1", "-W5", INNER]
    _until(daemons, lambda: laptop.run(ping, check=False).returncode == 0, "the first ping")
    print(f"{suite}, {engine}: {time.monotonic() - began:.0f} s to the first ping")
    status = _status(client)
    assert status is not None
    assert status["engine"] == engine

    taking = home.popen([sys.executable, "-c", _TAKE, INNER], stdout=subprocess.PIPE)
    assert taking.stdout is not None
    assert taking.stdout.readline() == "ready\n"
    began = time.monotonic()
    sent = laptop.run([sys.executable, "-c", _SEND, INNER, str(BYTES)], timeout=SECONDS).stdout
    assert taking.stdout.readline() == sent
    print(f"{suite}, {engine}: {BYTES / (time.monotonic() - began) / 1e6:.1f} MB/s")
    for daemon in daemons:
        daemon.terminate()
    assert [daemon.wait(SECONDS) for daemon in daemons] == [0, 0]


def _until(daemons: list[subprocess.Popen[str]], attempt: Callable[[], bool], what: str) -> None:
    def still() -> bool:
        assert [daemon.poll() for daemon in daemons] == [None] * len(daemons)
        return attempt()

    eventually(still, SECONDS, what)


def _status(root: Root) -> dict[str, object] | None:
    done = root.run(["rustguard", "status", "--json"], check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None


def test_the_rules_in_rust_pass_their_own_tests(tmp_path: Path) -> None:
    program = _transport_tests()
    root = extracted(tmp_path / "root", "bookworm")
    shutil.copy(program, root.folder / "root/tests")
    done = root.run(["/root/tests", "-q"], timeout=1200.0)
    passed = [line for line in done.stdout.splitlines() if line.startswith("test result: ok. ")]
    assert len(passed) == 1
    print(passed[0])


def _transport_tests() -> Path:
    """Build the tests of native/transport for arm64, as package/build.py builds the extension."""
    zigbuild = Path(sys.executable).with_name("cargo-zigbuild")
    if not zigbuild.exists() or shutil.which("rustup") is None:
        pytest.skip("there is no cargo-zigbuild or no rustup, with which make packages builds")
    done = subprocess.run(
        [zigbuild, "test", "-q", "--no-run", "--release", "--locked", "--message-format=json", "-p", "transport",
         "--lib", "--target", f"{TARGET}.2.28", "--manifest-path=native/Cargo.toml",
         "--target-dir", CHECKOUT / ".venv/packages/target"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "PATH": f"{zigbuild.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    built = [json.loads(line).get("executable") for line in done.stdout.splitlines()]
    return Path(next(filter(None, built)))
