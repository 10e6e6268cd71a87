"""The answers of a server's control socket: window, peers, status and warnings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rustguard_py.daemon.clocks import clock_ahead
from rustguard_py.daemon.control.server import Handler
from rustguard_py.daemon.keeper import Keeper
from rustguard_py.daemon.program import Program
from rustguard_py.daemon.status import PeerLine, broken, common, peers
from rustguard_py.enroll import export
from rustguard_py.enroll.pairing.window import NEW_PEERS, TURN_SECONDS, Closed, Limits, WindowState
from rustguard_py.enroll.server import clocks
from rustguard_py.enroll.server.server import RunningServer
from rustguard_py.model import ip
from rustguard_py.model.clock import now
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import UsageError
from rustguard_py.model.keys import NO_PRESHARED_KEY, decode_key
from rustguard_py.state.records import PeerRecord

# Each SHARE_C of a stranger is compared with all of them.
MOST_NETWORKS = 64
# More than any pool has in use today.
MOST_NEW_PEERS = 1_000_000
_OTHER_VERSION = "A machine asked with another version of RustGuard: install the same version there."
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


_CLOSED = {
    Closed.NEVER_OPENED: "never-opened",
    Closed.TIME: "time",
    Closed.PERSON: "asked",
    Closed.UNSAVED: "unsaved",
}


class ServerControl:
    """Answers for a running server.

    Args:
        server: The server.
        program: What it runs as.
        why_no_ipv6: Why the saved IPv6 pool isn't in use, as a sentence, or None.
        keeper: Puts back what other programs remove.
    """

    def __init__(
        self, server: RunningServer, program: Program, why_no_ipv6: str | None, keeper: Keeper | None = None
    ) -> None:
        self._keeper = keeper
        self._server = server
        self._program = program
        self._why_no_ipv6 = why_no_ipv6

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by method."""
        return {
            "status": self._status,
            "peers": self._peers,
            "open": self._open,
            "close": self._close,
            "revoke": self._revoke,
            "restore": self._restore,
            "rename": self._rename,
            "reset": self._reset,
            "admit": self._admit,
        }

    # -- the window -----------------------------------------------------------------------------------------

    async def _open(self, params: dict[str, Any]) -> dict[str, Any]:
        seconds = params.get("seconds")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            raise UsageError("`open` takes a number of seconds.", "Run: rustguard open 60")
        limits = Limits(_networks(params), _most(params))
        before = self._window()
        await self._server.open_window(seconds, limits)
        return {"window": self._window(), "before": before}

    async def _close(self, _params: dict[str, Any]) -> dict[str, Any]:
        await self._server.close_window()
        return {"window": self._window()}

    def _window(self) -> dict[str, Any]:
        pairing = self._server.pairing
        return {
            **_window_document(self._server.window.state(now())),
            "waiting": 0 if pairing is None else pairing.waiting,
            "unconfirmed": 0 if pairing is None else pairing.unconfirmed.abandoned,
            "unconfirmed_sources": 0 if pairing is None else pairing.unconfirmed.sources,
        }

    # -- peers ----------------------------------------------------------------------------------------------

    async def _revoke(self, params: dict[str, Any]) -> dict[str, Any]:
        record = await self._server.admissions.revoke(_text(params, "who"))
        # One without a preshared key came from a wg-quick file, and never knew a token.
        may_know = self._server.has_token and record.preshared_key != NO_PRESHARED_KEY
        return {**self._line(record), "may_know_token": may_know}

    async def _restore(self, params: dict[str, Any]) -> dict[str, Any]:
        await self._server.admissions.restore(_text(params, "key"))
        return {}

    async def _rename(self, params: dict[str, Any]) -> dict[str, Any]:
        return self._line(await self._server.admissions.rename(_text(params, "old"), _text(params, "new")))

    async def _reset(self, params: dict[str, Any]) -> dict[str, Any]:
        in_kernel = self._program.engine.in_kernel
        record, was = await clocks.reset(self._server, _text(params, "who"), in_kernel=in_kernel)
        return {**self._line(record), "was": was, "added_again": in_kernel}

    async def _admit(self, params: dict[str, Any]) -> dict[str, Any]:
        """Admit a peer whose keys were made here: it runs stock WireGuard and can't join."""
        keys = decode_key(_text(params, "public_key")), decode_key(_text(params, "preshared_key"))
        record = await self._server.admissions.admit_stock(_text(params, "name"), *keys)
        return export.offer(self._server.state, record)

    def _line(self, record: PeerRecord) -> dict[str, Any]:
        return {"peer": peers(self._server.tunnels, [self._peer_line(record)], now())["peers"][0]}

    def _peers(self, _params: dict[str, Any]) -> dict[str, Any]:
        return peers(self._server.tunnels, map(self._peer_line, self._server.state.peers.values()), now())

    def _peer_line(self, record: PeerRecord) -> PeerLine:
        return PeerLine(
            record.name,
            record.public_key,
            None if record.address4 is None else str(record.address4),
            None if record.address6 is None else str(record.address6),
            record.endpoint,
            has_to_join_again=record.has_to_join_again,
            clock_ahead=clock_ahead(clocks.greatest(self._server, record.public_key), time.time()),
            dns_name=record.dns_name,
            has_connected=record.connected,
        )

    # -- status ---------------------------------------------------------------------------------------------

    def _status(self, _params: dict[str, Any]) -> dict[str, Any]:
        server, state, pool = self._server, self._server.state, self._server.registry.pool
        status = {
            **common(self._program, server.tunnels, now(), server.reports),
            **self._peers({}),
            "tunnels": [] if server.bundle is None else server.bundle.report(now()),
            "name": None,
            "port": state.port,
            "addresses": [str(each) for each in server.addresses],
            "mtu": state.mtu,
            "pool": {
                "network4": str(state.pool4),
                "network6": None if state.pool6 is None else str(state.pool6),
                "size": pool.capacity,
                "used": len(pool),
            },
            "window": self._window(),
            "warnings": self._warnings(),
        }
        # A plane that guards the pairing answers such machines itself, and counts them.
        if status["counters"]["drops"].get("pairing_revision"):
            status["warnings"].append(_OTHER_VERSION)
        if self._program.engine.memif is None and not _forwards():
            status["notes"].append(
                "Peers reach this machine, but neither each other nor the networks behind it, because "
                "net.ipv4.ip_forward is 0. To forward: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
            )
        return status

    def _warnings(self) -> list[str]:
        server = self._server
        warnings = broken(server.tunnels) + (self._keeper.warnings() if self._keeper is not None else [])
        if self._why_no_ipv6 is not None:
            warnings.append(f"{self._why_no_ipv6} The tunnel carries IPv4 only.")
        if server.saver.failed:
            warnings.append("The state can't be saved, so nobody can join: is the disk full?")
        elif server.timestamps.refused:
            warnings.append("Timestamps of handshakes can't be saved: is the disk full?")
        if not server.has_token:
            warnings.append("Started without a token: nobody new can join.")
        if len(server.registry.pool) >= server.registry.pool.capacity:
            warnings.append("The pool is used up: revoke a peer, or the next one to join is refused.")
        return warnings + self._window_warnings()

    def _window_warnings(self) -> list[str]:
        pairing, window = self._server.pairing, self._server.window.state(now())
        warnings = []
        if window.guesses >= window.guesses_allowed:
            slow = f"only one token is checked every {TURN_SECONDS:g} s" if window.is_open else "it was slowed down"
            fix = "" if window.limits.sources else " To let only some networks try: rustguard open 60 --from CIDR"
            warnings.append(f"So many wrong tokens were tried in the window that {slow}.{fix}")
        if pairing is not None and pairing.unconfirmed.is_slow:
            warnings.append("Many pairings were begun and never confirmed, so new ones are slowed down.")
        if pairing is not None and pairing.outdated:
            warnings.append(_OTHER_VERSION)
        return warnings


def _forwards() -> bool:
    try:
        return _IP_FORWARD.read_text().strip() != "0"
    except OSError:
        return True  # unknown, so there is nothing to warn of


def _text(params: dict[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise UsageError(f"`{name}` must be text.")
    return value


def _networks(params: dict[str, Any]) -> tuple[Network, ...]:
    values = params.get("from", [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError("`from` must be a list of networks.", "Run: rustguard open 60 --from 192.0.2.0/24")
    if len(values) > MOST_NETWORKS:
        raise UsageError(f"A window is open to at most {MOST_NETWORKS} networks.", "Give fewer and wider ones.")
    try:
        return tuple(map(ip.network, values))
    except ValueError as error:
        raise UsageError(f"--from: {error}.", "Write it like 192.0.2.0/24 or 2001:db8::/32.") from error


def _most(params: dict[str, Any]) -> int:
    most = params.get("most", NEW_PEERS)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_NEW_PEERS:
        raise UsageError(f"--most takes a number from 1 to {MOST_NEW_PEERS}.", "Run: rustguard open 60 --most 100")
    return most


def _window_document(state: WindowState) -> dict[str, Any]:
    """Return the pairing window as JSON values."""
    return {
        "open": state.is_open,
        "remaining": round(state.remaining, 3),
        "guesses_used": state.guesses,
        "guesses_allowed": state.guesses_allowed,
        "guessing_sources": state.guessing_sources,
        "blocked": list(state.blocked),
        "from": [str(network) for network in state.limits.sources],
        "new_peers": state.new_peers,
        "new_peers_allowed": state.limits.most,
        "closed_because": None if state.closed is None else _CLOSED[state.closed],
    }
