"""The lines that `serve` prints once it runs, with the command to type on a machine that is to join."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from rustguard_py.daemon.program import Program
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.enroll.tunnels import derive
from rustguard_py.model.address import pairing_port
from rustguard_py.model.clock import now
from rustguard_py.model.keys import fingerprint
from rustguard_py.state.paths import option_for
from rustguard_py.system.networks import taken_networks


def introduce(server: RunningServer, program: Program, directory: Path, say: Callable[[str], None]) -> None:
    """Print what runs, and how to join.

    Args:
        server: What runs.
        program: The same, as a program.
        directory: Its state directory.
        say: Prints a line.
    """
    state, interface, engine = server.state, program.interface, program.engine
    pools = f"{state.pool4}" + (f" and {server.pool6}" if server.pool6 else "")
    say(f"Serving {pools} on {interface},")
    say(f"UDP port {state.port}, engine {engine.name} ({engine.reason}).")
    if engine.in_kernel:
        say(f"Pairing is answered on UDP port {pairing_port(state.port)}: forward both.")
    own = [interface]
    if server.bundle is not None:
        own = [member.interface for member in server.bundle.members]
        second, last = (derive.port(state.port, number) for number in (1, len(own) - 1))
        others = f"{second}" if second == last else f"{second} to {last}"
        say(f"{len(own)} tunnels, UDP ports {state.port} and {others}: forward all.")
    say(f"Peers known: {len(state.peers)}.")
    to_open = f"rustguard open 60{option_for('server', directory)}"
    if not server.has_token:
        say("There is no token, so nobody new can join. To admit new machines, start again with: --token -")
        say(f"A service takes --token-file FILE. Then open the pairing window when it is needed: {to_open}")
        return
    say("On each machine that is to join:")
    mark = fingerprint(server.public_key)
    say(f"  sudo rustguard join {likely_address(own)}:{state.port} --server {mark} --token -")
    if not server.window.is_open(now()):
        say(f"The pairing window is closed. Open it here for a minute: {to_open}")


def likely_address(own: Collection[str] = ()) -> str:
    """Return an address where other machines may reach this one, or HOST if there is none.

    Args:
        own: Interfaces whose addresses don't count.
    """
    taken = [what for _, what in taken_networks(exclude=own) if what.startswith("address ")]
    addresses = [what.split()[1].partition("/")[0] for what in taken if not what.endswith(" on lo")]
    usable = [each for each in addresses if "." in each]
    return usable[0] if usable else "HOST"
