"""The command `rustguard`: one module per verb, imported when the verb is called."""

from rustguard_py.cli.app import main

__all__ = ["main"]
