"""One end of a tunnel whose packets are testpmd's: an engine with a memif, and no generator.

`bench/memif.py` runs it. It is `rustguard_py.cli.generate.end` otherwise.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

from rustguard_py.cli.generate.end import INTERFACE, Configuration, End, Started
from rustguard_py.data_path import DataPath
from rustguard_py.engine import choose
from rustguard_py.model.errors import RustGuardError
from rustguard_py.protocol.noise import StaticKey
from rustguard_py.system.sockets import bind
from support.memif_pair import options


class Elsewhere:
    """In place of a generator: testpmd sends and counts."""

    def send(self, **_: Any) -> dict[str, Any]:
        """Refuse."""
        raise RustGuardError("testpmd sends.")

    def receive(self, **_: Any) -> None:
        """Refuse."""
        raise RustGuardError("testpmd counts.")

    def report(self, **_: Any) -> dict[str, Any]:
        """Refuse."""
        raise RustGuardError("testpmd counts.")


def start(given: Configuration) -> Started:
    """Start the engine. Its memif listens when this returns."""
    engine = choose(DataPath(given.engine)).on_memif(options(Path(given.memif), server=True))
    public = StaticKey(b64decode(given.private_key)).public
    # In a network namespace with one link.
    plane = engine.make_plane(public, INTERFACE, bind(given.port, ["0.0.0.0"]), given.mtu)  # noqa: S104
    return Started(engine, plane, Elsewhere())


def main() -> int:
    """Run the end; 1 if it failed, with a line of JSON that says why."""
    try:
        End(Configuration(**json.loads(sys.stdin.buffer.readline())), start).run()
    except (RustGuardError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
