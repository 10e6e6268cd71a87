"""The changes that a tunnel makes to the system. Each one can be undone, and written to a file.

Two steps are equal if they make the same change, so the steps of a changed configuration can be compared with those
already done. A step's memo is what undoing it needs besides the step itself, such as a variable's old value.
"""

from __future__ import annotations

import errno
import re
import socket
import subprocess
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from rustguard_py.daemon import outside
from rustguard_py.model.errors import RustGuardError
from rustguard_py.system import netlink_batch
from rustguard_py.system.interface import RT_TABLE_MAIN, SYSCTLS, Echo, explain
from rustguard_py.system.netlink_library import IPRoute, NetlinkError

# include/uapi/linux/fib_rules.h.
_FIB_RULE_INVERT = 0x02
# Time limit for a program, seconds: it may wait for a daemon, for example over D-Bus.
PROGRAM_SECONDS = 30.0


class Step(Protocol):
    """One change.

    Attributes:
        outlives: Whether the change remains when the interface is gone, for example after a crash.
    """

    outlives: ClassVar[bool]

    @property
    def place(self) -> Hashable:
        """What the change occupies. `apply` replaces another step of the same place, which needs no undo then."""

    def prepare(self) -> str:
        """Return the memo. Nothing is changed."""

    def apply(self, netlink: IPRoute, memo: str, echo: Echo, /) -> None:
        """Make the change.

        Raises:
            RustGuardError: It was refused.
        """

    def undo(self, netlink: IPRoute, memo: str, echo: Echo, /) -> None:
        """Undo the change, if it is still there."""


class _OneRequest:
    """What `Address` and `Route` share: each is one request to the kernel, which takes many of them at once."""

    __slots__ = ()

    outlives: ClassVar[bool] = False

    def prepare(self) -> str:
        """See `Step`."""
        return ""

    @property
    def place(self) -> Hashable:
        """See `Step`."""
        return self

    def apply(self, _netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        apply_all([cast("Address | Route", self)], echo, lambda _: None)

    def undo(self, _netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        undo_all([cast("Address | Route", self)], echo)


@dataclass(frozen=True, slots=True)
class Address(_OneRequest):
    """An address on the interface, with its prefix length."""

    interface: str
    address: str

    def request(self, index: int, *, add: bool) -> netlink_batch.Request:
        """Return the request that makes the change, or undoes it, on the interface of this number."""
        return netlink_batch.address(self.address, index, add=add)

    def command(self, *, add: bool) -> str:
        """Return the `ip` command of `request`."""
        nodad = " nodad" if add and ":" in self.address else ""
        verb = "add" if add else "delete"
        return f"ip {_flag(self.address)} address {verb} {self.address} dev {self.interface}{nodad}"


@dataclass(frozen=True, slots=True)
class Route(_OneRequest):
    """A route to a network behind the interface."""

    interface: str
    network: str
    table: int = RT_TABLE_MAIN

    def request(self, index: int, *, add: bool) -> netlink_batch.Request:
        """Return the request that makes the change, or undoes it, on the interface of this number."""
        return netlink_batch.route(self.network, index, self.table, add=add)

    def command(self, *, add: bool) -> str:
        """Return the `ip` command of `request`."""
        table = "" if self.table == RT_TABLE_MAIN else f" table {self.table}"
        verb = "add" if add else "delete"
        return f"ip {_flag(self.network)} route {verb} {self.network} dev {self.interface}{table}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule: packets without a mark use a table; or, for mark 0, a table without its default route.

    Attributes:
        version: 4 or 6.
        priority: Lower ones are looked at first.
        table: The routing table.
        mark: Packets with this mark don't match. 0 for the rule that suppresses the default route.
    """

    version: int
    priority: int
    table: int
    mark: int

    outlives: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        """See `Step`."""
        return self

    def prepare(self) -> str:
        """See `Step`."""
        return ""

    def apply(self, netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        _do(netlink, self._command("add"), echo, "rule", "add", **self._what())

    def undo(self, netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        _take_back(lambda: _do(netlink, self._command("delete"), echo, "rule", "del", **self._what()))

    def _command(self, verb: str) -> str:
        where = "main" if self.table == RT_TABLE_MAIN else self.table
        what = f"not fwmark {self.mark} table {where}" if self.mark else f"table {where} suppress_prefixlength 0"
        return f"ip -{self.version} rule {verb} {what} priority {self.priority}"

    def _what(self) -> dict[str, Any]:
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        what: dict[str, Any] = {"family": family, "priority": self.priority, "table": self.table}
        if self.mark:
            return {**what, "fwmark": self.mark, "fwmask": 0xFFFFFFFF, "flags": _FIB_RULE_INVERT}
        return {**what, "FRA_SUPPRESS_PREFIXLEN": 0}


# The only kernel variable that a tunnel sets.
SRC_VALID_MARK = "net.ipv4.conf.all.src_valid_mark"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """The value of a kernel variable (sysctl).

    Attributes:
        name: The name with dots.
        value: The new value.
    """

    name: str
    value: str

    outlives: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        """See `Step`."""
        return self

    def prepare(self) -> str:
        """See `Step`."""
        try:
            return self.path.read_text().strip()
        except OSError as error:
            raise RustGuardError(f"{self.path} can't be read: {error.strerror}.", "Is /proc mounted here?") from error

    def apply(self, _netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        if self.prepare() == self.value:
            return
        echo(f"[#] sysctl -q {self.name}={self.value}")
        try:
            self.path.write_text(self.value)
        except OSError as error:
            fix = "Run as root; in a container, have it set from outside."
            raise RustGuardError(f"{self.name} can't be set: {error.strerror}.", fix) from error

    def undo(self, _netlink: IPRoute, memo: str, echo: Echo) -> None:
        """See `Step`."""
        with suppress(OSError, RustGuardError):
            if memo and self.prepare() != memo:
                echo(f"[#] sysctl -q {self.name}={memo}")
                self.path.write_text(memo)

    @property
    def path(self) -> Path:
        """The file that has the value."""
        return SYSCTLS / self.name.replace(".", "/")


@dataclass(frozen=True, slots=True)
class Firewall:
    """The nftables rules for a default route through the tunnel, for one family.

    They drop packets to the tunnel's addresses that come neither from the tunnel nor from this machine, so
    nobody on another link can talk to these addresses or probe for them. They also save the mark of datagrams
    to peers with the connection and restore it for the answers, which a strict reverse-path filter would drop
    otherwise.

    Attributes:
        interface: The tunnel's interface.
        version: 4 or 6.
        addresses: The tunnel's addresses of this family, without prefix lengths.
        mark: The mark of datagrams to peers.
    """

    interface: str
    version: int
    addresses: tuple[str, ...]
    mark: int

    outlives: ClassVar[bool] = True

    @property
    def place(self) -> Hashable:
        """See `Step`."""
        return (Firewall, self._table)

    def prepare(self) -> str:
        """See `Step`."""
        return ""

    @outside.changes
    def apply(self, _netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        echo(f"[#] nft add table {self._table}")
        done = run(["nft", "-f", "-"], self._rules())
        if done is None:
            echo("[!] nft is missing, so packets from other links to the tunnel's address aren't dropped.")
        elif done.returncode:
            said = (done.stderr or done.stdout).strip().partition("\n")[0]
            raise RustGuardError(
                f"nft refused the rules of {self.interface}: {said}", "Try `nft list ruleset` as root."
            )

    @outside.looks
    def look(self, _memo: str) -> str | None:
        """Return the table as nft lists it, empty if it is gone; None without nft."""
        done = run(["nft", "list", "table", *self._table.split()])
        return None if done is None else done.stdout

    @outside.changes
    def undo(self, _netlink: IPRoute, _memo: str, echo: Echo) -> None:
        """See `Step`."""
        done = run(["nft", "delete", "table", *self._table.split()])
        if done is not None and done.returncode == 0:
            echo(f"[#] nft delete table {self._table}")

    @property
    def _table(self) -> str:
        # An interface's name may have characters that nft takes in no table's name.
        name = re.sub(r"[^\w.-]", lambda found: f"_{ord(found[0]):x}", self.interface, flags=re.ASCII)
        return f"{'ip' if self.version == 4 else 'ip6'} rustguard-{name}"

    def _rules(self) -> str:
        family = "ip" if self.version == 4 else "ip6"
        strays = [
            f'iifname != "{self.interface}" {family} daddr {address} fib saddr type != local drop'
            for address in self.addresses
        ]
        chains = {
            "raw": ("prerouting", -300, strays),
            "answers": ("prerouting", -150, ["meta l4proto udp meta mark set ct mark"]),
            "sent": ("postrouting", -150, [f"meta l4proto udp meta mark {self.mark} ct mark set meta mark"]),
        }
        body = "".join(
            "\n".join([f"chain {name} {{", f"type filter hook {hook} priority {priority};", *rules, "}", ""])
            for name, (hook, priority, rules) in chains.items()
        )
        # Deleted first, because a table of this name is our own leftover.
        return f"table {self._table}\ndelete table {self._table}\ntable {self._table} {{\n{body}}}\n"


# -- many at once -------------------------------------------------------------------------------------------


def apply_all(
    steps: Sequence[Address | Route], echo: Echo, made: Callable[[Address | Route], None], *, wait: bool = False
) -> list[Address | Route]:
    """Make changes to one interface, in order.

    Args:
        steps: Which.
        echo: Called with one line per change.
        made: Called with each change that the kernel made.
        wait: Whether to go on if the kernel has such an address or route already.

    Returns:
        The changes not made for that reason.

    Raises:
        RustGuardError: The kernel refused one. Those before it are made, and some after it may be.
    """
    waiting: list[Address | Route] = []
    refused: RustGuardError | None = None
    for step, code in zip(steps, _send(steps, add=True, stop=not wait), strict=False):
        if code == errno.EEXIST and wait:
            waiting.append(step)
            continue
        echo(f"[#] {step.command(add=True)}")
        if code == 0:
            made(step)
        elif refused is None:
            refused = explain(NetlinkError(code), step.command(add=True))
    if refused is not None:
        raise refused
    return waiting


def undo_all(steps: Sequence[Address | Route], echo: Echo) -> None:
    """Undo changes to one interface, in order. What is already gone is skipped."""
    with suppress(RustGuardError, OSError):
        for step, code in zip(steps, _send(steps, add=False, stop=False), strict=True):
            if code == 0:
                echo(f"[#] {step.command(add=False)}")


def _send(steps: Sequence[Address | Route], *, add: bool, stop: bool) -> list[int]:
    if not steps:
        return []
    if not add and any(isinstance(step, Address) and "." in step.address for step in steps):
        # With the first of its network, the kernel removes the other addresses, and with the last one all routes.
        with suppress(OSError):
            (SYSCTLS / "net/ipv4/conf" / steps[0].interface / "promote_secondaries").write_text("1")
    index = _index(steps[0].interface)
    return netlink_batch.send([step.request(index, add=add) for step in steps], stop=stop)


# -- as a file has them -------------------------------------------------------------------------------------


def to_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON values."""
    return {"kind": type(step).__name__, **asdict(step)}  # type: ignore[call-overload]


def from_json(kinds: Mapping[str, type[Any]], value: Mapping[str, Any]) -> Step:
    """Return the step in JSON values from `to_json`. TypeError or KeyError if they are invalid."""
    given = {name: tuple(each) if isinstance(each, list) else each for name, each in value.items() if name != "kind"}
    step: Step = kinds[value["kind"]](**given)
    return step


# -- helpers ------------------------------------------------------------------------------------------------


def run(argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str] | None:
    """Run a program to its end. Return None if it is missing, and a failure if it doesn't end in time."""
    try:
        return subprocess.run(  # noqa: S603 - names are constants, and no shell reads the rest
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=PROGRAM_SECONDS
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"{argv[0]} did not end within {PROGRAM_SECONDS:g} s")


def _do(netlink: IPRoute, command: str, echo: Echo, method: str, verb: str, **what: Any) -> None:
    echo(f"[#] {command}")
    try:
        getattr(netlink, method)(verb, **what)
    except NetlinkError as error:
        raise explain(error, command) from error


def _take_back(work: Callable[[], None]) -> None:
    with suppress(RustGuardError, OSError):
        work()


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise RustGuardError(f"There is no interface {interface} any more.", "Another program removed it.") from error


def _flag(address: str) -> str:
    return "-6" if ":" in address else "-4"
