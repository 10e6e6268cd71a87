"""One end of a tunnel whose packets are testpmd's: an engine with a memif, and no generator.

`bench/memif.py` runs it. It is `rustguard_py.cli.generate.end` otherwise.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Any

from rustguard_py.cli.generate.end import INTERFACE, Configuration, Started, main
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


if __name__ == "__main__":
    raise SystemExit(main(start))
