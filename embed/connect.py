"""`rustguard_py.connect`: a tunnel inside a program, without an interface and without privileges."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, TypeAlias, overload

from rustguard_py import engine as engines
from rustguard_py.data_path import DataPath
from rustguard_py.embed import pairing, plan
from rustguard_py.embed.arguments import check_text, check_timeout, path_of
from rustguard_py.embed.control import Control, described
from rustguard_py.embed.fixes import with_its_fix
from rustguard_py.embed.tunnels import AsyncTunnel, SyncTunnel, end
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RustGuardError, UsageError

EngineName: TypeAlias = Literal["auto", "native", "portable"]
StrPath: TypeAlias = str | os.PathLike[str]

# Packets that wait in each direction, at most.
CAPACITY = 1024
_MOST_CAPACITY = 1 << 20
# Seconds in which a peer must answer.
TIMEOUT = 10.0


@overload
def connect(
    config: StrPath,
    /,
    *,
    ignore_hooks: bool = False,
    timeout: float | None = TIMEOUT,
    engine: EngineName = "auto",
    capacity: int = CAPACITY,
    offloads: str | None = None,
) -> Connecting: ...


@overload
def connect(
    server: str,
    /,
    *,
    token: str,
    state: StrPath | None = None,
    name: str | None = None,
    fingerprint: str | None = None,
    routes: Literal["all", "none"] | Sequence[str | Network] | None = None,
    timeout: float | None = TIMEOUT,
    engine: EngineName = "auto",
    capacity: int = CAPACITY,
    offloads: str | None = None,
) -> Connecting: ...


@overload
def connect(
    server: str,
    /,
    *,
    state: StrPath,
    fingerprint: str | None = None,
    routes: Literal["all", "none"] | Sequence[str | Network] | None = None,
    timeout: float | None = TIMEOUT,
    engine: EngineName = "auto",
    capacity: int = CAPACITY,
    offloads: str | None = None,
) -> Connecting: ...


def connect(
    source: StrPath,
    /,
    *,
    token: str | None = None,
    state: StrPath | None = None,
    name: str | None = None,
    fingerprint: str | None = None,
    routes: str | Sequence[str | Network] | None = None,
    ignore_hooks: bool = False,
    timeout: float | None = TIMEOUT,
    engine: EngineName = "auto",
    capacity: int = CAPACITY,
    offloads: str | None = None,
) -> Connecting:
    """Return a tunnel to be opened by `async with` (an `AsyncTunnel`) or `with` (a `SyncTunnel`).

    It needs no root, makes no interface, and changes nothing on the system.

    Args:
        source: One of three. A `Path` is a wg-quick file. A `str` without `token` and `state` is the text of one. A
            `str` with `token` or `state` is a server of ours, `HOST[:PORT]`.
        token: To pair with the server, while its window is open.
        state: The folder in which key, address and timestamps are kept, as `rustguard join --state` keeps them. With
            it, later calls need no token. Without it everything is in memory, and closing the tunnel leaves the
            network.
        name: Name of this peer at the server; this machine's name by default.
        fingerprint: Refuse a server with another fingerprint.
        routes: Networks behind the server to exchange packets with, of those that it offers: `all`, `none`, or a
            list. With `state` they are kept. By default those that were accepted before, and at first none.
        ignore_hooks: Skip PreUp, PostUp, PreDown and PostDown. Otherwise a configuration with them is refused.
        timeout: Seconds in which a peer with an Endpoint must answer the first handshake. None not to wait for one:
            packets then wait for it, up to 128 for each peer.
        engine: `native`, `portable`, or `auto` for the faster one that is installed.
        capacity: Number of packets that may wait in each direction.
        offloads: Offloads of the kernel to use or to leave off, as `--offloads` takes them: `no-udp-segmentation`. By
            default all but those that this kernel is known to get wrong.

    Raises:
        UsageError: An argument or the configuration is invalid.
        RefusedError: There is no permission to read the file, or the engine isn't there.

    Opening it raises:
        UnansweredError: The server or all peers stayed silent, or their names can't be resolved.
        RefusedError: The server refused us (wrong token, another key, no address left), or the port is taken.
        StateError: The state can't be read or written, or (`InUseError`) another process uses it.
    """
    try:
        if isinstance(source, str) and (token is not None or state is not None):
            if ignore_hooks:
                raise UsageError("ignore_hooks is for a configuration, and this is a server.", "Leave it out.")
            if plan.may_be_a_configuration(source):
                raise UsageError(
                    "token= and state= are for a server of ours, and this is the text of a configuration.",
                    "Leave them out, or pass the server's name.",
                )
            check_text("fingerprint", fingerprint)
            directory = None if state is None else path_of("state=", state)
            made: plan.Plan = pairing.make_plan(
                source, token, directory, name=name, fingerprint=fingerprint, routes=routes
            )
        else:
            _refuse_arguments_of_a_server(token=token, state=state, name=name, fingerprint=fingerprint, routes=routes)
            made = plan.read(source, ignore_hooks=ignore_hooks)
        if not isinstance(capacity, int) or not 1 <= capacity <= _MOST_CAPACITY:
            raise UsageError(
                f"capacity={capacity} is no number of packets from 1 to {_MOST_CAPACITY}.",
                "Leave it out, or change it.",
            )
        check_timeout(timeout)
        check_text("engine", engine)
        return Connecting(made, _choose(engine, offloads), capacity, timeout)
    except RustGuardError as error:
        with_its_fix(error)
        raise


class Connecting:
    """A tunnel that `async with` or `with` opens. It may be opened again once it is closed."""

    def __init__(self, made: plan.Plan, engine: engines.Engine, capacity: int, timeout: float | None) -> None:
        self._plan = made
        self._engine = engine
        self._capacity = capacity
        self._timeout = timeout
        self._tunnel: AsyncTunnel | SyncTunnel | None = None

    async def __aenter__(self) -> AsyncTunnel:
        """Open the tunnel; see `connect`."""
        control = self._begin()
        opening = asyncio.wrap_future(control.opened)
        # After a cancelled opening nobody wants to know how it ended.
        opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            opened = await asyncio.shield(opening)
            self._tunnel = tunnel = AsyncTunnel(control, opened, self._engine.name)
        except BaseException:
            await end(control)
            raise
        return tunnel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the tunnel."""
        tunnel, self._tunnel = self._tunnel, None
        if isinstance(tunnel, AsyncTunnel):
            await tunnel.close()

    def __enter__(self) -> SyncTunnel:
        """Open the tunnel; see `connect`."""
        control = self._begin()
        try:
            self._tunnel = tunnel = SyncTunnel(control, control.opened.result(), self._engine.name)
        except BaseException as error:
            control.end()
            if isinstance(error, OSError):
                raise described(error) from error
            raise
        return tunnel

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the tunnel."""
        tunnel, self._tunnel = self._tunnel, None
        if isinstance(tunnel, SyncTunnel):
            tunnel.close()

    def _begin(self) -> Control:
        if self._tunnel is not None:
            raise with_its_fix(UsageError("This tunnel is open already.", "Call connect() again for a second one."))
        control = Control(self._plan, self._engine, self._capacity, self._timeout)
        control.start()
        return control


def _refuse_arguments_of_a_server(**given: object) -> None:
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise UsageError(
            f"{names[0]}= is for a server of ours, and this is a wg-quick configuration.",
            "Leave it out, or pass the server's name with token= or state=.",
        )


def _choose(engine: str, offloads: str | None) -> engines.Engine:
    if offloads is not None and not isinstance(offloads, str):
        raise UsageError(
            f"offloads={offloads!r} is no list of names.", "Pass a text: 'no-udp-segmentation,no-udp-gro'."
        )
    if engine == "kernel":
        raise UsageError(
            "The kernel's engine needs an interface, which an embedded tunnel doesn't have.",
            "Pass engine='auto', 'native' or 'portable'.",
        )
    if engine == "auto":
        engine = "native" if engines.has_native() else "portable"
    return engines.choose(DataPath(engine, queues="1", offloads=offloads))
