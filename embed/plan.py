"""What a tunnel is made of: from a wg-quick configuration here, from a join in `pairing`."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rustguard_py import conf, conf_reader
from rustguard_py.embed.arguments import path_of
from rustguard_py.embed.memory import MemoryTimestamps
from rustguard_py.model.defaults import DEFAULT_MTU
from rustguard_py.model.endpoint import Endpoint, InterfaceAddress, IpAddress
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.keys import public_key
from rustguard_py.node import Timestamps
from rustguard_py.planes.contract import PacketChannel
from rustguard_py.system.sockets import bind
from rustguard_py.tunnel import Tunnel

# Characters of a source that a message quotes, at most.
_SHOWN = 60

Found = Mapping[conf.HostPort, list[Endpoint]]


class SyncedTimestamps(Timestamps, Protocol):
    """Timestamps that may have to be brought to the disk."""

    async def keep_synced(self) -> None:
        """Bring them there again and again, until cancelled."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a tunnel is made of.

    Attributes:
        private_key: Ours, 32 bytes.
        sockets: Bound UDP sockets, one per family.
        peers: As a wg-quick file has them.
        addresses: Our addresses in the tunnel.
        dns: Name servers that the configuration names.
        search: Search domains that it names.
        mtu: The size of the largest packet, bytes.
        fwmark: The mark of datagrams to peers, 0 for none.
        name: Our name at the server that we joined; empty for a configuration.
        timestamps: Those of handshakes.
        found: Addresses of endpoints that are known already.
        give_up: Called if the tunnel can't be made: takes back what was done for it.
        say_goodbye: Called before the tunnel is closed.
    """

    private_key: bytes = field(repr=False)
    sockets: tuple[socket.socket, ...]
    peers: tuple[conf.PeerSection, ...]
    addresses: tuple[InterfaceAddress, ...] = ()
    dns: tuple[IpAddress, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = DEFAULT_MTU
    fwmark: int = 0
    name: str = ""
    timestamps: SyncedTimestamps = field(default_factory=MemoryTimestamps)
    found: Found = field(default_factory=dict)
    give_up: Callable[[], None] | None = None
    say_goodbye: Callable[[Tunnel, PacketChannel], Awaitable[None]] | None = None


class Plan(Protocol):
    """How the parts of a tunnel are got."""

    async def gather(self, stack: AsyncExitStack) -> Parts:
        """Return the parts.

        Args:
            stack: Undoes what was opened.

        Raises:
            RustGuardError: They can't be had.
        """


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    """A tunnel as a wg-quick configuration describes it."""

    config: conf.Config

    async def gather(self, stack: AsyncExitStack) -> Parts:
        """See `Plan.gather`."""
        config = self.config
        assert config.private_key is not None  # noqa: S101 - `read` refuses others
        try:
            sockets = bind(config.listen_port or 0)
        except RefusedError as error:
            fix = "See which program has it with `ss -ulnp`, or change ListenPort; without it, any free port is used."
            raise RefusedError(error.message, fix) from error
        for each in sockets:
            stack.callback(each.close)
        if config.fwmark:
            _check_mark(sockets[0], config.fwmark)
        return Parts(
            config.private_key,
            tuple(sockets),
            config.peers,
            config.addresses,
            config.dns,
            config.search,
            config.mtu or DEFAULT_MTU,
            config.fwmark or 0,
            timestamps=MemoryTimestamps(public_key(config.private_key)),
        )


def read(source: str | os.PathLike[str], *, ignore_hooks: bool) -> ConfigPlan:
    """Return the plan of a wg-quick configuration.

    Args:
        source: The text of a configuration, or the path of a file.
        ignore_hooks: Whether PreUp, PostUp, PreDown and PostDown are skipped. Otherwise they are refused.

    Raises:
        UsageError: It isn't one, or it needs an interface.
        RefusedError: We have no permission to read the file.
    """
    if isinstance(source, str):
        if "[" not in source and "\n" not in source:
            if may_be_a_configuration(source):
                raise UsageError(
                    "This is not the text of a wg-quick configuration: it has no [Interface].",
                    "Pass the whole text. For a file: connect(Path(…)).",
                )
            shown = repr(source if len(source) <= _SHOWN else f"{source[:_SHOWN]}…")
            raise UsageError(
                f"{shown} is not the text of a wg-quick configuration.",
                f"For a file: connect(Path({shown})). For a server: connect({shown}, token=…), or with the "
                "state=… of an earlier join.",
            )
        text, where = source, "the configuration"
    else:
        path = path_of("The path", source)
        text, where = _read_file(path), str(path)
    config = conf_reader.parse(text, where)
    if config.hooks != conf.Hooks() and not ignore_hooks:
        raise UsageError(
            f"{where} has commands to run (PreUp, PostUp, PreDown, PostDown), but there is no interface for them.",
            "Take them out, or pass ignore_hooks=True to skip them.",
        )
    if config.private_key is None:
        raise UsageError(
            f"{where} has no PrivateKey: a PostUp sets it, which isn't run here.", "Write it below [Interface]."
        )
    return ConfigPlan(config)


def may_be_a_configuration(source: str) -> bool:
    """Return whether a text may have keys of a configuration, so that no message may quote it."""
    return "\n" in source or "=" in source or source.lstrip().lower().startswith(("[interface", "[peer"))


def _read_file(path: Path) -> str:
    try:
        # Comments may be in any encoding.
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"There is no file {path}.", "Give the path of a wg-quick file.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder.", "Give the path of a wg-quick file in it.") from error
    except PermissionError as error:
        raise RefusedError(
            f"There is no permission to read {path}.", "Give this user a copy (mode 600), or pass its text."
        ) from error
    except OSError as error:
        shown = str(path) if len(str(path)) <= _SHOWN else f"{str(path)[:_SHOWN]}…"
        raise UsageError(f"{shown} can't be read: {error.strerror}.", "Give the path of a wg-quick file.") from error


def _check_mark(sample: socket.socket, mark: int) -> None:
    try:
        sample.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except PermissionError as error:
        raise RefusedError(
            "The configuration has an FwMark, which needs CAP_NET_ADMIN.", "Take it out, or run with that capability."
        ) from error
