"""Requests for addresses and routes, decoded by pyroute2, which the batches stand in for."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from rustguard_py.system import netlink_batch


def decoded(kind: type[Any], request: netlink_batch.Request) -> Any:
    header = netlink_batch._HEADER.pack(16 + len(request.body), request.kind, request.flags, 0, 0)
    message = kind(header + request.body)
    message.decode()
    return message


@pytest.mark.parametrize(("network", "table"), [("10.1.0.0/16", 254), ("fd01::/64", 51820), ("::/0", 7)])
@pytest.mark.parametrize("add", [True, False])
def test_a_route_is_encoded_as_pyroute2_reads_it(network: str, table: int, add: bool) -> None:
    message = decoded(rtmsg, netlink_batch.route(network, 42, table, add=add))
    address, _, length = network.partition("/")
    assert message["family"] == (socket.AF_INET6 if ":" in network else socket.AF_INET)
    assert message["dst_len"] == int(length)
    assert message["header"]["type"] == (24 if add else 25)
    # NLM_F_CREATE and NLM_F_EXCL: never another's route replaced.
    assert message["header"]["flags"] == (0x600 if add else 0)
    assert message.get_attr("RTA_DST") == (address if int(length) else None)
    assert (message.get_attr("RTA_OIF"), message.get_attr("RTA_TABLE")) == (42, table)
    assert message["table"] == (table if table < 256 else 252)


@pytest.mark.parametrize(("address", "nodad"), [("10.9.0.1/24", 0), ("fd09::1/64", 2)])
def test_an_address_is_encoded_as_pyroute2_reads_it(address: str, nodad: int) -> None:
    for add in (True, False):
        message = decoded(ifaddrmsg, netlink_batch.address(address, 42, add=add))
        assert (message.get_attr("IFA_LOCAL"), message["prefixlen"]) == (address.split("/")[0], int(address[-2:]))
        assert (message["index"], message["flags"]) == (42, nodad if add else 0)
        assert message["header"]["type"] == (20 if add else 21)
