"""`rustguard-wg` in a host of the lab, set up with wireguard-tools as wireguard-go is."""

from __future__ import annotations

import sys
from pathlib import Path

from support import channel_wg


def argv(folder: Path, *, engine: str = "auto", foreground: bool = True, channel: str = "") -> list[str]:
    """The command line, but for the interface; its state lies in `folder`. `channel`: see `support.channel_wg`."""
    own = [f"RUSTGUARD_STATE={folder / 'client'}", f"RUSTGUARD_ENGINE={engine}"]
    program = [channel_wg.__file__, channel] if channel else ["-m", "rustguard_py.cli.wg"]
    return ["env", *own, sys.executable, "-P", *program, *(["-f"] if foreground else [])]
