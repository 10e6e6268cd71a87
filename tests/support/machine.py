"""What this machine allows: each function gives the reason why not, or an empty string. Asked once a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from rustguard_py.kernel import netlink


@cache
def why_no_namespaces() -> str:
    """Network namespaces can be made, interfaces set, and /dev/net/tun opened."""
    probe = ["unshare", "-n", "sh", "-c", "ip link set lo up && exec 3<>/dev/net/tun"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"{tried.stderr.strip()} (run scripts/in-namespace COMMAND)" if tried.returncode else ""


def wireguard_go() -> str | None:
    """The newest wireguard-go here: the one `make` built beside our Python, else the system's."""
    built = Path(sys.prefix, "bin", "wireguard-go")
    return str(built) if built.exists() else shutil.which("wireguard-go")


def wireguard_go_version() -> str:
    """Of what `wireguard_go` found: its module's version where it was built from one, else what it calls itself."""
    program = wireguard_go()
    if program is None:
        return "no wireguard-go"
    asked = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    own = asked.stdout.partition("\n")[0]
    built = sorted(Path(sys.prefix).glob("wireguard-go-v*"))
    return built[-1].name if built and program.startswith(sys.prefix) else own


@cache
def why_no_wireguard_go() -> str:
    """wireguard-go and wg are here."""
    if wireguard_go() is None:
        return "no wireguard-go (make wireguard-go)"
    return "" if shutil.which("wg") else "no wg (apt-get install wireguard-tools)"


@cache
def why_no_kernel_wireguard() -> str:
    """The kernel's WireGuard can be asked."""
    reason = netlink.why_absent()
    return f"{reason} (make test-kernel)" if reason else ""


@cache
def why_no_slices() -> str:
    """A thread may have a slice of its own, and the scheduler reports it."""
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) < (6, 12):
        return "Linux before 6.12 has one slice for all threads"
    told = Path("/proc/self/sched")
    return "" if told.exists() and "se.slice" in told.read_text() else "this kernel doesn't report a thread's slice"


@cache
def why_no_second_uid() -> str:
    """We are root and may run a program as another user."""
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true"]
    if os.geteuid() != 0:
        return "not root"
    tried = subprocess.run(other, capture_output=True, text=True, check=False)
    fix = "as root, or in a user namespace with more ids: apt-get install uidmap"
    return f"{tried.stderr.strip()} ({fix})" if tried.returncode else ""
