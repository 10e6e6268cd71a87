"""The parts of pyroute2 that are used here.

pyroute2's package imports every protocol that it knows, which takes 60 ms of each start and 6 MB of each daemon. So
these parts are imported without it. Who imports pyroute2 later gets all of it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CTRL_CMD_GETFAMILY", "GENL_ID_CTRL", "IPRoute", "NetlinkError", "ctrlmsg", "uapi", "wgmsg"]


@contextmanager
def _parts_alone() -> Iterator[None]:
    spec = None if "pyroute2" in sys.modules else importlib.util.find_spec("pyroute2")
    if spec is None:
        yield
        return
    # Not executed: only the place where Python looks for its parts.
    sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules["pyroute2"]


with _parts_alone():
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, ctrlmsg
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic import wireguard as uapi
    from pyroute2.netlink.generic.wireguard import wgmsg
