"""Debian for arm64 on this machine: qemu runs its programs, one by one, with this machine's kernel under them.

Packages are extracted, not configured: under emulation their scripts take minutes. What those would have made and the
program needs is made here. The package's units and its scripts are tested on amd64.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support.debian_root import DIST, Root, archive, package, why_no_packages

_HANDLER = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
_LIBRARIES = Path("usr/lib/aarch64-linux-gnu")


def why_no_arm64() -> str:
    """Return why arm64's packages can't be tested here; empty if they can."""
    if why := why_no_packages():
        return why
    # F: the kernel has opened the emulator itself, so it is found from within another root too.
    if not _HANDLER.exists() or not any(
        line.startswith("flags:") and "F" in line for line in _HANDLER.read_text().splitlines()
    ):
        return "this kernel doesn't run arm64's programs. Install qemu-user-static and binfmt-support"
    if not list(DIST.glob("rustguard_*_arm64.deb")):
        return "there is no arm64 package in dist/, which make packages builds"
    return ""


def extracted(folder: Path, suite: str, *include: str) -> Root:
    """Return a root with our package and Debian's Python, for programs of arm64."""
    kept = archive(suite, include=("python3", *include), architecture="arm64", variant="extract")
    root = Root(folder, kept)
    subprocess.run(["dpkg-deb", "-x", package("arm64"), folder / "package"], check=True)
    # Not onto the root at once: Debian 13's /lib is a link there.
    shutil.copytree(folder / "package", folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder / "package")
    for name in ("dev", "proc", "sys", "run", "root", "var/lib"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")
    # numpy's, of which Debian has several to choose from.
    for kind in ("blas", "lapack"):
        for library in (folder / _LIBRARIES / kind).glob("*.so.3"):
            (folder / _LIBRARIES / library.name).symlink_to(library.relative_to(folder / _LIBRARIES))
    return root
