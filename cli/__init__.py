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
    run()
