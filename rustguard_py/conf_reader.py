"""Reads configuration files of wg(8) and wg-quick(8).

It takes what wg and wg-quick take: keys in any case, comments in any encoding, lists with commas, a scalar given
twice (the last counts), keys that may come more than once. Blanks inside section heads and inside wg's own keys and
values don't count, as for wg. What they refuse or silently ignore is an error here. The error names the line and says
how to correct it. tests/hosts/quick/test_reader.py compares the three, and lists each difference.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, NoReturn

from rustguard_py.conf import AUTO, MTU_LEAST, MTU_MOST, OFF, TABLES, Config, Hooks, HostPort, PeerSection
from rustguard_py.conf_names import BLANKS, Comments
from rustguard_py.model.address import LAST_PORT
from rustguard_py.model.endpoint import InterfaceAddress, IpAddress, Network
from rustguard_py.model.errors import UsageError

_NO_BLANKS = dict.fromkeys(map(ord, BLANKS))
# The scope of an IPv6 address, a name or number of an interface, which is good for name servers and endpoints only.
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_DECIMAL = re.compile(r"[0-9]{1,20}")
_HEXADECIMAL = re.compile(r"0x[0-9A-Fa-f]{1,16}")
_LOOKS_LIKE_ADDRESS = re.compile(r"[0-9.]+|.*:.*")
_STRAY_BYTE = re.compile("[\udc80-\udcff]")
_DOMAIN = re.compile(r"~?[A-Za-z0-9_.-]+|~\.")
_HOST = re.compile(r"[A-Za-z0-9_.-]+")


def parse(text: str, where: str = "the file", tables: Mapping[str, int] = TABLES) -> Config:
    """Return the configuration in a file.

    Args:
        text: The file's content. Bytes that aren't UTF-8 are lone surrogates, as with `surrogateescape`.
        where: The file's name in error messages.
        tables: Routing tables by name.

    Raises:
        UsageError: A line is invalid. The error names the line and says how to correct it.
    """
    reader = _Reader(where, tables)
    # Not `splitlines`: wg and wg-quick end a line at a line feed only. Elsewhere, a comment could hide a hook.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        reader.take(number, line)
    return reader.end()


class _Reader:
    """The state while a file is read."""

    def __init__(self, where: str, tables: Mapping[str, int]) -> None:
        self._where = where
        self._tables = tables
        self._line = 0
        self._section: str | None = None
        self._interface: dict[str, Any] = {}
        self._interface_line = 0
        self._peers: list[dict[str, Any]] = []
        self._comments: list[Comments] = []
        # Since the last line of a section. The next line decides to which peer they belong.
        self._pending: list[str] = []

    def take(self, number: int, line: str) -> None:
        """Read the next line."""
        self._line = number
        if "\0" in line:
            self._refuse("there is a NUL character", "It isn't a text file: look at it with `file` or an editor.")
        stripped, mark, comment = line.partition("#")
        stripped = stripped.strip(BLANKS)
        if not stripped:
            if mark:
                self._pending.append(_readable(comment))
            return
        if stripped.startswith("["):
            self._begin(stripped)
        else:
            self._set(stripped)
        if mark and self._section == "[peer]":
            self._comments[-1].beside.append(_readable(comment))

    def end(self) -> Config:
        """Return the configuration after the last line."""
        # With a hook, as in wg-quick(8): PostUp = wg set %i private-key FILE.
        if "private_key" not in self._interface and not self._interface.get("post_up"):
            self._line = self._interface_line
            if not self._line:
                self._refuse("there is no [Interface] section", "Begin the file with it, and a PrivateKey below.")
            self._refuse("[Interface] has no PrivateKey", "Make one with `rustguard genkey`: PrivateKey = …")
        peers = [self._peer(*pair) for pair in zip(self._peers, self._comments, strict=True)]
        hooks = Hooks(**{name: self._interface.pop(name, ()) for name in Hooks.__slots__})
        return Config(**{"private_key": None, **self._interface}, hooks=hooks, peers=tuple(_settle(peers)))

    # -- structure

    def _begin(self, header: str) -> None:
        section = header.translate(_NO_BLANKS).lower()
        match section:
            case "[interface]":
                self._interface_line = self._interface_line or self._line
            case "[peer]":
                self._peers.append({"line": self._line})
                self._comments.append(Comments(above=self._pending))
            case _:
                self._refuse(f"there is no section {header}", "The sections are [Interface] and [Peer].")
        self._section = section
        self._pending = []

    def _set(self, line: str) -> None:
        key, equals, value = (part.strip(BLANKS) for part in line.partition("="))
        if not equals:
            self._refuse(f"`{key}` has no `=`", "Each line is `Key = value`, a [Section], or a # comment.")
        if self._section is None:
            self._refuse(f"{key} comes before any section", "Write [Interface] above it.")
        in_peer = self._section == "[peer]"
        own = key.lower()
        if in_peer or own not in _QUICK_KEYS:
            # wg drops all blanks of a line, wg-quick only those around its own keys and values.
            own, value = key.translate(_NO_BLANKS).lower(), value.translate(_NO_BLANKS)
        found = _PEER_KEYS.get(own) if in_peer else _QUICK_KEYS.get(own) or _WG_KEYS.get(own)
        if found is None or (own in _QUICK_KEYS and own != key.lower()):
            self._refuse_key(key)
        if not value and own not in _MAY_BE_EMPTY:
            self._refuse(f"{key} has no value", "Give it one, or take the line out.")
        if in_peer:
            self._comments[-1].inside += self._pending
        self._pending = []
        found(self, self._peers[-1] if in_peer else self._interface, value)

    def _refuse_key(self, key: str) -> NoReturn:
        own: Mapping[str, _Setter] = {**_WG_KEYS, **_QUICK_KEYS}
        other = _PEER_KEYS
        section, elsewhere = "[Interface]", "[Peer]"
        if self._section == "[peer]":
            own, other, section, elsewhere = other, own, elsewhere, section
        if key.lower() in other:
            self._refuse(f"{key} belongs into {elsewhere}, and this is {section}", f"Move it below {elsewhere}.")
        spelled = {name.lower(): name for name in _SPELLED}
        close = get_close_matches(key.lower(), own, 1, 0.7)
        fix = f"Did you mean {spelled[close[0]]}?" if close else "Take it out: neither wg nor wg-quick has it."
        self._refuse(f"{section} has no key {key}", fix)

    def _peer(self, given: dict[str, Any], comments: Comments) -> PeerSection:
        if "public_key" not in given:
            self._line = given["line"]
            self._refuse("this [Peer] has no PublicKey", "Ask its owner: `wg show INTERFACE public-key` there.")
        return PeerSection(**given, name=comments.name())

    def _refuse(self, what: str, fix: str) -> NoReturn:
        place = f"{self._where}, line {self._line}" if self._line else self._where
        raise UsageError(f"{place}: {what}.", fix)

    # -- values

    def _key(self, name: str, value: str) -> bytes:
        if _KEY.fullmatch(value) is None:
            # The value may be secret, so only its length is shown.
            size = f"this has {len(value)}" if len(value) != 44 else "this is none"
            self._refuse(f"{name} is no key: one has 44 characters of base64, {size}", "Copy it again, whole.")
        return b64decode(value)

    def _number(self, name: str, value: str, least: int, most: int, *, hexadecimal: bool = False) -> int:
        number = least - 1
        if _DECIMAL.fullmatch(value) is not None:
            number = int(value)
        elif hexadecimal and _HEXADECIMAL.fullmatch(value) is not None:
            number = int(value, 16)
        if not least <= number <= most:
            self._refuse(f"{name} = {value} is no number from {least} to {most}", "Correct it.")
        return number

    def _private_key(self, to: dict[str, Any], value: str) -> None:
        to["private_key"] = self._key("PrivateKey", value)

    def _listen_port(self, to: dict[str, Any], value: str) -> None:
        to["listen_port"] = self._number("ListenPort", value, 0, LAST_PORT) or None

    def _fwmark(self, to: dict[str, Any], value: str) -> None:
        to["fwmark"] = 0 if value.lower() == OFF else self._number("FwMark", value, 0, 2**32 - 1, hexadecimal=True)

    def _address(self, to: dict[str, Any], value: str) -> None:
        to["addresses"] = to.get("addresses", ()) + tuple(
            self._parsed(_interface, "Address", each, "10.0.0.2/24 or fd00::2/64") for each in _words(value)
        )

    def _dns(self, to: dict[str, Any], value: str) -> None:
        for word in _words(value):
            if _LOOKS_LIKE_ADDRESS.fullmatch(word):
                to["dns"] = (*to.get("dns", ()), self._parsed(_scoped_address, "DNS", word, "10.0.0.1 or fd00::1"))
            elif _DOMAIN.fullmatch(word):
                to["search"] = (*to.get("search", ()), word)
            else:
                self._refuse(f"DNS = {word} is neither an address nor a domain", "Write it like 10.0.0.1 or lan.")

    def _mtu(self, to: dict[str, Any], value: str) -> None:
        to["mtu"] = self._number("MTU", value, MTU_LEAST, MTU_MOST, hexadecimal=True) if value else None

    def _table(self, to: dict[str, Any], value: str) -> None:
        word = value.lower() or AUTO
        if word in (AUTO, OFF):
            to["table"] = word
        elif value in self._tables:
            to["table"] = self._tables[value]
        elif value[:1].isdigit():
            to["table"] = self._number("Table", value, 1, 2**32 - 1, hexadecimal=True)
        else:
            names = ", ".join(sorted(self._tables))
            self._refuse(f"there is no routing table {value}", f"Write off, auto, a number, or one of: {names}.")

    def _save_config(self, to: dict[str, Any], value: str) -> None:
        if value.lower() not in ("true", "false"):
            self._refuse(f"SaveConfig = {value} is neither true nor false", "Write true or false.")
        to["save"] = value.lower() == "true"

    def _public_key(self, to: dict[str, Any], value: str) -> None:
        key = self._key("PublicKey", value)
        for peer in self._peers[:-1]:
            if peer.get("public_key") == key:
                fix = "Put all that belongs to it into one section: one of the two would be lost."
                self._refuse(f"the peer {value[:8]}… is there already, at line {peer['line']}", fix)
        to["public_key"] = key
        to["line"] = self._line

    def _preshared_key(self, to: dict[str, Any], value: str) -> None:
        to["preshared_key"] = self._key("PresharedKey", value)

    def _allowed_ips(self, to: dict[str, Any], value: str) -> None:
        each = value.split(",") if value else []
        if signed := [one for one in each if one.startswith(("+", "-"))]:
            fix = "Write all networks of this peer, without signs: only `wg set` has signs."
            self._refuse(f"AllowedIPs = {signed[0]} begins with a sign", fix)
        networks = (self._parsed(_network, "AllowedIPs", one, "10.0.0.0/24, ::/0") for one in each)
        to["allowed_ips"] = tuple(dict.fromkeys((*to.get("allowed_ips", ()), *networks)))

    def _endpoint(self, to: dict[str, Any], value: str) -> None:
        fix = "Write it like vpn.example:51820, 192.0.2.1:51820 or [2001:db8::1]:51820."
        host, colon, port = value[1:].partition("]:") if value.startswith("[") else value.rpartition(":")
        if not colon or not host or "]" in port:
            self._refuse(f"Endpoint = {value} has no port", fix)
        if _DECIMAL.fullmatch(port) is None or not 1 <= int(port) <= LAST_PORT:
            self._refuse(f"Endpoint = {value}: {port or 'nothing'} is no port", fix)
        given = HostPort(host, int(port))
        if not given.is_name and "%" in host and _SCOPE.fullmatch(host.partition("%")[2]) is None:
            self._refuse(f"Endpoint = {value}: {host} has no scope that an interface could have", fix)
        if given.is_name and (_HOST.fullmatch(host) is None or re.fullmatch(r"[0-9.]+", host)):
            self._refuse(f"Endpoint = {value}: {host} is neither a name nor an address", fix)
        to["endpoint"] = given

    def _keepalive(self, to: dict[str, Any], value: str) -> None:
        off = value.lower() == OFF
        to["keepalive"] = 0 if off else self._number("PersistentKeepalive", value, 0, 65535)

    def _parsed(self, parse: Callable[[str], Any], name: str, value: str, like: str) -> Any:
        try:
            return parse(value)
        except ValueError:
            self._refuse(f"{name} = {value} is no address", f"Write it like {like}.")


_Setter = Callable[[_Reader, dict[str, Any], str], None]


def _hook(name: str) -> _Setter:
    def add(_: _Reader, to: dict[str, Any], value: str) -> None:
        # wg-easy writes all four, empty or not.
        if value:
            to[name] = (*to.get(name, ()), value)

    return add


_WG_KEYS: Mapping[str, _Setter] = {
    "privatekey": _Reader._private_key,
    "listenport": _Reader._listen_port,
    "fwmark": _Reader._fwmark,
}
_QUICK_KEYS: Mapping[str, _Setter] = {
    "address": _Reader._address,
    "dns": _Reader._dns,
    "mtu": _Reader._mtu,
    "table": _Reader._table,
    "preup": _hook("pre_up"),
    "postup": _hook("post_up"),
    "predown": _hook("pre_down"),
    "postdown": _hook("post_down"),
    "saveconfig": _Reader._save_config,
}
_PEER_KEYS: Mapping[str, _Setter] = {
    "publickey": _Reader._public_key,
    "presharedkey": _Reader._preshared_key,
    "allowedips": _Reader._allowed_ips,
    "endpoint": _Reader._endpoint,
    "persistentkeepalive": _Reader._keepalive,
}
_SPELLED = [
    *("PrivateKey", "ListenPort", "FwMark", "Address", "DNS", "MTU", "Table"),
    *("PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig"),
    *("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
]
_MAY_BE_EMPTY = {"allowedips", "address", "dns", "mtu", "table", "preup", "postup", "predown", "postdown"}


def _words(value: str) -> list[str]:
    return re.findall(f"[^,{BLANKS}]+", value)


def _readable(comment: str) -> str:
    """Return a comment with each byte that isn't UTF-8 as the character that it most likely is."""
    return _STRAY_BYTE.sub(lambda byte: bytes([ord(byte[0]) - 0xDC00]).decode("cp1252", "replace"), comment)


def _interface(text: str) -> InterfaceAddress:
    if "%" in text:
        raise ValueError("an interface's own address has no scope")
    return ip_interface(text)


def _network(text: str) -> Network:
    _, slash, length = text.partition("/")
    if "%" in text or (slash and _DECIMAL.fullmatch(length) is None):
        raise ValueError("it has a scope, or a netmask in place of a prefix length")
    return ip_network(text, strict=False)


def _scoped_address(text: str) -> IpAddress:
    _, mark, scope = text.partition("%")
    if mark and _SCOPE.fullmatch(scope) is None:
        raise ValueError("not an interface's name")
    return ip_address(text)


def _settle(peers: list[PeerSection]) -> Iterator[PeerSection]:
    """Yield the peers, each network left only to the last peer that names it, as WireGuard does."""
    owner = {network: peer.public_key for peer in peers for network in peer.allowed_ips}
    for peer in peers:
        own = tuple(network for network in peer.allowed_ips if owner[network] == peer.public_key)
        yield replace(peer, allowed_ips=own)
