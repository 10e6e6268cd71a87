"""Name servers while a tunnel is up, set through systemd-resolved or resolvconf."""

from __future__ import annotations

import re
import shutil
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rustguard_py.daemon import outside
from rustguard_py.daemon.steps import run
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.model.sudo import as_root
from rustguard_py.system.interface import Echo
from rustguard_py.system.netlink_library import IPRoute

_RESOLV_CONF = Path("/etc/resolv.conf")
_ORDER = Path("/etc/resolvconf/interface-order")
# Where Debian's resolvconf and openresolv keep what they were given.
_RECORDS = (Path("/run/resolvconf/interface"), Path("/run/resolvconf/interfaces"), Path("/run/resolvconf/keys"))
# systemd-resolved keeps here what each interface was given, and writes a resolv.conf when that changes.
_RESOLVED = (Path("/run/systemd/resolve"), Path("/run/systemd/resolve/netif"))
_RESOLVECTL, _RESOLVCONF = MANAGERS = ("resolvectl", "resolvconf")


def manager() -> str:
    """Return the program that sets name servers on this machine.

    Raises:
        RefusedError: There is none.
    """
    resolved = "systemd/resolve" in str(_RESOLV_CONF.resolve()) and shutil.which(_RESOLVECTL)
    if not resolved and shutil.which(_RESOLVCONF):
        return _RESOLVCONF
    if shutil.which(_RESOLVECTL):
        return _RESOLVECTL
    raise RefusedError(
        "The file sets DNS, but this machine has neither resolvconf nor systemd-resolved.",
        f"Install one, `{as_root('apt-get install openresolv')}`, or take the DNS line out.",
    )


@dataclass(frozen=True, slots=True)
class Dns:
    """Name servers and search domains for all names while the tunnel is up."""

    interface: str
    servers: tuple[str, ...]
    search: tuple[str, ...]

    outlives: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        """See `steps.Step`."""
        return (Dns, self.interface)

    def prepare(self) -> str:
        """See `steps.Step`. The memo is the program that sets the name servers."""
        return manager()

    @outside.changes
    def apply(self, _netlink: IPRoute, memo: str, echo: Echo) -> None:
        """See `steps.Step`."""
        if memo == _RESOLVECTL:
            # An empty one removes those that were set before.
            _tell([_RESOLVECTL, "dns", self.interface, *(self.servers or [""])], "", echo)
            # `~.`: these servers are used for every name.
            every = ("~.",) if self.servers else ()
            _tell([_RESOLVECTL, "domain", self.interface, *every, *self.search], "", echo)
            return
        lines = [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        # Metric 0 and exclusive: only these servers.
        only = ["-m", "0", "-x"] if self.servers else []
        _tell([_RESOLVCONF, "-a", self._record, *only], "".join(f"{line}\n" for line in lines), echo)

    @outside.looks
    def look(self, memo: str) -> str | None:
        """Return the name servers as the program has them, empty if it has none; None if they can't be seen."""
        if memo == _RESOLVECTL:
            shown = [run([_RESOLVECTL, what, self.interface]) for what in ("dns", "domain")]
            if any(each is None or each.returncode for each in shown):
                return None
            # The line begins with the interface's number, which changes when the interface is made again.
            return "\n".join(each.stdout.partition(":")[2].strip() for each in shown if each is not None)
        record, in_use = self._recorded(), self._in_use()
        return None if record is None and in_use is None else f"{record or ''}{in_use or ''}"

    def where(self, memo: str) -> tuple[Path, ...]:
        """Return the files and directories that change with what `look` returns."""
        if memo == _RESOLVECTL:
            return _RESOLVED
        return (*_RECORDS, _RESOLV_CONF, _RESOLV_CONF.resolve())

    @outside.changes
    def put_back(self, netlink: IPRoute, memo: str, echo: Echo) -> None:
        """Set the name servers again.

        Raises:
            RustGuardError: The program refused.
        """
        self.apply(netlink, memo, echo)
        if memo == _RESOLVCONF:
            # Both programs do nothing if the record is there already, also when resolv.conf was overwritten. The
            # resolvconf of systemd-resolved can't do this, and needn't.
            echo(f"[#] {_RESOLVCONF} -u")
            run([_RESOLVCONF, "-u"])

    def _recorded(self) -> str | None:
        """Return what resolvconf was given, or None if that can't be seen."""
        directory = next((each for each in _RECORDS if each.is_dir()), None)
        if directory is None:
            return None
        try:
            return (directory / self._record).read_text(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError:
            return None

    def _in_use(self) -> str | None:
        """Return the lines of resolv.conf that name our servers, or None if it can't be read."""
        try:
            lines = _RESOLV_CONF.read_text(errors="replace").splitlines()
        except OSError:
            return None
        named = (words[1] for line in lines if (words := line.split())[:1] == ["nameserver"] and len(words) > 1)
        return "".join(f"{each}\n" for each in named if each in self.servers)

    @outside.changes
    def undo(self, _netlink: IPRoute, memo: str, echo: Echo) -> None:
        """See `steps.Step`."""
        forced = [_RESOLVCONF, "-d", self._record, "-f"]
        argv = [_RESOLVECTL, "revert", self.interface] if memo == _RESOLVECTL else forced
        echo(f"[#] {' '.join(argv)}")
        done = run(argv)
        # systemd-resolved drops the settings of an interface that is gone.
        if memo == _RESOLVCONF and (done is None or done.returncode):
            echo(f"[!] {_RESOLVCONF} failed: look at {_RESOLV_CONF}, and run the line above again.")

    @property
    def _record(self) -> str:
        """The record's name. Debian's resolvconf sorts by it: its list puts `tun.wg0` before `eth0`."""
        if _ORDER.is_file():
            for line in _ORDER.read_text().splitlines():
                if match := re.fullmatch(r"\s*([A-Za-z0-9-]+)\*\s*", line):
                    return f"{match[1]}.{self.interface}"
        return self.interface


def _tell(argv: list[str], stdin: str, echo: Echo) -> None:
    echo(f"[#] {' '.join(argv)}")
    done = run(argv, stdin)
    if done is None or done.returncode:
        said = "it is missing" if done is None else (done.stderr or done.stdout).strip() or f"code {done.returncode}"
        raise RustGuardError(
            f"The name servers were not taken by {argv[0]}: {said}",
            "Try that command yourself, or take the DNS line out of the file.",
        )
