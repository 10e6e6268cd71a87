"""A tunnel to a server of ours: paired with now, or joined before and kept in a state directory."""

from __future__ import annotations

import logging
import socket
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rustguard_py import conf
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.timestamps import KeptTimestamps
from rustguard_py.embed.arguments import check_text
from rustguard_py.embed.farewell import Farewell
from rustguard_py.embed.memory import MemoryState, MemoryTimestamps
from rustguard_py.embed.plan import Parts, SyncedTimestamps
from rustguard_py.enroll.client.checks import accept_any_network
from rustguard_py.enroll.client.obtain import Applicant, Keeps, Obtained, Target, load, obtain, withdraw
from rustguard_py.enroll.client.routes import RouteAnswers, RouteChoice
from rustguard_py.model import ip
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RustGuardError, UsageError
from rustguard_py.model.peer_names import check_label, label_of
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from rustguard_py.system.sockets import bind

log = logging.getLogger(__name__)

# What `join` says is for the program's log, and it changes nothing on the system.
_VOICE = Voice(change=log.debug, say=log.info)


@dataclass(frozen=True, slots=True)
class PairingPlan:
    """A tunnel to a server of ours.

    Attributes:
        target: The server.
        applicant: The token and name to pair with, or None to use what an earlier join kept.
        directory: The state directory, or None to keep everything in memory.
        answers: Which of the networks behind the server are accepted.
    """

    target: Target
    applicant: Applicant | None
    directory: Path | None
    answers: RouteAnswers

    async def gather(self, stack: AsyncExitStack) -> Parts:
        """See `embed.plan.Plan.gather`."""
        if self.applicant is None and self.directory is not None and not _exists(self.directory):
            # Opening it would make it.
            raise self._not_joined()
        keeps = self._open_state(stack)
        state = load(keeps)
        if self.applicant is None and state.network(self.target.host, self.target.port) is None:
            raise self._not_joined()
        timestamps: SyncedTimestamps = MemoryTimestamps()
        if self.directory is not None:
            timestamps = kept = KeptTimestamps(self.directory)
            stack.callback(kept.close)
        sockets = bind(0)
        for each in sockets:
            stack.callback(each.close)
        obtained = await obtain(
            self.target, self.applicant, keeps, state, sockets, _VOICE, self.answers, accept_any_network
        )
        return self._parts(obtained, keeps, state, tuple(sockets), timestamps)

    def _not_joined(self) -> UsageError:
        return UsageError(
            f"{self.target.host} was not joined before with the state in {self.directory}.",
            "Check state=. Or pass the server's token, while its window is open: connect(…, token=…, state=…).",
        )

    def _open_state(self, stack: AsyncExitStack) -> Keeps:
        if self.directory is None:
            return MemoryState()
        document = Document.open(self.directory)
        stack.callback(document.close)
        return document

    def _parts(
        self,
        obtained: Obtained,
        keeps: Keeps,
        state: ClientState,
        sockets: tuple[socket.socket, ...],
        timestamps: SyncedTimestamps,
    ) -> Parts:
        network, port = obtained.network, int(sockets[0].getsockname()[1])
        server = conf.HostPort(network.host, network.port)
        peer = conf.PeerSection(
            network.server_key,
            (*network.pools, *network.routes),
            network.preshared_key,
            server,
            network.keepalive,
            name=network.host,
        )

        return Parts(
            state.private_key,
            sockets,
            (peer,),
            network.addresses,
            mtu=network.mtu,
            name=network.name,
            timestamps=timestamps,
            found={} if obtained.endpoint is None else {server: [obtained.endpoint]},
            # What is kept in a directory serves the next start.
            give_up=None if self.directory is not None else partial(_take_back, obtained, keeps, state, port),
            say_goodbye=None if self.directory is not None else Farewell(state.private_key, network).say,
        )


def make_plan(
    server: str,
    token: str | None,
    directory: Path | None,
    *,
    name: str | None,
    fingerprint: str | None,
    routes: str | Sequence[str | Network] | None,
) -> PairingPlan:
    """Return the plan of a tunnel to a server; `rustguard_py.connect` documents the arguments.

    Raises:
        UsageError: One of the arguments is malformed.
    """
    target = Target.parse(server, fingerprint)
    if token is None:
        return PairingPlan(target, None, directory, RouteAnswers(_choice(routes)))
    applicant = Applicant(_token(token), _name(name), name is not None)
    return PairingPlan(target, applicant, directory, RouteAnswers(_choice(routes)))


def _exists(directory: Path) -> bool:
    """Return whether something is there. What can't be looked at is for `Document` to name."""
    try:
        directory.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _token(given: object) -> str:
    """Return a token as the command line does: in NFC, and without the line end of a file."""
    if not isinstance(given, str):
        raise UsageError(f"The token is of type {type(given).__name__}.", "Pass a str.")
    token = unicodedata.normalize("NFC", given.rstrip("\r\n"))
    if not token.strip():
        raise UsageError("The token is empty.", "Pass the one that `rustguard serve` was started with.")
    if any(unicodedata.category(each) in ("Cc", "Cs") for each in token):
        raise UsageError(
            "The token holds control characters.", "Pass the one that `rustguard serve` was started with."
        )
    return token


def _choice(routes: object) -> RouteChoice | None:
    """Return which routes are accepted; None for those that an earlier join accepted."""
    if routes is None:
        return None
    if isinstance(routes, str):
        if routes not in ("all", "none"):
            raise UsageError(f"routes={routes!r} is neither 'all' nor 'none'.", "For networks, pass a list of them.")
        return RouteChoice(all=routes == "all")
    if isinstance(routes, (bytes, bytearray)) or not isinstance(routes, Iterable):
        raise UsageError(
            f"routes={routes!r} is no list of networks.", "Pass 'all', 'none', or a list such as ['192.168.7.0/24']."
        )
    try:
        return RouteChoice(tuple(dict.fromkeys(ip.network(str(each)) for each in routes)))
    except ValueError as error:
        raise UsageError(
            f"routes={list(map(str, routes))!r}: {error}.", "Pass networks such as 192.168.7.0/24 or 2001:db8:7::/48."
        ) from error


def _name(given: str | None) -> str:
    check_text("name", given)
    if given is None:
        return label_of(socket.gethostname().partition(".")[0])
    try:
        return check_label(given)
    except ValueError as error:
        raise UsageError(f"name={given!r}: {error}.", "Pass a name such as laptop, or leave it out.") from error


def _take_back(obtained: Obtained, keeps: Keeps, state: ClientState, port: int) -> None:
    """Have the server forget a join that nothing came of. It listens to the port that the join was made from."""
    if obtained.joined is None:
        return
    with suppress(RustGuardError):
        sockets = bind(port)
        withdraw(obtained.joined, keeps, state, sockets)
        for each in sockets:
            each.close()
