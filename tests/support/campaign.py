"""A server and six clients for a campaign of random faults, and what each of its machines should be like.

    anna, bert ── home        each with a link of its own, IPv4 and IPv6; anna has a second one, which is down
    cleo ──────── home        over IPv6
    dora ──────── home        by a DNS name
    emil ── nat ── home       behind a router that translates addresses
    finn ── relay ── home     through a relay that can lose, reorder, duplicate and corrupt
    stranger ──── home        has no token

Everything random comes from the seed: step N of a seed is the same fault with the same choices each time.
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rustguard_py.lab.hosts import End, Host, Lab
from support import relay
from support.product import POOL, TOKEN, Machine, Site, eventually
from support.relay import Ills

PORT = 51820
# How long a client may take to be back after a fault, seconds.
BACK = 30.0
DNS_NAME = "home.test"
# Read by Python at its start: the wall clock of a daemon is off by what a file says.
_CLOCK = """
import os, time
_true, _true_ns = time.time, time.time_ns
# Kept open: a program without a free descriptor has a clock too.
_file = os.open(os.environ["WALL_CLOCK_OFFSET"], os.O_RDONLY | os.O_CLOEXEC)
def _offset(): return float(os.pread(_file, 32, 0) or 0)
time.time = lambda: _true() + _offset()
time.time_ns = lambda: _true_ns() + int(_offset() * 1e9)
"""

Choice = TypeVar("Choice")


@dataclass
class Member(Machine):
    """A machine of the campaign, with the one daemon that should run on it.

    Attributes:
        words: What starts its daemon, without a token.
        first_words: What a client joins with.
        outer: Returns from which addresses the server sees this client.
        program: The daemon.
        address: A client's inner IPv4 address, as the server acknowledged it.
        first_look: What its daemon used when it was first looked at, by what was looked at.
        before: Its network before anything of ours ran.
        was_ahead: Whether its wall clock was once ahead.
    """

    words: str = "join"
    first_words: str = ""
    outer: Callable[[], set[str]] = set
    program: subprocess.Popen[str] | None = None
    address: str = ""
    first_look: dict[str, Any] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    was_ahead: bool = False

    @property
    def name(self) -> str:
        """What the machine is called, also at the server."""
        return self.state.name

    @property
    def clock(self) -> Path:
        """The file with the offset of its wall clock, in seconds."""
        return self.state.with_suffix(".clock")

    @property
    def seen(self) -> Path:
        """Its state directory, as this process sees it."""
        return Path(f"/proc/{self.host.pid}/root{self.state}")

    @property
    def daemon(self) -> subprocess.Popen[str]:
        """The daemon that runs."""
        assert self.program is not None, f"{self.name} has no daemon"
        return self.program

    @property
    def interface(self) -> str:
        """Its tunnel's interface. Nothing else makes one, so it is the first."""
        return "rg0"

    def environment(self, token: str | None) -> dict[str, str]:
        """Return what is added to the environment of its programs."""
        clock = {"PYTHONPATH": str(self.state.parent / "clock"), "WALL_CLOCK_OFFSET": str(self.clock)}
        return {**super().environment(token), **clock}

    def launch(self, *, token: str | None = None, wait: bool = True) -> None:
        """Start the daemon: with a token, a client joins; else it connects with what it has."""
        self.first_look = {}
        self.program = self.start(self.first_words if token is not None and self.first_words else self.words, token)
        if wait:
            self.wait_answering()

    def wait_answering(self) -> None:
        """Wait until this very daemon answers at its control socket."""
        program = self.daemon
        eventually(lambda: self.alive(program) and self.status()["pid"] == program.pid, what=f"{self.name}'s answer")

    def wait_joined(self) -> None:
        """Wait until the daemon runs, and take the address that it was given as acknowledged."""
        self.wait_answering()
        self.address = self.status()["addresses"][0].partition("/")[0]

    def finish(self, how: int = signal.SIGTERM) -> int:
        """End the daemon and return its exit code."""
        with suppress(ProcessLookupError):
            self.daemon.send_signal(how)
        return self.daemon.wait(60)


@dataclass
class Campaign:
    """The machines of a campaign, and what its seed decides.

    Attributes:
        random: Decides for the step that runs.
        long: Whether faults may take their time.
        second_link: Anna's end of it, and the server's.
        notes: What the faults of this step did, for the report of a failure.
        longest: The longest time that the clients took after a step, seconds.
    """

    site: Site
    long: bool
    home: Member
    clients: list[Member]
    stranger: Member
    router: Host
    router_out: End
    relay_host: Host
    relay_ends: tuple[tuple[str, int], tuple[str, int]]
    relay_program: subprocess.Popen[str]
    second_link: tuple[End, End]
    random: random.Random = field(default_factory=random.Random)
    notes: list[str] = field(default_factory=list)
    longest: float = 0.0

    @property
    def members(self) -> list[Member]:
        """The server and the clients."""
        return [self.home, *self.clients]

    def member(self, name: str) -> Member:
        """Return a client by its name."""
        return next(each for each in self.clients if each.name == name)

    def choose(self, among: list[Choice]) -> Choice:
        """Choose, and note what was chosen."""
        chosen = self.random.choice(among)
        self.notes.append(chosen.name if isinstance(chosen, Member) else str(chosen))
        return chosen

    def anybody(self) -> Member:
        """Choose the server or a client."""
        return self.choose(self.members)

    def somebody(self) -> Member:
        """Choose a client."""
        return self.choose(self.clients)

    def with_own_link(self) -> Member:
        """Choose a client that has a link to the server."""
        return self.choose([each for each in self.clients if each.name not in ("emil", "finn")])

    def seconds(self, least: float, most: float) -> float:
        """Choose a time between two; in the short form one near the lesser."""
        return self.random.uniform(least, most if self.long else min(most, least + 1.0))

    def restart_relay(self, ills: Ills) -> None:
        """Have the relay do this to datagrams. The server sees finn come from another port."""
        self.relay_program.terminate()
        self.relay_program.wait(60)
        if self.relay_program.stdout is not None:
            self.relay_program.stdout.close()
        self.relay_program = relay.start(self.relay_host, *self.relay_ends, ills)

    def open_window(self) -> None:
        """Open the server's window."""
        self.home.run("open 600")

    def close_window(self) -> None:
        """Close the server's window."""
        self.home.ask("close")


def fault_of(seed: int, step: int, names: list[str]) -> tuple[str, random.Random]:
    """Return which fault comes at a step (from 0), and what decides its choices. Each round has every fault once."""
    round_, place = divmod(step, len(names))
    deck = sorted(names)
    random.Random(f"{seed}/{round_}").shuffle(deck)
    return deck[place], random.Random(f"{seed}:{step}")


def _member(site: Site, name: str, host: Host) -> Member:
    made = Member(host, site.directory / name, site.directory / f"{name}.run")
    made.state.mkdir(mode=0o700)
    made.clock.write_text("0")
    return made


def _client(site: Site, home: Member, name: str, *, own_run: bool = False) -> Member:
    made = _member(site, name, site.lab.host(name, own_run=own_run))
    number = len(home.host.ends)
    made.gateway, made.end = site.lab.link(
        home.host, made.host, ipv4=f"198.51.100.{8 * number}/29", ipv6=f"2001:db8:{number}::/64"
    )
    made.first_words = f"join {made.servers_end.ipv4} --name {name}"
    made.outer = lambda: {str(made.own_end.ipv4), str(made.own_end.ipv6)}
    return made


def _behind_nat(site: Site, home: Member) -> tuple[Member, Host, End]:
    router, emil = site.lab.host("nat"), _member(site, "emil", site.lab.host("emil"))
    emil.gateway, emil.end = site.lab.link(router, emil.host, ipv4="192.168.7.0/24")
    outside, out = site.lab.link(home.host, router, ipv4=f"198.51.100.{8 * len(home.host.ends)}/29")
    router.forward()
    router.masquerade(out)
    emil.host.ip([f"route add default via {emil.servers_end.ipv4}"])
    emil.first_words = f"join {outside.ipv4} --name emil"
    emil.outer = lambda: {str(out.ipv4)}
    return emil, router, out


def lay_out(lab: Lab, folder: Path, *, long: bool) -> Campaign:
    """Make the machines and links. No daemon runs yet."""
    site = Site(lab, folder)
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(_CLOCK)
    home = _member(site, "home", lab.host("home", own_run=True))
    home.words = f"serve --pool {POOL}"
    # Small enough to be filled at once.
    home.host.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", home.state])
    anna, bert, cleo = (_client(site, home, name) for name in ("anna", "bert", "cleo"))
    cleo.first_words = f"join {cleo.servers_end.ipv6} --name cleo"
    dora = _client(site, home, "dora", own_run=True)
    dora.first_words = f"join {DNS_NAME} --name dora"
    dora.name_server(f"{dora.servers_end.ipv4} {DNS_NAME}\n")
    emil, router, out = _behind_nat(site, home)
    relay_host, finn = lab.host("relay"), _member(site, "finn", lab.host("finn"))
    finn.gateway, finn.end = lab.link(relay_host, finn.host, ipv4="192.0.2.0/29")
    behind, sends_from = lab.link(home.host, relay_host, ipv4=f"198.51.100.{8 * len(home.host.ends)}/29")
    finn.first_words = f"join {finn.servers_end.ipv4} --name finn"
    finn.outer = lambda: {str(sends_from.ipv4)}
    ends = (str(finn.servers_end.ipv4), PORT), (str(behind.ipv4), PORT)
    program = relay.start(relay_host, *ends)
    # Down until a fault needs it.
    theirs, own = lab.link(home.host, anna.host, ipv4="198.51.101.0/29")
    own.set("down")
    stranger = _client(site, home, "stranger")
    clients = [anna, bert, cleo, dora, emil, finn]
    return Campaign(site, long, home, clients, stranger, router, out, relay_host, ends, program, (own, theirs))


def begin(campaign: Campaign) -> None:
    """Start the server and have everybody join, all at once; then close the window."""
    home = campaign.home
    home.program = home.start(f"{home.words} --open 3600", TOKEN)
    home.wait_answering()
    for client in campaign.clients:
        client.launch(token=TOKEN, wait=False)
    for client in campaign.clients:
        client.wait_joined()
    campaign.close_window()
