"""The text of the units, those that `service install` writes and those of the package.

What is kept from a daemon is in `LIMITS`. Directives that are left out on purpose, and what they break:
PrivateDevices takes /dev/net/tun; DynamicUser and PrivateUsers take the capabilities; ProcSubset=pid takes /proc/sys.
ProtectKernelTunables makes /proc/sys and /sys read-only. `up` writes there, and --threaded-napi does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "# Written by `rustguard service install`; `rustguard service remove` removes it."
# Seconds within which event loop and plane must have answered. A thread has a quarter of it for each answer.
WATCHDOG_SECONDS = 30
STATE = Path("/var/lib/rustguard")
# A client that was refused, and a command line that can't be meant, need a person.
_RESTART = f"""\
Restart=on-failure
RestartSec=2
# 2 (usage) and 4 (refused) need a person.
RestartPreventExitStatus=2 4
WatchdogSec={WATCHDOG_SECONDS}
"""
_ENVIRONMENT = "EnvironmentFile=-/etc/default/rustguard\n"
_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")
LIMITS = """\
NoNewPrivileges=yes
ProtectSystem=strict
StateDirectory=rustguard
StateDirectoryMode=0755
# Control sockets and wg(8)'s sockets: their directories are shared by all daemons, so they outlive each of them.
RuntimeDirectory=wireguard rustguard
RuntimeDirectoryPreserve=yes
UMask=0077
ProtectHome=yes
PrivateMounts=yes
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
# By which it limits itself to writing its own files. Not every systemd has them among the above.
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
"""
XDP = """\
# What --xdp needs besides: raw frames, programs in the kernel, and memory that both share.
[Service]
CapabilityBoundingSet=CAP_NET_RAW CAP_BPF
RestrictAddressFamilies=AF_XDP
SystemCallFilter=bpf
LimitMEMLOCK=infinity
"""
# A user's manager can't take capabilities away that the user doesn't have, and the helper needs namespaces.
USER_LIMITS = """\
NoNewPrivileges=yes
UMask=0077
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""
_PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit.

    Attributes:
        description: One line for people.
        command: Its program, with a path, and the arguments.
        head: The comment on its first line.
        reload: The command that applies changed settings, or None.
        token: The file with the token, or None. The unit never holds the token itself.
        state: A state directory outside /var/lib/rustguard, or None.
        capabilities: Further capabilities, for options that need them.
        memif: The directory in which the socket of a memif is made, or None.
        home: Whether the program or its state is in a home directory, which it may then read.
        sysfs: Whether it writes below /sys.
        limited: Whether it runs under `LIMITS`. `up` doesn't, because hooks may do anything.
        user: Whether it is run by a user's own systemd, for `join --rootless`.
    """

    description: str
    command: Sequence[str]
    head: str = MARK
    reload: Sequence[str] | None = None
    token: Path | None = None
    state: Path | None = None
    capabilities: tuple[str, ...] = ()
    memif: Path | None = None
    home: bool = False
    sysfs: bool = False
    limited: bool = True
    user: bool = False

    def text(self) -> str:
        """Return the unit file."""
        words = [quoted(each) for each in self.command]
        if self.user:
            return (
                f"{self.head}\n[Unit]\nDescription={self.description}\nDocumentation=man:rustguard(8)\n\n"
                f"[Service]\nType=notify\nNotifyAccess=main\nExecStart={' '.join(words)}\n{_RESTART}{USER_LIMITS}"
                "\n[Install]\nWantedBy=default.target\n"
            )
        if self.token is not None:
            words += ["--token-file", "%d/token"]
        # `up` looks names up before it is ready; the others try again by themselves.
        order = (
            "After=network.target\n"
            if self.limited
            else ("After=network-online.target nss-lookup.target\nWants=network-online.target\n")
        )
        return (
            f"{self.head}\n[Unit]\nDescription={self.description}\nDocumentation=man:rustguard(8)\n{order}\n"
            f"[Service]\nType=notify\nNotifyAccess=main\nExecStart={' '.join(words)}\n"
            + (f"ExecReload={' '.join(map(quoted, self.reload))}\n" if self.reload else "")
            + _RESTART
            + _ENVIRONMENT
            + (f"LoadCredential=token:{self.token}\n" if self.token is not None else "")
            + (self._limits() if self.limited else "")
            + "\n[Install]\nWantedBy=multi-user.target\n"
        )

    def _limits(self) -> str:
        limits = LIMITS.replace("ProtectKernelTunables=yes\n", "") if self.sysfs else LIMITS
        if self.home:
            limits = limits.replace("ProtectHome=yes", "ProtectHome=read-only")
        return (
            "\n# It runs as root, with these capabilities alone.\n"
            f"CapabilityBoundingSet={' '.join((*_CAPABILITIES, *self.capabilities))}\n{limits}"
            + (f"ReadWritePaths={quoted(str(self.state))}\n" if self.state is not None else "")
            # It may be made later, by the other program.
            + (f"ReadWritePaths=-{quoted(str(self.memif))}\n" if self.memif is not None else "")
        )


def quoted(word: str) -> str:
    """Return a word as a unit's command line holds it (systemd.service(5), COMMAND LINES)."""
    word = word.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(word.replace("%%", "").replace("$$", "") or "x") and word:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def packaged() -> dict[str, str]:
    """Return the units that the package brings, by file name."""
    page = "See docs/guide/service.md"
    program = "/usr/bin/rustguard"
    return {
        "rustguard-serve.service": Unit(
            "RustGuard server",
            (program, "serve", "--pool", "10.150.0.0/24"),
            f"# A RustGuard server as a service. {page}",
            token=Path("/etc/rustguard/token"),
        ).text(),
        "rustguard-join.service": Unit(
            "RustGuard client",
            (program, "join"),
            f"# A RustGuard client as a service, for a machine that has joined. {page}",
        ).text(),
        "rustguard-up@.service": Unit(
            "RustGuard tunnel %i",
            (program, "up", "NAME", "--foreground"),
            f"# The tunnel of /etc/wireguard/NAME.conf as the service rustguard-up@NAME. {page}",
            reload=(program, "up", "NAME"),
            limited=False,
        )
        .text()
        .replace(" up NAME", " up %i"),
    }
