"""The command `rustguard`: one module a verb, each imported when it's called."""

from rustguard_py.cli.app import main

__all__ = ["main"]
