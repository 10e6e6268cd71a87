"""OpenRC's services: which one a daemon is, and how it is stopped. package/openrc has the script that runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rustguard_py.model.errors import RustGuardError

RUNNING = Path("/run/openrc")
# supervise-daemon waits half a minute for the daemon before it kills it.
_SECONDS = 120.0


def running_service(process: int, proc: Path = Path("/proc")) -> str | None:
    """Return the service whose supervise-daemon has started a process, or None.

    Args:
        process: Its process id.
        proc: Where the kernel shows processes.
    """
    try:
        parent = (proc / str(process) / "stat").read_text().rpartition(")")[2].split()[1]
        words = (proc / parent / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if len(words) < 2 or Path(words[0].decode(errors="replace")).name != "supervise-daemon":
        return None
    return words[1].decode(errors="replace")


def stop(service: str) -> None:
    """Stop a service, so that it isn't started again.

    Raises:
        RustGuardError: rc-service(8) failed.
    """
    words = ["rc-service", service, "stop"]
    try:
        done = subprocess.run(  # noqa: S603
            words, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RustGuardError(f"rc-service can't be run: {error}.") from error
    if done.returncode:
        raise RustGuardError(f"`{' '.join(words)}` failed: {(done.stderr or done.stdout).strip()}.")
