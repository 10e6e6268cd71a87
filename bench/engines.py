"""The engines that are compared: each joins two hosts of a lab by a tunnel, or by nothing but their link."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from links import Pair

from rustguard_py.lab.hosts import Host
from rustguard_py.model.errors import RustGuardError
from support import machine
from support.wireguard_go import Peer, WireGuardGo

START_SECONDS = 20.0
_TOKEN = "bench-only-token"  # noqa: S105 - it opens a pairing window inside two namespaces, for seconds
_RUSTGUARD = Path(sys.executable).with_name("rustguard")
# Where scripts/rust-peers puts what it builds, and why it couldn't.
_RUST_PEERS = Path(sys.prefix, "rust-peers")


@dataclass(frozen=True, slots=True)
class Running:
    """A tunnel that carries traffic.

    Attributes:
        target: The server's address inside.
        client_pid: The process whose CPU time the client's end costs; None for the bare link.
        server_pid: The same at the server's end.
    """

    target: str
    client_pid: int | None = None
    server_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """One of those that are compared.

    Attributes:
        about: What it is, for `--list`.
        start: Starts it between two hosts; takes these and a folder for states and logs.
        why_not: The reason why it can't run here, or an empty string.
    """

    about: str
    start: Callable[[Pair, Path], Running]
    why_not: Callable[[], str] = str


def _bare(pair: Pair, _: Path) -> Running:
    return Running(pair.outside)


def _with_wg(pair: Pair, folder: Path, argv: Sequence[str] | None = None) -> Running:
    """A program that `wg` sets up, at both ends; wireguard-go by default."""
    inside, own = ("fd90::1", "fd90::2") if pair.way.ipv6 else ("10.90.0.1", "10.90.0.2")
    bits = 128 if pair.way.ipv6 else 32
    key = X25519PrivateKey.generate()
    make = partial(WireGuardGo, argv=argv)
    server = make(
        pair.server,
        [f"{inside}/{bits}"],
        [Peer(key.public_key().public_bytes_raw(), [f"{own}/{bits}"])],
        port=51820,
        log=folder / "server.log",
    )
    client = make(
        pair.client,
        [f"{own}/{bits}"],
        [Peer(server.public_key, [f"{inside}/{bits}"], pair.endpoint)],
        private_key=key.private_bytes_raw(),
        log=folder / "client.log",
    )
    wait_for_ping(pair.client, inside)
    return Running(inside, client.process.pid, server.process.pid)


def rustguard(
    pair: Pair,
    folder: Path,
    options: Sequence[str] = (),
    *,
    serving: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    by_interface: str = "",
    program: Path = _RUSTGUARD,
) -> Running:
    """`rustguard serve` and `rustguard join`, as a user starts them.

    Args:
        pair: The hosts.
        folder: For states, runtime directories and logs.
        options: More of `serve` and `join` alike, such as `--engine portable`.
        serving: More of `serve` alone.
        env: Variables for both.
        by_interface: An option of both that takes the interface towards the other.
        program: Which `rustguard` runs.
    """
    target = "fd90::1" if pair.way.ipv6 else "10.90.0.1"

    def start(host: Host, interface: str, *words: str) -> subprocess.Popen[str]:
        runtime = folder / f"run-{host.name}"
        runtime.mkdir(mode=0o700)
        more = [*options, *([by_interface, interface] if by_interface else [])]
        return host.popen(
            [program, *words, *more, "--state", folder / f"state-{host.name}"],
            log=folder / f"rustguard-{host.name}.log",
            env={"RUSTGUARD_TOKEN": _TOKEN, "RUSTGUARD_RUNTIME": str(runtime), **(env or {})},
        )

    pools = ["--pool", "10.90.0.0/24", "--pool6", "fd90::/64"]
    serve = start(pair.server, pair.there.interface, "serve", *pools, "--open", "60", *serving)
    _or_its_log(folder, pair.server, lambda: pair.server.wait_listening("udp", 51820, START_SECONDS))
    join = start(pair.client, pair.here.interface, "join", pair.endpoint, "--name", "client")
    _or_its_log(folder, pair.client, lambda: wait_for_ping(pair.client, target))
    return Running(target, client_pid=join.pid, server_pid=serve.pid)


def _or_its_log(folder: Path, host: Host, wait: Callable[[], None]) -> None:
    try:
        wait()
    except (RustGuardError, TimeoutError) as error:
        said = (folder / f"rustguard-{host.name}.log").read_text().strip()[-1000:]
        raise RustGuardError(f"{error} It said: {said or 'nothing'}") from error


@cache
def _serve_help() -> str:
    return subprocess.run([_RUSTGUARD, "serve", "--help"], capture_output=True, text=True, check=True).stdout


@cache
def _why_no_native() -> str:
    return "" if find_spec("rustguard_py._native") else "this installation has no native plane"


def _why_no_option(option: str) -> str:
    return _why_no_native() or ("" if option in _serve_help() else f"`rustguard serve` has no {option}")


@cache
def _why_no_choice_of_aead() -> str:
    if (why := _why_no_native()) or (found := find_spec("rustguard_py._native")) is None or not found.origin:
        return why
    chooses = b"RUSTGUARD_AEAD" in Path(found.origin).read_bytes()
    return "" if chooses else "this native plane has one AEAD, ring's: see native"


def _rust_peer(name: str) -> Path:
    return _RUST_PEERS / "bin" / name


def _why_no_rust_peer(name: str) -> str:
    if _rust_peer(name).exists():
        return "" if shutil.which("wg") else "no wg (apt-get install wireguard-tools)"
    said = _RUST_PEERS / f"{name}.why"
    return said.read_text().strip() if said.exists() else "not built (scripts/rust-peers)"


def _rust_engine(name: str, about: str) -> Engine:
    # Both ask who is logged in, to become that user; in a namespace nobody is.
    argv = [str(_rust_peer(name)), "--foreground", "--disable-drop-privileges"]
    return Engine(about, partial(_with_wg, argv=argv), partial(_why_no_rust_peer, name))


def _native_engine(about: str, *options: str, needs: str = "", ring: bool = False, by_interface: str = "") -> Engine:
    start = partial(
        rustguard,
        options=["--engine", "native", *options],
        env={"RUSTGUARD_AEAD": "ring"} if ring else None,
        by_interface=by_interface,
    )
    if ring:
        return Engine(about, start, _why_no_choice_of_aead)
    return Engine(about, start, partial(_why_no_option, needs) if needs else _why_no_native)


ENGINES: dict[str, Engine] = {
    "veth": Engine("the bare link, no tunnel", _bare),
    "wireguard-go": Engine("the newest Go module", _with_wg, machine.why_no_wireguard_go),
    "gotatun": _rust_engine("gotatun", "the crate gotatun-cli"),
    "boringtun": _rust_engine("boringtun-cli", "the crate boringtun-cli"),
    "portable": Engine("RustGuard in Python", partial(rustguard, options=["--engine", "portable"])),
    "native": _native_engine("RustGuard in Rust, as `--engine native` alone starts it"),
    "native-2q": _native_engine("the same with two queues", "--queues", "2"),
    "native-ring": _native_engine("with ring's AEAD (RUSTGUARD_AEAD=ring)", ring=True),
    "native-ring-2q": _native_engine("with ring's AEAD and two queues", "--queues", "2", ring=True),
    "native-uring": _native_engine("over io_uring", "--uring", needs="--uring"),
    "native-xdp": _native_engine("its UDP over AF_XDP", needs="--xdp", by_interface="--xdp"),
}
# The engine of another checkout, see `add_before`.
BEFORE = "before"
# What a short run takes: those that people choose between.
USUAL = ("veth", "wireguard-go", "gotatun", "portable", "native")


def rustguard_program(checkout: Path | None) -> Path:
    """Return the `rustguard` of a checkout, or of this one."""
    return checkout.absolute() / ".venv" / "bin" / "rustguard" if checkout else _RUSTGUARD


def add_before(checkout: Path) -> None:
    """Add the native engine of another checkout, where `make` has run, as BEFORE."""
    program = rustguard_program(checkout)
    start = partial(rustguard, options=["--engine", "native"], program=program)
    why = "" if program.exists() else f"there is no {program}: run make test there"
    ENGINES[BEFORE] = Engine(f"the native engine of {checkout}", start, lambda: why)


def wait_for_ping(host: Host, address: str) -> None:
    """Come back with the first answer.

    Raises:
        TimeoutError: After START_SECONDS without one.
    """
    deadline = time.monotonic() + START_SECONDS
    while host.run(["ping", "-c1", "-W1", address], check=False).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{address} didn't answer within {START_SECONDS:.0f} s")
        time.sleep(0.05)
