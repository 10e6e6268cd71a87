"""The command `rustguard`: one module per verb, imported when the verb is called."""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its code."""
    try:
        from rustguard_py.cli.app import main as run
    except KeyboardInterrupt:
        # A Ctrl-C while the program is still being loaded: there is nothing to take back.
        os._exit(130)
    except (ImportError, MemoryError, OSError) as error:
        # What prints errors may be what can't be loaded.
        os.write(2, f"rustguard: A part of the program can't be loaded: {error}.\n".encode())
        os.write(2, b"  Check the limits of memory and files (`ulimit -a`), or install RustGuard again.\n")
        os._exit(1)
    run()
