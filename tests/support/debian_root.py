"""A fresh Debian or Ubuntu in a folder, for the tests of the packages: made by mmdebstrap, entered by chroot.

What runs in it sees a file system of its own and the network of the host that enters it. The process ids are this
machine's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rustguard_py.lab.hosts import Host

CHECKOUT = Path(__file__).parent.parent.parent
DIST = CHECKOUT / "dist"
MIRROR = "http://deb.debian.org/debian"
# Debian has no key of Ubuntu's archive.
_UBUNTU = "deb [trusted=yes] http://archive.ubuntu.com/ubuntu {} main universe"
UBUNTU_SUITES = ("noble",)
# A root is made once; each test unpacks it.
_KEPT = CHECKOUT / ".venv/roots"
# Services can't be started in a chroot, and what apt fetched is needed once.
_POLICY = "#!/bin/sh\nexit 101\n"
_ENTER = """
set -e
root=$1
shift
for each in dev proc sys; do mount --rbind /$each "$root/$each"; done
cp /etc/resolv.conf "$root/etc/resolv.conf" 2> /dev/null || true
set -- chroot "$root" "$@"
set -- PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
# The processor that qemu shows a root for arm64: a Raspberry Pi 4's.
exec env -i QEMU_CPU=cortex-a72 "$@"
"""


def why_no_packages() -> str:
    """Return why the packages can't be tested here; empty if they can."""
    if os.geteuid():
        return "roots are made by root"
    for name in ("mmdebstrap", "lintian"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    if not list(DIST.glob("rustguard_*_amd64.deb")):
        return "there is no package in dist/, which make test-packages builds"
    return ""


def package(architecture: str = "amd64") -> Path:
    """Return the newest Debian package of an architecture."""
    return max(DIST.glob(f"rustguard_*_{architecture}.deb"), key=lambda path: path.stat().st_mtime)


def archive(
    suite: str, *, include: Sequence[str] = (), architecture: str = "amd64", variant: str = "minbase"
) -> Path:
    """Return the archive of a minimal Debian or Ubuntu, made once per suite, packages, architecture and variant."""
    parts = [suite, architecture, *([variant] * (variant != "minbase")), *include]
    kept = _KEPT / f"{'-'.join(parts)}.tar"
    _KEPT.mkdir(parents=True, exist_ok=True)
    # Tests run in several workers, which may want the same one.
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            half = kept.with_suffix(".half.tar")
            if suite in UBUNTU_SUITES:
                # There its priority isn't `required`.
                include = ["apt", *include]
            words = [
                f"--variant={variant}",
                f"--architectures={architecture}",
                *([f"--include={','.join(include)}"] * bool(include)),
            ]
            mirror = _UBUNTU.format(suite) if suite in UBUNTU_SUITES else MIRROR
            subprocess.run(["mmdebstrap", "-q", *words, suite, half, mirror], check=True)
            half.rename(kept)
    return kept


class Root:
    """An unpacked Debian or Ubuntu.

    Attributes:
        folder: Its root directory.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        folder.mkdir()
        subprocess.run(["tar", "-xf", kept, "-C", folder, "--exclude=./dev/*"], check=True)
        (folder / "usr/sbin/policy-rc.d").write_text(_POLICY)
        (folder / "usr/sbin/policy-rc.d").chmod(0o755)
        self.folder = folder

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs `argv` in this root, with what it mounts gone afterwards."""
        return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(self.folder), *map(str, argv)]

    def run(
        self, argv: Sequence[str | Path], *, host: Host | None = None, timeout: float = 300.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the root to its end, on this machine's network or on a host's."""
        command = self.command(argv)
        done = subprocess.run(
            host.command(command) if host else command,
            capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done

    def install(self, file: Path) -> None:
        """Install a package file as its user would: `apt install ./FILE`."""
        shutil.copyfile(file, self.folder / "root" / file.name)
        self.run(["apt-get", "update", "-qq"])
        self.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", f"/root/{file.name}"])

    def files(self) -> set[str]:
        """Return the paths of all files, but for apt's and dpkg's own records and what is mounted."""
        skipped = ("dev/", "proc/", "sys/", "tmp/", "var/cache/", "var/log/", "var/lib/apt/", "var/lib/dpkg/")
        paths = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}
        return {path for path in paths if not path.startswith(skipped)}
