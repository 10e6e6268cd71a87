"""The settings of a server that are kept: made at the first start, changed by the command line later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface

from rustguard_py.enroll.tunnels import derive
from rustguard_py.model.address import LAST_PORT
from rustguard_py.model.counted import counted
from rustguard_py.model.defaults import DEFAULT_MTU, DEFAULT_PORT
from rustguard_py.model.endpoint import InterfaceAddress
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import generate_private_key
from rustguard_py.state.records import ServerState
from rustguard_py.system.networks import collisions, make_ula, propose, taken_networks

Pools = tuple[IPv4Network, IPv6Network | None]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings on the command line; None leaves what is kept.

    Attributes:
        pool4: IPv4 addresses to give out; the first start needs it.
        pool6: The same for IPv6; a ULA /64 is made at the first start if there is none.
        use_pool6: False for IPv4 only.
        port: UDP port.
        mtu: MTU of the interface, bytes.
        tunnels: Number of tunnels to each client.
    """

    pool4: IPv4Network | None = None
    pool6: IPv6Network | None = None
    use_pool6: bool = True
    port: int | None = None
    mtu: int | None = None
    tunnels: int | None = None


def apply(settings: Settings, kept: dict[str, object] | None) -> ServerState:
    """Return the state with these settings: the kept one, or a new one if `kept` is None. The caller saves it.

    Raises:
        UsageError: The first start has no pool, or the tunnels need more UDP ports than there are.
        RefusedError: A peer's address from the pool is outside a new one.
    """
    if kept is None:
        if settings.pool4 is None:
            raise UsageError(
                "The first start needs to know which addresses to give out.", "Add: --pool 10.150.0.0/24"
            )
        state = ServerState(
            private_key=generate_private_key(),
            server_id=os.urandom(32),
            pool4=settings.pool4,
            pool6=(settings.pool6 or make_ula(os.urandom)) if settings.use_pool6 else None,
            port=settings.port or DEFAULT_PORT,
            mtu=settings.mtu or DEFAULT_MTU,
            tunnels=settings.tunnels or 1,
        )
    else:
        state = ServerState.from_json(kept)
        before = state.pool4, state.pool6
        state.pool4 = settings.pool4 or state.pool4
        # If no IPv6 pool is kept, an earlier start had `--pool6 none`.
        state.pool6 = (settings.pool6 or state.pool6) if settings.use_pool6 else None
        state.port = settings.port or state.port
        state.mtu = settings.mtu or state.mtu
        state.tunnels = settings.tunnels or state.tunnels
        _check_peers(state, before)
        state.own = tuple(_follow(each, before, state) for each in state.own if _stays(each, before, state))
    if (last := derive.port(state.port, state.tunnels - 1)) > LAST_PORT:
        raise UsageError(
            f"{state.tunnels} tunnels need the UDP ports {state.port} to {last}; the last one is {LAST_PORT}.",
            "Choose a lower --port.",
        )
    return state


def _check_peers(state: ServerState, before: Pools) -> None:
    """Refuse a pool that doesn't have the addresses that known peers have from the pool before."""
    pools = (("--pool", before[0], state.pool4, "address4"), ("--pool6", before[1], state.pool6, "address6"))
    for option, old, pool, member in pools:
        had = [address for each in state.peers.values() if (address := getattr(each, member)) is not None]
        given = [address for address in had if old is None or address in old]
        if pool is not None and (outside := [address for address in given if address not in pool]):
            raise RefusedError(
                f"The pool {pool} lacks the addresses of {counted(len(outside), 'peer')}, such as {outside[0]}.",
                f"Leave {option} out to keep the pool they are in; or start another network: --state DIR",
            )


def _stays(own: InterfaceAddress, before: Pools, state: ServerState) -> bool:
    """Return whether an address of the server's own stays with other pools: it leaves with the pool that it is in."""
    old, new = (before[0], state.pool4) if own.version == 4 else (before[1], state.pool6)
    return new is not None and (own.ip in new or old is None or own.ip not in old)


def _follow(own: InterfaceAddress, before: Pools, state: ServerState) -> InterfaceAddress:
    """Return an address of the server's own with the prefix length of its pool."""
    old, new = (before[0], state.pool4) if own.version == 4 else (before[1], state.pool6)
    if new is None or old == new or own.ip not in new:
        return own
    return ip_interface(f"{own.ip}/{new.prefixlen}")


def check_pools(state: ServerState, interfaces: Sequence[str]) -> None:
    """Check that this machine doesn't use a pool's addresses for something else, except on these interfaces.

    Raises:
        RefusedError: It does.
    """
    taken = taken_networks(exclude=interfaces)
    for pool in (state.pool4, state.pool6):
        found = collisions(pool, taken) if pool is not None else []
        if not found:
            continue
        fix = "Choose another pool, or remove that."
        # Another pool can be proposed only while no peer has an address of this one.
        if pool == state.pool4 and not state.peers:
            free = propose([network for network, _ in taken], state.pool4.prefixlen)
            fix = fix if free is None else f"Choose a free one: --pool {free}"
        raise RefusedError(f"The pool {pool} collides with what this machine has: {found[0]}.", fix)


def costs(kept: dict[str, object] | None, state: ServerState) -> list[str]:
    """Return what a change of settings costs the machines that have joined; empty without a change or a peer.

    Args:
        kept: The state before; None at the first start.
        state: The state now.
    """
    if kept is None or not state.peers:
        return []
    before = ServerState.from_json(kept)
    lines = []
    if (before.pool4, before.pool6) != (state.pool4, state.pool6):
        pools = [str(pool) for pool in (before.pool4, before.pool6) if pool is not None]
        lines.append(f"Machines that have joined reach {' and '.join(pools)} only, until they join again.")
    if before.mtu != state.mtu:
        lines.append(f"Machines that joined with the MTU {before.mtu} keep it, until they join again.")
    if before.tunnels < state.tunnels:
        used = "the first tunnel" if before.tunnels == 1 else f"the first {before.tunnels} tunnels"
        lines.append(f"Machines that have joined use {used} only, until they join again.")
    if before.port != state.port:
        lines.append(
            f"The port was {before.port}. Machines that joined with it look for the server there when they start "
            "again, and so can't connect: let them join again. Files of `export` with it need the new Endpoint."
        )
    return lines
