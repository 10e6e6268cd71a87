"""The container image, built by buildah from a fresh Debian, and containers of it, which crun runs on lab hosts.

A container has the limits of compose.yaml: one capability, a read-only root, a volume for the state, and the filter
of system calls that container engines have by default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rustguard_py.lab.hosts import Host
from support.debian_root import CHECKOUT, archive, why_no_packages

# Of golang-github-containers-common: what Docker and Podman filter.
SECCOMP = Path("/usr/share/containers/seccomp.json")
_CAPABILITY = "CAP_NET_ADMIN"


def why_no_containers() -> str:
    """Return why the container image can't be tested here; empty if it can."""
    missing = [name for name in ("buildah", "crun") if shutil.which(name) is None]
    return why_no_packages() or (f"there is no {missing[0]}" if missing else "")


class Image:
    """The image that Containerfile describes.

    Args:
        folder: Where buildah keeps it; vfs, because an overlay can't lie on another one.

    Attributes:
        root: Its files.
        config: Its settings, as image-spec's config.md has them.
    """

    def __init__(self, folder: Path) -> None:
        self._store = [f"--root={folder}/store", f"--runroot={folder}/run", "--storage-driver=vfs"]
        base = self._buildah("from", "scratch")
        self._buildah("add", "-q", base, str(archive("trixie", include=("iproute2", "iputils-ping", "python3"))), "/")
        self._buildah("commit", "-q", "--format=docker", base, "localhost/debian")
        self._buildah(
            "bud", "-q", "--isolation=chroot", "--format=docker", "--pull-never", "--build-arg=BASE=localhost/debian",
            "-f", f"{CHECKOUT}/Containerfile", "-t", "localhost/rustguard", str(CHECKOUT),
        )  # fmt: skip
        shown = json.loads(self._buildah("inspect", "--type=image", "localhost/rustguard"))
        self.config: dict[str, Any] = shown["Docker"]["config"]
        self.root = Path(self._buildah("mount", self._buildah("from", "--pull-never", "localhost/rustguard")))

    def _buildah(self, *words: str) -> str:
        done = subprocess.run(
            ["buildah", *self._store, *words], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"buildah {words}: {done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        """Unmount it, so that its folder can be removed."""
        self._buildah("umount", "--all")


@dataclass(slots=True)
class Container:
    """A container of an image.

    Attributes:
        image: The image.
        host: Whose network it has.
        folder: Its own folder, with the volume `state`.
        device: Whether it has /dev/net/tun.
        capability: Whether it has CAP_NET_ADMIN.
        engine: The sign that its manager leaves: `docker`, `lxc` or nothing.
    """

    image: Image
    host: Host
    folder: Path
    device: bool = True
    capability: bool = True
    engine: str = "docker"

    @property
    def _crun(self) -> list[str]:
        # crun refuses machines with control groups of both versions, so it sees those of version 2 alone.
        alone = ["unshare", "--mount", "sh", "-c", 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"', "sh"]
        return [*alone, "crun", f"--root={self.folder}/crun", "--cgroup-manager=disabled"]

    @property
    def _name(self) -> str:
        return f"rustguard-{os.getpid()}-{self.folder.name}"

    def start(self, *words: str, log: Path | None = None, stderr: int | None = None) -> subprocess.Popen[str]:
        """Start the container with these words after its entry point."""
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        spec = self._spec([*self.image.config["Entrypoint"], *words])
        (self.folder / "config.json").write_text(json.dumps(spec))
        sign = self.image.root / ".dockerenv"
        sign.touch() if self.engine == "docker" else sign.unlink(missing_ok=True)
        command = [*self._crun, "run", f"--bundle={self.folder}", self._name]
        return self.host.popen(command, log=log, stderr=stderr)

    def execute(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program in it to its end, as a health check does."""
        return self.host.run([*self._crun, "exec", self._name, *argv], check=False)

    def _spec(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return what a runtime needs (runtime-spec's config.md)."""
        capabilities = [_CAPABILITY] if self.capability else []
        kinds = ("bounding", "effective", "permitted")
        variables = [*self.image.config["Env"], *(["container=lxc"] if self.engine == "lxc" else [])]
        secret = self.folder / "token"
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.image.root), "readonly": True},
            "process": {
                "args": list(argv),
                "cwd": "/",
                "env": variables,
                "user": {"uid": 0, "gid": 0},
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(kinds, capabilities),
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                _bind(self.folder / "state", "/var/lib/rustguard"),
                *([_bind(secret, "/etc/rustguard/token", "ro")] if secret.exists() else []),
            ],
            "linux": {
                # The network stays that of the host that crun was started on.
                "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "cgroup")],
                "devices": [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666}]
                * self.device,
                "seccomp": _filter(capabilities),
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }


def _bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["bind", *options]}


def _filter(capabilities: Sequence[str]) -> dict[str, Any]:
    """Return the engines' filter of system calls, for these capabilities, as a runtime reads it."""
    profile = json.loads(SECCOMP.read_text())
    rules = []
    for rule in profile["syscalls"]:
        needs, never = rule.get("includes") or {}, rule.get("excludes") or {}
        if (
            set(needs.get("caps") or ()) <= set(capabilities)
            and "amd64" in (needs.get("arches") or ["amd64"])
            and not set(never.get("caps") or ()) & set(capabilities)
            and "amd64" not in (never.get("arches") or ())
        ):
            rules.append({each: rule[each] for each in ("names", "action", "args", "errnoRet") if rule.get(each)})
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules,
    }
