"""Two interfaces of one bridge must not answer for the same address: VPP would see it at both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.vpp.settings import BridgeSettings, InterfaceSettings, read_interface


def refuse_overlaps(own: InterfaceSettings, bridge: BridgeSettings) -> None:
    """Compare the ranges that we answer for with those of all other files, if the bridge's file asks for that.

    Raises:
        RefusedError: An address is in a range of another file of the same bridge.
        UsageError: A folder or a file can't be read.
    """
    if not bridge.check:
        return
    for path in _others(own.path, bridge):
        # Unknown keys of other interfaces' files are warned about where those start.
        other = read_interface(path, lambda _: None)
        if other.bridge != own.bridge:
            continue
        for ours in own.answered:
            for theirs in other.answered:
                if ours.version == theirs.version and ours.overlaps(theirs):
                    raise RefusedError(
                        f"{own.path} answers for {ours}, and {path} answers for {theirs}: they overlap.",
                        "Change one of the two files, so that each address is in one of them.",
                    )


def _others(own: Path, bridge: BridgeSettings) -> Iterator[Path]:
    """Yield all other interfaces' files below the folders, each once."""
    seen = {own.resolve()}
    for folder in bridge.check_paths:
        for root, _, names in os.walk(folder, onerror=_refuse):
            for name in sorted(names):
                path = Path(root, name)
                if fnmatchcase(name, "if.*.json") and path.resolve() not in seen:
                    seen.add(path.resolve())
                    yield path


def _refuse(error: OSError) -> None:
    raise UsageError(
        f"{error.filename}, where other interfaces' files are looked for, can't be read: {error.strerror}.",
        "Correct VppBridgeLoop_CheckRouteConfigPaths, or set VppBridgeLoop_CheckRouteConflict to false.",
    ) from error
