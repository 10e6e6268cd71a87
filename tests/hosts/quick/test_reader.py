"""The reader and the stock tools agree about files: generated ones, odd but valid, and some invalid."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import Counter
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustguard_py import conf, conf_reader
from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, generate_private_key
from support.stock_reader import Read, StockReader

pytestmark = pytest.mark.needs_wireguard_go

EXAMPLES = 4_000 if os.environ.get("RUSTGUARD_SOAK") == "1" else 150

# -- what may differ ----------------------------------------------------------------------------------------

# By what we say when only we refuse a file. "Left to ip" means that wg-quick passes a value on without a look, and
# `ip` refuses it once the interface is there.
ONLY_WE_REFUSE = {
    "there is no [Interface] section": "nothing could be brought up with it",
    "[Interface] has no PrivateKey": "without a hook that sets one, the interface could do nothing",
    "has no `=`": "wg-quick takes the key for the value, which nobody means",
    "is there already": "wg would lose half of one of two sections that name the same peer",
    "Address = ": "left to ip",
    "MTU = ": "left to ip",
    "there is no routing table": "left to ip",
    "Table = ": "left to ip",
    "DNS = ": "left to resolvconf",
    "ListenPort = ": "wg takes the last 16 bits of a greater number, and names such as `openvpn`",
    "is no port": "wg takes port 0, the last 16 bits of a greater number, and names such as `openvpn`",
    "is neither a name nor an address": "wg takes 10.1 for 10.0.0.1",
}
# By what they say when only they refuse a file.
ONLY_THEY_REFUSE = {
    r"Line unrecognized: `\ufeff": "editors of Windows begin a file with a byte order mark",
    r"Line unrecognized: `(Address|DNS|MTU|Table|P\w+(Up|Down)|SaveConfig)": "below `[ Interface ]`, with blanks in "
    "it, wg-quick knows none of its own keys",
    r"Line unrecognized: `AllowedIPs='": "a peer without networks; `wg set` takes an empty list too",
    r"(Name or service not known|Temporary failure in name resolution)": "we look a name up later, and again",
}

# -- files --------------------------------------------------------------------------------------------------

KEYS = [b64encode(bytes([number]) * 32).decode() for number in range(1, 9)]
PRIVATE = b64encode(generate_private_key(lambda size: bytes([1]) * size)).decode()
NETWORKS = ["10.0.0.2/32", "10.0.0.7/24", "10.0.0.9", "fd00::2/128", "::/0", "0.0.0.0/0", "FD00::A/64", "fd00::1"]
NETWORKS += ["10.0.0.0/08", "::ffff:10.0.0.1/128", "::0/0", "2001:db8:0:0::/48"]
BAD_NETWORKS = ["10.0.0.0/33", "10.0.0/24", "10.0.0.0/255.255.255.0", "fd00::/129", "x", "", "010.0.0.1", "10.0.0.1/"]
BAD_NETWORKS += ["fd00:::1", "fe80::1%lo/64", "10.0.0.0/-1", "10.0.0.0/ 2 4x", "1::2:3:4:5:6:7:8", "10.0.0.0/+8"]
ENDPOINTS = ["192.0.2.1:51820", "[2001:db8::1]:51820", "2001:db8::1:51820", "[192.0.2.1]:7", "localhost:51820"]
ENDPOINTS += ["192.0.2.1:051820", "192.0.2.1:65535"]
BAD_ENDPOINTS = ["192.0.2.1", "[::1]", "[::1]x:5", ":51820", "[::1:5", "192.0.2.1:", "10.1:5", "192.0.2.1:0", "[]:5"]
BAD_ENDPOINTS += ["192.0.2.1:70000", "192.0.2.1:+5", "192.0.2.1:5_0", "nowhere.invalid:5", "192.0.2.1:٣"]
NUMBERS = ["0", "1", "25", "65535", "007", "off", "OFF"]
BAD_NUMBERS = ["-1", "65536", "1_0", "x", "0x10", "1.5", "+1", "٣", "99999999999999999999"]
MARKS = ["0", "off", "51820", "0xca6c", "0xCA6C", "4294967295", "0010"]
BAD_MARKS = ["0Xca6c", "0x", "4294967296", "-1", "1_0", "x"]
HOOKS = [
    "",
    "true",
    "iptables -A FORWARD -i %i -j ACCEPT; true",
    "echo a=b",
    "wg set %i private-key <(cat x)",
    "true,",
]

WG_INTERFACE = {"PrivateKey": ([PRIVATE], ["", KEYS[0][:-2] + "B=", "short"])}
WG_INTERFACE["ListenPort"] = (["51820", "1", "0", "65535", "051"], ["65536", "x", "", "-1", "0x10", "1_0"])
WG_INTERFACE["FwMark"] = (MARKS, [*BAD_MARKS, ""])
QUICK: dict[str, tuple[list[str], list[str]]] = {
    "Address": (
        ["10.0.0.1/24", "10.0.0.1/24, fd00::1/64", "fd00::cafe:1/112,10.1.0.1", "10.0.0.1 10.0.0.3", "", ","],
        ["x"],
    ),
    "DNS": (["10.0.0.1", "10.0.0.1, lan", "fd00::1,a.example b.example", ""], ["10.0.0.300"]),
    "MTU": (["1420", "1280", ""], ["x", "100"]),
    "Table": (["off", "auto", "1234", ""], ["nowhere"]),
    **dict.fromkeys(("PreUp", "PostUp", "PreDown", "PostDown"), (HOOKS, [])),
    "SaveConfig": (["false", "FALSE"], ["yes", ""]),
}
PEER: dict[str, tuple[list[str], list[str]]] = {
    "PresharedKey": ([*KEYS[:2], b64encode(bytes(32)).decode()], ["", "x"]),
    "AllowedIPs": ([], []),
    "Endpoint": (ENDPOINTS, [*BAD_ENDPOINTS, ""]),
    "PersistentKeepalive": (NUMBERS, [*BAD_NUMBERS, ""]),
}

blanks = st.text(" \t\r\v\f", max_size=2)
# Any bytes: line ends of Unicode, other encodings, control characters.
junk = st.one_of(
    st.binary(max_size=12).map(lambda each: each.replace(b"\n", b"").replace(b"\0", b"")),
    st.sampled_from(["\u2028PostUp = x", "\x0c[Peer]", "\x85", "\x1e", "é", "# #", "B\udcfcro"]).map(
        lambda text: text.encode("utf-8", "surrogateescape")
    ),
)


@st.composite
def networks(draw: st.DrawFn, wrong: st.SearchStrategy[bool]) -> str:
    chosen = draw(st.lists(st.sampled_from(NETWORKS), max_size=4))
    if draw(wrong):
        chosen.insert(draw(st.integers(0, len(chosen))), draw(st.sampled_from(BAD_NETWORKS)))
    return ",".join(chosen)


@st.composite
def spaced(draw: st.DrawFn, text: str) -> str:
    """Put blanks anywhere into a key or value of wg's."""
    if text and draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(blanks) + text[place:]
    return text


@st.composite
def written(draw: st.DrawFn, key: str, value: str, *, own: bool) -> bytes:
    """Write a line in one of many ways; `own`: it's one of wg-quick's own keys."""
    key = draw(st.sampled_from([key, key, key.lower(), key.upper(), key.swapcase()]))
    if not own:
        key, value = draw(spaced(key)), draw(spaced(value))
    text = f"{draw(blanks)}{key}{draw(blanks)}={draw(blanks)}{value}{draw(blanks)}".encode()
    return text + (b"#" + draw(junk) if draw(st.integers(0, 5)) == 0 else b"")


@st.composite
def section(draw: st.DrawFn, head: str, values: list[tuple[str, str, bool]]) -> list[bytes]:
    head = draw(st.sampled_from([head, head, head.lower(), head.upper()]))
    # With blanks in it, wg-quick doesn't find its own keys below.
    if not any(own for _, _, own in values) or draw(st.integers(0, 9)) == 0:
        head = draw(spaced(head))
    lines = [draw(blanks).encode() + head.encode() + draw(blanks).encode()]
    for key, value, own in draw(st.permutations(values)):
        if draw(st.integers(0, 6)) == 0:
            lines.append(draw(blanks).encode() + b"#" + draw(junk))
        lines.append(draw(written(key, value, own=own)))
    if draw(st.integers(0, 4)) == 0:
        lines.append(draw(blanks).encode())
    return lines


@st.composite
def values(
    draw: st.DrawFn, table: dict[str, tuple[list[str], list[str]]], *, wrong: st.SearchStrategy[bool]
) -> list[tuple[str, str]]:
    chosen = []
    for key in draw(st.lists(st.sampled_from(sorted(table)), max_size=5)):
        good, bad = table[key]
        if key == "AllowedIPs":
            chosen.append((key, draw(networks(wrong))))
        else:
            mistaken = bool(bad) and draw(wrong)
            chosen.append((key, draw(st.sampled_from(bad if mistaken else good))))
    return chosen


@st.composite
def files(draw: st.DrawFn) -> bytes:
    # Most files are right as a whole; some have one mistake or more.
    wrong = st.integers(0, 9).map(lambda number: number == 0) if draw(st.integers(0, 2)) == 0 else st.just(False)
    interface = [("PrivateKey", PRIVATE)] if draw(st.integers(0, 19)) else []
    interface += draw(values({**WG_INTERFACE, **QUICK}, wrong=wrong))
    lines = draw(section("[Interface]", [(key, value, key in QUICK) for key, value in interface]))
    for own_key in draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True)):
        key = KEYS[0] if draw(wrong) else own_key
        peer = [("PublicKey", key)] if draw(st.integers(0, 19)) else []
        peer += draw(values(PEER, wrong=wrong))
        lines += draw(section("[Peer]", [(*each, False) for each in peer]))
    if draw(wrong):
        odd = [
            b"[Peers]",
            b"Address",
            b"Adress = 10.0.0.1",
            b"Jc = 4",
            b"= 5",
            b"PublicKey",
            b"[Interface] x",
            b"[Peer",
        ]
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(odd)))
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    mark = b"\xef\xbb\xbf" if draw(st.integers(0, 30)) == 0 else b""
    return mark + end.join(lines) + draw(st.sampled_from([end, b""]))


# -- comparing ----------------------------------------------------------------------------------------------


def ours(content: bytes) -> conf.Config | str:
    try:
        return conf_reader.parse(content.decode("utf-8", "surrogateescape"))
    except UsageError as error:
        return error.message


def excuse(mine: conf.Config | str, theirs: Read) -> str | None:
    """Return why it's right that only one of the two refuses a file, or None."""
    if isinstance(mine, str):
        return next((why for what, why in ONLY_WE_REFUSE.items() if what in mine), None)
    return next((why for what, why in ONLY_THEY_REFUSE.items() if re.search(what, theirs.error, re.IGNORECASE)), None)


def interface_of(config: conf.Config) -> dict[str, str]:
    shown = {"ListenPort": str(config.listen_port or ""), "FwMark": hex(config.fwmark) if config.fwmark else ""}
    key = "" if config.private_key is None else b64encode(config.private_key).decode()
    return {name: value for name, value in {**shown, "PrivateKey": key}.items() if value}


def peer_of(peer: conf.PeerSection) -> dict[str, str]:
    secret = "" if peer.preshared_key == NO_PRESHARED_KEY else b64encode(peer.preshared_key).decode()
    shown = {"PresharedKey": secret, "PersistentKeepalive": str(peer.keepalive or "")}
    shown["AllowedIPs"] = ", ".join(sorted(map(str, peer.allowed_ips)))
    shown["Endpoint"] = str(peer.endpoint or "")
    return {name: value for name, value in shown.items() if value}


def sorted_networks(shown: dict[str, str]) -> dict[str, str]:
    if "AllowedIPs" in shown:
        networks = (str(ip_network(each)) for each in shown["AllowedIPs"].split(", "))
        shown = {**shown, "AllowedIPs": ", ".join(sorted(networks))}
    return shown


def agree(config: conf.Config, theirs: Read) -> None:
    """Check that both read the same values."""
    own = theirs.own
    if config.listen_port is None:
        # A port that the kernel chose.
        theirs.interface.pop("ListenPort", None)
    assert interface_of(config) == theirs.interface
    assert [str(each) for each in config.addresses] == [str(ip_interface(each)) for each in own.get("address", [])]
    assert [*map(str, config.dns), *config.search] == own.get("dns", [])
    for hook in conf.Hooks.__slots__:
        assert list(getattr(config.hooks, hook)) == list(filter(None, own.get(hook, []))), hook
    assert str(config.mtu or "") == own["mtu"][0]
    assert str(config.table) == (own["table"][0] or "auto")
    assert str(int(config.save)) == own["save"][0]
    assert {peer.public_key for peer in config.peers} == theirs.peers.keys()
    for peer in config.peers:
        theirs_of_it = sorted_networks(theirs.peers[peer.public_key])
        mine = peer_of(peer)
        if peer.endpoint is not None and peer.endpoint.is_name:
            # They have looked it up by now.
            assert theirs_of_it.pop("Endpoint") in ("127.0.0.1:51820", "[::1]:51820")
            del mine["Endpoint"]
        assert mine == theirs_of_it


def test_wg_and_wg_quick_read_what_the_reader_reads(lab: Lab, tmp_path: Path) -> None:
    stock = StockReader(lab.host("stock", own_run=True), tmp_path)
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(files())
    def compare(content: bytes) -> None:
        mine, theirs = ours(content), stock.read(content)
        if isinstance(mine, str) or theirs.error:
            seen["refused" if isinstance(mine, str) and theirs.error else "excused"] += 1
            if not (isinstance(mine, str) and theirs.error):
                assert excuse(mine, theirs) is not None, (content, mine, theirs.error)
            return
        seen["read"] += 1
        agree(mine, theirs)

    compare()
    print(f"{dict(seen)} of {EXAMPLES} files")
    # The grammar still makes what it is for.
    assert seen["read"] > EXAMPLES / 4
    assert seen["refused"] > EXAMPLES / 20
