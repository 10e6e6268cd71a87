"""Names inside: the files that programs there see in the place of the machine's own.

| file | has |
|---|---|
| /etc/resolv.conf | the name servers of the tunnel |
| /etc/hosts | this machine, and the names of the tunnel |
| /etc/nsswitch.conf | the machine's, but names of hosts come from these two files alone |

They are made in memory, so nothing of them is left on disk. The sockets of a name service cache are covered, because
it would answer from outside.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from rustguard_py.model.endpoint import IpAddress
from rustguard_py.rootless import namespaces

_HOSTS, _RESOLV, _SWITCH = Path("/etc/hosts"), Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf")
# Both names of one directory, of which one may be a link.
_CACHES = (Path("/run/nscd"), Path("/var/run/nscd"))
# A directory that every machine has. It is covered only while the files are made.
_WORKSHOP = Path("/tmp")  # noqa: S108 - nothing is written on the file system under it
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_MOST_NAMES, _MOST_SERVERS = 64, 3


@dataclass(frozen=True, slots=True)
class Names:
    """What names mean inside.

    Attributes:
        servers: Addresses of name servers, reached through the tunnel; the C library uses the first three.
        hosts: Further names with their addresses.
    """

    servers: tuple[IpAddress, ...] = ()
    hosts: tuple[tuple[str, IpAddress], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "servers": [str(each) for each in self.servers],
            "hosts": [[name, str(address)] for name, address in self.hosts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Names:
        """Return the names in a JSON object.

        Raises:
            ValueError: It isn't one of ours.
            TypeError, KeyError: The same.
        """
        hosts = tuple((str(name), ip_address(str(address))) for name, address in value["hosts"])
        servers = tuple(ip_address(str(each)) for each in value["servers"])
        if len(hosts) > _MOST_NAMES or not all(_NAME.fullmatch(name) for name, _ in hosts):
            raise ValueError(value)
        return cls(servers, hosts)

    def files(self) -> dict[Path, str]:
        """Return the text of each file by its path."""
        hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        # A resolver takes the first line of a name, and others reach this machine at its address in the tunnel.
        named = {name.lower() for name, _ in self.hosts}
        if _NAME.fullmatch(own := socket.gethostname()) and own.lower() not in named:
            hosts.append(f"127.0.1.1 {own}")
        hosts += [f"{address} {name}" for name, address in self.hosts]
        servers = [f"nameserver {each}" for each in self.servers[:_MOST_SERVERS]]
        files = {_HOSTS: "\n".join([*hosts, ""]), _RESOLV: "\n".join([*servers, ""])}
        with suppress(OSError):
            files[_SWITCH] = _from_files_alone(_SWITCH.read_text(errors="replace"))
        return files


def is_name(host: str) -> bool:
    """Return whether a host is a name that a file of names can have, and no address."""
    try:
        ip_address(host)
    except ValueError:
        return _NAME.fullmatch(host) is not None
    return False


def show(files: Mapping[Path, str]) -> list[str]:
    """Show files in the place of those of the machine. The process has mounts of its own and CAP_SYS_ADMIN.

    Args:
        files: Text by path.

    Returns:
        The paths that there is no file at, so that none can be shown there.

    Raises:
        OSError: The kernel refused.
    """
    # A link, such as systemd's resolv.conf, is followed before its target can be covered.
    places = {path.resolve(): text for path, text in files.items()}
    missing = [str(path) for path in files if not path.exists()]
    namespaces.mount_memory(_WORKSHOP)
    try:
        made = _WORKSHOP / "file"
        for path, text in places.items():
            # Also seen in the workshop, if it is below it.
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            with suppress(FileNotFoundError):
                namespaces.bind(made, path)
            made.unlink()
    finally:
        namespaces.unmount(_WORKSHOP)
    for each in _CACHES:
        if each.is_dir() and not each.is_symlink():
            namespaces.mount_memory(each)
    return missing


def _from_files_alone(text: str) -> str:
    """Return an nsswitch.conf by which names of hosts come from files and name servers, not from other services."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("hosts:")]
    return "\n".join([*lines, "hosts: files dns", ""])
