"""How evenly flows are spread over several tunnels by the kernel's layer-4 hash, and by chance.

    scripts/in-namespace python bench/spread.py [--flows 64] [--sets 200] [--json]

The kernel itself is asked (`ip route get`) which way each flow of random ports would go; no packet is sent. Beside it
stands what drawing at random gives: no hash of flows can be more even than that.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from ipaddress import ip_interface, ip_network

from rustguard_py.lab.hosts import Host, Lab

TUNNELS = (1, 2, 4)
# A tunnel counts as even that has no more than so much more or less than its share.
EVEN = 0.2
NETWORKS = ("10.9.0.0/24", "fd09::/64")


def lay_out(host: Host, tunnels: int) -> None:
    """Make interfaces and a route over all of them in each family, as `join` does."""
    commands = []
    for number in range(tunnels):
        commands += [f"tuntap add mode tun name t{number}", f"link set t{number} up"]
        commands += [f"address add {ip_interface(each).ip + 2} dev t{number}" for each in NETWORKS]
    for network in map(ip_network, NETWORKS):
        via = "via fe80::1 " if network.version == 6 else ""
        hops = " ".join(f"nexthop {via}dev t{number}" for number in range(tunnels))
        commands.append(f"-{network.version} route replace {network} {hops}")
    for command in commands:
        host.run(["ip", *command.split()])
    host.run(["sysctl", "-qw", *(f"net.ipv{version}.fib_multipath_hash_policy=1" for version in (4, 6))])


def observe(host: Host, network: str, ports: list[int], tunnels: int) -> list[int]:
    """Ask the kernel for the way of each flow; count the flows of each tunnel."""
    there, here = ip_network(network)[1], ip_network(network)[2]
    asked = "".join(f"route get {there} from {here} ipproto udp sport {port} dport 5201\n" for port in ports)
    said = host.run(["ip", "-batch", "-"], stdin=asked).stdout
    return [said.count(f"dev t{number} ") for number in range(tunnels)]


def simulate(flows: int, tunnels: int, chance: random.Random) -> list[int]:
    """Draw a tunnel for each flow."""
    drawn = chance.choices(range(tunnels), k=flows)
    return [drawn.count(number) for number in range(tunnels)]


def summarise(way: str, tunnels: int, sets: list[list[int]]) -> dict[str, object]:
    """Return how even the sets were, each and together."""
    flows = sum(sets[0])
    even = flows / tunnels
    off = [max(abs(count - even) for count in counts) / even for counts in sets]
    together = [sum(counts) / len(sets) for counts in zip(*sets, strict=True)]
    return {
        "way": way,
        "tunnels": tunnels,
        "flows": flows,
        "sets": len(sets),
        "first": sets[0],
        "mean": [round(each, 1) for each in together],
        "farthest_off": round(statistics.mean(off), 3),
        "within": round(sum(each <= EVEN for each in off) / len(off), 3),
    }


def main() -> None:
    """Observe and simulate; print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=64)
    parser.add_argument("--sets", type=int, default=200, help="of so many flows, each of other ports")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chance = random.Random(1)
    rows = []
    with Lab() as lab:
        for tunnels in TUNNELS:
            host = lab.host(f"spread{tunnels}")
            lay_out(host, tunnels)
            ports = [chance.sample(range(1024, 65536), options.flows) for _ in range(options.sets)]
            for network in NETWORKS:
                way = f"kernel, IPv{ip_network(network).version}"
                rows.append(summarise(way, tunnels, [observe(host, network, each, tunnels) for each in ports]))
            drawn = [simulate(options.flows, tunnels, chance) for _ in range(options.sets)]
            rows.append(summarise("chance", tunnels, drawn))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{options.flows} flows, {options.sets} sets")
    print(f"{'':14}{'tunnels':>8}  {'one set':<20}{'mean of all':<28}{'farthest off':>13}{'all within 20 %':>17}")
    for row in rows:
        first, mean = (" ".join(map(str, row[name])) for name in ("first", "mean"))  # type: ignore[call-overload]
        print(
            f"{row['way']:14}{row['tunnels']:>8}  {first:<20}{mean:<28}"
            f"{100 * float(str(row['farthest_off'])):>11.0f} %{100 * float(str(row['within'])):>15.0f} %"
        )


if __name__ == "__main__":
    main()
