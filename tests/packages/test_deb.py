"""The Debian package in fresh roots of Debian 12, 13 and Ubuntu 24.04: installed, used, upgraded, removed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support.debian_root import Root, archive, package
from support.waiting import rest

pytestmark = [pytest.mark.needs_packages, pytest.mark.timeout(600)]
SUITES = ("bookworm", "trixie", "noble")
TOOLS = ("iproute2", "iputils-ping")
MOST_SECONDS = 30.0
MOST_BYTES = 60e6


def installed(folder: Path, suite: str, *tools: str) -> Root:
    """Return a root with our package; with python3 in it beforehand, apt has little to fetch."""
    root = Root(folder, archive(suite, include=(*TOOLS, *tools)))
    root.install(package())
    return root


@pytest.mark.parametrize("suite", SUITES)
def test_four_commands_from_two_fresh_machines_to_a_ping(tmp_path: Path, lab: Lab, suite: str) -> None:
    """`apt install` and one command on each; the commands' own time counts, apt's doesn't."""
    home, laptop = lab.host("home"), lab.host("laptop")
    there, _ = lab.link(home, laptop, ipv4="192.0.2.0/24")
    server, client = installed(tmp_path / "server", suite), installed(tmp_path / "client", suite)
    began = time.monotonic()
    daemons = [
        started(home, server, "serve", "--pool", "10.150.0.0/24", "--token", "correct horse", "--open"),
        started(laptop, client, "join", str(there.ipv4), "--token", "correct horse"),
    ]
    while client.run(["ping", "-c", "1", "-W", "1", "10.150.0.1"], host=laptop, check=False).returncode:
        assert time.monotonic() - began < MOST_SECONDS
        time.sleep(rest(began))
    print(f"{suite}: {time.monotonic() - began:.1f} s to the first ping")
    shown = client.run(["rustguard", "status", "-v"], host=laptop).stdout
    assert "native" in shown or "kernel" in shown
    for daemon in daemons:
        daemon.terminate()
    assert [daemon.wait(20) for daemon in daemons] == [0, 0]


def started(host: Host, root: Root, *words: str) -> subprocess.Popen[str]:
    return host.popen(root.command(["rustguard", *words]))


@pytest.mark.parametrize("suite", SUITES)
def test_everything_that_was_promised_is_installed(tmp_path: Path, suite: str) -> None:
    root = installed(tmp_path / "root", suite, "python3")
    assert root.run(["rustguard", "--version"]).stdout.startswith("rustguard, version ")
    assert root.run(["rustguard-wg", "--version"]).returncode == 0
    for path in (
        "etc/default/rustguard",
        "usr/share/man/man8/rustguard.8.gz",
        "usr/share/man/man8/rustguard-wg.8.gz",
        "usr/share/bash-completion/completions/rustguard",
        "usr/share/zsh/vendor-completions/_rustguard",
        "usr/share/fish/vendor_completions.d/rustguard.fish",
        "usr/share/doc/rustguard/changelog.gz",
        "usr/share/doc/rustguard/copyright",
        "usr/share/doc/rustguard/examples/openrc/rustguard.initd",
        "usr/lib/systemd/system/rustguard-serve.service",
    ):
        # minbase leaves documents and man pages out where dpkg is told so.
        assert (root.folder / path).exists(), path
    used = sum(path.lstat().st_size for path in (root.folder / "usr/lib/rustguard").rglob("*") if not path.is_dir())
    print(f"{suite}: {used / 1e6:.1f} MB installed, with Python's caches")
    assert used < MOST_BYTES


@pytest.mark.parametrize("suite", SUITES)
def test_the_systems_own_python_packages_are_left_alone(tmp_path: Path, suite: str) -> None:
    """A system's older click isn't taken by the program, and the system doesn't see ours."""
    root = installed(tmp_path / "root", suite, "python3")
    root.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-click"])
    where = "import click; print(click.__file__)"
    assert root.run(["python3", "-c", where]).stdout.startswith("/usr/lib/python3/dist-packages/")
    assert root.run(["rustguard", "--version"]).returncode == 0


def test_the_portable_engine_names_the_package_that_it_needs(tmp_path: Path, lab: Lab) -> None:
    root = installed(tmp_path / "root", "trixie", "python3")
    host = lab.host("home")
    words = ["rustguard", "serve", "--pool", "10.150.0.0/24", "--token", "correct horse", "--engine", "portable"]
    done = root.run(words, host=host, check=False)
    assert done.returncode == 4
    assert "apt install python3-numpy" in done.stderr
    assert "Traceback" not in done.stderr
    root.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3-numpy"])
    daemon = started(host, root, *words[1:])
    began = time.monotonic()
    while root.run(["rustguard", "status"], host=host, check=False).returncode:
        assert time.monotonic() - began < MOST_SECONDS
        time.sleep(rest(began))
    daemon.terminate()
    assert daemon.wait(20) == 0


def test_an_installed_debian_12_that_becomes_13_still_starts(tmp_path: Path) -> None:
    root = installed(tmp_path / "root", "bookworm", "python3")
    assert root.run(["python3", "--version"]).stdout.startswith("Python 3.11")
    for sources in (
        *(root.folder / "etc/apt").glob("sources.list*"),
        *(root.folder / "etc/apt/sources.list.d").glob("*"),
    ):
        if sources.is_file():
            sources.write_text(sources.read_text().replace("bookworm", "trixie"))
    root.run(["apt-get", "update", "-qq"])
    root.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "python3"], timeout=500)
    assert root.run(["python3", "--version"]).stdout.startswith("Python 3.13")
    assert root.run(["rustguard", "--version"]).stdout.startswith("rustguard, version ")
    assert root.run(["rustguard", "genkey"]).stdout.strip()
    assert list((root.folder / "usr/lib/rustguard/rustguard_py").rglob("*.cpython-313.pyc"))


def test_nothing_is_left_after_a_purge_but_the_keys(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", archive("trixie", include=(*TOOLS, "python3")))
    before = root.files()
    root.install(package())
    keys = root.folder / "var/lib/rustguard/server"
    keys.mkdir(parents=True)
    (keys / "state.json").write_text("{}")
    root.run(["apt-get", "remove", "-y", "-qq", "rustguard"])
    assert "etc/default/rustguard" in root.files()
    done = root.run(["apt-get", "purge", "-y", "-qq", "rustguard"])
    assert "rm -r /var/lib/rustguard" in done.stdout + done.stderr
    left = root.files() - before - {f"root/{package().name}", "etc/resolv.conf", "etc/ld.so.cache"}
    assert left == {"var/lib/rustguard/server/state.json"}


def test_lintian_has_no_errors() -> None:
    # As root it warns that it is; its tags are the same.
    done = subprocess.run(
        ["lintian", "--allow-root", package()], capture_output=True, text=True, check=False, timeout=300
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("E: ")] == []
    assert done.returncode == 0, done.stderr
