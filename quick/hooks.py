"""PreUp, PostUp, PreDown and PostDown: lines for a shell."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.interface import Echo

log = logging.getLogger(__name__)


async def run(lines: Sequence[str], interface: str, echo: Echo) -> None:
    """Run each to its end, in order; `%i` is the interface. What they say goes to our stderr.

    Raises:
        RustGuardError: One failed; those after it were not run.
    """
    shell = shutil.which("bash") or "sh"
    for line in lines:
        command = line.replace("%i", interface)
        echo(f"[#] {command}")
        code = await _run_one(shell, command)
        if code:
            raise RustGuardError(f"`{command}` ended with {code}.", "Correct that line of the file, or take it out.")


async def run_all(lines: Sequence[str], interface: str, echo: Echo) -> list[str]:
    """Run each, whatever becomes of those before; give what failed, a sentence each."""
    failed = []
    for line in lines:
        try:
            await run([line], interface, echo)
        except RustGuardError as error:
            failed.append(error.message)
            log.warning("%s", error.message)
    return failed


async def _run_one(shell: str, command: str) -> int:
    # A session of its own: a Ctrl-C at the terminal is for us, and what is ended with us is the whole command.
    process = await asyncio.create_subprocess_exec(
        shell,
        "-c",
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        stderr=sys.stderr.fileno(),
        start_new_session=True,
    )
    try:
        return await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        raise
