"""SaveConfig: the file as the running interface has it."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_interface

from rustguard_py import conf
from rustguard_py.model.endpoint import Endpoint, InterfaceAddress
from rustguard_py.quick.tunnel import PlainTunnel
from rustguard_py.system.interface import with_netlink
from rustguard_py.system.netlink_library import IPRoute


def current(config: conf.Config, plain: PlainTunnel, interface: str, port: int) -> conf.Config:
    """Return the configuration with the interface's addresses and its peers' endpoints as they are now.

    A peer whose name still stands for its endpoint keeps the name.
    """
    stats = plain.tunnel.plane.stats().peers
    peers = []
    for peer in config.peers:
        known = plain.tunnel.node.get(peer.public_key)
        endpoint = None if known is None or known.id not in stats else stats[known.id].endpoint
        name = plain.name_of(peer.public_key, endpoint)
        peers.append(replace(peer, endpoint=name or _host_port(endpoint) or peer.endpoint))
    addresses = _addresses(interface) or config.addresses
    return replace(config, addresses=addresses, listen_port=port, peers=tuple(peers))


def _host_port(endpoint: Endpoint | None) -> conf.HostPort | None:
    return None if endpoint is None else conf.HostPort(endpoint[0], endpoint[1])


def _addresses(interface: str) -> tuple[InterfaceAddress, ...]:
    def read(netlink: IPRoute) -> list[InterfaceAddress]:
        found = netlink.get_addr(index=socket.if_nametoindex(interface))
        texts = [
            f"{each.get_attr('IFA_LOCAL') or each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}" for each in found
        ]
        return [ip_interface(text) for text in texts]

    try:
        return tuple(address for address in with_netlink(read) if not address.is_link_local)
    except OSError:
        return ()  # the interface is gone
