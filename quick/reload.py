"""Applying a changed file to a tunnel that is up: only the differences, so that sessions stay."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from rustguard_py import conf
from rustguard_py.daemon import dns
from rustguard_py.daemon.console import Voice
from rustguard_py.model.errors import RustGuardError
from rustguard_py.quick import peers, routing
from rustguard_py.quick.running import Running, check_memif, choose_scheme, wanted_steps
from rustguard_py.quick.tunnel import PlainTunnel
from rustguard_py.system.interface import Echo


async def reload(running: Running, config: conf.Config, voice: Voice) -> list[str]:
    """Apply a changed file.

    Returns:
        The changes, a line each.

    Raises:
        RustGuardError: A change was refused; the system is then as the file before had it.
    """
    check_memif(config, running.program.engine)
    lines: list[str] = []

    def echo(line: str) -> None:
        lines.append(line)
        voice.change(line)

    with suppress(RustGuardError):
        running.adopt()  # without an interface there is nothing to take over, and the keeper makes it again
    changes = conf.compare(running.config, config)
    if config.dns or config.search:
        dns.manager()
    moved = [peer for peer in changes.peers if peer.public_key in changes.moved]
    found = await peers.look_up(moved, must=False, say=voice.say)
    scheme = await _change_system(running, config, echo)
    _change_interface(running, config, voice, echo)
    for key in changes.removed:
        running.plain.remove_peer(key)
    for peer in changes.peers:
        before = next((each for each in running.config.peers if each.public_key == peer.public_key), None)
        _change_peer(running.plain, peer, before, found, moved=peer.public_key in changes.moved)
    lines += [f"[#] peer {conf.short(key)} removed" for key in changes.removed]
    lines += [f"[#] peer {conf.short(peer.public_key)} set" for peer in changes.peers]
    running.config = config
    running.scheme = scheme
    if answered := running.answer_on_link():
        echo(answered)
    running.ledger.left = replace(running.ledger.left, hooks=config.hooks, mark=scheme.mark)
    running.ledger.save()
    if running.program.engine.memif is None:
        lines += [f"[#] put back: {each}" for each in await running.keeper.repair()]
    return lines


async def _change_system(running: Running, config: conf.Config, echo: Echo) -> routing.Scheme:
    """Change addresses, DNS, routes, rules and port, all of them or none; return the new scheme."""
    plane, ledger = running.plain.tunnel.plane, running.ledger
    scheme = await asyncio.to_thread(choose_scheme, config, running.program.engine, running.scheme)
    if not scheme.priorities and not running.scheme.priorities and config.fwmark == running.config.fwmark:
        scheme = running.scheme  # a hook may have set the mark
    plane.set_fwmark(scheme.mark)
    try:
        await asyncio.to_thread(ledger.become, wanted_steps(running.program, config, scheme), echo)
        # Without a port in the file any port will do, so the tunnel keeps the one it has.
        port = config.listen_port if config.listen_port != running.config.listen_port else None
        if port is not None and port != running.port:
            running.port = running.plain.set_port(port)
            echo(f"[#] wg set {running.interface} listen-port {running.port}")
    except RustGuardError:
        before = wanted_steps(running.program, running.config, running.scheme)
        await asyncio.to_thread(ledger.become, before, echo)
        plane.set_fwmark(running.scheme.mark)
        raise
    return scheme


def _change_interface(running: Running, config: conf.Config, voice: Voice, echo: Echo) -> None:
    before = running.config
    mtu = config.mtu or (running.mtu if before.mtu is None else running.first_mtu)
    if mtu != running.mtu:
        running.set_mtu(mtu, voice.change)
        if running.program.engine.memif is None:
            echo(f"[#] ip link set mtu {mtu} dev {running.interface}")
    if config.private_key is not None and config.private_key != before.private_key:
        running.plain.set_private_key(config.private_key)
        echo(f"[#] wg set {running.interface} private-key (hidden)")


def _change_peer(
    plain: PlainTunnel, peer: conf.PeerSection, before: conf.PeerSection | None, found: peers.Found, *, moved: bool
) -> None:
    config = peers.peer_config(peer, found)
    known = plain.tunnel.node.get(peer.public_key)
    if before is not None and known is not None:
        # What differs from the file before is the file's; the rest may have been set with wg(8).
        if peer.preshared_key == before.preshared_key:
            config = replace(config, preshared_key=known.config.preshared_key)
        if peer.keepalive == before.keepalive:
            config = replace(config, persistent_keepalive=known.config.persistent_keepalive)
        if peer.allowed_ips == before.allowed_ips:
            config = replace(config, allowed_ips=known.config.allowed_ips)
    plain.set_peer(config if moved else replace(config, endpoint=None), *peers.name_and_addresses(peer, found))
