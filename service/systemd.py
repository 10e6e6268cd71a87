"""Units in /etc/systemd/system: installed, removed and asked about with systemctl(1).

Those of an ordinary user, for `join --rootless`, are in ~/.config/systemd/user, and run by the user's own systemd.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rustguard_py.model.errors import NotRunningError, RefusedError, RustGuardError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.service import openrc, unit
from rustguard_py.service.unit import MARK, Unit

UNITS = Path("/etc/systemd/system")
TOKENS = Path("/etc/rustguard")
RUNNING = Path("/run/systemd/system")
_PROPERTIES = ("ActiveState", "SubState", "StatusText", "MainPID", "NRestarts", "UnitFileState", "Result")
_LINES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Service:
    """A service that `service install` wrote.

    Attributes:
        name: Its unit's name without `.service`.
        user: Whether it is one of this user's own systemd.
    """

    name: str
    user: bool = False

    @property
    def file(self) -> Path:
        """The unit file."""
        return (user_units() if self.user else UNITS) / f"{self.name}.service"

    @property
    def extra(self) -> Path:
        """The directory of its drop-ins."""
        return self.file.with_name(f"{self.name}.service.d")

    def systemctl(self, verb: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl for this service. See the function of that name."""
        return systemctl(*_manager(user=self.user), verb, self.name, *words, check=check)

    @property
    def token(self) -> Path:
        """The file with its token, if it has one."""
        return TOKENS / f"{self.name}.token"

    def is_installed(self) -> bool:
        """Return whether `service install` wrote it."""
        try:
            return self.file.read_text().startswith(MARK)
        except OSError:
            return False

    def install_words(self) -> tuple[str, ...]:
        """Return the words after `rustguard service install` that make it again; none if its unit has others."""
        found = re.search(r"^ExecStart=(.*)$", self.file.read_text(), re.MULTILINE)
        words = [] if found is None else shlex.split(found[1])
        while words and words[0] not in ("serve", "join", "up"):
            del words[0]
        if words[-2:] == ["--token-file", "%d/token"]:
            del words[-2:]
        plain = (each.replace("%%", "%").replace("$$", "$") for each in words)
        return tuple(each for each in plain if each != "--foreground")


def service_name(kind: str, label: str | None) -> str:
    """Return the name of a unit: of `serve` and `join` by their state directory, of `up` by its interface."""
    slug = re.sub(r"[^\w.-]+", "-", label or "", flags=re.ASCII).strip("-.")
    return f"rustguard-{kind}-{slug}" if slug else f"rustguard-{kind}"


def user_units() -> Path:
    """Return the directory of this user's own units."""
    from platformdirs import user_config_path

    return user_config_path("systemd", appauthor=False) / "user"


def _manager(*, user: bool) -> tuple[str, ...]:
    """Return the option that selects the systemd."""
    return ("--user",) if user else ()


def require(*, user: bool = False) -> None:
    """Check that a unit can be installed.

    Args:
        user: Whether it is to be one of this user's own systemd.

    Raises:
        RefusedError: systemd doesn't run here, or we aren't root.
    """
    if not RUNNING.is_dir():
        if openrc.RUNNING.is_dir():
            raise RefusedError(
                "This machine runs OpenRC, not systemd.",
                "OpenRC has a script of its own: see docs/guide/service.md, or start it in the background: --daemon",
            )
        raise RefusedError(
            "This machine doesn't run systemd.",
            f"Start it in the background instead: {as_root('rustguard serve --daemon')}, or join --daemon",
        )
    if user:
        if os.geteuid() == 0:
            raise RefusedError(
                "A service with --rootless belongs to a user without root.",
                "Run the command as that user, or leave out --rootless.",
            )
        if systemctl("--user", "show", "--property=Version", check=False).returncode:
            raise RefusedError(
                "No systemd runs for this user.",
                "Log in as that user (not by su or sudo), or start it in the background: join --rootless --daemon",
            )
    elif os.geteuid() != 0:
        raise RefusedError(
            "Only root may change services.", "Run it as root, or as this user: service install join … --rootless"
        )


def install(service: Service, content: Unit, *, token: str | None, xdp: bool) -> None:
    """Write a unit, start it now and at each boot. If it doesn't start, take it back.

    Args:
        service: Its name.
        content: What it runs.
        token: Written to the service's token file; None leaves one that is there.
        xdp: Whether it needs what `unit.XDP` permits.

    Raises:
        RustGuardError: It didn't start. The message has its last lines.
        RefusedError: A unit of this name is somebody else's.
    """
    if service.file.exists() and not service.is_installed():
        raise RefusedError(f"{service.file} is there and wasn't written by rustguard.", "Remove or rename it first.")
    before = service.file.read_text() if service.file.exists() else None
    if token is not None:
        _write_secret(service.token, token)
    service.file.parent.mkdir(parents=True, exist_ok=True)
    service.file.write_text(content.text())
    if xdp:
        service.extra.mkdir(exist_ok=True)
        (service.extra / "xdp.conf").write_text(unit.XDP)
    else:
        shutil.rmtree(service.extra, ignore_errors=True)
    manager = _manager(user=service.user)
    systemctl(*manager, "daemon-reload")
    if all(service.systemctl(verb, check=False).returncode == 0 for verb in ("enable", "restart")):
        return
    said = _last_lines(service)
    if before is None:
        remove(service)
    else:
        service.file.write_text(before)
        systemctl(*manager, "daemon-reload")
    taken = "removed again" if before is None else "as it was before"
    raise RustGuardError(f"{service.name} didn't start, and is {taken}. It said:", said)


def remove(service: Service) -> None:
    """Stop a service and delete its files, the token too.

    Raises:
        NotRunningError: There is none of this name, or it is somebody else's.
    """
    if not service.is_installed():
        raise NotRunningError(
            f"`rustguard service install` wrote no {service.name}.", "See what there is: rustguard service status"
        )
    service.systemctl("disable", "--now", check=False)
    for path in (service.file, *(() if service.user else (service.token,))):
        path.unlink(missing_ok=True)
    shutil.rmtree(service.extra, ignore_errors=True)
    systemctl(*_manager(user=service.user), "daemon-reload")
    service.systemctl("reset-failed", check=False)


def installed() -> list[Service]:
    """Return the services that `service install` wrote, by name; those of this user before the machine's."""
    places = [(UNITS, False)] if os.geteuid() == 0 else [(user_units(), True), (UNITS, False)]
    return [
        service
        for directory, user in places
        for name in sorted(path.name.removesuffix(".service") for path in directory.glob("rustguard-*.service"))
        if (service := Service(name, user)).is_installed()
    ]


def find(name: str | None) -> Service:
    """Return the service that a person means.

    Args:
        name: With or without `rustguard-` and `.service`; None for the only one, or for this user's only one.

    Raises:
        NotRunningError: There is none.
        UsageError: There are several, and none was named.
    """
    known = installed()
    if name is None:
        if not known:
            raise NotRunningError(
                "No service is installed.", f"Install one: {as_root('rustguard service install serve …')}"
            )
        # A user can only show those of the machine, and they may have the same names.
        known = [each for each in known if each.user] or known
        if len(known) > 1:
            names = "\n".join(each.name for each in known)
            raise UsageError(f"{len(known)} services are installed.", f"Name one:\n{names}")
        return known[0]
    wanted = name.removesuffix(".service")
    for each in known:
        if each.name in (wanted, f"rustguard-{wanted}"):
            return each
    raise NotRunningError(
        f"`rustguard service install` wrote no {wanted}.", "See what there is: rustguard service status"
    )


def running_unit(process: int) -> str | None:
    """Return the unit that a process is part of, `NAME.service`, or None if it is part of no service."""
    try:
        group = Path(f"/proc/{process}/cgroup").read_text()
    except OSError:
        return None
    found = re.search(r"/([^/]+\.service)$", group.strip(), re.MULTILINE)
    return found[1] if found and found[1].startswith("rustguard-") else None


def manager_of(process: int) -> tuple[str, ...]:
    """Return the option of systemctl(1) that selects the systemd which runs a process's unit; none for process 1."""
    try:
        group = Path(f"/proc/{process}/cgroup").read_text()
    except OSError:
        return ()
    return _manager(user=re.search(r"/user@[0-9]+\.service/", group) is not None)


def properties(service: Service) -> dict[str, str]:
    """Return what systemd says of a service, by the names of systemctl(1)."""
    done = service.systemctl("show", f"--property={','.join(_PROPERTIES)}")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run systemd's systemctl.

    Raises:
        RustGuardError: It failed, and `check` is set.
    """
    return _run(("systemctl", *words), check=check)


def _last_lines(service: Service) -> str:
    words = (
        "journalctl",
        *_manager(user=service.user),
        "-u",
        service.name,
        "-n",
        str(_LINES_SHOWN),
        "-o",
        "cat",
        "--no-pager",
        "-q",
    )
    # systemd's own lines repeat what we say.
    field = "_SYSTEMD_USER_UNIT" if service.user else "_SYSTEMD_UNIT"
    return _run((*words, f"{field}={service.name}.service"), check=False).stdout.strip() or "nothing"


def _run(words: Sequence[str], *, check: bool) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=180)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RustGuardError(f"{words[0]} can't be run: {error}.") from error
    if check and done.returncode:
        raise RustGuardError(f"`{' '.join(words)}` failed: {done.stderr.strip()}.")
    return done


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        os.fchmod(descriptor, 0o600)
    temporary.replace(path)
