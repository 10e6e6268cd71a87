"""The socket at which a daemon's memif listens. A helper makes it where Landlock keeps the daemon from that."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.control import listening
from rustguard_py.daemon.control.listening import Bound
from rustguard_py.model.endpoint import InterfaceAddress
from rustguard_py.model.ethernet import EthernetOptions
from rustguard_py.model.memif import MemifOptions
from rustguard_py.system import memif_socket

# Answered ranges that a sentence lists.
_SHOWN = 8


def bind(path: Path) -> Bound:
    """Return a socket that listens at a path. `memif_socket.bind` documents the errors."""
    return Bound(*memif_socket.bind(path))


def listen(stack: AsyncExitStack, memif: MemifOptions | None) -> socket.socket | None:
    """Return the listening socket of a memif that is a server, else None.

    Args:
        stack: Closes and removes it.
        memif: The memif, or None if there is none.

    Raises:
        RefusedError: It can't be made.
    """
    if memif is None or not memif.server:
        return None
    if listening.has_maker():
        bound = listening.make(memif.socket, bind)
        stack.callback(listening.remove, memif.socket)
    else:
        bound = bind(memif.socket)
        stack.callback(partial(memif_socket.remove, memif.socket, bound.file))
    stack.callback(bound.socket.close)
    return bound.socket


def introduce(voice: Voice, memif: MemifOptions, addresses: Iterable[InterfaceAddress], mtu: int) -> None:
    """Print which memif stands for the interface, and what the other program has to set.

    Args:
        voice: Prints it.
        memif: The memif.
        addresses: Our inner addresses.
        mtu: Of the tunnel, bytes.
    """
    given = ", ".join(map(str, addresses))
    voice.say(f"In place of an interface: {memif}.")
    voice.say(f"The other program has the addresses ({given or 'none'}), the routes and an MTU of {mtu}.")
    if memif.ethernet is not None:
        voice.say(what_is_answered(memif.ethernet))


def what_is_answered(ethernet: EthernetOptions) -> str:
    """Return a sentence about the addresses that are answered for."""
    if not ethernet.answered:
        hint = "" if ethernet.fixed else " To answer for a range, add to --memif: answer=RANGE"
        return f"ARP and neighbour solicitations aren't answered.{hint}"
    others = f", but not for {', '.join(map(str, ethernet.excepted))}" if ethernet.excepted else ""
    first, more = ", ".join(map(str, ethernet.answered[:_SHOWN])), len(ethernet.answered) - _SHOWN
    return f"ARP and neighbour solicitations are answered for {first}{f' and {more} more' * (more > 0)}{others}."
