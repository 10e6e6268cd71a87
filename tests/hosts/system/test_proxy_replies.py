"""SOCKS5's replies are true to what the network between says: no route, no host, no port, too many routers."""

from __future__ import annotations

import os
import sys

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.proxy.socks import Reply

pytestmark = pytest.mark.needs_namespaces

# Each argument is an address. Prints the code that a proxy replies when asked to connect to its port 9.
_ASK = """
import asyncio
import sys
from ipaddress import ip_address

from rustguard_py.proxy.outside import Outside
from rustguard_py.proxy.server import Proxy


async def main():
    proxy = Proxy(Outside())
    [(_, port)] = await proxy.serve("127.0.0.1", 0)
    for host in sys.argv[1:]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        packed = ip_address(host).packed
        writer.write(bytes([5, 1, 0, 5, 1, 0, 1 if len(packed) == 4 else 4]) + packed + bytes([0, 9]))
        print((await asyncio.wait_for(reader.readexactly(4), 20))[3])
        writer.close()
    await proxy.close()


asyncio.run(main())
"""


def test_replies_are_true_to_what_routers_say(lab: Lab) -> None:
    a, router, b = lab.host("home"), lab.host("router"), lab.host("away")
    lab.through(a, router, b, nets4=("10.1.0.0/24", "10.2.0.0/24"), nets6=("fd01::/64", "fd02::/64"))
    router.ip(
        [
            "route add unreachable 10.9.0.0/24",
            "route add unreachable fd09::/64",
            "route add throw 10.8.0.0/24",
        ]
    )

    def ask(*hosts: str) -> list[Reply]:
        path = os.pathsep.join(each for each in sys.path if each)
        done = a.run([sys.executable, "-c", _ASK, *hosts], env={"PYTHONPATH": path})
        return [Reply(int(each)) for each in done.stdout.split()]

    def keep_ttl(hops: int) -> None:
        a.sysctl("net.ipv4.ip_default_ttl", hops)
        a.sysctl("net.ipv6.conf.all.hop_limit", hops)
        a.sysctl(f"net.ipv6.conf.{a.ends[0].interface}.hop_limit", hops)

    assert ask("10.2.0.2", "fd02::2") == [Reply.REFUSED] * 2
    # Of such a route a router says "host unreachable" by ICMP, and "no route" by ICMPv6.
    assert ask("10.9.0.1", "fd09::1") == [Reply.HOST_UNREACHABLE, Reply.NETWORK_UNREACHABLE]
    assert ask("10.8.0.1") == [Reply.NETWORK_UNREACHABLE]
    keep_ttl(1)
    assert ask("10.2.0.2", "fd02::2") == [Reply.TTL_EXPIRED] * 2
    keep_ttl(64)
    a.ip(["route del 0.0.0.0/0", "route del ::/0"])
    assert ask("10.2.0.2", "fd02::2") == [Reply.NETWORK_UNREACHABLE] * 2
