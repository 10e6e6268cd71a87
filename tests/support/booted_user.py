"""An ordinary user of a machine that boots, with a systemd of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.booted import Booted

USER_ID = 1000


class BootedUser:
    """A user that was added to a machine, and may run services while not logged in.

    Args:
        machine: Where.
        name: The user's name; the machine's first.

    Attributes:
        machine: Where.
        home: The home directory, as the user sees it.
    """

    def __init__(self, machine: Booted, name: str) -> None:
        self.machine, self.home = machine, Path("/home") / name
        self._name = name
        machine.run(["useradd", "--create-home", f"--uid={USER_ID}", name])

    def linger(self) -> None:
        """Have the user's systemd run now and from each boot on."""
        self.machine.run(["loginctl", "enable-linger", self._name])

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the user to its end, with what a login gives it, and `text` on its standard input."""
        own = [f"--chdir={self.home}", f"HOME={self.home}", f"XDG_RUNTIME_DIR=/run/user/{USER_ID}"]
        return self.machine.run(["runuser", "-u", self._name, "--", "env", *own, *argv], check=check, text=text)

    def shown(self, unit: str, *names: str) -> list[str]:
        """Return what the user's systemd shows of a unit, by the names of its properties."""
        done = self.run(["systemctl", "--user", "show", unit, *(f"--property={each}" for each in names)])
        found = dict(line.split("=", 1) for line in done.stdout.splitlines())
        return [found[each] for each in names]

    def files(self) -> set[str]:
        """Return the paths below the home directory, but for empty directories."""
        folder = self.machine.root.folder / self.home.relative_to("/")
        found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return {str(path.relative_to(folder)) for path in found}
