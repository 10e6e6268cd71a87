"""The faults of a campaign: each does its damage, and ends when the machines are to recover by themselves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rustguard_py.model.errors import RustGuardError
from support.campaign import DNS_NAME, PORT, Campaign
from support.product import INNER, TOKEN, eventually
from support.relay import Ills

_YEAR = 365.25 * 86400
FAULTS: dict[str, Callable[[Campaign], None]] = {}


def fault(function: Callable[[Campaign], None]) -> Callable[[Campaign], None]:
    """Add a fault to the list."""
    FAULTS[function.__name__] = function
    return function


# -- processes --


@fault
def server_killed(campaign: Campaign) -> None:
    campaign.home.finish(signal.SIGKILL)
    time.sleep(campaign.seconds(0.0, 20.0))
    campaign.home.launch(token=TOKEN)


@fault
def client_killed(campaign: Campaign) -> None:
    client = campaign.somebody()
    client.finish(signal.SIGKILL)
    client.launch()


@fault
def server_restarted(campaign: Campaign) -> None:
    how = campaign.choose([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    assert campaign.home.finish(how) == 0
    campaign.home.launch(token=TOKEN)


@fault
def client_restarted(campaign: Campaign) -> None:
    client, how = campaign.somebody(), campaign.choose([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    assert client.finish(how) == 0
    client.launch()


@fault
def everything_killed_at_once(campaign: Campaign) -> None:
    for member in campaign.members:
        member.daemon.kill()
    for member in campaign.members:
        member.finish(signal.SIGKILL)
        member.launch(token=TOKEN if member is campaign.home else None, wait=False)
    for member in campaign.members:
        member.wait_answering()


@fault
def somebody_stopped(campaign: Campaign) -> None:
    """SIGSTOP and SIGCONT, as a laptop that sleeps."""
    member = campaign.anybody()
    member.daemon.send_signal(signal.SIGSTOP)
    time.sleep(campaign.seconds(1.0, 30.0))
    member.daemon.send_signal(signal.SIGCONT)


@fault
def second_daemon_on_the_same_state(campaign: Campaign) -> None:
    member = campaign.anybody()
    second = member.run(member.words)
    assert f"runs already on {member.interface}, process {member.daemon.pid}." in second.stderr, second.stderr


# -- the network between them --


@fault
def client_address_changed(campaign: Campaign) -> None:
    client = campaign.with_own_link()
    # Of the network's 29 bits, the first two are taken.
    network = client.own_end.address4
    assert network is not None
    free = [each for each in network.network.hosts() if each not in (client.servers_end.ipv4, network.ip)]
    client.own_end.readdress(f"{campaign.choose(free)}/29")


@fault
def link_lost_and_back(campaign: Campaign) -> None:
    client = campaign.with_own_link()
    client.own_end.set("down")
    time.sleep(campaign.seconds(1.0, 20.0))
    client.own_end.set("up")
    # The kernel removed it with the link; the machine's network manager brings it back.
    client.host.ip([f"address replace {client.own_end.address6} dev {client.own_end.interface} nodad"])


@fault
def datagrams_lost(campaign: Campaign) -> None:
    """One in four, at the server, while a client starts again."""
    campaign.home.host.nft(
        "table inet campaign {\n chain in {\n  type filter hook input priority 0\n"
        f"  udp dport {PORT} numgen random mod 4 0 drop\n }}\n}}\n"
    )
    client = campaign.somebody()
    assert client.finish() == 0
    client.launch()
    time.sleep(campaign.seconds(1.0, 10.0))
    campaign.home.host.nft("delete table inet campaign\n")


@fault
def datagrams_reordered_duplicated_and_corrupted(campaign: Campaign) -> None:
    ills = Ills(loss=0.1, duplicate=0.2, reorder=0.3, corrupt=0.05, seed=campaign.random.randrange(1 << 30))
    campaign.restart_relay(ills)
    finn = campaign.member("finn")
    assert finn.finish() == 0
    finn.launch()
    time.sleep(campaign.seconds(1.0, 10.0))
    campaign.restart_relay(Ills())


@fault
def nat_rebound(campaign: Campaign) -> None:
    """The relay sends from a new port, and the router from a new address."""
    campaign.restart_relay(Ills())
    out = campaign.router_out
    network = out.address4
    assert network is not None
    used = {network.ip, network.network.network_address + 1}
    out.readdress(f"{campaign.choose([each for each in network.network.hosts() if each not in used])}/29")


@fault
def better_route_for_a_while(campaign: Campaign) -> None:
    """As when Ethernet is plugged in beside Wi-Fi: another way to the server, from another address."""
    anna = campaign.member("anna")
    second, servers = campaign.second_link
    second.set("up")
    servers.set("up")
    anna.host.ip([f"route replace {anna.servers_end.ipv4}/32 via {servers.ipv4}"])
    eventually(lambda: anna.pings(INNER), what="a ping by the better route")
    time.sleep(campaign.seconds(0.5, 10.0))
    # The link goes, and its address and route with it.
    second.set("down")
    servers.set("down")


@fault
def server_unreachable(campaign: Campaign) -> None:
    """Its firewall answers every datagram with ICMP."""
    campaign.home.host.nft(
        "table inet campaign {\n chain in {\n  type filter hook input priority 0\n"
        f"  udp dport {PORT} reject\n }}\n}}\n"
    )
    if campaign.random.random() < 0.5:
        client = campaign.somebody()
        assert client.finish() == 0
        client.launch()
    time.sleep(campaign.seconds(1.0, 20.0))
    campaign.home.host.nft("delete table inet campaign\n")


@fault
def port_taken_meanwhile(campaign: Campaign) -> None:
    """Another program has the server's port when it starts again."""
    home = campaign.home
    home.finish(signal.SIGKILL)
    taken = "import socket, time\nhere = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
    taken += f"here.bind(('::', {PORT}))\nprint('ready', flush=True)\ntime.sleep(60)"
    other = home.host.popen([sys.executable, "-c", taken], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    refused = home.run(home.words, TOKEN, check=False)
    assert refused.returncode != 0
    assert f"port {PORT}" in refused.stderr, refused.stderr
    other.terminate()
    other.wait(60)
    other.stdout.close()
    home.launch(token=TOKEN)


@fault
def default_route_replaced(campaign: Campaign) -> None:
    emil = campaign.member("emil")
    emil.host.ip(["route replace blackhole default"])
    time.sleep(campaign.seconds(1.0, 10.0))
    emil.host.ip(["route del blackhole default", f"route replace default via {emil.servers_end.ipv4}"])


@fault
def dns_name_changed(campaign: Campaign) -> None:
    """The server gets another address, and its old one answers no more."""
    dora, servers = campaign.member("dora"), campaign.member("dora").servers_end
    network = servers.address4
    assert network is not None
    free = [each for each in network.network.hosts() if each not in (dora.own_end.ipv4, network.ip)]
    dora.name_server(f"{(new := campaign.choose(free))} {DNS_NAME}\n")
    servers.readdress(f"{new}/29")


# -- what other programs do to the tunnel --


@fault
def addresses_flushed(campaign: Campaign) -> None:
    member, family = campaign.anybody(), campaign.choose(["-4", "-6"])
    member.host.run(["ip", family, "address", "flush", "dev", member.interface])


@fault
def routes_flushed(campaign: Campaign) -> None:
    member, family = campaign.anybody(), campaign.choose(["-4", "-6"])
    member.host.run(["ip", family, "route", "flush", "dev", member.interface], check=False)


@fault
def tunnel_bounced(campaign: Campaign) -> None:
    member = campaign.anybody()
    member.host.ip([f"link set {member.interface} down"])
    time.sleep(campaign.seconds(0.0, 5.0))
    member.host.ip([f"link set {member.interface} up"])


@fault
def tunnel_deleted(campaign: Campaign) -> None:
    member = campaign.anybody()
    member.host.ip([f"link delete {member.interface}"])


@fault
def mtu_changed(campaign: Campaign) -> None:
    member, mtu = campaign.anybody(), campaign.choose([576, 1000, 1280, 1500, 9000])
    member.host.ip([f"link set {member.interface} mtu {mtu}"])


@fault
def tunnel_renamed_and_back(campaign: Campaign) -> None:
    member = campaign.anybody()
    member.host.ip([f"link set {member.interface} down", f"link set {member.interface} name other"])
    member.host.run(["ip", "link", "set", "other", "up"])
    time.sleep(campaign.seconds(0.0, 3.0))
    member.host.run(["ip", "link", "set", "other", "down"])
    # By now there may be a new one of its old name.
    member.host.run(["ip", "link", "set", "other", "name", member.interface], check=False)
    member.host.run(["ip", "link", "set", member.interface, "up"])


@fault
def ipv6_switched_off_and_on(campaign: Campaign) -> None:
    member = campaign.anybody()
    for value in (1, 0):
        member.host.sysctl(f"net.ipv6.conf.{member.interface}.disable_ipv6", value)


@fault
def rules_and_nft_tables_flushed(campaign: Campaign) -> None:
    member = campaign.anybody()
    member.host.nft("flush ruleset\n")
    member.host.run(["ip", "rule", "flush"])
    member.host.ip(["rule add from all lookup main pref 32766", "rule add from all lookup default pref 32767"])


# -- files --


@fault
@fault
def control_socket_deleted(campaign: Campaign) -> None:
    member = campaign.anybody()
    member.control.unlink()
    asked = member.run("status", check=False)
    assert asked.returncode == 0, asked.stderr


@fault
def runtime_directory_deleted(campaign: Campaign) -> None:
    member = campaign.anybody()
    shutil.rmtree(member.runtime)
    if campaign.random.random() < 0.5:
        # It is also gone when the daemon ends.
        assert member.finish() == 0
        member.launch(token=TOKEN if member is campaign.home else None)


@fault
def state_file_deleted(campaign: Campaign) -> None:
    """A running server has everything in memory, and the next change writes it again."""
    home, client = campaign.home, campaign.somebody()
    (home.seen / "state.json").unlink()
    home.ask("rename", old=client.name, new="somebody-else")
    assert (home.seen / "state.json").exists()
    home.ask("rename", old="somebody-else", new=client.name)


@fault
def disk_full(campaign: Campaign) -> None:
    home, client = campaign.home, campaign.somebody()
    said = home.host.run(["dd", "if=/dev/zero", f"of={home.state}/filler", "bs=4096"], check=False).stderr
    assert "No space left" in said
    try:
        _refused(lambda: home.ask("rename", old=client.name, new="somebody-else"))
        assert client.name in home.peers()
        # Also then it comes back from a crash.
        if campaign.random.random() < 0.5:
            home.finish(signal.SIGKILL)
            home.launch(token=TOKEN)
            eventually(lambda: client.pings(INNER), what="a ping while the disk is full")
    finally:
        (home.seen / "filler").unlink()
    home.ask("rename", old=client.name, new="somebody-else")
    home.ask("rename", old="somebody-else", new=client.name)


@fault
def side_files_deleted(campaign: Campaign) -> None:
    """Those beside the state: the copy, the times of handshakes, the log of changes."""
    member = campaign.anybody()
    for name in ("state.json.bak", "timestamps", "audit.jsonl"):
        # With it goes what keeps a client above the time that the server has seen: `peers reset` is needed then.
        needed = name == "timestamps" and member.was_ahead
        if campaign.random.random() < 0.7 and not needed:
            (member.seen / name).unlink(missing_ok=True)
    if campaign.random.random() < 0.5:
        assert member.finish() == 0
        member.launch(token=TOKEN if member is campaign.home else None)


@fault
def clock_stepped(campaign: Campaign) -> None:
    """The wall clock jumps, the daemon starts again, and the clock jumps back."""
    member = campaign.anybody()
    step = campaign.choose([-3600.0, 3600.0, -86400.0, -10 * _YEAR, 10 * _YEAR])
    member.clock.write_text(str(step))
    member.was_ahead |= step > 0
    if campaign.random.random() < 0.5:
        assert member.finish() == 0
        member.launch(token=TOKEN if member is campaign.home else None)
        if member is not campaign.home:
            eventually(lambda: member.pings(INNER), what="a ping with another time")
    member.clock.write_text("0")


# -- peers and window --


@fault
def revoked_and_joined_again(campaign: Campaign) -> None:
    client = campaign.somebody()
    key = client.status()["public_key"]
    campaign.home.ask("revoke", who=client.name)
    assert not client.pings(INNER, 0.5)
    assert client.finish() == 0
    campaign.open_window()
    refused = client.run(client.first_words, TOKEN, check=False)
    assert refused.returncode != 0, "a revoked machine joined"
    campaign.home.ask("restore", key=key)
    client.launch(token=TOKEN)
    client.wait_joined()
    campaign.close_window()


@fault
def renamed(campaign: Campaign) -> None:
    client, other = campaign.random.sample(campaign.clients, 2)
    home = campaign.home
    _refused(lambda: home.ask("rename", old=client.name, new=other.name))
    home.ask("rename", old=client.name, new="somebody-else")
    home.ask("rename", old="somebody-else", new=client.name)


@fault
def killed_while_joining_again(campaign: Campaign) -> None:
    client, killed = campaign.somebody(), campaign.choose(["server", "client", "both"])
    assert client.finish() == 0
    campaign.open_window()
    client.launch(token=TOKEN, wait=False)
    time.sleep(campaign.random.uniform(0.3, 1.5))
    if killed != "client":
        campaign.home.finish(signal.SIGKILL)
        campaign.home.launch(token=TOKEN)
    if killed == "server":
        # It asks until somebody answers it.
        campaign.open_window()
        client.wait_joined()
    else:
        client.finish(signal.SIGKILL)
        client.launch()
    campaign.close_window()


@fault
def window_opened_and_closed_in_races(campaign: Campaign) -> None:
    client, home = campaign.somebody(), campaign.home
    assert client.finish() == 0
    client.launch(token=TOKEN, wait=False)
    methods = [campaign.random.choice(["open", "close"]) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda method: home.ask(method, **({"seconds": 60} if method == "open" else {})), methods))
    home.ask("open", seconds=600)
    client.wait_joined()
    home.ask("close")
    assert not home.status()["window"]["open"]


def _refused(attempt: Callable[[], object]) -> None:
    """Try what must be refused."""
    try:
        attempt()
    except RustGuardError:
        return
    raise AssertionError("it wasn't refused")
