"""Files as other tools write them, unchanged: what `import` makes of a server's, and `up` of a client's."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from rustguard_py import conf, conf_reader
from rustguard_py.cli.app import run
from rustguard_py.conf_names import Comments
from rustguard_py.enroll.server import import_wg_quick
from rustguard_py.enroll.server.admissions import admit_at_rest
from rustguard_py.enroll.server.lost_hooks import FORWARD4, FORWARD6, Lost, Machine, lost
from rustguard_py.enroll.server.registry import PeerChange, Registry
from rustguard_py.enroll.server.settings import Settings, apply, costs
from rustguard_py.model.errors import StateError, UsageError
from rustguard_py.model.keys import encode_key
from rustguard_py.quick import conf_files
from rustguard_py.state.document import Document
from rustguard_py.state.records import ServerState

FILES = Path(__file__).parents[1] / "data/files"

# The server's own addresses, and each peer with what it has.
SERVERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "wg-easy-15": (
        ["10.8.0.1/24", "fdcc:ad94:bacf:61a4::cafe:1/112"],
        {
            "Phone": "10.8.0.2/32 fdcc:ad94:bacf:61a4::cafe:2/128",
            "Laptop": "10.8.0.3/32 fdcc:ad94:bacf:61a4::cafe:3/128",
        },
    ),
    "wg-easy-14": (["10.8.0.1/24"], {"Annas phone (1)": "10.8.0.2/32", "büro": "10.8.0.3/32"}),
    "pivpn-ipv6": (
        ["10.182.61.1/24", "fd11:5ee:bad:c0de::ab6:3d01/64"],
        {
            "box2": "10.182.61.2/32 fd11:5ee:bad:c0de::ab6:3d02/128",
            "box3": "10.182.61.3/32 fd11:5ee:bad:c0de::ab6:3d03/128",
        },
    ),
    "pivpn-away": (
        ["10.6.0.254/24", "fd11:5ee:bad:c0de::a06:fe/64"],
        {
            "phone": "10.6.0.1/32 fd11:5ee:bad:c0de::a06:1/128",
            "office": "10.6.0.20/32 fd11:5ee:bad:c0de::a06:14/128 192.168.7.0/24",
        },
    ),
    "names": (
        ["10.66.66.1/24"],
        {"laptop": "10.66.66.2/32", "tablet": "10.66.66.3/32", "bob": "10.66.66.4/32"},
    ),
    "names-more": (
        ["10.0.0.1/24"],
        {
            "Ana's tablet": "10.0.0.2/32",
            "cora": "10.0.0.3/32",
            "dora": "10.0.0.4/32",
            "emil": "10.0.0.5/32",
            "Franks phone (1)": "10.0.0.6/32",
            "peer-6": "10.0.0.7/32",
        },
    ),
    "nyr": (
        ["10.7.0.1/24", "fddd:2c4:2c4:2c4::1/64"],
        {"phone": "10.7.0.2/32 fddd:2c4:2c4:2c4::2/128", "lap_top": "10.7.0.10/32 fddd:2c4:2c4:2c4::10/128"},
    ),
    "angristan": (
        ["10.66.66.1/24", "fd42:42:42::1/64"],
        {"anna": "10.66.66.2/32 fd42:42:42::2/128", "ben": "10.66.66.17/32 fd42:42:42::17/128"},
    ),
    # Its server has an address without a network.
    "linuxserver": (["10.13.13.1/24"], {"peer1": "10.13.13.2/32", "peer_attic": "10.13.13.3/32 192.168.1.0/24"}),
    "aws": (["10.99.0.1/28"], {"on-premises router": "10.99.0.2/32 192.168.0.0/20"}),
}


def config(name: str) -> conf.Config:
    return conf_files.load(FILES / f"{name}.conf")


def imported(name: str) -> ServerState:
    return import_wg_quick.read_server(config(name), name).state


def has(state: ServerState) -> dict[str, str]:
    return {peer.name: " ".join(map(str, peer.allowed)) for peer in state.peers.values()}


def again(state: ServerState) -> ServerState:
    """Return the state as the next start loads it."""
    return apply(Settings(), state.to_json())


@pytest.mark.parametrize("name", SERVERS)
def test_a_servers_file_is_imported_as_it_is(name: str) -> None:
    own, peers = SERVERS[name]
    file, state = config(name), imported(name)
    for each in (state, again(state)):
        assert list(map(str, each.addresses())) == own
        assert has(each) == peers
        assert list(each.peers) == [peer.public_key for peer in file.peers]
        assert [peer.preshared_key for peer in each.peers.values()] == [peer.preshared_key for peer in file.peers]
        assert not any(peer.has_to_join_again for peer in each.peers.values())
    assert (state.private_key, state.port) == (file.private_key, file.listen_port)


@pytest.mark.parametrize("name", SERVERS)
def test_new_peers_get_what_nobody_has_also_after_a_restart_a_revocation_and_a_rename(name: str) -> None:
    state = imported(name)
    before = dict(state.peers)
    for start in range(3):
        state = again(state)
        registry = Registry(state)
        # Many enough to meet what the peers of each file have.
        for number in range(25):
            change = registry.admit(bytes([100 + 30 * start + number]) * 32, "", bytes([1]) * 32, None, 0.0)
            if isinstance(change, PeerChange):
                change.keep()
        new = next(reversed(state.peers.values())).name
        registry.rename(new, f"renamed-{start}").keep()
        everything = [network for peer in state.peers.values() for network in peer.allowed]
        own = [each.ip for each in state.addresses()]
        assert len(set(everything)) == len(everything)
        assert not any(address in network for network in everything for address in own)
        assert {key: state.peers[key] for key in before} == before
    gone = next(iter(before.values()))
    registry.revoke(gone.name).keep()
    registry.restore(encode_key(gone.public_key)).keep()
    # It has to come in again, and gets what is free then: the lowest is its own old one or a lower one.
    change = registry.admit(gone.public_key, gone.name, bytes([1]) * 32, None, 0.0)
    assert isinstance(change, PeerChange)
    change.keep()
    assert again(state).peers == state.peers


def test_a_full_day_of_admissions_beside_imported_peers_ends_with_a_full_pool(tmp_path: Path) -> None:
    state = imported("aws")
    document = Document.open(tmp_path)
    document.load()
    document.save(state.to_json())
    document.close()
    given = [admit_at_rest(tmp_path, "new", bytes([n]) * 32, bytes([n]) * 32)["addresses"] for n in range(1, 13)]
    assert given == [[f"10.99.0.{host}/28"] for host in range(3, 15)]
    with pytest.raises(Exception, match="used up"):
        admit_at_rest(tmp_path, "new", bytes([99]) * 32, bytes([9]) * 32)


def test_a_peer_from_outside_the_pool_gets_an_address_in_it_when_it_joins_and_keeps_its_own() -> None:
    state = imported("pivpn-away")
    key, record = next(iter(state.peers.items()))
    del state.peers[key]
    lines = (FILES / "pivpn-away.conf").read_text().replace("10.6.0.1/32,fd11:5ee:bad:c0de::a06:1/128", "10.9.0.9/32")
    state = import_wg_quick.read_server(conf_reader.parse(lines), "x").state
    registry = Registry(state)
    change = registry.admit(key, record.name, bytes([1]) * 32, "192.0.2.1:5", 0.0)
    assert isinstance(change, PeerChange)
    change.keep()
    assert list(map(str, state.peers[key].allowed)) == ["10.6.0.1/32", "fd11:5ee:bad:c0de::1/128", "10.9.0.9/32"]
    assert again(state).peers[key] == state.peers[key]


def test_two_peers_never_come_back_with_one_network_and_none_with_the_servers_address() -> None:
    document = imported("linuxserver").to_json()
    peers = document["peers"]
    assert isinstance(peers, list)
    for member, value in (("networks", ["192.168.1.0/24"]), ("address4", "10.13.13.3")):
        twice = {**document, "peers": [{**peers[0], member: value}, peers[1]]}
        with pytest.raises(StateError, match=rf"peers\[1\]\.{member} is also another peer's"):
            ServerState.from_json(twice)
    state = ServerState.from_json({**document, "peers": [{**peers[0], "address4": "10.13.13.1"}]})
    with pytest.raises(StateError, match="the server's own"):
        Registry(state)
    for own in (["10.13.13.1%x/24"], ["x"]):
        with pytest.raises(StateError, match=r"own\[0\] is invalid"):
            ServerState.from_json({**document, "own": own})
    with pytest.raises(StateError, match="interface is invalid"):
        ServerState.from_json({**document, "interface": "a b"})


def test_another_pool_keeps_the_servers_address_if_it_is_in_it_and_peers_that_were_never_in_the_old_one() -> None:
    state = imported("pivpn-away")
    wider = apply(Settings(pool4=IPv4Network("10.6.0.0/16")), state.to_json())
    assert list(map(str, wider.addresses())) == ["10.6.0.254/16", "fd11:5ee:bad:c0de::a06:fe/64"]
    assert has(wider) == SERVERS["pivpn-away"][1]
    none = apply(Settings(use_pool6=False), state.to_json())
    assert list(map(str, none.addresses())) == ["10.6.0.254/24"]
    state.peers.clear()
    other = apply(Settings(pool4=IPv4Network("10.5.0.0/24")), state.to_json())
    assert str(other.addresses()[0]) == "10.5.0.1/24"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Settings(pool4=IPv4Network("10.6.0.0/16")), "reach 10.6.0.0/24 and fd11:5ee:bad:c0de::/64 only"),
        (Settings(mtu=1300), "joined with the MTU 1420 keep it, until they join again"),
        (Settings(tunnels=2), "use the first tunnel only, until they join again"),
        (Settings(port=4000), "The port was 51820. Machines that joined with it look"),
    ],
)
def test_a_change_of_settings_says_what_it_costs_those_who_have_joined(settings: Settings, line: str) -> None:
    state = imported("pivpn-away")
    kept = state.to_json()
    assert costs(None, apply(settings, kept)) == costs(kept, apply(Settings(), kept)) == []
    (said,) = costs(kept, apply(settings, kept))
    assert line in said
    state.peers.clear()
    assert costs(state.to_json(), apply(settings, state.to_json())) == []


# -- names --------------------------------------------------------------------------------------------------

COMMENTS = {
    "### Client laptop": "laptop",
    "# Client laptop": "Client laptop",
    "# BEGIN_PEER tablet": "tablet",
    "# END_PEER tablet": "",
    "### begin box2 ###": "box2",
    "### end box2 ###": "",
    "# Client: Phone (1)": "Phone",
    "# Client: Pi (3) (4)": "Pi (3)",
    "# Client: Client: x": "x",
    "# Name:         bob": "bob",
    "#Name# = bob": "bob",
    "# friendly_name=Anna's phone": "Anna's phone",
    "# Peer: phone": "phone",
    "# Annas phone (1)": "Annas phone (1)",
    "# NL-FREE#12": "NL-FREE#12",
    "# bob / bob@example.org / Updated: 2021-01-01 / Created: 2021-01-01": "bob",
    "# DNS server": "DNS server",
    "# 10.8.0.2": "10.8.0.2",
    "# ID:           cq1": "",
    "# Email:        bob@example.org": "",
    "# Created at:   2026-01-01 10:00:00 +0000 UTC": "",
    "# Update at:    2026-01-01 10:00:00.478184002 +0000 UTC": "",
    "# added 2024-05-01": "",
    "# 01.05.2024": "",
    "# PresharedKey not used": "",
    "#PersistentKeepalive = 25": "",
    "#[disabled] [Peer]": "",
    "# -------": "",
    "# https://example.org/wireguard": "",
    '# friendly_json={"name": "x"}': "",
}


@pytest.mark.parametrize("comment", COMMENTS)
def test_a_comment_is_a_name_or_none(comment: str) -> None:
    name = Comments(above=[comment[1:]]).name()
    assert name == COMMENTS[comment]
    # What is written as a comment is read as the same name.
    assert Comments(above=[f" {name}"]).name() == name
    assert Comments(inside=[comment[1:]], beside=["other"]).name() == (name or "other")


# -- clients' files -------------------------------------------------------------------------------------------

CLIENTS: dict[str, tuple[str, str, int]] = {
    "mullvad": ("10.64.12.5/32 fc00:bbbb:bbbb:bb01::1:c04/128", "", 0),
    "proton": ("10.2.0.2/32", "NL-FREE#12", 0),
    "nord": ("10.5.0.2/32", "", 25),
    "openwrt": ("192.168.100.2/32", "", 25),
    "mikrotik": ("10.20.0.2/32 fd20::2/128", "", 35),
    "unifi": ("192.168.3.2/32", "", 0),
    "key-by-hook": ("10.71.0.2/24", "", 0),
    "key-by-hook-puppet": ("10.73.0.2/24 fd73::2/112", "", 0),
    "latin1-comment": ("10.72.0.2/24", "Café", 0),
    "latin1-hook": ("10.74.0.2/24", "München", 0),
    "odd-line-ends": ("10.75.0.2/24", "", 0),
    "odd-line-ends-old-mac": ("10.76.0.2/24", "", 0),
}


# The rest of what is in a provider's or a router's file: DNS, port, whether there is a preshared key, AllowedIPs,
# endpoint.
PROVIDERS: dict[str, tuple[str, int | None, bool, str, str]] = {
    "mullvad": ("10.64.0.1", None, False, "0.0.0.0/0 ::/0", "192.0.2.66:51820"),
    "proton": ("10.2.0.1", None, False, "0.0.0.0/0 ::/0", "192.0.2.67:51820"),
    "nord": ("103.86.96.100 103.86.99.100", 51820, False, "0.0.0.0/0", "192.0.2.68:51820"),
    "openwrt": ("10.0.0.1", None, False, "0.0.0.0/0 ::/0", "192.0.2.69:8890"),
    "mikrotik": ("", 51820, True, "0.0.0.0/0 ::/0", "192.0.2.70:13231"),
    "unifi": ("192.168.3.1", None, False, "192.168.3.1/32 192.168.3.2/32 0.0.0.0/0", "192.0.2.71:51820"),
    "aws": ("", 51820, False, "10.99.0.2/32 192.168.0.0/20", "vpn.example.org:51820"),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_providers_file_is_read_to_its_last_value(name: str) -> None:
    file = config(name)
    (peer,) = file.peers
    assert (
        " ".join(map(str, file.dns)),
        file.listen_port,
        any(peer.preshared_key),
        " ".join(map(str, peer.allowed_ips)),
        str(peer.endpoint),
    ) == PROVIDERS[name]
    assert (file.mtu, file.table, file.fwmark, file.search) == (None, "auto", None, ())


@pytest.mark.parametrize("name", CLIENTS)
def test_a_clients_file_is_read_as_it_is(name: str) -> None:
    addresses, peer, keepalive = CLIENTS[name]
    file = config(name)
    (only,) = file.peers
    assert " ".join(map(str, file.addresses)) == addresses
    assert (only.name, only.keepalive) == (peer, keepalive)
    by_hook = name.startswith("key-by-hook")
    assert (file.private_key is None) == by_hook
    assert bool(file.hooks.post_up) == (by_hook or name == "latin1-hook")
    assert file.hooks.pre_up == ()
    # Nobody takes it for a server's.
    with pytest.raises(UsageError, match=r"is a client's file|has no PrivateKey"):
        import_wg_quick.read_server(file, name)


def test_a_hook_keeps_its_bytes_also_when_the_file_is_saved(tmp_path: Path) -> None:
    file = config("latin1-hook")
    (hook,) = file.hooks.post_up
    assert hook.encode("utf-8", "surrogateescape") == b"printf '%s' 'Z\xfcrich' > HERE/said"
    conf_files.save(tmp_path / "wg0.conf", file)
    assert conf_files.load(tmp_path / "wg0.conf").hooks == file.hooks


# -- what is lost ---------------------------------------------------------------------------------------------

HOST = Machine(("lo", "ens5", "wg0"), "ens5")


def lost_of(name: str, machine: Machine = HOST, interface: str = "wg0") -> Lost | None:
    return lost(config(name).hooks, interface, 51820, machine)


def test_what_phones_lose_is_named_with_the_commands_that_bring_it_back() -> None:
    easy = lost_of("wg-easy-14")
    assert easy is not None
    assert easy.commands == (
        FORWARD4,
        "iptables -t nat -A POSTROUTING -s 10.8.0.0/24 -o ens5 -j MASQUERADE",
        "iptables -A INPUT -p udp -m udp --dport 51820 -j ACCEPT",
        "iptables -A FORWARD -i wg0 -j ACCEPT",
        "iptables -A FORWARD -o wg0 -j ACCEPT",
    )
    assert easy.replaced == "eth0"
    for effect, word in zip(easy.effects, ("masquerade", "forwards nothing", "UDP port 51820"), strict=True):
        assert word in effect


def test_the_names_in_the_commands_are_those_of_this_machine() -> None:
    theirs = lost_of("linuxserver", Machine(("lo", "eth7"), "eth7"), "rg0")
    assert theirs is not None
    assert theirs.commands[1:] == (
        "iptables -A FORWARD -i rg0 -j ACCEPT",
        "iptables -A FORWARD -o rg0 -j ACCEPT",
        "iptables -t nat -A POSTROUTING -o eth+ -j MASQUERADE",
    )
    assert theirs.replaced is None
    elsewhere = lost_of("linuxserver")
    assert elsewhere is not None
    assert elsewhere.commands[-1] == "iptables -t nat -A POSTROUTING -o ens5 -j MASQUERADE"
    six = lost_of("angristan", Machine(("ens3", "wg0"), "ens3"))
    assert six is not None
    assert six.commands[:2] == (FORWARD4, FORWARD6)
    assert len(six.commands) == 8


@pytest.mark.parametrize("interface", ["rg0", "wg-easy-14"])
def test_a_tunnels_old_name_in_its_hooks_is_not_taken_for_the_way_out(interface: str) -> None:
    moved = lost_of("wg-easy-14", Machine(("lo", "eth0"), "eth0"), interface)
    assert moved is not None
    assert moved.commands[-2:] == (
        f"iptables -A FORWARD -i {interface} -j ACCEPT",
        f"iptables -A FORWARD -o {interface} -j ACCEPT",
    )
    assert moved.replaced is None
    # One that its own name tells from another tunnel stays what it is.
    both = lost(
        conf.Hooks(post_up=("iptables -A FORWARD -i %i -o wg7 -j ACCEPT",)), "wg0", 5, Machine(("wg7",), "eth0")
    )
    assert both is not None
    assert both.commands[-1] == "iptables -A FORWARD -i wg0 -o wg7 -j ACCEPT"


def test_nft_and_ufw_are_known_too() -> None:
    nft = lost_of("aws")
    assert nft is not None
    assert nft.commands[0] == FORWARD4
    assert 'oifname "ens5" masquerade' in nft.commands[-1]
    assert any("masquerade" in effect for effect in nft.effects)
    ufw = lost(conf.Hooks(post_up=("ufw route allow in on %i out on eth0",)), "wg0", 5, HOST)
    assert ufw is not None
    assert ufw.commands == (FORWARD4, "ufw route allow in on wg0 out on ens5")
    unknown = lost(
        conf.Hooks(post_up=("/opt/up.sh %i 'a; b' && true; echo 1 > /proc/sys/net/ipv4/ip_forward",)), "wg0", 5, HOST
    )
    assert unknown is not None
    assert unknown.commands == (FORWARD4, "/opt/up.sh wg0 'a; b'")
    assert unknown.effects[-1] == "Whatever else the lines below do isn't done."


@pytest.mark.parametrize("name", ["wg-easy-15", "nyr", "pivpn-ipv6"])
def test_hooks_that_do_nothing_lose_nothing(name: str) -> None:
    assert lost_of(name) is None


def test_import_says_it_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "look", classmethod(lambda _: HOST))
    assert run(["import", str(FILES / "aws.conf"), "--state", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    for word in (
        "  on-premises router: 10.99.0.2, 192.168.0.0/20",
        "Not imported, because a server doesn't use it: PostUp, PostDown, PersistentKeepalive.",
        "a server looks no names up: on-premises router (vpn.example.org:51820)",
        "`serve` runs no hooks. Without them:\n- Peers that send everything",
        "once aws is up, after each start:\n  sysctl -w net.ipv4.ip_forward=1\n",
    ):
        assert word in said
    assert ServerState.from_json(Document.peek(tmp_path)).interface == "aws"
