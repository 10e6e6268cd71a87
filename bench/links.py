"""What lies between the two hosts that are measured: a link, or a router that loses packets."""

from __future__ import annotations

from dataclasses import dataclass

from rustguard_py.lab.hosts import End, Host, Lab


@dataclass(frozen=True, slots=True)
class Way:
    """A way between two hosts.

    Attributes:
        udp_segmentation: Whether it passes UDP messages of many segments whole, as veth does.
        ipv6: Whether the tunnel's datagrams, and the packets inside, are IPv6.
        loss: The fraction of packets that a router on the way loses, each way.
    """

    udp_segmentation: bool = True
    ipv6: bool = False
    loss: float = 0.0

    @property
    def stem(self) -> str:
        """A name for files."""
        parts = [
            "bench",
            "" if self.udp_segmentation or self.loss else "no-udp-segmentation",
            "ipv6" if self.ipv6 else "",
            f"loss-{self.loss * 100:g}" if self.loss else "",
        ]
        return "-".join(part for part in parts if part)

    def __str__(self) -> str:
        said = [
            "" if self.udp_segmentation or self.loss else "links without UDP segmentation",
            "IPv6 outside and inside" if self.ipv6 else "",
            f"a router loses {self.loss:.1%} each way, datagram by datagram" if self.loss else "",
        ]
        return "; ".join(part for part in said if part) or "a veth pair that passes UDP segments whole"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts and the way between them; the client sends."""

    client: Host
    server: Host
    here: End
    there: End
    way: Way

    @property
    def outside(self) -> str:
        """The server's address on the way."""
        return str(self.there.ipv6 if self.way.ipv6 else self.there.ipv4)

    @property
    def endpoint(self) -> str:
        """The server's address and port on the way."""
        return f"[{self.outside}]:51820" if self.way.ipv6 else f"{self.outside}:51820"


def make_pair(lab: Lab, way: Way) -> Pair:
    """Two hosts with that way between them."""
    client, server = lab.host("client", own_run=True), lab.host("server", own_run=True)
    if not way.loss:
        here, there = lab.link(client, server, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
    else:
        router = lab.host("router")
        nets6 = ("2001:db8:0:1::/64", "2001:db8:0:2::/64")
        here, *_, there = lab.through(client, router, server, nets4=("192.0.2.0/25", "192.0.2.128/25"), nets6=nets6)
        lab.loss(router, way.loss)
    if way.loss or not way.udp_segmentation:
        for end in (here, there):
            lab.udp_segmentation(end.host, on=False)
    if way.loss:
        # Else the bare link's TCP would lose 64 KB at once.
        for end in (here, there):
            end.host.run(["ethtool", "-K", end.interface, "tso", "off"])
    return Pair(client, server, here, there, way)
