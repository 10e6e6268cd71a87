"""Addresses given out, and networks that don't collide."""

import itertools
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustguard_py.enroll.server.pool import Pool
from rustguard_py.model.errors import UsageError
from rustguard_py.system.networks import collisions, make_ula, propose


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_the_server_is_first_and_peers_get_the_lowest_free() -> None:
    pool = Pool(IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/64"))
    assert pool.server == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert pool.allocate(key(1)) == (IPv4Address("10.0.0.2"), IPv6Address("fd00::2"))
    assert pool.allocate(key(2)) == (IPv4Address("10.0.0.3"), IPv6Address("fd00::3"))
    assert pool.allocate(key(1)) == (IPv4Address("10.0.0.2"), IPv6Address("fd00::2"))
    pool.release(key(1))
    assert pool.allocate(key(3)) == (IPv4Address("10.0.0.2"), IPv6Address("fd00::2"))
    assert len(pool) == 2


def test_a_full_pool_says_so_until_an_address_comes_back() -> None:
    pool = Pool(IPv4Network("10.0.0.0/29"))
    given_out = [pool.allocate(key(number)) for number in range(6)]
    assert given_out[:5] == [(IPv4Address(f"10.0.0.{host}"), None) for host in range(2, 7)]
    assert given_out[5] is None
    assert pool.capacity == 5
    pool.release(key(3))
    assert pool.allocate(key(9)) == given_out[3]


def test_kept_and_chosen_addresses_are_taken_once() -> None:
    pool = Pool(IPv4Network("10.0.0.0/24"))
    assert pool.take(key(1), IPv4Address("10.0.0.9"))
    assert pool.take(key(1), IPv4Address("10.0.0.9"))
    for refused in ("10.0.0.9", "10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "9.255.255.255"):
        assert not pool.take(key(2), IPv4Address(refused))
    assert pool.take(key(1), IPv4Address("10.0.0.2"))
    assert pool.take(key(2), IPv4Address("10.0.0.9"))
    assert pool.allocate(key(3)) == (IPv4Address("10.0.0.3"), None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_no_address_is_ever_given_twice(steps: list[tuple[bool, int]]) -> None:
    pool = Pool(IPv4Network("10.0.0.0/29"))
    model: dict[int, IPv4Address] = {}
    for allocate, number in steps:
        if not allocate:
            pool.release(key(number))
            model.pop(number, None)
            continue
        addresses = pool.allocate(key(number))
        free = [IPv4Address(f"10.0.0.{h}") for h in range(2, 7) if IPv4Address(f"10.0.0.{h}") not in model.values()]
        expected = model.get(number) or next(iter(free), None)
        assert (addresses and addresses[0]) == expected
        if expected is not None:
            model[number] = expected
    assert len(pool) == len(model)


def test_ten_thousand_peers_of_a_16_take_no_time() -> None:
    pool = Pool(IPv4Network("10.0.0.0/16"), IPv6Network("fd00::/64"))
    began = time.perf_counter()
    addresses = {pool.allocate(key(number)) for number in range(10_000)}
    for number in Random(0).sample(range(10_000), 5_000):
        pool.release(key(number))
    addresses |= {pool.allocate(key(number)) for number in range(20_000, 25_000)}
    seconds = time.perf_counter() - began
    print(f"pool: 15,000 allocations and 5,000 releases in {seconds * 1000:.0f} ms")
    assert len(addresses) == 10_000
    assert seconds < 30


def test_pools_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="no room"):
        Pool(IPv4Network("10.0.0.0/31"))


def test_a_narrow_ipv6_pool_gives_what_it_has() -> None:
    pool = Pool(IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/126"))
    given_out = [pool.allocate(key(number)) for number in range(4)]
    assert given_out == [
        (IPv4Address("10.0.0.2"), IPv6Address("fd00::2")),
        (IPv4Address("10.0.0.3"), IPv6Address("fd00::3")),
        (IPv4Address("10.0.0.4"), None),
        (IPv4Address("10.0.0.5"), None),
    ]
    pool.release(key(0))
    # Address by address: the number of its IPv4 address is free again in both.
    assert pool.allocate(key(9)) == given_out[0]


OWN = (IPv4Address("10.0.0.254"), IPv6Address("fd00::cafe:1"))


def test_the_server_may_have_any_address_of_its_pool() -> None:
    pool = Pool(IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/64"), OWN)
    assert pool.server == OWN
    assert pool.capacity == 253
    assert pool.allocate(key(1)) == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert not pool.take(key(2), IPv4Address("10.0.0.254"))


def test_what_a_peer_has_is_given_to_nobody_else() -> None:
    pool = Pool(IPv4Network("10.0.0.0/24"), IPv6Network("fd00::/64"), OWN)
    # A network that begins with the lowest address, an IPv6 number of its own, and addresses of no pool.
    pool.hold(key(1), [ip_network(each) for each in ("10.0.0.0/30", "10.0.0.9/32", "fd00::4/128", "fd00::5/128")])
    pool.hold(key(2), [ip_network(each) for each in ("192.168.7.0/24", "10.9.0.1/32", "fd09::/64")])
    pool.hold(key(3), [ip_network("fd00::ab6:3d02/128")])
    assert pool.allocate(key(1)) == (IPv4Address("10.0.0.9"), IPv6Address("fd00::4"))
    # 10.0.0.4 is free, but fd00::4 isn't.
    assert pool.allocate(key(4)) == (IPv4Address("10.0.0.4"), IPv6Address("fd00::1"))
    assert pool.allocate(key(5)) == (IPv4Address("10.0.0.5"), IPv6Address("fd00::2"))
    assert pool.allocate(key(6)) == (IPv4Address("10.0.0.6"), IPv6Address("fd00::6"))
    # Peers that had none in the pool get some there when they join again.
    assert pool.allocate(key(2)) == (IPv4Address("10.0.0.7"), IPv6Address("fd00::7"))
    assert pool.allocate(key(3)) == (IPv4Address("10.0.0.8"), IPv6Address("fd00::ab6:3d02"))
    for number in (1, 4):
        pool.release(key(number))
    assert pool.allocate(key(7)) == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert pool.allocate(key(8)) == (IPv4Address("10.0.0.2"), IPv6Address("fd00::3"))


networks_of_a_peer = st.lists(
    st.tuples(st.integers(0, 15), st.integers(28, 32)).map(
        lambda pair: IPv4Network((0x0A000000 + pair[0], pair[1]), strict=False)
    ),
    max_size=2,
    unique=True,
)


@given(st.lists(networks_of_a_peer, max_size=3), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=30))
def test_the_lowest_address_that_nobody_has_is_given_next(
    held: list[list[IPv4Network]], steps: list[tuple[bool, int]]
) -> None:
    pool = Pool(IPv4Network("10.0.0.0/28"))
    model: dict[int, list[IPv4Network]] = {}
    taken: set[IPv4Network] = set()
    for number, networks in enumerate(held):
        # As in a file: each network belongs to one peer.
        own = [each for each in networks if each not in taken and each != IPv4Network("10.0.0.1/32")]
        taken.update(own)
        pool.hold(key(number), own)
        model[number] = own
    for allocate, number in steps:
        if not allocate:
            pool.release(key(number))
            model.pop(number, None)
            continue
        hosts = [IPv4Address(f"10.0.0.{host}") for host in range(2, 15)]
        free = [each for each in hosts if not any(each in network for own in model.values() for network in own)]
        mine = [each.network_address for each in model.get(number, []) if each.prefixlen == 32]
        mine = [each for each in mine if each in hosts]
        addresses = pool.allocate(key(number))
        expected = next(iter((*mine, *free)), None)
        assert (addresses and addresses[0]) == expected
        if expected is not None and expected not in mine:
            model.setdefault(number, []).append(IPv4Network(expected))


def test_collisions_are_named_and_default_routes_are_none() -> None:
    taken = [
        (ip_network("0.0.0.0/0"), "default"),
        (ip_network("10.0.0.0/8"), "route"),
        (ip_network("10.1.2.0/25"), "address"),
        (ip_network("10.1.3.0/24"), "beside"),
        (ip_network("fd00::/8"), "six"),
    ]
    assert collisions(IPv4Network("10.1.2.0/24"), taken) == ["route", "address"]
    assert collisions(IPv6Network("fd00:1::/64"), taken) == ["six"]


networks = st.builds(
    lambda address, prefix: IPv4Network((address >> 32 - prefix << 32 - prefix, prefix)),
    st.one_of(
        st.integers(10 << 24, (11 << 24) - 1),
        st.integers(0xAC100000, 0xAC1FFFFF),
        st.integers(0xC0A80000, 0xC0A8FFFF),
    ),
    st.integers(8, 32),
)


@given(st.lists(networks, max_size=12), st.integers(8, 30))
def test_a_proposed_network_is_private_and_free(taken: list[IPv4Network], prefixlen: int) -> None:
    found = propose(taken, prefixlen)
    if found is None:
        spaces = [IPv4Network(space) for space in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
        candidates = itertools.chain.from_iterable(
            [] if space.prefixlen > prefixlen else space.subnets(new_prefix=min(prefixlen, 16)) for space in spaces
        )
        assert all(any(network.overlaps(candidate) for network in taken) for candidate in candidates)
    else:
        assert found.prefixlen == prefixlen
        assert found.is_private
        assert not any(found.overlaps(network) for network in taken)


def test_when_all_private_space_is_taken_nothing_is_proposed() -> None:
    taken = [ip_network(space) for space in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    assert propose(taken) is None
    assert propose(taken[:2]) == IPv4Network("192.168.150.0/24")
    assert propose([ip_network("0.0.0.0/0"), ip_network("::/0")]) == IPv4Network("10.150.0.0/24")


def test_a_ula_is_a_64_with_forty_random_bits() -> None:
    assert make_ula(lambda size: b"\xab" * size) == IPv6Network("fdab:abab:abab::/64")
