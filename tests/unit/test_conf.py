"""wg-quick's files: every key that wg(8) and wg-quick(8) document, every mistake with its line and how to fix it."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import fields, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustguard_py import conf, conf_reader, conf_writer
from rustguard_py.model.errors import UsageError
from support.examples import examples


def key(number: int) -> str:
    return b64encode(bytes([number]) * 32).decode()


PRIVATE = bytes([1]) * 32
INTERFACE = f"[Interface]\nPrivateKey = {key(1)}\n"
PEER = f"[Peer]\nPublicKey = {key(2)}\n"


def interface(line: str) -> conf.Config:
    return conf_reader.parse(f"{INTERFACE}{line}\n")


def peer(line: str) -> conf.PeerSection:
    return conf_reader.parse(f"{INTERFACE}{PEER}{line}\n").peers[0]


def test_the_interfaces_keys() -> None:
    assert conf_reader.parse(INTERFACE).private_key == bytes([1]) * 32
    assert interface("ListenPort = 51820").listen_port == 51820
    assert interface("ListenPort = 0").listen_port is None
    assert [interface(f"FwMark = {mark}").fwmark for mark in ("0xca6c", "7", "off", "0")] == [51820, 7, 0, 0]
    addresses = interface("Address = 10.0.0.2/24, fd00::2/64\nAddress = 10.0.1.1").addresses
    assert addresses == tuple(map(ip_interface, ("10.0.0.2/24", "fd00::2/64", "10.0.1.1/32")))
    names = interface("DNS = 10.0.0.1, lan.example fd00::1\nDNS = other")
    assert names.dns == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert names.search == ("lan.example", "other")
    assert interface("FwMark = 0xffffffff").fwmark == interface("FwMark = 4294967295").fwmark == 2**32 - 1
    assert [interface(f"MTU = {mtu}").mtu for mtu in ("1280", "0x500")] == [1280, 1280]
    tables = [interface(f"Table = {table}").table for table in ("off", "auto", "1", "1234", "main", "0x10")]
    assert tables == ["off", "auto", 1, 1234, 254, 16]
    assert interface("Table = 4294967295").table == 2**32 - 1
    assert conf_reader.parse(f"{INTERFACE}Table = mine", tables={"mine": 77}).table == 77
    assert interface("SaveConfig = true").save
    assert not interface("SaveConfig = false").save


@pytest.mark.parametrize("name", ["PreUp", "PostUp", "PreDown", "PostDown"])
def test_hooks_keep_their_order_and_their_equals_signs(name: str) -> None:
    hooks = interface(f"{name} = a=1; echo %i\n{name} = second # not this").hooks
    member = {"PreUp": "pre_up", "PostUp": "post_up", "PreDown": "pre_down", "PostDown": "post_down"}[name]
    assert getattr(hooks, member) == ("a=1; echo %i", "second")
    assert sum(len(getattr(hooks, each)) for each in conf.Hooks.__slots__) == 2


def test_a_peers_keys() -> None:
    assert peer("").public_key == bytes([2]) * 32
    assert peer(f"PresharedKey = {key(3)}").preshared_key == bytes([3]) * 32
    networks = peer("AllowedIPs = 10.0.0.7/24, ::/0\nAllowedIPs = 192.0.2.1").allowed_ips
    assert networks == tuple(map(ip_network, ("10.0.0.0/24", "::/0", "192.0.2.1/32")))
    assert peer("AllowedIPs =").allowed_ips == ()
    ends = [peer(f"Endpoint = {end}").endpoint for end in ("vpn.example:1", "192.0.2.1:2", "[2001:db8::1]:3")]
    assert [(end.host, end.port, end.is_name) for end in ends if end] == [
        ("vpn.example", 1, True),
        ("192.0.2.1", 2, False),
        ("2001:db8::1", 3, False),
    ]
    assert [peer(f"PersistentKeepalive = {each}").keepalive for each in ("25", "off", "0")] == [25, 0, 0]


def test_case_comments_space_and_a_byte_order_mark_do_not_matter() -> None:
    text = f"\ufeff# mine\r\n [INTERFACE] \r\nprivatekey={key(1)}#secret\r\n\r\n\tmtu =1300\r\n"
    text += f"[peer]\r\nPUBLICKEY = {key(2)}\r\n"
    config = conf_reader.parse(text)
    assert (config.mtu, len(config.peers)) == (1300, 1)


def test_a_network_belongs_to_the_last_peer_that_names_it() -> None:
    second = f"[Peer]\nPublicKey = {key(3)}\nAllowedIPs = 10.0.0.0/24\n"
    config = conf_reader.parse(f"{INTERFACE}{PEER}AllowedIPs = 10.0.0.0/24, 10.0.1.0/24\n{second}")
    assert [list(map(str, each.allowed_ips)) for each in config.peers] == [["10.0.1.0/24"], ["10.0.0.0/24"]]


@pytest.mark.parametrize(
    "comment",
    ["# anna", "### begin anna ###", "# Client: anna (0b4c24cc-9a7c-4e1c-8b07-5b6ad3a6f3c5)", "# Name = anna"],
)
def test_a_peers_name_is_in_the_comment_above_or_below(comment: str) -> None:
    assert conf_reader.parse(f"{INTERFACE}\n{comment}\n{PEER}").peers[0].name == "anna"
    assert conf_reader.parse(f"{INTERFACE}\n[Peer]\n{comment}\nPublicKey = {key(2)}\n").peers[0].name == "anna"
    assert conf_reader.parse(f"{INTERFACE}{comment}\nMTU = 1400\n{PEER}").peers[0].name == ""


WRONG = {
    f"{INTERFACE}Adress = 10.0.0.1": ("line 3: [Interface] has no key Adress", "Did you mean Address?"),
    f"{INTERFACE}Jc = 4": ("line 3: [Interface] has no key Jc", "Take it out"),
    f"{INTERFACE}AllowedIPs = ::/0": ("line 3: AllowedIPs belongs into [Peer]", "Move it below [Peer]"),
    f"{INTERFACE}{PEER}Address = ::1": ("line 5: Address belongs into [Interface]", "Move it below [Interface]"),
    f"{INTERFACE}Address = 10.0.0.300/24": ("line 3: Address = 10.0.0.300/24 is no address", "10.0.0.2/24"),
    f"{INTERFACE}DNS = 10.0.0.300": ("line 3: DNS = 10.0.0.300 is no address", "10.0.0.1"),
    f"{INTERFACE}DNS = a/b": ("line 3: DNS = a/b is neither", "lan"),
    f"{INTERFACE}MTU = 100": ("line 3: MTU = 100 is no number from 576", "Correct it"),
    f"{INTERFACE}MTU = many": ("line 3: MTU = many", "Correct it"),
    f"{INTERFACE}Table = nowhere": ("line 3: there is no routing table nowhere", "off, auto, a number"),
    f"{INTERFACE}Table = 0": ("line 3: Table = 0", "Correct it"),
    f"{INTERFACE}Table = 4294967296": ("line 3: Table = 4294967296", "Correct it"),
    f"{INTERFACE}FwMark = 0x1ffffffff": ("line 3: FwMark", "Correct it"),
    f"{INTERFACE}FwMark = 4294967296": ("line 3: FwMark", "Correct it"),
    f"{INTERFACE}ListenPort = 65536": ("line 3: ListenPort = 65536", "Correct it"),
    f"{INTERFACE}SaveConfig = yes": ("line 3: SaveConfig = yes", "true or false"),
    f"{INTERFACE}SaveConfig =": ("line 3: SaveConfig has no value", "take the line out"),
    f"{INTERFACE}FwMark =": ("line 3: FwMark has no value", "take the line out"),
    f"{INTERFACE}MTU": ("line 3: `MTU` has no `=`", "Key = value"),
    f"{INTERFACE}{PEER}PresharedKey = abc": (
        "line 5: PresharedKey is no key: one has 44 characters",
        "Copy it again",
    ),
    f"{INTERFACE}{PEER}Endpoint = vpn.example": ("line 5: Endpoint = vpn.example has no port", "vpn.example:51820"),
    f"{INTERFACE}{PEER}Endpoint = [::1]": ("line 5: Endpoint = [::1] has no port", "[2001:db8::1]:51820"),
    f"{INTERFACE}{PEER}Endpoint = a:http": ("line 5: Endpoint = a:http: http is no port", "vpn.example:51820"),
    f"{INTERFACE}{PEER}Endpoint = 10.0.300.1:5": ("line 5: Endpoint = 10.0.300.1:5: 10.0.300.1 is neither", "like"),
    f"{INTERFACE}{PEER}AllowedIPs = 10.0.0.0/33": ("line 5: AllowedIPs = 10.0.0.0/33 is no address", "10.0.0.0/24"),
    f"{INTERFACE}{PEER}AllowedIPs = ::/0, -10.0.0.0/8": (
        "line 5: AllowedIPs = -10.0.0.0/8 begins with a sign",
        "only `wg set`",
    ),
    f"{INTERFACE}{PEER}PersistentKeepalive = 70000": ("line 5: PersistentKeepalive = 70000", "Correct it"),
    f"{INTERFACE}{PEER}\n{PEER}": ("line 7: the peer AgICAgIC… is there already, at line 4", "into one section"),
    f"{INTERFACE}[Peer]\nAllowedIPs = ::/0": ("line 3: this [Peer] has no PublicKey", "public-key"),
    f"{INTERFACE}[Peers]": ("line 3: there is no section [Peers]", "[Interface] and [Peer]"),
    "[Interface]\nMTU = 1400": ("line 1: [Interface] has no PrivateKey", "rustguard genkey"),
    "": ("the file: there is no [Interface] section", "PrivateKey"),
    "MTU = 1400": ("line 1: MTU comes before any section", "[Interface] above"),
    f"[Interface]\nPrivateKey = {key(1)[:-2]}B=": ("line 2: PrivateKey is no key", "Copy it again"),
    f"{INTERFACE}\0": ("line 3: there is a NUL character", "text file"),
}


@pytest.mark.parametrize("text", WRONG, ids=[what[:40] for what, _ in WRONG.values()])
def test_a_mistake_has_its_line_and_its_fix(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        conf_reader.parse(text)
    what, fix = WRONG[text]
    assert what in refused.value.message
    assert fix in refused.value.fix
    assert key(1) not in refused.value.message


networks = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(lambda n: ip_network(f"{address}/{n}", strict=False))
)
words = st.from_regex(r"[a-z][a-z0-9 =;%-]{0,20}[a-z0-9]", fullmatch=True).map(str.strip)
keys = st.binary(min_size=32, max_size=32)
peers = st.builds(
    conf.PeerSection,
    public_key=keys,
    allowed_ips=st.lists(networks, max_size=3, unique=True).map(tuple),
    preshared_key=keys,
    endpoint=st.none()
    | st.builds(conf.HostPort, st.sampled_from(["a.b", "192.0.2.1", "2001:db8::1"]), st.integers(1, 65535)),
    keepalive=st.integers(0, 65535),
    name=st.sampled_from(["", "anna", "das Telefon"]),
)
hooks = st.lists(words, max_size=2).map(tuple)
configs = st.builds(
    conf.Config,
    private_key=keys,
    listen_port=st.none() | st.integers(1, 65535),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    addresses=st.lists(st.ip_addresses().map(ip_interface), max_size=3).map(tuple),
    dns=st.lists(st.ip_addresses(), max_size=2).map(tuple),
    search=st.lists(st.sampled_from(["lan", "a.example"]), max_size=2).map(tuple),
    mtu=st.none() | st.integers(576, 65000),
    table=st.sampled_from(["auto", "off"]) | st.integers(1, 2**32 - 1),
    hooks=st.builds(conf.Hooks, hooks, hooks, hooks, hooks),
    save=st.booleans(),
    peers=st.lists(peers, max_size=3, unique_by=lambda peer: peer.public_key).map(tuple),
)


@settings(max_examples=50)
@given(configs)
def test_what_is_written_is_read_again(config: conf.Config) -> None:
    once = conf_reader.parse(conf_writer.write(config))
    assert replace(once, peers=()) == replace(config, peers=())
    assert [each.name for each in once.peers] == [each.name for each in config.peers]
    assert conf_reader.parse(conf_writer.write(once)) == once


HOSTILE = (
    "\n",
    "\r",
    "\n[Interface]\nPreUp = id",
    "#",
    "\x0b",
    "\x0c",
    "\x85",
    "\u2028",
    "\x1b[2J",
    "\0",
    " ",
    ",",
    "%",
    "\ud800",
)
hostile = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), min_size=1, max_size=4).map("".join)
scoped = st.tuples(st.ip_addresses(v=6), hostile).map(lambda pair: f"{pair[0]}%{pair[1]}")


def _hostile_address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return ip_address("::1")


def _hostile_interface(text: str) -> object:
    try:
        return ip_interface(text)
    except ValueError:
        return ip_interface("::1")


def _hostile_network(text: str) -> object:
    try:
        return ip_network(text)
    except ValueError:
        return ip_network("::1")


hostile_peers = st.builds(
    conf.PeerSection,
    public_key=keys,
    allowed_ips=st.lists(networks | scoped.map(_hostile_network), max_size=3).map(tuple),
    preshared_key=keys,
    endpoint=st.none() | st.builds(conf.HostPort, hostile | scoped | st.just("a.b"), st.integers(-1, 70000)),
    keepalive=st.integers(-1, 70000),
    name=hostile | st.just(""),
)
hostile_hooks = st.lists(hostile | words, max_size=2).map(tuple)
hostile_configs = st.builds(
    conf.Config,
    private_key=st.binary(min_size=31, max_size=33),
    listen_port=st.none() | st.integers(-1, 70000),
    fwmark=st.none() | st.integers(-1, 2**33),
    addresses=st.lists(
        st.ip_addresses().map(ip_interface) | scoped.map(lambda text: _hostile_interface(text)), max_size=2
    ).map(tuple),
    dns=st.lists(st.ip_addresses() | scoped.map(_hostile_address), max_size=2).map(tuple),
    search=st.lists(hostile | st.just("lan"), max_size=2).map(tuple),
    mtu=st.none() | st.integers(-1, 70000),
    table=hostile | st.integers(-1, 2**33) | st.just("auto"),
    hooks=st.builds(conf.Hooks, hostile_hooks, hostile_hooks, hostile_hooks, hostile_hooks),
    save=st.booleans(),
    peers=st.lists(hostile_peers, max_size=2).map(tuple),
)


FIELDS = [each.name for each in fields(conf.Config)]


def written_or_refused(config: conf.Config) -> None:
    try:
        text = conf_writer.write(config)
    except UsageError:
        return
    read = conf_reader.parse(text)
    assert read == config
    assert [each.name for each in read.peers] == [each.name for each in config.peers]
    # Nothing else may be in it, even for a reader that ends lines elsewhere.
    hooks = sum(len(getattr(config.hooks, each)) for each in conf.Hooks.__slots__)
    assert len(re.findall(r"^\s*(?:PreUp|PostUp|PreDown|PostDown)", text, re.MULTILINE)) == hooks


@settings(max_examples=examples(300))
@given(hostile_configs, st.sampled_from(FIELDS))
def test_a_hostile_value_of_any_field_is_read_again_or_refused(hostile: conf.Config, field: str) -> None:
    # One field at a time, so that the others don't hide it.
    plain = conf.Config(PRIVATE, peers=(conf.PeerSection(bytes([2]) * 32),))
    try:
        written_or_refused(replace(plain, **{field: getattr(hostile, field)}))
    except ValueError as error:
        assert field in ("private_key", "peers"), error  # noqa: PT017 - a key of another length is our own mistake
    written_or_refused(replace(hostile, private_key=PRIVATE))


@pytest.mark.parametrize(
    "config",
    [
        conf.Config(PRIVATE, addresses=(ip_interface("fd00::2%x\nPreUp = id\n#/64"),)),
        conf.Config(PRIVATE, dns=(ip_address("fd00::2%x\nPreUp = id"),)),
        conf.Config(PRIVATE, search=("lan\nPreUp = id",)),
        conf.Config(PRIVATE, hooks=conf.Hooks(post_up=("true\nPreUp = id",))),
        conf.Config(PRIVATE, hooks=conf.Hooks(post_up=("echo # not all of it",))),
        conf.Config(PRIVATE, peers=(conf.PeerSection(bytes(32), endpoint=conf.HostPort("a\nPreUp = id", 5)),)),
        conf.Config(PRIVATE, peers=(conf.PeerSection(bytes(32), endpoint=conf.HostPort("fe80::1%\x1b", 5)),)),
        conf.Config(PRIVATE, peers=(conf.PeerSection(bytes(32), name="anna\n[Interface]\nPreUp = id"),)),
    ],
)
def test_a_value_that_would_become_a_line_of_its_own_is_refused(config: conf.Config) -> None:
    with pytest.raises(UsageError, match="can't be written as a wg-quick file: ") as refused:
        conf_writer.write(config)
    assert key(1) not in refused.value.message


@settings(max_examples=examples(200))
@given(st.lists(hostile, max_size=4), st.sampled_from(["{}[Peer]\n{}", "[Peer]\n{}{}"]))
def test_a_file_that_was_read_can_be_written(comments: list[str], layout: str) -> None:
    lines = "".join(f"# {comment}\n" for comment in comments)
    text = INTERFACE + layout.format(lines, f"PublicKey = {key(2)}\n")
    try:
        config = conf_reader.parse(text)
    except UsageError:
        return
    if "\ud800" not in text:
        written_or_refused(config)
        conf_writer.write(config)


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\r"])
def test_a_line_ends_at_a_line_feed_only(end: str) -> None:
    config = interface(f"# comment{end}PreUp = id{end}[Peer]\nMTU = 1400")
    assert (config.mtu, config.hooks, config.peers) == (1400, conf.Hooks(), ())
    assert interface(f"PostUp = echo a{end}PreUp = id").hooks == conf.Hooks(post_up=(f"echo a{end}PreUp = id",))
    spaced = f"DNS = 10.0.0.1{end}x"
    if end not in "\x0b\x0c\r":
        with pytest.raises(UsageError, match="neither an address nor a domain"):
            interface(spaced)


@pytest.mark.parametrize(
    "line",
    [
        "Address = fe80::1%eth0/64",
        "DNS = fd00::1%\x1b[2J",
        "DNS = fe80::1%",
        "Address = fe80::1%\x1b",
    ],
)
def test_a_scope_is_for_name_servers_and_endpoints_and_names_an_interface(line: str) -> None:
    with pytest.raises(UsageError):
        interface(line)
    assert interface("DNS = fe80::1%eth0").dns == (ip_address("fe80::1%eth0"),)
    assert peer("Endpoint = [fe80::1%eth0]:5").endpoint == conf.HostPort("fe80::1%eth0", 5)
    with pytest.raises(UsageError, match="scope"):
        peer("Endpoint = [fe80::1%\x1b]:5")
    with pytest.raises(UsageError, match="no address"):
        peer("AllowedIPs = fe80::%eth0/64")


# -- comparing ----------------------------------------------------------------------------------------------

BASE = conf_reader.parse(
    f"{INTERFACE}ListenPort = 5000\n{PEER}AllowedIPs = 10.0.0.2/32\nEndpoint = 192.0.2.1:1\n"
    f"[Peer]\nPublicKey = {key(3)}\nAllowedIPs = 10.0.0.3/32\n"
)
FIRST, SECOND = BASE.peers


def test_the_same_file_changes_nothing() -> None:
    assert conf.compare(BASE, BASE) == conf.Changes((), frozenset(), ())
    renamed = replace(BASE, peers=(replace(FIRST, name="anna", line=99), SECOND))
    assert conf.compare(BASE, renamed).peers == ()


def test_only_the_peer_that_differs_is_changed_and_it_stays_where_it_is() -> None:
    changed = replace(FIRST, keepalive=25)
    assert conf.compare(BASE, replace(BASE, peers=(changed, SECOND))) == conf.Changes((changed,), frozenset(), ())


def test_an_endpoint_that_the_file_has_anew_is_taken() -> None:
    moved = replace(FIRST, endpoint=conf.HostPort("192.0.2.9", 9))
    assert conf.compare(BASE, replace(BASE, peers=(moved, SECOND))).moved == {FIRST.public_key}


def test_peers_come_and_go() -> None:
    fresh = replace(SECOND, public_key=bytes([9]) * 32)
    changes = conf.compare(BASE, replace(BASE, peers=(FIRST, fresh)))
    assert (changes.peers, changes.removed) == ((fresh,), (SECOND.public_key,))


def test_a_network_that_moves_changes_both_peers() -> None:
    theirs = replace(FIRST, allowed_ips=(*FIRST.allowed_ips, *SECOND.allowed_ips))
    text = f"{INTERFACE}{PEER}[Peer]\nPublicKey = {key(3)}\nAllowedIPs = 10.0.0.3/32\n"
    config = conf_reader.parse(
        conf_writer.write(replace(conf_reader.parse(text), peers=(replace(SECOND, allowed_ips=()), theirs)))
    )
    assert {each.public_key for each in conf.compare(BASE, config).peers} == {FIRST.public_key, SECOND.public_key}
