"""Why this machine lets an ordinary user make no tunnel, and the line that allows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rustguard_py.model.errors import RefusedError
from rustguard_py.model.sudo import as_root
from rustguard_py.system import container
from rustguard_py.system.interface import TUN_DEVICE

# The machine's files, so that tests can make others.
_ROOT = Path("/")
_SECCOMP_FILTER = "2"
_NO_PRIVILEGES = "A tunnel without root needs"
# What gives a container user namespaces, and with them the TUN device.
_CONTAINER = {
    "docker": "Docker: start the container with `--security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined --device /dev/net/tun`.",
    "podman": "Podman: start the container with `--security-opt seccomp=unconfined --device /dev/net/tun`.",
    "lxc": "LXC: on the host, add to /var/lib/lxc/NAME/config, then start the container again:\n"
    "lxc.include = /usr/share/lxc/config/nesting.conf",
    "proxmox": "Proxmox: on the host, run `pct set ID --features nesting=1`, then `pct reboot ID`.",
    "nspawn": "systemd-nspawn: start the container with:\n--system-call-filter='unshare setns mount' "
    "--bind=/dev/net/tun --property='DeviceAllow=/dev/net/tun rw'",
}


class Step(StrEnum):
    """What the helper does, in order."""

    USER = "user"
    IDS = "ids"
    NETWORK = "network"
    DEVICE = "device"
    INTERFACE = "interface"
    MOUNTS = "mounts"


@dataclass(frozen=True, slots=True)
class _Setting:
    """A kernel setting that refuses.

    Attributes:
        name: As sysctl(8) has it.
        refuses: Whether it refuses with this value.
        why: What it does, after `because`.
        value: The value that allows it.
    """

    name: str
    refuses: Callable[[str], bool]
    why: str
    value: int

    def is_why(self) -> bool:
        try:
            return self.refuses((_ROOT / "proc/sys" / self.name.replace(".", "/")).read_text().strip())
        except OSError:
            return False


_CLONE = _Setting("kernel.unprivileged_userns_clone", "0".__eq__, "only root may make user namespaces", 1)
_APPARMOR = _Setting(
    "kernel.apparmor_restrict_unprivileged_userns",
    lambda value: value not in ("", "0"),
    "AppArmor gives programs without a profile of their own no privileges in a user namespace",
    0,
)


def refused(step: str, number: int) -> RefusedError:
    """Return the error for a step of the helper that the kernel refused.

    Args:
        step: One of `Step`.
        number: The error's number.
    """
    reason = os.strerror(number)
    if step in (Step.USER, Step.IDS, Step.NETWORK, Step.MOUNTS):
        return _namespaces_refused(step, number, reason)
    if step == Step.DEVICE:
        return _device_refused(number, reason)
    return RefusedError(
        f"The interface can't be made in a network namespace: {reason}.",
        f"Load the TUN module: `{as_root('modprobe tun')}`.",
    )


def _namespaces_refused(step: str, number: int, reason: str) -> RefusedError:
    kind = {Step.NETWORK: "network", Step.MOUNTS: "mount"}.get(Step(step), "user")
    limit = {"network": "user.max_net_namespaces", "mount": "user.max_mnt_namespaces"}.get(
        kind, "user.max_user_namespaces"
    )
    if number in (errno.ENOSPC, errno.EUSERS):
        many = _Setting(limit, "0".__eq__, "", 0).is_why()
        why = "is 0" if many else "is used up, or namespaces are nested too deeply"
        return _with(kind, f"refused: {limit} {why}", f"`{as_root(f'sysctl -w {limit}=15000')}`")
    if number in (errno.EINVAL, errno.ENOSYS):
        return RefusedError(
            f"{_NO_PRIVILEGES} a {kind} namespace, and this kernel has none: {reason}.",
            f"Use a kernel with them (CONFIG_USER_NS), or join as root: `{as_root('rustguard join …')}`.",
        )
    for setting in (_CLONE, _APPARMOR):
        if setting.is_why():
            line = f"`{as_root(f'sysctl -w {setting.name}={setting.value}')}`"
            return _with(kind, f"refused, because {setting.why} ({setting.name})", line)
    if number == errno.EACCES:
        return _with(
            kind,
            f"refused by a security module such as SELinux: {reason}",
            f"`{as_root('ausearch -m avc -ts recent')}` shows the rule to change",
        )
    found = container.kind()
    if found is not None:
        fixes = [_CONTAINER[found]] if found in _CONTAINER else list(_CONTAINER.values())
        return RefusedError(
            f"{_NO_PRIVILEGES} a {kind} namespace, and the container that this is refused it: {reason}.",
            "\n".join(["The container's host must permit it.", *fixes]),
        )
    if _is_filtered():
        return _with(
            kind,
            f"refused by a filter of system calls (seccomp): {reason}",
            "In a unit of systemd: `RestrictNamespaces=no`, and no `@mount` in SystemCallFilter=~",
        )
    return _with(kind, f"refused: {reason}", f"see `{as_root('dmesg')}`, or join as root")


def _device_refused(number: int, reason: str) -> RefusedError:
    if number in (errno.EACCES, errno.EPERM) and container.kind() is None:
        return RefusedError(
            f"{TUN_DEVICE} may not be opened by this user: {reason}.",
            f"Allow it to all users, as systemd does: `{as_root(f'chmod 0666 {TUN_DEVICE}')}`.",
        )
    what = "is missing" if number in (errno.ENOENT, errno.ENOTDIR) else f"can't be opened: {reason}"
    return RefusedError(f"{TUN_DEVICE} {what}, and tunnels are made of it.", container.device_fix())


def _with(kind: str, why: str, line: str) -> RefusedError:
    return RefusedError(f"{_NO_PRIVILEGES} a {kind} namespace. This one was {why}.", f"To allow it: {line}.")


def _is_filtered() -> bool:
    """Return whether this process has a filter of system calls."""
    try:
        lines = dict(line.split(":", 1) for line in (_ROOT / "proc/self/status").read_text().splitlines())
    except (OSError, ValueError):
        return False
    return lines.get("Seccomp", "").strip() == _SECCOMP_FILTER
