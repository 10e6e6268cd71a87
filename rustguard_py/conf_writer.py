"""Writes configuration files of wg(8) and wg-quick(8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from rustguard_py.conf import AUTO, Config, PeerSection, short
from rustguard_py.conf_reader import parse
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, encode_key


def write(config: Config) -> str:
    """Return the file, private key included, for `conf_reader`, wg-quick and the WireGuard apps.

    Bytes of a hook that aren't UTF-8 are lone surrogates in it: encode it with `surrogateescape`.

    Raises:
        UsageError: A value would be read back as another one, or as other lines. The error names it.
    """
    lines = [*_interface_lines(config), *(line for peer in config.peers for line in _peer_lines(peer)), ""]
    text = "\n".join(lines)
    try:
        text.encode("utf-8", "surrogateescape")
        changed = _first_change(config, parse(text))
    except UnicodeEncodeError:
        raise _unwritable("it") from None
    except UsageError as error:
        # Its message may repeat a value; its line says enough.
        raise _unwritable(error.message.partition(":")[0]) from None
    if changed is not None:
        raise _unwritable(changed)
    return text


def _first_change(config: Config, read: Config) -> str | None:
    """Return the name of the first value that was read back as another one, or None."""
    for field in fields(Config):
        if field.name != "peers" and getattr(config, field.name) != getattr(read, field.name):
            return field.name
    if len(config.peers) != len(read.peers):
        return "peers"
    for given, found in zip(config.peers, read.peers, strict=True):
        for field in fields(PeerSection):
            if field.name != "line" and getattr(given, field.name) != getattr(found, field.name):
                return f"{field.name} of the peer {short(given.public_key)}"
    return None


def _unwritable(what: str) -> UsageError:
    return UsageError(
        f"This tunnel can't be written as a wg-quick file: {what} has a value that would be read as something else.",
        "Look for line ends, comment signs and invalid values in it.",
    )


def _interface_lines(config: Config) -> Iterator[str]:
    yield "[Interface]"
    if config.private_key is not None:
        yield f"PrivateKey = {encode_key(config.private_key)}"
    yield from (f"Address = {address}" for address in config.addresses)
    if config.dns or config.search:
        yield f"DNS = {', '.join(map(str, (*config.dns, *config.search)))}"
    for key, value in (("ListenPort", config.listen_port), ("MTU", config.mtu)):
        if value is not None:
            yield f"{key} = {value}"
    if config.fwmark is not None:
        yield f"FwMark = {config.fwmark:#x}" if config.fwmark else "FwMark = off"
    if config.table != AUTO:
        yield f"Table = {config.table}"
    hooks = config.hooks
    named = (
        ("PreUp", hooks.pre_up),
        ("PostUp", hooks.post_up),
        ("PreDown", hooks.pre_down),
        ("PostDown", hooks.post_down),
    )
    yield from (f"{key} = {line}" for key, lines in named for line in lines)
    if config.save:
        yield "SaveConfig = true"


def _peer_lines(peer: PeerSection) -> Iterator[str]:
    yield ""
    if peer.name:
        yield f"# {peer.name}"
    yield "[Peer]"
    yield f"PublicKey = {encode_key(peer.public_key)}"
    if peer.preshared_key != NO_PRESHARED_KEY:
        yield f"PresharedKey = {encode_key(peer.preshared_key)}"
    if peer.allowed_ips:
        yield f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}"
    if peer.endpoint is not None:
        yield f"Endpoint = {peer.endpoint}"
    if peer.keepalive:
        yield f"PersistentKeepalive = {peer.keepalive}"
