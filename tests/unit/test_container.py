"""Which container we are in, and that an error has the lines of that one alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.sudo import as_root
from rustguard_py.planes.tun import not_made
from rustguard_py.system import container, interface

DEVICE = {
    "docker": "--device /dev/net/tun",
    "podman": "--device /dev/net/tun",
    "lxc": "lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file",
    "proxmox": "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file",
    "nspawn": "--bind=/dev/net/tun",
}
CAPABILITY = {
    "docker": "--cap-add NET_ADMIN",
    "podman": "--cap-add NET_ADMIN",
    "lxc": "/var/lib/lxc/NAME/config",
    "proxmox": "/etc/pve/lxc/ID.conf",
    "nspawn": "--capability=CAP_NET_ADMIN",
}
MACHINE, OTHER = 4026531835, 4026532000


class Signs:
    """A root directory in which each test leaves the signs that a container manager would."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        monkeypatch.setattr(container, "_ROOT", root)
        self.group_namespace(MACHINE)
        self.kernel("6.1.0-40-amd64")
        self.user(0)

    def file(self, name: str, text: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def kernel(self, release: str) -> None:
        self.monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))

    def user(self, number: int) -> None:
        self.monkeypatch.setattr(os, "geteuid", lambda: number)

    def group_namespace(self, number: int) -> None:
        """Give /proc/self/ns/cgroup this number; an inode can't be chosen, so it is the expected one that moves."""
        self.file("proc/self/ns/cgroup")
        actual = (self.root / "proc/self/ns/cgroup").stat().st_ino
        self.monkeypatch.setattr(container, "_MACHINE_CGROUPS", actual if number == MACHINE else actual + 1)


@pytest.fixture
def signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Signs:
    return Signs(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("file", "text", "release", "found"),
    [
        (".dockerenv", "", "6.1.0", "docker"),
        ("run/.containerenv", "", "6.1.0", "podman"),
        ("run/systemd/container", "lxc\n", "6.1.0", "lxc"),
        ("run/systemd/container", "docker", "6.1.0", "docker"),
        ("run/host/container-manager", "podman", "6.1.0", "podman"),
        ("proc/1/environ", "HOME=/\0container=lxc\0", "6.1.0", "lxc"),
        ("proc/1/environ", "container=lxc\0TERM=linux\0", "6.8.12-4-pve", "proxmox"),
        ("run/systemd/container", "lxc", "6.8.12-4-pve", "proxmox"),
        ("proc/1/environ", "container=systemd-nspawn\0", "6.1.0", "nspawn"),
        ("proc/1/environ", "container=lxc-libvirt\0", "6.1.0", "lxc"),
        ("proc/1/environ", "container=oci\0", "6.1.0", "unknown"),
        ("proc/1/environ", "mycontainer=lxc\0", "6.1.0", None),
        # A virtual machine or the host itself.
        ("proc/1/environ", "HOME=/\0", "6.8.12-4-pve", None),
    ],
)
def test_the_container_is_recognised(signs: Signs, file: str, text: str, release: str, found: str | None) -> None:
    signs.file(file, text)
    signs.kernel(release)
    assert container.kind() == found


def test_control_groups_of_another_namespace_are_an_unknown_container(signs: Signs) -> None:
    assert container.kind() is None
    signs.group_namespace(OTHER)
    assert container.kind() == "unknown"
    # Too old a kernel, or a /proc that isn't there.
    (signs.root / "proc/self/ns/cgroup").unlink()
    assert container.kind() is None


@pytest.mark.parametrize("found", sorted(DEVICE))
def test_the_lines_are_those_of_this_container_alone(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "kind", lambda: found)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for fix, lines in ((container.device_fix(), DEVICE), (container.capability_fix(), CAPABILITY)):
        assert lines[found] in fix
        names = {"docker": "Docker:", "podman": "Podman:", "lxc": "LXC:", "proxmox": "Proxmox:", "nspawn": "nspawn:"}
        assert [name for name in names if names[name] in fix] == [found]


def test_an_unknown_container_gets_the_lines_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "kind", lambda: "unknown")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert all(line in container.device_fix() for line in DEVICE.values())
    assert all(line in container.capability_fix() for line in CAPABILITY.values())


def test_lxc_has_the_line_for_the_device_in_its_configurations_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "kind", lambda: "lxc")
    assert "\nlxc.cgroup2.devices.allow = c 10:200 rwm\n" in container.device_fix()
    monkeypatch.setattr(container, "kind", lambda: "proxmox")
    assert "\nlxc.cgroup2.devices.allow: c 10:200 rwm\n" in container.device_fix()


def test_outside_of_a_container_the_module_is_loaded_and_root_is_asked_for(signs: Signs) -> None:
    assert container.device_fix() == f"Load it: `{as_root('modprobe tun')}`."
    signs.user(1000)
    for fix in (container.device_fix(refused=True), container.capability_fix()):
        assert fix == "Run the same command as root."
    # A root that lacks the capability is in some container.
    signs.user(0)
    assert CAPABILITY["docker"] in container.capability_fix()
    assert CAPABILITY["proxmox"] in container.capability_fix()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EPERM, "Operation not permitted"), "--cap-add NET_ADMIN"),
        (OSError(errno.EPERM, "Operation not permitted", "/dev/net/tun"), "--device /dev/net/tun"),
        (OSError(errno.ENOENT, "No such file or directory", "/dev/net/tun"), "--device /dev/net/tun"),
    ],
)
def test_an_interface_that_cant_be_made_says_which_line_is_missing(signs: Signs, error: OSError, line: str) -> None:
    signs.file(".dockerenv")
    assert line in not_made("rg0", error).fix


def test_a_refused_device_says_which_line_is_missing(signs: Signs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, code: int) -> None:
            self.code = code

        def open(self, *_: object, **__: object) -> None:
            raise OSError(self.code, os.strerror(self.code))

    signs.file("run/.containerenv")
    monkeypatch.setattr(interface, "TUN_DEVICE", Refusing(errno.EPERM))
    with pytest.raises(RefusedError) as refused:
        interface.require_tun()
    assert "--device /dev/net/tun" in refused.value.fix
    monkeypatch.setattr(interface, "TUN_DEVICE", signs.root / "dev/net/tun")
    with pytest.raises(RustGuardError) as missing:
        interface.require_tun()
    assert "--device /dev/net/tun" in missing.value.fix


def test_compose_permits_what_the_containers_of_the_tests_have_and_no_more() -> None:
    """`tests/packages/test_container.py` runs with these limits, but it can't read YAML."""
    text = (Path(__file__).parents[2] / "compose.yaml").read_text()
    for line in (
        "cap_drop: [ALL]",
        "cap_add: [NET_ADMIN]",
        "devices: [/dev/net/tun]",
        'security_opt: ["no-new-privileges:true"]',
        "read_only: true",
        'tmpfs: ["/run:mode=755"]',
        'volumes: ["state:/var/lib/rustguard"]',
    ):
        assert f"\n    {line}\n" in text
    assert "privileged" not in text
    assert "network_mode" not in text
