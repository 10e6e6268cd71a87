"""The addresses that a server gives to its peers.

A pool says only what new peers get. A peer of a wg-quick file keeps whatever addresses it has, in the pool or not,
and nobody else gets them.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from rustguard_py.model.endpoint import IpAddress, Network
from rustguard_py.model.errors import UsageError

_SMALLEST: Final = 30
_SERVER: Final = 1


class Pool:
    """A pool that gives out the lowest free address first.

    Without other orders the server has the first host address. The last IPv4 address is the broadcast address and
    never given out. A new peer's IPv6 address has the same host number as its IPv4 address, or the lowest free one if
    that isn't free.

    Args:
        network4: /30 or larger.
        network6: The prefix of IPv6 addresses, or None.
        own: The server's own addresses, if they aren't the first ones.

    Raises:
        UsageError: The network is too small.
    """

    __slots__ = ("_four", "_given", "_held", "_six", "network4", "network6", "own")

    def __init__(
        self, network4: IPv4Network, network6: IPv6Network | None = None, own: Iterable[IpAddress] = ()
    ) -> None:
        if network4.prefixlen > _SMALLEST:
            raise UsageError(
                f"The pool {network4} has no room for a server and a peer.", "Use a /30 or larger, such as a /24."
            )
        first = [network[_SERVER] for network in (network4, network6) if network is not None]
        self.network4 = network4
        self.network6 = network6
        self.own: tuple[IpAddress, ...] = tuple(own) or tuple(first)
        self._four = _Numbers(network4, network4.num_addresses - 2, self.own)
        self._six = None if network6 is None else _Numbers(network6, network6.num_addresses - 1, self.own)
        # By key: the host numbers of what it was given, and everything that it holds besides.
        self._given: dict[bytes, tuple[int | None, int | None]] = {}
        self._held: dict[bytes, tuple[Network, ...]] = {}

    def __len__(self) -> int:
        """Return how many IPv4 addresses of the pool peers have."""
        return self._four.used

    @property
    def capacity(self) -> int:
        """How many IPv4 addresses of the pool peers can have."""
        return self._four.capacity

    @property
    def server(self) -> tuple[IPv4Address, IPv6Address | None]:
        """The server's own addresses in the pool."""
        four = [each for each in self.own if isinstance(each, IPv4Address) and each in self.network4]
        server4 = (four or [self.network4[_SERVER]])[0]
        if self.network6 is None:
            return server4, None
        six = [each for each in self.own if isinstance(each, IPv6Address) and each in self.network6]
        return server4, (six or [self.network6[_SERVER]])[0]

    def allocate(self, public_key: bytes) -> tuple[IPv4Address, IPv6Address | None] | None:
        """Return the addresses of a key in the pool, which gets the lowest free ones if it has none there.

        Returns:
            The addresses; None if the pool is full. Without an IPv6 pool, or if that is full, the second is None.
        """
        four, six = self._given.get(public_key, (None, None))
        if four is None:
            four = self._four.lowest()
            if four is None:
                return None
            self._four.hold(four, four)
        if six is None and self._six is not None:
            six = four if self._six.is_free(four) else self._six.lowest()
            if six is not None:
                self._six.hold(six, six)
        self._given[public_key] = four, six
        return self.network4[four], None if self.network6 is None or six is None else self.network6[six]

    def take(self, public_key: bytes, address4: IPv4Address) -> bool:
        """Assign a certain address of the pool to a key, in place of all that it had.

        Returns:
            Whether that was possible. If the address is outside the pool, the server's or in use, nothing changes.
        """
        number = int(address4) - int(self.network4.network_address)
        if self._given.get(public_key, (None, None))[0] == number:
            return True
        if not self._four.is_free(number):
            return False
        self.release(public_key)
        self._four.hold(number, number)
        self._given[public_key] = number, None
        return True

    def hold(self, public_key: bytes, networks: Iterable[Network]) -> None:
        """Note what a key has, in the pool or not, so that nobody else gets it.

        Its first address in each pool that the pool could have given counts as given.
        """
        given: list[int | None] = [None, None]
        held = []
        for network in networks:
            place, numbers = (0, self._four) if isinstance(network, IPv4Network) else (1, self._six)
            part = None if numbers is None else numbers.part(network)
            if numbers is None or part is None:
                continue
            if given[place] is None and part[0] == part[1] and numbers.gives(part[0]):
                given[place] = part[0]
            else:
                held.append(network)
            numbers.hold(*part)
        self._given[public_key] = given[0], given[1]
        if held:
            self._held[public_key] = tuple(held)

    def release(self, public_key: bytes) -> None:
        """Take all back that a key has, if anything."""
        four, six = self._given.pop(public_key, (None, None))
        if four is not None:
            self._four.release(four, four)
        if six is not None and self._six is not None:
            self._six.release(six, six)
        for network in self._held.pop(public_key, ()):
            numbers = self._four if isinstance(network, IPv4Network) else self._six
            if numbers is not None and (part := numbers.part(network)) is not None:
                numbers.release(*part)


class _Numbers:
    """The host numbers of one network: which ones are free.

    Memory: a few bytes for each number that was ever in use.

    Args:
        network: The network.
        last: The last number to give. The first one is 1.
        own: The server's addresses, which are never given.
    """

    __slots__ = ("_first", "_freed", "_last", "_next", "_own", "_ranges", "_size", "_used")

    def __init__(self, network: Network, last: int, own: Iterable[IpAddress]) -> None:
        self._first = int(network.network_address)
        self._size = network.num_addresses
        self._last = last
        self._own = {int(each) - self._first for each in own if each in network}
        self._used: set[int] = set()
        self._ranges: list[tuple[int, int]] = []
        # All numbers below the next one are in use, but for those that came back, as a heap.
        self._next = 1
        self._freed: list[int] = []

    @property
    def capacity(self) -> int:
        """How many numbers there are to give."""
        return self._last - sum(map(self._in_bounds, self._own))

    @property
    def used(self) -> int:
        """How many of them are in use."""
        singles = sum(map(self.gives, self._used))
        return min(self.capacity, singles + sum(last - first + 1 for first, last in self._ranges))

    def part(self, network: Network) -> tuple[int, int] | None:
        """Return the first and the last number of what another network of the same version covers here, or None."""
        first = int(network.network_address) - self._first
        last = first + (1 << network.max_prefixlen - network.prefixlen) - 1
        if last < 0 or first >= self._size:
            return None
        return max(first, 0), min(last, self._size - 1)

    def gives(self, number: int) -> bool:
        """Return whether a number is one to give."""
        return self._in_bounds(number) and number not in self._own

    def is_free(self, number: int) -> bool:
        """Return whether a number can be given now."""
        return self.gives(number) and number not in self._used and self._range_of(number) is None

    def lowest(self) -> int | None:
        """Return the lowest number that can be given now, or None."""
        while self._freed and not self.is_free(self._freed[0]):
            heappop(self._freed)
        while self._next <= self._last and not self.is_free(self._next):
            covering = self._range_of(self._next)
            self._next = self._next + 1 if covering is None else covering[1] + 1
        lowest = min([self._next, *self._freed[:1]])
        return lowest if lowest <= self._last else None

    def hold(self, first: int, last: int) -> None:
        """Take numbers out."""
        if first == last:
            self._used.add(first)
        else:
            self._ranges.append((first, last))

    def release(self, first: int, last: int) -> None:
        """Put the numbers of one `hold` back."""
        if first == last:
            self._used.discard(first)
            if first < self._next:
                heappush(self._freed, first)
        else:
            self._ranges.remove((first, last))
            self._next = min(self._next, max(first, 1))

    def _in_bounds(self, number: int) -> bool:
        return 1 <= number <= self._last

    def _range_of(self, number: int) -> tuple[int, int] | None:
        return next((each for each in self._ranges if each[0] <= number <= each[1]), None)
