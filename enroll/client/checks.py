"""Checks of `join`, made before anything on this machine is changed."""

from __future__ import annotations

from rustguard_py.daemon import runtime
from rustguard_py.engine import Engine
from rustguard_py.model.errors import RefusedError
from rustguard_py.planes.tun import Tun
from rustguard_py.state.client_records import NetworkRecord
from rustguard_py.system.networks import collisions, taken_networks


def check_interface(interface: str, engine: Engine) -> None:
    """Make an interface and remove it, so that one that can't be made is found before the server gives an address.

    Raises:
        RustGuardError: It can't be made.
    """
    runtime.check_interface(interface, engine)
    if engine.memif is not None:
        return
    if not engine.in_kernel:
        Tun(interface, lambda _: None).close()
        return
    from rustguard_py.kernel.netlink import KernelInterface

    KernelInterface.make(interface, "rustguard").remove()


def check_fingerprint(network: NetworkRecord, expected: str | None) -> None:
    """Check a kept network against the fingerprint given with `--server`, if there is one.

    Raises:
        RefusedError: It is another server.
    """
    if expected is not None and expected != network.fingerprint:
        raise RefusedError(
            f"The server joined before has the fingerprint {network.fingerprint}, not the one given.",
            "Leave --server out, or join the other server with its token and --state DIR.",
        )


def accept_any_network(network: NetworkRecord) -> None:
    """Check nothing: in a namespace of its own or without an interface, nothing of this machine can collide."""


def check_networks(network: NetworkRecord) -> None:
    """Check that this machine doesn't use a network's addresses for something else.

    Raises:
        RefusedError: It does.
    """
    taken = taken_networks()
    another_pool = "Start that server with another --pool, or leave the network that collides."
    other_routes = "Choose other routes with --routes, such as --routes none, or leave the network that collides."
    for networks, fix in ((network.pools, another_pool), (network.routes, other_routes)):
        for wanted in networks:
            if found := collisions(wanted, taken):
                raise RefusedError(
                    f"The network {wanted} of {network.host} collides with what this machine has: {found[0]}.", fix
                )
