"""Which of the networks that a server offers are routed to it: none that the user hasn't accepted.

Networks inside the pool need no answer. Everything else is accepted by `join --routes`, by an answer at a terminal,
or by an earlier join. The answer is kept with the network.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from shlex import quote

from rustguard_py.daemon.console import Voice
from rustguard_py.model import ip
from rustguard_py.model.address import typed
from rustguard_py.model.endpoint import Network
from rustguard_py.model.errors import RefusedError, UsageError
from rustguard_py.model.sudo import as_root
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.records import MOST_ROUTES

log = logging.getLogger(__name__)

ALL, NONE = "all", "none"

# Asks a question that is answered by yes or no.
Confirm = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """An answer to `--routes`.

    Attributes:
        networks: The networks to accept, and everything inside them.
        all: Whether to accept whatever the server offers, now and later.
    """

    networks: tuple[Network, ...] = ()
    all: bool = False

    @classmethod
    def parse(cls, text: str) -> RouteChoice:
        """Return the choice in `all`, `none`, or a list of networks with commas between them.

        Raises:
            UsageError: It is something else.
        """
        if text in (ALL, NONE):
            return cls(all=text == ALL)
        try:
            networks = tuple(dict.fromkeys(ip.network(word.strip()) for word in text.split(",")))
        except ValueError as error:
            raise UsageError(
                f"--routes {quote(text)}: {error}.",
                "Write all, none, or networks with commas between them: 192.168.7.0/24,2001:db8:7::/48",
            ) from error
        if len(networks) > MOST_ROUTES:
            raise UsageError(
                f"--routes has {len(networks)} networks; {MOST_ROUTES} is the limit.", "Name fewer and wider ones."
            )
        return cls(networks)

    def of(self, offered: Iterable[Network]) -> tuple[Network, ...]:
        """Return what is accepted of the networks offered: whole ones, or the listed parts of them."""
        if self.all:
            return tuple(offered)
        common = (_common(one, other) for one in offered for other in self.networks)
        return tuple(dict.fromkeys(each for each in common if each is not None))[:MOST_ROUTES]

    def covers(self, network: Network) -> bool:
        """Return whether a network is accepted as a whole."""
        return self.all or any(_common(network, each) == network for each in self.networks)


@dataclass(frozen=True, slots=True)
class RouteAnswers:
    """Where the answers of this run come from.

    Attributes:
        choice: What `--routes` says; None without it.
        confirm: Asks the user; None without a terminal.
    """

    choice: RouteChoice | None = None
    confirm: Confirm | None = None


def offered_beyond(pools: Iterable[Network], offered: Iterable[Network]) -> tuple[Network, ...]:
    """Return the offered networks that aren't inside a pool, each once."""
    pools = tuple(pools)
    return tuple(dict.fromkeys(each for each in offered if not any(_common(each, pool) == each for pool in pools)))


def choose(network: NetworkRecord, kept: NetworkRecord | None, answers: RouteAnswers) -> NetworkRecord:
    """Return the network with the routes that are accepted without a question.

    Args:
        network: With all that the server offers in `offered`.
        kept: The same network from an earlier join, or None.
        answers: This run's. `--routes` takes the place of what was accepted before.
    """
    choice = answers.choice
    if choice is None:
        choice = RouteChoice() if kept is None else RouteChoice(kept.routes, kept.accepts_all)
    return replace(network, routes=choice.of(network.offered), accepts_all=choice.all)


def check_pools(network: NetworkRecord, kept: NetworkRecord | None, answers: RouteAnswers) -> None:
    """Check that the pools, which are routed without a question, are private networks.

    Raises:
        RefusedError: One has addresses of the Internet, and the user didn't accept it.
    """
    before = () if kept is None else kept.pools
    for pool in network.pools:
        if pool.is_global and pool not in before and not (answers.choice and answers.choice.covers(pool)):
            raise RefusedError(
                f"The server would route {pool} through itself, which has public addresses of the Internet.",
                f"If that is meant, join with: --routes {pool}",
            )


def outstanding(network: NetworkRecord) -> tuple[Network, ...]:
    """Return the offered networks that aren't accepted as a whole."""
    accepted = RouteChoice(network.routes, network.accepts_all)
    return tuple(each for each in network.offered if not accepted.covers(each))


def unanswered(network: NetworkRecord, kept: NetworkRecord | None) -> tuple[Network, ...]:
    """Return the outstanding networks that an earlier join didn't offer, so that the user never saw them."""
    return tuple(each for each in outstanding(network) if kept is None or each not in kept.offered)


async def ask(network: NetworkRecord, offered: Sequence[Network], confirm: Confirm) -> NetworkRecord:
    """Ask whether to accept the networks offered, and return the network after the answer."""
    question = f"{network.host} offers routes to {_listed(offered)}. Send traffic for them through it?"
    if not await confirm(question):
        return network
    return replace(network, routes=tuple(dict.fromkeys((*network.routes, *offered))))


def show(network: NetworkRecord, answers: RouteAnswers, voice: Voice) -> None:
    """Print which offered networks are accepted, how to accept the others, and what `--routes` has in vain."""
    listed = () if answers.choice is None else answers.choice.networks
    if missing := [each for each in listed if not any(_common(each, offered) for offered in network.offered)]:
        voice.say(f"{network.host} offers no route to {_listed(missing)}.")
    if network.routes:
        voice.say(f"Routed through {network.host} besides its pool: {_listed(network.routes)}.")
    if others := outstanding(network):
        wanted = ",".join(map(str, dict.fromkeys((*network.routes, *others))))
        voice.say(
            f"{network.host} also offers routes to {_listed(others)}; they are not used. "
            f"To accept them: {as_root(f'rustguard join {typed(network.host, network.port)} --routes {wanted}')}"
        )


def adopt(state: ClientState) -> ClientState:
    """Return a state in which the routes that an earlier version installed without a question are accepted.

    They are logged. The caller saves the state if it differs, so that this happens once.
    """
    for network in state.networks:
        if network.routes and not network.offered:
            log.warning(
                "the routes to %s through %s stay: an earlier version took them without asking. To drop them: %s",
                _listed(network.routes),
                network.host,
                as_root(f"rustguard join {typed(network.host, network.port)} --routes none"),
            )
    networks = (replace(each, offered=each.offered or each.routes) for each in state.networks)
    return replace(state, networks=tuple(networks))


def _common(one: Network, other: Network) -> Network | None:
    """Return the smaller of two networks if it is inside the other, else None."""
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else None
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else None
    return None


def _listed(networks: Sequence[Network]) -> str:
    return ", ".join(map(str, networks))
