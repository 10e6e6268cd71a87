"""VPP by its command line: one `vppctl` per step.

`vppctl` ends with 0 even when VPP refuses. A command that succeeds prints nothing, so what it prints is the error.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from rustguard_py.model.errors import RefusedError
from rustguard_py.model.printable import printable
from rustguard_py.vpp.plan import Bvi, Network, Wanted
from rustguard_py.vpp.ways import Address, DeclinedError, UnreachableError

_SECONDS = 10.0
_SOCKET_LINE = re.compile(r"^\s*(\d+)\s+\S.*?\s([/@]\S*)\s*$", re.MULTILINE)


class Vppctl:
    """VPP by `vppctl`.

    Args:
        program: Its name or path.
    """

    def __init__(self, program: str) -> None:
        self._program = program

    def close(self) -> None:
        """Do nothing: each command is a process of its own."""

    def socket_path(self, number: int) -> Path | None:
        """Return the path of a memif socket, or None if there is no socket of that number."""
        for found, path in _SOCKET_LINE.findall(self._run("show", "memif")):
            if int(found) == number:
                return Path(path)
        return None

    def has_memif(self, number: int) -> bool:
        """Return whether the memif is there."""
        return (
            re.search(rf"^interface memif{number}/{number}\s*$", self._run("show", "memif"), re.MULTILINE) is not None
        )

    def add_socket(self, number: int, path: Path) -> None:
        """Name a path as a memif socket."""
        self._do("create", "memif", "socket", "id", str(number), "filename", str(path))

    def delete_socket(self, number: int, path: Path) -> None:
        """Forget a memif socket."""
        del path
        self._do("delete", "memif", "socket", "id", str(number))

    def add_memif(self, wanted: Wanted) -> None:
        """Make the memif. A secret is on the command line, where other users can see it while the command runs."""
        number = str(wanted.uid)
        words = ["create", "interface", "memif", "id", number, "socket-id", number, "slave"]
        words += ["hw-addr", wanted.mac.hex(":"), "no-zero-copy"]
        self._do(*words, *(["secret", wanted.secret.decode()] if wanted.secret else []))

    def delete_memif(self, number: int) -> None:
        """Delete a memif."""
        self._do("delete", "interface", "memif", f"memif{number}/{number}")

    def bring_up(self, wanted: Wanted, mtu: int) -> None:
        """Set the memif's MTU, bring it up and put it into the bridge."""
        self._do("set", "interface", "mtu", str(mtu), wanted.name)
        self._do("set", "interface", "state", wanted.name, "up")
        self._do("set", "interface", "l2", "bridge", wanted.name, str(wanted.bridge))

    def look_up(self, bvi: Bvi) -> Bvi:
        """Check that the interface is there."""
        shown = self._run("show", "interface", bvi.name)
        if not any(line.split()[:1] == [bvi.name] for line in shown.splitlines()):
            raise DeclinedError(
                f"VPP has no interface {bvi.name}.",
                f"Make it (docs/guide/vpp.md), or correct VppBridgeLoop_SwIfName; `{self._program} show interface` "
                "lists all.",
            )
        return bvi

    def route(self, network: Network, bvi: Bvi, *, add: bool) -> None:
        """Add or delete a route to one address."""
        address = str(network.network_address)
        self._do("ip", "route", "add" if add else "del", str(network), "via", address, bvi.name)

    def neighbour(self, address: Address, bvi: Bvi, wanted: Wanted, *, add: bool) -> None:
        """Add or delete a neighbour with our MAC address."""
        words = ["set", "ip", "neighbor", *([] if add else ["del"]), bvi.name, str(address), wanted.own_mac.hex(":")]
        if add:
            words += [*(["static"] if wanted.static else []), *(["no-fib-entry"] if wanted.no_fib_entry else [])]
        self._do(*words)

    def _do(self, *words: str) -> None:
        if said := self._run(*words).strip():
            # Not the words: a secret may be among them.
            raise DeclinedError(
                f"`{self._program} {words[0]} {words[1]} {words[2]}` failed: {printable(said.splitlines()[0])}",
                f"Is VPP set up as docs/guide/vpp.md says? `{self._program} show logging` may say more.",
            )

    def _run(self, *words: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603
                [self._program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise RefusedError(
                f"There is no program {self._program}.", "Install VPP, or correct VppBridgeLoop_VppctlBin."
            ) from error
        except OSError as error:
            raise RefusedError(
                f"{self._program} can't be started: {error.strerror}.", "Correct VppBridgeLoop_VppctlBin."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(
                f"VPP didn't answer {self._program} within {_SECONDS:.0f} s.", "Does it run? systemctl status vpp"
            ) from error
        if done.returncode:
            said = printable(done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}")
            raise UnreachableError(
                f"{self._program} can't reach VPP: {said}",
                "Start VPP: sudo systemctl start vpp. May you use /run/vpp/cli.sock?",
            )
        return done.stdout.decode(errors="replace")
