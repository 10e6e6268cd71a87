"""Of pyroute2, a daemon loads the parts that it uses."""

from __future__ import annotations

import subprocess
import sys

_LOADED = """
import sys
import rustguard_py.enroll.client.start, rustguard_py.enroll.server.start, rustguard_py.quick.running
from rustguard_py.system.netlink_library import IPRoute
with IPRoute() as netlink:
    netlink.get_links()
loaded = [name for name in sys.modules if name.startswith("pyroute2")]
assert "pyroute2.iproute.linux" in loaded
print([name for name in loaded if name in ("pyroute2", "pyroute2.ndb", "pyroute2.conntrack")])
import pyroute2
print(pyroute2.IPRoute is IPRoute, hasattr(pyroute2, "NDB"))
"""


def test_a_daemon_loads_no_more_of_pyroute2_than_it_uses_and_others_get_it_whole() -> None:
    said = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True).stdout
    assert said == "[]\nTrue True\n"
