"""PreUp, PostUp, PreDown and PostDown: lines that a shell runs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.interface import Echo

log = logging.getLogger(__name__)

# Runs a line as the file has it, and returns its exit code.
Runner = Callable[[str], Awaitable[int]]


async def run(lines: Sequence[str], interface: str, echo: Echo, runner: Runner | None = None) -> None:
    """Run each line to its end, in order; `%i` is the interface. Their output goes to our stderr.

    Args:
        lines: The lines.
        interface: The interface's name.
        echo: Called with one line per hook.
        runner: Runs them; None for this process.

    Raises:
        RustGuardError: One failed; the lines after it were not run.
    """
    shell = shutil.which("bash") or "sh"
    for line in lines:
        command = line.replace("%i", interface)
        echo(f"[#] {command}")
        code = await (_run_one(shell, command) if runner is None else runner(line))
        if code:
            raise RustGuardError(f"`{command}` ended with {code}.", "Correct that line of the file, or remove it.")


async def run_all(lines: Sequence[str], interface: str, echo: Echo, runner: Runner | None = None) -> list[str]:
    """Run each line as `run` does, even if an earlier one failed; return a sentence for each that failed."""
    failed = []
    for line in lines:
        try:
            await run([line], interface, echo, runner)
        except RustGuardError as error:
            failed.append(error.message)
            log.warning("%s", error.message)
    return failed


async def _run_one(shell: str, command: str) -> int:
    # A session of its own, for two reasons: a Ctrl-C at the terminal is meant for us, and when we are cancelled the
    # whole process group of the command can be ended.
    process = await asyncio.create_subprocess_exec(
        shell,
        "-c",
        command.encode("utf-8", "surrogateescape"),
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
