"""What must hold after each fault of a campaign. Each invariant raises AssertionError with what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path

from rustguard_py.model.errors import RustGuardError
from support.campaign import BACK, PORT, Campaign, Member

# A busy loop uses a whole second of each; ours use some hundredths.
_BUSY = 0.3
# Descriptors, threads and bytes of memory that a daemon may have more than at the first look at it.
_MORE_DESCRIPTORS = 8
_MORE_THREADS = 4
_MORE_MEMORY = 24 << 20
_STATE_FILES = {"state.json", "state.json.bak", "lock", "timestamps", "audit.jsonl", "undo.json"}


def _daemons_run(campaign: Campaign) -> None:
    for member in campaign.members:
        assert member.alive(member.daemon)


def _clients_are_back(campaign: Campaign) -> None:
    """Every client reaches the server through its tunnel: over IPv4, and over IPv6 with as much as it takes."""
    inner = [each.partition("/")[0] for each in campaign.home.status()["addresses"]]
    pings = {
        (client.name, address): client.host.popen(
            ["ping", "-n", "-c1", "-W1", "-s1372", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for client in campaign.clients
        for address in inner
    }
    # Wait for all, so that none is left.
    silent = [f"{name} from {address}" for (name, address), ping in pings.items() if ping.wait(60)]
    assert not silent, f"no answer to {', '.join(silent)}"


def _addresses_are_unique(campaign: Campaign) -> None:
    peers = campaign.home.ask("peers")["peers"]
    for what in ("name", "public_key", "address4", "address6"):
        values = [peer[what] for peer in peers]
        assert len(set(values)) == len(values), f"{what} twice in {values}"
    listed = {peer["name"]: peer["address4"] for peer in peers}
    assert listed == {client.name: client.address for client in campaign.clients}
    kept = {peer["name"]: peer["address4"] for peer in _kept_peers(campaign.home)}
    assert {name: address.partition("/")[0] for name, address in kept.items()} == listed


def _kept_peers(home: Member) -> list[dict[str, str]]:
    peers: list[dict[str, str]] = json.loads((home.seen / "state.json").read_text())["data"]["peers"]
    return peers


def _status_is_true(campaign: Campaign) -> None:
    """The status of each daemon is what the kernel has."""
    for member in campaign.members:
        status = member.status()
        assert status["pid"] == member.daemon.pid
        assert status["interface"] == member.interface
        script = f"ip -o address show dev {member.interface}; ip -o link show dev {member.interface}"
        said, _, link = _says(member, script).rpartition("\n")
        has = {ip_interface(each).ip for each in re.findall(r"inet6? (\S+)", said) if not each.startswith("fe80")}
        assert has == {ip_interface(each).ip for each in status["addresses"]}, f"{member.name} has {has}"
        assert f"mtu {status['mtu']} " in link, f"{member.name}: {link}"
        assert "UP" in link, f"{member.name}: {link}"
    assert campaign.home.status()["port"] in udp_ports(campaign.home)
    peers = campaign.home.peers()
    for client in campaign.clients:
        peer = peers[client.name]
        assert peer["state"] == "active", f"{client.name} is {peer['state']}"
        endpoint = peer["endpoint"].rpartition(":")[0].strip("[]")
        assert endpoint in client.outer(), f"{client.name} is at {client.outer()}, and status says {endpoint}"


def udp_ports(member: Member) -> list[int]:
    """Return the UDP ports that are open on a machine."""
    rows = [
        row.split()
        for family in ("udp", "udp6")
        for row in Path(f"/proc/{member.host.pid}/net/{family}").read_text().splitlines()[1:]
    ]
    return sorted({int(row[1].rpartition(":")[2], 16) for row in rows})


def _says(member: Member, script: str) -> str:
    """Return what a shell on a machine prints: one for many commands, because each start takes its time."""
    return member.host.run(["sh", "-c", script]).stdout.rstrip("\n")


def own_network(member: Member) -> set[str]:
    """Return the addresses, routes, rules, interfaces and nft tables of a machine that don't belong to its links."""
    said = _says(
        member,
        "ip -o address; for v in -4 -6; do ip $v route show table all; ip $v rule; done; nft list tables;"
        " ip -o link | sed 's/^[0-9]*: \\([^:@]*\\).*/link \\1/'",
    )
    links = "|".join([end.interface for end in member.host.ends] or [member.own_end.interface])
    lines = [line for line in said.splitlines() if not re.search(f"fe80|ff00|{links}", line)]
    return {re.sub(r"^\d+: (?!\tfrom)|valid_lft.*", "", line).strip() for line in lines}


def _nothing_is_left_over(campaign: Campaign) -> None:
    for member in campaign.members:
        network = own_network(member)
        first = member.first_look.setdefault("network", network)
        assert network == first, f"{member.name}: more {network - first}, less {first - network}"
        sockets = member.sockets()
        first = member.first_look.setdefault("sockets", sockets)
        assert sockets == first, f"{member.name}: {sockets} in the runtime directory, not {first}"
        files = {path.name for path in member.seen.iterdir()}
        assert files <= _STATE_FILES, f"{member.name}: {files - _STATE_FILES} in the state directory"


def _no_traceback(campaign: Campaign) -> None:
    for member in campaign.members:
        for words in ("Traceback", "This is a fault of RustGuard", "panicked"):
            assert words not in member.said(), f"{member.name} said:\n{member.said()[-3000:]}"


def _no_growth(campaign: Campaign) -> None:
    for member in campaign.members:
        process = Path(f"/proc/{member.daemon.pid}")
        memory = int(re.findall(r"VmRSS:\s+(\d+)", (process / "status").read_text())[0]) << 10
        used = {
            "descriptors": (len(list((process / "fd").iterdir())), _MORE_DESCRIPTORS),
            "threads": (len(list((process / "task").iterdir())), _MORE_THREADS),
            "memory": (memory, _MORE_MEMORY),
        }
        for what, (now, more) in used.items():
            first = member.first_look.setdefault(what, now)
            assert now <= first + more, f"{member.name}: {now} {what}, {first} at the first look"


def processor_seconds(pid: int) -> float:
    """Return how long a process has used a core."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _no_busy_loop(campaign: Campaign) -> None:
    before = [processor_seconds(member.daemon.pid) for member in campaign.members]
    began = time.monotonic()
    time.sleep(0.7)
    for member, used in zip(campaign.members, before, strict=True):
        share = (processor_seconds(member.daemon.pid) - used) / (time.monotonic() - began)
        assert share < _BUSY, f"{member.name} uses {share:.0%} of a core"


# In this order: what settles takes its time before what must hold by then.
INVARIANTS: list[Callable[[Campaign], None]] = [
    _daemons_run,
    _clients_are_back,
    _addresses_are_unique,
    _status_is_true,
    _nothing_is_left_over,
    _no_traceback,
    _no_growth,
    _no_busy_loop,
]


def check(campaign: Campaign) -> float:
    """Wait until every invariant holds, and return how long the clients took. What doesn't in time is a failure."""
    began = time.monotonic()
    back = 0.0
    for invariant in INVARIANTS:
        while True:
            try:
                invariant(campaign)
                break
            except (AssertionError, RustGuardError, OSError, KeyError) as error:
                _daemons_run(campaign)
                _no_traceback(campaign)
                if time.monotonic() - began > BACK:
                    name = invariant.__name__.strip("_").replace("_", " ")
                    raise AssertionError(f"“{name}” doesn't hold after {BACK:g} s: {error!r}") from error
                time.sleep(0.2)
        if invariant is _clients_are_back:
            back = time.monotonic() - began
    return back


def check_end(campaign: Campaign) -> None:
    """End every daemon, and see that nothing of theirs is left but the state."""
    for client in campaign.clients:
        client.daemon.terminate()
    for client in campaign.clients:
        assert client.daemon.wait(60) == 0, client.said()
    assert campaign.home.finish() == 0, campaign.home.said()
    for member in campaign.members:
        assert own_network(member) == member.before, f"{member.name}: {own_network(member) ^ member.before}"
        assert member.sockets() == [], f"{member.name}: {member.sockets()}"
        files = {path.name for path in member.seen.iterdir()}
        assert files <= _STATE_FILES, f"{member.name}: {files - _STATE_FILES} in the state directory"
        assert PORT not in udp_ports(member)
    _no_traceback(campaign)
