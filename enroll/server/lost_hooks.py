"""What a server loses with the hooks of its wg-quick file, and the lines that bring it back.

`serve` runs no hooks. A server's hooks mostly translate addresses and open the firewall for its peers, without which
phones reach the server and nothing else. So `import` names what is lost, with commands that are ready to be typed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from rustguard_py import conf
from rustguard_py.system.interface import free_interface_name, interface_names
from rustguard_py.system.networks import outward_interface

FORWARD4, FORWARD6 = "sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv6.conf.all.forwarding=1"

_TRANSLATES = re.compile(r"\b(masquerade|snat|add-masquerade)\b", re.IGNORECASE)
_LEADS_IN = re.compile(r"\b(dnat|redirect|prerouting)\b", re.IGNORECASE)
_FORWARDS = re.compile(r"\bforward(ing)?\b|\bufw\s+route\b|\bip_forward\b|\brouted\b", re.IGNORECASE)
_OPENS = re.compile(r"\binput\b|\bufw\s+allow\b|--add-port|--add-service", re.IGNORECASE)
_IS_SYSCTL = re.compile(r"\bip_forward\b|\bforwarding\b")
_IPV6 = re.compile(r"\bip6tables\b|\bip6\b|\bnft\b.*\binet\b")
# The interface that packets leave by: of iptables, nft and ufw.
_LEAVES_BY = re.compile(r"""((?:^|\s)-o\s+|\boif(?:name)?\s+(?:!=\s*)?"?|\bout\s+on\s+)([A-Za-z0-9_.@+-]+)""")
_QUOTED_OR_CUT = re.compile(r"""'[^']*'|"[^"]*"|\\.|(;|&&)""")
# A line with any of these is a program of its own, and isn't cut.
_COMPOUND = re.compile(r"(?<![<>&])&(?!&)|\|\||(?<!\|)\|(?!\|)|\b(?:if|for|while|case|until)\b|[{}]|\$\(|`|<<|\\$")


@dataclass(frozen=True, slots=True)
class Machine:
    """What is looked up of this machine.

    Attributes:
        interfaces: The names of its interfaces.
        outward: The interface of its default route, or None.
    """

    interfaces: Collection[str] = ()
    outward: str | None = None

    @classmethod
    def look(cls) -> Machine:
        """Return what this machine has."""
        return cls(interface_names(), outward_interface())


@dataclass(frozen=True, slots=True)
class Lost:
    """What is lost.

    Attributes:
        interface: The name that the server's interface will have.
        effects: A sentence for each thing that no longer works.
        commands: What to run as root to have it again, in order.
        replaced: The interface that the hooks name and this machine doesn't have, or None.
    """

    interface: str
    effects: tuple[str, ...]
    commands: tuple[str, ...]
    replaced: str | None = None


def lost(hooks: conf.Hooks, interface: str | None, port: int, machine: Machine) -> Lost | None:
    """Return what a server loses without these hooks, or None if nothing.

    Args:
        hooks: Of its file.
        interface: The name that its interface keeps, or None for the first free one.
        port: Its UDP port.
        machine: The machine that it will run on.
    """
    interface = interface or free_interface_name()
    lines = _with_interface((*hooks.pre_up, *hooks.post_up), interface)
    commands = list(dict.fromkeys(command for line in lines for command in _commands(line)))
    if not commands:
        return None
    forwards = [each for each in commands if _TRANSLATES.search(each) or _FORWARDS.search(each)]
    switches = [FORWARD4] if forwards else []
    if switches and any(map(_IPV6.search, commands)):
        switches.append(FORWARD6)
    replaced = next(filter(None, (_missing(command, interface, machine) for command in commands)), None)
    own = [_on(command, replaced, machine) for command in commands if not _IS_SYSCTL.search(command)]
    return Lost(interface, tuple(_effects(commands, port)), (*switches, *own), replaced)


def _with_interface(lines: Collection[str], interface: str) -> list[str]:
    """Return hooks with the interface's name in place of `%i`, and of the name that the tunnel had elsewhere.

    wg-easy writes `wg0` into its hooks, whatever the file is called later.
    """
    named = any("%i" in line or re.search(rf"\b{re.escape(interface)}\b", line) for line in lines)
    pattern = "%i" if named else r"\bwg\d+\b"
    return [re.sub(pattern, lambda _: interface, line) for line in lines]


def _effects(commands: Collection[str], port: int) -> Iterator[str]:
    if any(map(_TRANSLATES.search, commands)):
        yield (
            "Peers that send everything through this server, as phones do, no longer reach the internet, nor the "
            "networks behind this machine: nothing translates their addresses (masquerade)."
        )
    if any(map(_FORWARDS.search, commands)):
        yield "A firewall that forwards nothing by itself, as with Docker or ufw, drops what peers send further."
    if any(map(_LEADS_IN.search, commands)):
        yield "Ports of this machine no longer lead to peers."
    if any(map(_OPENS.search, commands)):
        yield f"A firewall that lets nothing in by itself drops what peers send here (UDP port {port})."
    known = (_TRANSLATES, _FORWARDS, _LEADS_IN, _OPENS)
    if any(not any(each.search(command) for each in known) for command in commands):
        yield "Whatever else the lines below do isn't done."


def _commands(line: str) -> Iterator[str]:
    """Yield the commands of a hook that do anything."""
    parts = [line] if _COMPOUND.search(_without_quoted(line)) else _cut(line)
    for part in parts:
        bare = part.strip()
        if bare and (bare.split()[0] not in ("true", ":", "echo", "logger") or _IS_SYSCTL.search(bare)):
            yield bare


def _without_quoted(line: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", line)


def _cut(line: str) -> Iterator[str]:
    """Yield the parts of a line between each `;` and `&&` that isn't quoted."""
    start = 0
    for match in _QUOTED_OR_CUT.finditer(line):
        if match[1]:
            yield line[start : match.start()]
            start = match.end()
    yield line[start:]


def _missing(command: str, interface: str, machine: Machine) -> str | None:
    """Return the interface that packets leave by, if this machine has none of that name."""
    for _, name in _LEAVES_BY.findall(command):
        there = any(each.startswith(name[:-1]) if name.endswith("+") else each == name for each in machine.interfaces)
        if not there and name != interface and machine.outward is not None:
            return str(name)
    return None


def _on(command: str, replaced: str | None, machine: Machine) -> str:
    """Return a command with the interface of this machine in place of the one that it doesn't have."""
    if replaced is None or machine.outward is None:
        return command
    outward = machine.outward
    return _LEAVES_BY.sub(lambda match: match[1] + (outward if match[2] == replaced else match[2]), command)
