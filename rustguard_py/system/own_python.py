"""What another Python process of this program needs to find the same modules as this one."""

from __future__ import annotations

import os
import sys


def import_path() -> dict[str, str]:
    """Return the environment variable that gives a Python process the import path of this one.

    The Debian package lies in a folder that is in no Python's path. Only its command adds it, for one process.
    """
    return {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
