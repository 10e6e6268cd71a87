"""Which container we are in, if any, and the lines with which its host lets us make interfaces.

The signs are those that systemd-detect-virt(1) reads, in its order.
"""

from __future__ import annotations

import os
from pathlib import Path

from rustguard_py.model.sudo import as_root

# The container's files, so that tests can make others.
_ROOT = Path("/")
UNKNOWN = "unknown"
_NAMES = {"docker": "docker", "podman": "podman", "lxc": "lxc", "lxc-libvirt": "lxc", "systemd-nspawn": "nspawn"}
# Proxmox is LXC on a kernel of its own, and keeps the configuration elsewhere.
_PROXMOX_KERNEL = "-pve"
# linux/proc_ns.h: PROC_CGROUP_INIT_INO, of the machine's own namespace of control groups.
_MACHINE_CGROUPS = 0xEFFFFFFB

AS_ROOT = "Run the same command as root."
# What gives a container the device, and what the capability. The device is number 200 of the misc devices, 10.
_DEVICE = {
    "docker": "Docker: start the container with `--device /dev/net/tun`, in Compose `devices: [/dev/net/tun]`.",
    "podman": "Podman: start the container with `--device /dev/net/tun`.",
    "lxc": (
        "LXC: on the host, add to /var/lib/lxc/NAME/config, then start the container again:\n"
        "lxc.cgroup2.devices.allow = c 10:200 rwm\n"
        "lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file"
    ),
    "proxmox": (
        "Proxmox: on the host, add to /etc/pve/lxc/ID.conf, then run `pct reboot ID`:\n"
        "lxc.cgroup2.devices.allow: c 10:200 rwm\n"
        "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file"
    ),
    "nspawn": (
        "systemd-nspawn: start the container with:\n--bind=/dev/net/tun --property='DeviceAllow=/dev/net/tun rw'"
    ),
}
_CAPABILITY = {
    "docker": "Docker: start the container with `--cap-add NET_ADMIN`, in Compose `cap_add: [NET_ADMIN]`.",
    "podman": "Podman: start the container with `--cap-add NET_ADMIN`.",
    "lxc": "LXC: on the host, remove `net_admin` from `lxc.cap.drop` in /var/lib/lxc/NAME/config.",
    "proxmox": "Proxmox: on the host, remove `net_admin` from `lxc.cap.drop` in /etc/pve/lxc/ID.conf.",
    "nspawn": "systemd-nspawn: start the container with `--capability=CAP_NET_ADMIN --private-network`.",
}


def kind() -> str | None:
    """Return the kind of container that we are in: a key of the lists above or `UNKNOWN`; None outside of one."""
    for path, engine in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
        if (_ROOT / path).exists():
            return engine
    # What the manager told process 1. systemd keeps it in a file, which others than root can read too.
    manager = _read("run/systemd/container").strip() or _read("run/host/container-manager").strip()
    if not manager:
        variables = _read("proc/1/environ").split("\0")
        manager = next((each.removeprefix("container=") for each in variables if each.startswith("container=")), "")
    if manager:
        found = _NAMES.get(manager, UNKNOWN)
        return "proxmox" if found == "lxc" and _PROXMOX_KERNEL in os.uname().release else found
    try:
        return None if (_ROOT / "proc/self/ns/cgroup").stat().st_ino == _MACHINE_CGROUPS else UNKNOWN
    except OSError:
        return None


def device_fix(*, refused: bool = False) -> str:
    """Return what to type where there is no TUN device.

    Args:
        refused: Whether it is there and may not be opened.
    """
    if refused and os.geteuid() != 0:
        return AS_ROOT
    found = kind()
    return f"Load it: `{as_root('modprobe tun')}`." if found is None else _lines(_DEVICE, found)


def capability_fix() -> str:
    """Return what to type where CAP_NET_ADMIN is missing."""
    if os.geteuid() != 0:
        return AS_ROOT
    # A root without it is in a container, even if nothing else tells.
    return _lines(_CAPABILITY, kind() or UNKNOWN)


def _lines(fixes: dict[str, str], found: str) -> str:
    if found != UNKNOWN:
        return fixes[found]
    return "\n".join(["This looks like a container, whose host must permit it.", *fixes.values()])


def _read(path: str) -> str:
    try:
        return (_ROOT / path).read_text(errors="replace")
    except OSError:
        return ""
