"""A better route over another interface appears while a tunnel carries pings both ways."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.model.endpoint import Endpoint
from support.forked_tunnel import ForkedTunnel
from support.product import eventually

PORT = 51820
INSIDE = (["10.9.0.1/24"], ["10.9.0.2/24"])
PINGS, PAUSE = 60, 0.02
# What `sysctl net.ipv4.conf.all.rp_filter=1` does, for both families.
FILTER = """
add table inet strict
add chain inet strict in { type filter hook prerouting priority -300; }
add rule inet strict in fib saddr . iif oif missing counter drop
"""


@dataclass(frozen=True, slots=True)
class Roads:
    """A client's two ways to a server behind a router; Ethernet isn't plugged in at first.

    Attributes:
        client: Where Ethernet is plugged in.
        wifi: Its end of one link.
        ethernet: Its end of the other.
        by_ethernet: The router's end of that one.
        far: The server's end of its link to the router.
    """

    client: Host
    wifi: End
    ethernet: End
    by_ethernet: End
    far: End

    def _commands(self, verb: str) -> list[str]:
        there, here = self.by_ethernet, self.ethernet
        addresses = [
            f"addr {verb} {here.address4} dev {here.interface}",
            f"addr {verb} {here.address6} dev {here.interface}{' nodad' if verb == 'add' else ''}",
        ]
        routes = [
            f"route {verb} default via {there.ipv4} metric 100",
            f"route {verb} ::/0 via {there.ipv6} metric 100",
        ]
        return [*addresses, *routes] if verb == "add" else [*routes, *addresses]

    def plug_in(self) -> None:
        """Give Ethernet its addresses and the better routes."""
        self.client.ip(self._commands("add"))

    def unplug(self) -> None:
        """Take them away."""
        self.client.ip(self._commands("del"))


def roads(lab: Lab, client: Host, server: Host) -> Roads:
    """Make the router, the links and the routes."""
    router = lab.host("router")
    wifi, by_wifi = lab.link(client, router, ipv4="192.0.2.0/24", ipv6="2001:db8:1::/64")
    ethernet, by_ethernet = lab.link(client, router, ipv4="198.51.100.0/24", ipv6="2001:db8:2::/64")
    far, by_far = lab.link(server, router, ipv4="203.0.113.0/24", ipv6="2001:db8:3::/64")
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    router.run(["nft", "-f", "-"], stdin=FILTER)
    server.ip([f"route add default via {by_far.ipv4}", f"route add ::/0 via {by_far.ipv6}"])
    client.ip(
        [
            f"addr del {ethernet.address4} dev {ethernet.interface}",
            f"addr del {ethernet.address6} dev {ethernet.interface}",
            f"route add default via {by_wifi.ipv4} metric 600",
            f"route add ::/0 via {by_wifi.ipv6} metric 600",
        ]
    )
    return Roads(client, wifi, ethernet, by_ethernet, far)


def lost_meanwhile(there: Roads, pairs: list[tuple[Host, str]]) -> list[int]:
    """Ping from each host its target, plug Ethernet in meanwhile, and return how many pings of each had no answer."""
    many = ["ping", "-n", "-c", str(PINGS), "-i", str(PAUSE), "-W", "2"]
    running = [host.popen([*many, target], stdout=subprocess.PIPE) for host, target in pairs]
    time.sleep(PINGS * PAUSE / 3)
    there.plug_in()
    said = [program.communicate(timeout=60)[0] for program in running]
    return [PINGS - int(re.findall(r"(\d+) received", text)[0]) for text in said]


def lost_pings(lab: Lab, tmp_path: Path, engine: str, options: dict[str, Any], family: int) -> list[int]:
    """Plug Ethernet in beside Wi-Fi, behind a router that drops what has the old address there.

    Args:
        lab: The hosts'.
        tmp_path: For what the tunnels say.
        engine: Of both ends.
        options: Further ones of `Engine`.
        family: 4 or 6, of the tunnel's datagrams.

    Returns:
        How many pings of the client and of the server had no answer.
    """
    client, server = lab.host("client"), lab.host("server")
    there = roads(lab, client, server)
    far, ethernet = there.far, there.ethernet

    def tunnel(number: int, end: Any) -> ForkedTunnel:
        xdp = end.interface if options.get("xdp") else None
        more = {"uring": options.get("uring", False), "xdp": xdp}
        return ForkedTunnel(end.host, engine, INSIDE[number], tmp_path, PORT, **more)

    one, other = tunnel(0, there.wifi), tunnel(1, far)
    to: Endpoint = (str(far.ipv4), PORT) if family == 4 else (str(far.ipv6), PORT, 0, 0)
    other.set_peer(one.public_key, ["10.9.0.1/32"])
    one.set_peer(other.public_key, ["10.9.0.2/32"], endpoint=to)
    ping = ["ping", "-n", "-c", "1", "-W", "1", "10.9.0.2"]
    eventually(lambda: client.run(ping, check=False).returncode == 0, 20, "a first ping")

    lost = lost_meanwhile(there, [(client, "10.9.0.2"), (server, "10.9.0.1")])
    print(f"better route: {engine} {options or ''} over IPv{family}: {lost} of {PINGS} pings lost")
    expected = ethernet.ipv4 if family == 4 else f"[{ethernet.ipv6}]"
    eventually(lambda: other.told(one.public_key).endpoint == f"{expected}:{PORT}", 40, "the new endpoint")
    one.stop()
    other.stop()
    return lost
