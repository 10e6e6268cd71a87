"""A Debian in a folder that boots: an init is its process 1, in namespaces of its own, on the network of a host.

`unshare` makes the namespaces. The root is pivoted into, because systemd looks at where its mounts come from, and its
mounts are shared with its children, without which systemd gives services no credentials.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rustguard_py.lab.hosts import Host
from support.debian_root import Root
from support.waiting import rest

BOOT_SECONDS = 60.0
_BOOT = """
set -e
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755,size=1m tmpfs dev
mkdir -p dev/pts dev/shm dev/net .outside
for each in null zero full random urandom tty net/tun; do cp -a "/dev/$each" "dev/$each"; done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
pivot_root . .outside
cd /
umount -l /.outside
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin $2
"""


class Booted:
    """A root that runs on a host.

    Args:
        root: It, with systemd installed.
        host: Whose network it has.

    Attributes:
        program: Process 1, as a command line.
        name: That process's name.
        again: The command that reboots.
    """

    program = "/lib/systemd/systemd --system"
    name = "systemd"
    again: Sequence[str] = ("systemctl", "reboot")

    def __init__(self, root: Root, host: Host) -> None:
        self.root, self.host = root, host
        (root.folder / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        (root.folder / "etc/machine-id").write_text("")
        self._group = _unified() / f"rustguard-{os.getpid()}-{root.folder.name}"
        self._boot()

    def _boot(self) -> None:
        self._group.mkdir(exist_ok=True)
        unshare = "exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -c"
        script = f'echo $$ > "{self._group}/cgroup.procs" && {unshare} "$1" sh "$2" "$3"'
        log = self.root.folder.with_suffix(".boot")
        words = ["sh", "-c", script, "sh", _BOOT, str(self.root.folder), self.program]
        self.outer = self.host.popen(words, log=log)
        self.init = self._wait(self._first_child, "process 1")
        self._wait(self._has_booted, "the boot")

    def _first_child(self) -> int:
        assert self.outer.poll() is None, self.root.folder.with_suffix(".boot").read_text()
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != self.name:
            return 0
        return int(children[0])

    def _has_booted(self) -> bool:
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() in ("running", "degraded")

    @staticmethod
    def _wait(attempt: Callable[[], int], what: str) -> int:
        deadline = time.monotonic() + BOOT_SECONDS
        while (began := time.monotonic()) < deadline:
            if found := attempt():
                return found
            time.sleep(rest(began))
        raise AssertionError(f"{what} did not come within {BOOT_SECONDS:g} s")

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs `argv` in it."""
        enter = ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        return [*enter, *environment, "DEBIAN_FRONTEND=noninteractive", *map(str, argv)]

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout: float = 120.0, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it to its end, with `text` on its standard input."""
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, check=False, timeout=timeout, input=text
        )
        assert not check or done.returncode == 0, (
            f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done

    def outside(self, process: int) -> int:
        """Return this machine's id of a process in it."""
        for group in self._group.rglob("cgroup.procs"):
            for each in group.read_text().split():
                with suppress(OSError):
                    ids = Path(f"/proc/{each}/status").read_text().partition("\nNSpid:")[2].splitlines()[0].split()
                    if len(ids) > 1 and int(ids[-1]) == process:
                        return int(each)
        raise AssertionError(f"no process {process} in {self._group}")

    def reboot(self) -> None:
        """Shut it down in order, and boot it again."""
        self.run(self.again, check=False)
        self.outer.wait(90)
        self._clean()
        self._boot()

    def close(self) -> None:
        """End it at once."""
        self.outer.kill()
        self.outer.wait(30)
        self._clean()

    def _clean(self) -> None:
        """Remove its control groups, the innermost first; the last processes may still be ending."""
        deadline = time.monotonic() + 10
        while self._group.exists():
            try:
                for folder, _, _ in os.walk(self._group, topdown=False):
                    Path(folder).rmdir()
            except OSError:
                assert time.monotonic() < deadline, f"{self._group} is still in use"
                time.sleep(0.05)


class BootedOpenrc(Booted):
    """A root that runs on a host, with sysvinit as process 1 and OpenRC, as Debian has them."""

    program = "/sbin/init"
    name = "init"
    again = ("init", "6")

    def __init__(self, root: Root, host: Host) -> None:
        # There are no terminals for it.
        table = root.folder / "etc/inittab"
        table.write_text("".join(line for line in table.read_text().splitlines(True) if "getty" not in line))
        super().__init__(root, host)

    def _has_booted(self) -> bool:
        # The second is there while it changes to the first.
        test = 'test "$(cat /run/openrc/softlevel)" = default -a ! -e /run/openrc/rc.starting'
        return self.run(["sh", "-c", test], check=False).returncode == 0


def _unified() -> Path:
    """Return where this machine has its control groups of version 2."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    found = next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)
    assert found is not None, "this machine has no control groups of version 2"
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].splitlines()[0]
    # Below the groups of other services only their owner may make one.
    return found if found.name == "unified" else (found / own).parent
