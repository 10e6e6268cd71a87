"""What SaveConfig writes: the file as the running interface has it."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_interface

from pyroute2 import IPRoute

from rustguard_py import conf
from rustguard_py.model.endpoint import Endpoint, InterfaceAddress
from rustguard_py.quick.device import Device
from rustguard_py.system.interface import with_netlink


def current(config: conf.Config, device: Device, interface: str, port: int) -> conf.Config:
    """Give the configuration with the addresses and peers that there are now, and where those peers are.

    A peer that is where its name says keeps the name.
    """
    stats = device.tunnel.plane.stats().peers
    peers = []
    for peer in config.peers:
        known = device.tunnel.node.get(peer.public_key)
        endpoint = None if known is None or known.id not in stats else stats[known.id].endpoint
        name = device.name_of(peer.public_key, endpoint)
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
        return ()  # it is gone
