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
    with pytest.raises(UsageError, match="smaller"):
        Pool(IPv4Network("10.0.0.0/16"), IPv6Network("fd00::/120"))


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
