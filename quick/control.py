"""Answers of the control socket of a tunnel that `rustguard up` brought up."""

from __future__ import annotations

from shlex import quote
from typing import Any

from rustguard_py.daemon import status
from rustguard_py.daemon.control.server import Handler
from rustguard_py.daemon.vouched import lines_of, vouch
from rustguard_py.model.clock import now
from rustguard_py.model.errors import RefusedError
from rustguard_py.model.sudo import as_root
from rustguard_py.quick import conf_files
from rustguard_py.quick.peers import peer_line
from rustguard_py.quick.reload import reload
from rustguard_py.quick.running import Life

_OF_A_SERVER = ("open", "close", "revoke", "restore", "rename", "reset", "admit")
KEYLESS = "There is no private key yet, and the one shown is a placeholder that no peer knows. Set one: {}"


class QuickControl:
    """Answers requests about a tunnel, from before its start until after its end.

    Args:
        life: The tunnel's.
    """

    def __init__(self, life: Life) -> None:
        self._life = life

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by method."""
        own: dict[str, Handler] = {
            "status": self._status,
            "peers": self._peers,
            "reload": self._reload,
            "down": self._down,
        }
        return {**own, **dict.fromkeys(_OF_A_SERVER, self._not_here)}

    def _not_here(self, _params: dict[str, Any]) -> dict[str, Any]:
        raise RefusedError(
            f"{self._life.interface} was brought up from a wg-quick file; only `rustguard serve` has a window and "
            "peers to admit.",
            f"Change {self._life.file}, then: {as_root(f'rustguard up {quote(str(self._life.file))}')}",
        )

    async def _down(self, _params: dict[str, Any]) -> dict[str, Any]:
        """End the tunnel, and answer when it has ended."""
        life = self._life
        life.ending = life.ending if life.ending is not None else []
        life.stop()
        await life.ended.wait()
        return {"changes": life.ending, "failed": life.failed}

    async def _reload(self, params: dict[str, Any]) -> dict[str, Any]:
        """Apply the changed file. What hasn't changed stays, sessions too."""
        life = self._life
        # No other file is accepted: hooks run as root, and the control socket may be open to a group.
        if params.get("file") != str(life.file):
            raise RefusedError(
                f"{life.interface} was brought up with {life.file}.",
                f"Change that file, or end it first: {life.down}",
            )
        # Trust is the command's that began the tunnel: it ran as root, and a request may come from the group.
        config = conf_files.load_to_run(life.file, trust=life.trust, runs=True)
        running = await life.get_started()
        async with life.changing:
            life.voice.manager.reloading()
            try:
                if life.helper is not None:
                    await life.helper.read_again()
                else:
                    vouch(running.program.directory, life.interface, lines_of(config.hooks))
                return {"changes": await reload(running, config, life.voice)}
            finally:
                life.voice.manager.reloaded()

    def _peers(self, _params: dict[str, Any]) -> dict[str, Any]:
        running = self._life.get_running()
        return status.peers([running.plain.tunnel], map(peer_line, running.peers()), now())

    def _helpless(self) -> list[str]:
        """Return a warning if the helper has ended, which runs the hooks."""
        helper, interface = self._life.helper, self._life.interface
        if helper is None or helper.is_there():
            return []
        again = as_root(self._life.down)
        return [
            f"The process that runs the hooks of {interface} is gone. End the tunnel, and start it again: {again}"
        ]

    def _status(self, _params: dict[str, Any]) -> dict[str, Any]:
        running = self._life.get_running()
        common = status.common(running.program, [running.plain.tunnel], now())
        helpless = self._helpless()
        warnings = [*helpless]
        if running.plain.private_key is None:
            warnings.append(KEYLESS.format(as_root(f"wg set {running.interface} private-key FILE")))
        return {
            **common,
            **self._peers({}),
            # Without it no hook runs, and neither rules nor name servers are put back.
            "healthy": common["healthy"] and not helpless,
            "name": None,
            "port": running.port,
            "addresses": [str(each) for each in running.config.addresses],
            "mtu": running.mtu,
            "pool": None,
            "window": None,
            "warnings": warnings + status.broken([running.plain.tunnel]) + running.keeper.warnings(),
            "file": str(self._life.file),
        }
