"""What `serve` says once it runs: above all the line to type on a machine that shall join."""

from __future__ import annotations

from collections.abc import Callable

from rustguard_py import netif
from rustguard_py.clock import now
from rustguard_py.enroll.report import Program
from rustguard_py.enroll.server import Server
from rustguard_py.state.identity import fingerprint


def introduce(server: Server, program: Program, say: Callable[[str], None]) -> None:
    """Say what runs, and how to join."""
    state, interface, engine = server.state, program.interface, program.engine
    pools = f"{state.pool4}" + (f" and {server.pool6}" if server.pool6 else "")
    say(f"Serving {pools} on {interface},")
    say(f"UDP port {state.port}, engine {engine.name} ({engine.reason}).")
    say(f"Peers known: {len(state.peers)}.")
    if not server.has_token:
        say("No token was given: nobody new can join until a start with one.")
        return
    say("On each machine that shall join:")
    mark = fingerprint(server.public_key)
    say(f"  rustguard join {likely_address(interface)}:{state.port} --server {mark} --token …")
    if not server.window.is_open(now()):
        say("The pairing window is closed. Open it here for a minute: rustguard open 60")


def likely_address(own: str | None) -> str:
    """Give an address that others may reach this machine at, not of the interface `own`; HOST where there is none."""
    taken = [what for _, what in netif.taken_networks(exclude=own) if what.startswith("address ")]
    addresses = [what.split()[1].partition("/")[0] for what in taken if not what.endswith(" on lo")]
    usable = [each for each in addresses if "." in each]
    return usable[0] if usable else "HOST"
