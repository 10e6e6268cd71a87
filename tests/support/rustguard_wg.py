"""`rustguard-wg` in a host of the lab, set up with wireguard-tools as wireguard-go is."""

from __future__ import annotations

import sys
from pathlib import Path


def argv(folder: Path, *, engine: str = "auto", foreground: bool = True) -> list[str]:
    """The command line, but for the interface; its state lies in `folder`."""
    own = [f"RUSTGUARD_STATE={folder / 'client'}", f"RUSTGUARD_ENGINE={engine}"]
    return ["env", *own, sys.executable, "-P", "-m", "rustguard_py.cli.wg", *(["-f"] if foreground else [])]
