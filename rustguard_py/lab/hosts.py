"""Hosts in network namespaces on one machine, for the demo, the tests and the measurements.

A host is a network namespace that a small holder process keeps alive. Programs enter through `/proc/PID/ns/net`. No
namespace has a name in `/run/netns`, so none can be left behind there. The holder waits for the end of its standard
input. When the lab ends, or its process is killed (even with SIGKILL), the holder kills all programs in its namespace
and ends. The kernel then removes the namespace with its interfaces.

    with Lab() as lab:
        alice, bob = lab.host("alice"), lab.host("bob")
        here, there = lab.link(alice, bob, ipv4="192.0.2.0/24", ipv6="2001:db8::/64")
        alice.run(["ping", "-c", "1", str(there.ipv4)])

It works as root, and in a user namespace (`scripts/in-namespace`, or `unshare -Urmn`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rustguard_py.model.errors import RustGuardError, UnansweredError, UsageError

# Time between SIGTERM and SIGKILL for a program, seconds.
GRACE = 5.0
# Debian has nft and ethtool in directories that are only in root's PATH.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
# Duplicate address detection would block each new IPv6 address for a second.
_HOLDER = """
{mounts}
ip link set lo up || exit 1
for each in default all; do echo 0 > /proc/sys/net/ipv6/conf/$each/accept_dad; done 2>/dev/null
echo ready
cat > /dev/null
inside() {{
  for each in /proc/[0-9]*; do
    [ "$each/ns/net" -ef "/proc/$$/ns/net" ] && [ "$each" != "/proc/$$" ] && pids="$pids ${{each#/proc/}}"
  done
}}
tries=0
while pids= && inside; [ "$pids" ] && [ $((tries += 1)) -le 100 ]; do
  kill -9 $pids 2>/dev/null
  sleep 0.01
done
"""
_OWN_RUN = "mount -t tmpfs -o mode=755 tmpfs /run || exit 1\n"
# A copy, because an overlay needs a newer kernel. Unreadable files are left out.
_OWN_FILES = """
mount -t tmpfs -o mode=755 tmpfs /var/lib || exit 1
cp -a /etc /run/etc 2> /dev/null
mount --bind /run/etc /etc || exit 1
"""

_Stream = int | IO[str] | IO[bytes] | None


@dataclass(slots=True, eq=False)
class End:
    """One end of a link: an interface in a host and its addresses there."""

    host: Host
    interface: str
    address4: IPv4Interface | None
    address6: IPv6Interface | None

    @property
    def ipv4(self) -> IPv4Address:
        """The IPv4 address, without its prefix length."""
        if self.address4 is None:
            raise UsageError(f"{self.interface} of {self.host.name} has no IPv4 address.")
        return self.address4.ip

    @property
    def ipv6(self) -> IPv6Address:
        """The IPv6 address, without its prefix length."""
        if self.address6 is None:
            raise UsageError(f"{self.interface} of {self.host.name} has no IPv6 address.")
        return self.address6.ip

    def readdress(self, address: str) -> None:
        """Replace the address of one family. The new one is given with its prefix length."""
        new = ip_interface(address)
        old = self.address4 if isinstance(new, IPv4Interface) else self.address6
        lines = [f"addr del {old} dev {self.interface}"] if old is not None else []
        self.host.ip([*lines, _add_address(self.interface, new)])
        if isinstance(new, IPv4Interface):
            self.address4 = new
        else:
            self.address6 = new

    def drop_address(self, version: int) -> None:
        """Remove the address of IP version 4 or 6."""
        old = self.address4 if version == 4 else self.address6
        if old is None:
            return
        self.host.ip([f"addr del {old} dev {self.interface}"])
        if version == 4:
            self.address4 = None
        else:
            self.address6 = None

    def set(self, *words: str) -> None:
        """Change the interface as `ip link set dev INTERFACE …` does: `set("mtu", "1280")`, `set("down")`."""
        self.host.ip([f"link set dev {self.interface} {' '.join(words)}"])


class Host:
    """A network namespace of its own, and the programs that run in it. Made by `Lab.host`.

    Attributes:
        name: What the lab calls it.
        pid: The holder's process id: `/proc/PID/ns/net` is the host.
        ends: Its ends of links, oldest first.
    """

    def __init__(self, name: str, *, own_run: bool = False, own_files: bool = False) -> None:
        own_run = own_run or own_files
        mounts = (_OWN_RUN if own_run else "") + (_OWN_FILES if own_files else "")
        unshare = ["unshare", "--net", *(["--mount"] if own_run else [])]
        self.name = name
        self.ends: list[End] = []
        self._holder = subprocess.Popen(  # noqa: S603 - no shell reads what callers give
            [*unshare, "sh", "-c", _HOLDER.format(mounts=mounts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": _PATH},
            # A Ctrl-C at the terminal is for the program that made the lab: it ends the hosts in order.
            start_new_session=True,
        )
        self.pid = self._holder.pid
        # A host with a /run of its own looks there alone; one without puts nothing where this machine's wg(8) looks.
        unset = ["RUSTGUARD_RUNTIME", "RUSTGUARD_SYSTEM_RUNTIME"] if own_run else ["RUSTGUARD_WG_SOCKETS"]
        unset += ["RUSTGUARD_SYSTEM_STATE"] if own_files else []
        self._environment = {"PATH": _PATH, **dict.fromkeys(unset, "")}
        self._enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        if own_run:
            # Entering a mount namespace changes to its root, so change back to the caller's directory.
            self._enter += [f"--mount=/proc/{self.pid}/ns/mnt", f"--wdns={Path.cwd()}"]
        self._programs: list[subprocess.Popen[str]] = []
        said = self._holder.stdout
        if said is None or said.readline() != "ready\n":
            _, why = self._holder.communicate()
            raise _impossible(why.strip())

    def __repr__(self) -> str:
        return f"Host({self.name!r}, pid={self.pid})"

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs `argv` in this host."""
        return [*self._enter, "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and return its result and output.

        Args:
            argv: The program and its arguments; no shell.
            timeout: Seconds after which it is killed and subprocess.TimeoutExpired raised.
            check: Whether a non-zero exit raises RustGuardError, with its stderr.
            stdin: Its input, empty by default.
            env: Variables added to ours.
        """
        done = subprocess.run(  # noqa: S603 - the caller's program is the point
            self.command(argv),
            capture_output=True,
            check=False,
            text=True,
            input=stdin if stdin is not None else "",
            timeout=timeout,
            env={**os.environ, **self._environment, **(env or {})},
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise RustGuardError(f"In host {self.name}, {argv[0]} ended with {done.returncode}: {said}")
        return done

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path | None = None,
        stdin: _Stream = subprocess.DEVNULL,
        stdout: _Stream = None,
        stderr: _Stream = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program, which ends with the lab. Its process id is that of the Popen.

        Args:
            argv: The program and its arguments; no shell.
            log: A file to append stdout and stderr to, instead of the next two.
            stdin: As subprocess.Popen takes it.
            stdout: As subprocess.Popen takes it.
            stderr: As subprocess.Popen takes it.
            env: Variables added to ours.
        """
        sink = log.open("a") if log is not None else None
        try:
            program = subprocess.Popen(  # noqa: S603 - the caller's program is the point
                self.command(argv),
                stdin=stdin,
                stdout=sink or stdout,
                stderr=sink or stderr,
                text=True,
                env={**os.environ, **self._environment, **(env or {})},
                start_new_session=True,
            )
        finally:
            if sink is not None:
                sink.close()
        self._programs.append(program)
        return program

    def wait_listening(self, protocol: str, port: int, seconds: float = 10.0) -> None:
        """Wait until a program in this host listens on a port, on any address.

        Args:
            protocol: `tcp` or `udp`.
            port: 1 to 65535.
            seconds: How long to wait.

        Raises:
            UnansweredError: No program did.
        """
        tables = [Path(f"/proc/{self.pid}/net/{protocol}{family}") for family in ("", "6")]
        # Of the kernel's tables: state LISTEN, and for UDP "not connected".
        wanted = (f":{port:04X}", "0A" if protocol == "tcp" else "07")
        deadline = time.monotonic() + seconds
        while True:
            rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()]
            if any(row[1].endswith(wanted[0]) and row[3] == wanted[1] for row in rows):
                return
            if time.monotonic() > deadline:
                raise UnansweredError(f"In host {self.name}, nothing listens on {protocol} port {port}.")
            time.sleep(0.01)

    def ip(self, lines: Sequence[str]) -> None:
        """Run `ip` commands in order (`ip -batch`), up to the first that fails."""
        self.run(["ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))

    def nft(self, rules: str) -> None:
        """Load an nftables ruleset, as a file for `nft -f` has it."""
        self.run(["nft", "-f", "-"], stdin=rules)

    def sysctl(self, name: str, value: int | str) -> None:
        """Set a `net.…` variable of this host (each namespace has its own)."""
        self.run(["sh", "-c", f'echo "$1" > "/proc/sys/{name.replace(".", "/")}"', "sh", str(value)])

    def forward(self) -> None:
        """Make the host a router for IPv4 and IPv6."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)

    def masquerade(self, out: End, *, forget_after: int | None = None) -> None:
        """Translate the source addresses (and taken ports) of packets forwarded out of `out`, in both families.

        Args:
            out: The end that faces the outside.
            forget_after: Seconds without a packet after which a UDP mapping is forgotten.
        """
        self.nft(
            "table inet lab_nat {\n"
            " chain out {\n"
            "  type nat hook postrouting priority srcnat\n"
            f"  oifname {out.interface} masquerade\n"
            " }\n"
            "}\n"
        )
        if forget_after is not None:
            self.sysctl("net.netfilter.nf_conntrack_udp_timeout", forget_after)
            self.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", forget_after)

    def remap(self, out: End, ports: str) -> None:
        """Have the NAT of `masquerade` put UDP on these outside ports (`"40000-40099"`) from the next mapping on.

        A mapping that is in use stays until it is forgotten.
        """
        self.nft(
            "flush chain inet lab_nat out\n"
            f"add rule inet lab_nat out oifname {out.interface} meta l4proto udp masquerade to :{ports}\n"
            f"add rule inet lab_nat out oifname {out.interface} masquerade\n"
        )

    def stop(self) -> None:
        """End the programs, kill those that don't end, and remove the namespace."""
        for program in self._programs:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for program in self._programs:
            try:
                program.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
            for stream in (program.stdin, program.stdout, program.stderr):
                if stream is not None:
                    stream.close()
        self._programs.clear()
        self._holder.communicate()


@dataclass(slots=True)
class Lab:
    """Hosts and the links between them. It is a context manager and leaves nothing behind.

    Raises:
        RustGuardError: When a host is made and this process may not make network namespaces.
    """

    hosts: list[Host] = field(default_factory=list)

    def __enter__(self) -> Self:
        for tool, package in _TOOLS.items():
            if shutil.which(tool, path=_PATH) is None:
                raise RustGuardError(
                    f"{tool} is missing: hosts on one machine need it.", f"apt-get install {package}"
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every host. May be called twice."""
        while self.hosts:
            self.hosts.pop().stop()

    def host(self, name: str, *, own_run: bool = False, own_files: bool = False) -> Host:
        """Make a host, with its loopback up.

        Args:
            name: For people, and part of interface names.
            own_run: Whether the host has its own, empty `/run`, for programs with fixed names there (wireguard-go).
                It then has its own mounts, so later mounts elsewhere aren't visible in it.
            own_files: Whether the host also has its own copy of `/etc` and its own, empty `/var/lib`. From outside
                they are `/proc/PID/root/etc` and so on.
        """
        made = Host(name, own_run=own_run, own_files=own_files)
        self.hosts.append(made)
        return made

    def link(
        self, a: Host, b: Host, *, ipv4: str | None = None, ipv6: str | None = None, mtu: int = 1500
    ) -> tuple[End, End]:
        """Join two hosts with a veth pair. They get the first two addresses of each network, in order.

        Args:
            a: One host.
            b: The other.
            ipv4: Its network, such as `192.0.2.0/24`.
            ipv6: Its network, such as `2001:db8::/64`.
            mtu: The MTU of both ends.
        """
        ours, theirs = _interface_name(a, b), _interface_name(b, a)
        # If both ends had the same number, the kernel would take up to a second to see a carrier, and IPv6 waits for
        # that: its linkwatch treats an event as urgent only if an interface's number differs from its peer's.
        index = 10 + sum(len(host.ends) for host in self.hosts)
        a.ip(
            [
                f"link add {ours} index {index} mtu {mtu} type veth"
                f" peer name {theirs} index {index + 1} mtu {mtu} netns {b.pid}"
            ]
        )
        ends = (
            End(a, ours, _address4(ipv4, 1), _address6(ipv6, 1)),
            End(b, theirs, _address4(ipv4, 2), _address6(ipv6, 2)),
        )
        for end in ends:
            addresses = [each for each in (end.address4, end.address6) if each is not None]
            lines = [_add_address(end.interface, each) for each in addresses]
            end.host.ip([*lines, f"link set dev {end.interface} up"])
            end.host.ends.append(end)
        return ends

    def through(
        self, a: Host, router: Host, b: Host, *, nets4: tuple[str, str], nets6: tuple[str, str] | None = None
    ) -> tuple[End, End, End, End]:
        """Put a router between two hosts: two links, forwarding, and default routes of both towards it.

        Args:
            a: One host; its network is the first of each pair.
            router: The host between them.
            b: The other host.
            nets4: The two IPv4 networks.
            nets6: The two IPv6 networks, if any.

        Returns:
            The ends from left to right: a's, the router's towards a, the router's towards b, b's.
        """
        six = nets6 or (None, None)
        left, left_gateway = self.link(a, router, ipv4=nets4[0], ipv6=six[0])
        right_gateway, right = self.link(router, b, ipv4=nets4[1], ipv6=six[1])
        router.forward()
        for host, gateway in ((a, left_gateway), (b, right_gateway)):
            host.ip([f"route add 0.0.0.0/0 via {gateway.ipv4}"])
            if nets6:
                host.ip([f"route add ::/0 via {gateway.ipv6}"])
        return left, left_gateway, right_gateway, right

    def loss(self, host: Host, fraction: float) -> None:
        """Drop this fraction of the packets that arrive at a host (or pass through it) over its links; 0 ends it.

        ARP, IPv6 neighbour discovery and packets inside a tunnel aren't dropped.

        Args:
            host: The host that drops. For both directions of a link, call it for both hosts.
            fraction: 0 to 1, in steps of 1/1000.
        """
        if not 0 <= fraction <= 1:
            raise UsageError(f"A loss of {fraction} is no fraction.")
        links = ", ".join(end.interface for end in host.ends)
        host.nft(
            "table inet lab_loss\n"
            "delete table inet lab_loss\n"
            "table inet lab_loss {\n"
            " chain arriving {\n"
            "  type filter hook prerouting priority raw\n"
            f"  iifname {{ {links} }} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n"
            f"  iifname {{ {links} }} numgen random mod 1000 < {round(fraction * 1000)} drop\n"
            " }\n"
            "}\n"
            if fraction and links
            else "table inet lab_loss\ndelete table inet lab_loss\n"
        )

    def udp_segmentation(self, host: Host, *, on: bool) -> None:
        """Set whether a host's links take a UDP GSO message whole, as veth does and many networks don't."""
        for end in host.ends:
            host.run(["ethtool", "-K", end.interface, "tx-udp-segmentation", "on" if on else "off"])


def _interface_name(host: Host, towards: Host) -> str:
    """Return an interface name for `host`: the other host's name, cut to 15 characters and numbered if taken."""
    taken = {end.interface for end in host.ends}
    stem = towards.name[:12]
    return next(name for n in range(1000) if (name := f"{stem}{n or ''}") not in taken)


def _address4(network: str | None, nth: int) -> IPv4Interface | None:
    if network is None:
        return None
    net = IPv4Network(network)
    return IPv4Interface((net[nth], net.prefixlen))


def _address6(network: str | None, nth: int) -> IPv6Interface | None:
    if network is None:
        return None
    net = IPv6Network(network)
    return IPv6Interface((net[nth], net.prefixlen))


def _add_address(interface: str, address: IPv4Interface | IPv6Interface) -> str:
    nodad = " nodad" if address.version == 6 else ""
    return f"addr add {address} dev {interface}{nodad}"


def _impossible(why: str) -> RustGuardError:
    return RustGuardError(
        f"No network namespace could be made: {why or 'the holder ended at once'}.",
        "Run it as root (sudo), or in a user namespace: unshare -Urmn COMMAND",
    )
