"""What was set up in VPP for one interface: made, made again, added to and taken back.

Everything is in the record before it is done. So what a killed process left is taken back by the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.vpp.plan import Bvi, Network, Wanted
from rustguard_py.vpp.ways import Address, DeclinedError, UnreachableError, Way

log = logging.getLogger(__name__)

# The most neighbours that are added. Whoever is in the bridge may ask for each address of a range.
MOST_NEIGHBOURS = 1024


@dataclass(frozen=True, slots=True)
class Done:
    """What may be in VPP because of us."""

    uid: int
    socket: Path
    bvi: Bvi
    routes: tuple[Network, ...] = ()
    neighbours: tuple[Address, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the record's content."""
        return {
            "uid": self.uid,
            "socket": str(self.socket),
            "bvi": self.bvi.name,
            "bvi_index": self.bvi.index,
            "routes": [str(each) for each in self.routes],
            "neighbours": [str(each) for each in self.neighbours],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object] | None) -> Done | None:
        """Return what an earlier process wrote, or None if it left nothing or nothing that we understand."""
        if not data:
            return None
        with suppress(KeyError, ValueError, TypeError):
            routes, neighbours = data["routes"], data["neighbours"]
            assert isinstance(routes, list)  # noqa: S101
            assert isinstance(neighbours, list)  # noqa: S101
            return cls(
                int(str(data["uid"])),
                Path(str(data["socket"])),
                Bvi(str(data["bvi"]), int(str(data["bvi_index"]))),
                tuple(map(ip_network, routes)),
                tuple(map(ip_address, neighbours)),
            )
        log.warning("The record of what was set up in VPP can't be understood. Look with: vppctl show memif")
        return None


class Wiring:
    """What one interface has in VPP. Each method blocks; call one at a time.

    Args:
        way: To VPP.
        wanted: What VPP needs.
        mtu: Of packets.
        left: What an earlier process wrote to the record.
        save: Writes the record, durably. None: there is nothing any more.
    """

    def __init__(
        self,
        way: Way,
        wanted: Wanted,
        mtu: int,
        left: Mapping[str, object] | None,
        save: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._way, self._wanted, self._mtu, self._save = way, wanted, mtu, save
        self._done = Done.from_json(left)
        self._asked: tuple[Address, ...] = ()
        self._full = False

    def make(self) -> None:
        """Set everything up. On an error nothing stays.

        Raises:
            RustGuardError: VPP doesn't answer, or refuses.
        """
        try:
            self._take_back()
            self._clear_socket()
            wanted = self._wanted
            needs_bvi = wanted.routes or self._asked
            bvi = self._way.look_up(wanted.bvi) if needs_bvi else wanted.bvi
            self._remember(Done(wanted.uid, wanted.socket, bvi, wanted.routes, self._asked))
            try:
                self._way.add_socket(wanted.uid, wanted.socket)
                self._way.add_memif(wanted)
                self._way.bring_up(wanted, self._mtu)
                for network in wanted.routes:
                    self._way.route(network, bvi, add=True)
                for address in self._asked:
                    self._way.neighbour(address, bvi, wanted, add=True)
            except RustGuardError:
                # If VPP is gone, then so is what was set up; the record stays until somebody has looked.
                with suppress(UnreachableError):
                    self._take_back()
                raise
        finally:
            self._way.close()

    def repair(self) -> bool:
        """Set everything up again if VPP has lost it, as after its restart. Return whether it had.

        Raises:
            RustGuardError: VPP doesn't answer, or refuses.
        """
        try:
            if self._way.has_memif(self._wanted.uid):
                return False
        finally:
            self._way.close()
        self.make()
        return True

    def add_neighbours(self, addresses: Iterable[Address]) -> None:
        """Add neighbours for addresses that we answered for, those of them that are wanted and new.

        Raises:
            RustGuardError: VPP doesn't answer, or refuses.
        """
        wanted = self._wanted
        new = [
            each
            for each in dict.fromkeys(addresses)
            if each not in self._asked and _single(each) in wanted.neighbours
        ]
        room = max(0, MOST_NEIGHBOURS - len(self._asked))
        if len(new) > room and not self._full:
            self._full = True
            log.warning("VPP gets no more than %d neighbours. It asks for further addresses itself.", MOST_NEIGHBOURS)
        new = new[:room]
        if not new or self._done is None:
            return
        try:
            bvi = self._way.look_up(wanted.bvi)
            for address in new:
                self._remember(replace(self._done, bvi=bvi, neighbours=(*self._done.neighbours, address)))
                self._way.neighbour(address, bvi, wanted, add=True)
                self._asked = (*self._asked, address)
        finally:
            self._way.close()

    def take_back(self) -> None:
        """Take everything back.

        Raises:
            UnreachableError: VPP doesn't answer. The next start takes it back.
        """
        try:
            self._take_back()
        finally:
            self._way.close()

    def _take_back(self) -> None:
        done = self._done
        if done is None:
            return
        way = self._way
        steps: list[Callable[[], None]] = []
        for address in reversed(done.neighbours):
            steps.append(lambda address=address: way.neighbour(address, done.bvi, self._wanted, add=False))  # type: ignore[misc]
        for network in reversed(done.routes):
            steps.append(lambda network=network: way.route(network, done.bvi, add=False))  # type: ignore[misc]
        # Another program's socket of that number is left alone, and its interface with it.
        if way.socket_path(done.uid) == done.socket:
            steps.append(lambda: way.delete_memif(done.uid))
            steps.append(lambda: way.delete_socket(done.uid, done.socket))
        for step in steps:
            try:
                step()
            except DeclinedError as error:
                # Most likely VPP has started again since, so it isn't there any more.
                log.info("%s", error.message)
        self._remember(None)

    def _clear_socket(self) -> None:
        """Remove what a killed process left without a record, and refuse what isn't ours."""
        wanted = self._wanted
        there = self._way.socket_path(wanted.uid)
        if there is None:
            return
        if there != wanted.socket:
            raise RefusedError(
                f"VPP has a memif socket {wanted.uid} already, at {there}.",
                f"Choose another uid, or delete it: vppctl delete memif socket id {wanted.uid}",
            )
        if self._way.has_memif(wanted.uid):
            self._way.delete_memif(wanted.uid)
        self._way.delete_socket(wanted.uid, there)

    def _remember(self, done: Done | None) -> None:
        self._save({} if done is None else done.as_json())
        self._done = done


def _single(address: Address) -> Network:
    assert isinstance(address, IPv4Address | IPv6Address)  # noqa: S101
    return ip_network(address)
