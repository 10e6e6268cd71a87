"""The program itself on hosts of a lab, and what hurts it: killed or failed at a chosen system call."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import pytest

from rustguard_py.daemon.control.client import call
from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.model.errors import RustGuardError
from rustguard_py.model.keys import public_key
from rustguard_py.state import envelope
from support import preloaded
from support.waiting import rest

T = TypeVar("T")

TOKEN = "violet-harbour-mosaic"  # noqa: S105 - no secret of anybody's
POOL = "10.150.0.0/24"
GATEWAY = "10.150.0.1"
# For what takes a moment, on a machine that is slow and busy.
PATIENCE = 60.0
# Long enough for any test: where a window should close, the test closes it.
OPEN = "--open 3600"
# System calls that change or send something, or take in what was sent.
DEEDS = (
    "write,pwrite64,fsync,fdatasync,ftruncate,rename,link,linkat,unlink,mkdir,flock,"
    "sendto,sendmsg,sendmmsg,recvfrom,recvmsg,recvmmsg"
)


def until(what: str, attempt: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """Try until it gives something that is true; a daemon that can't be asked yet counts as not yet."""
    deadline = time.monotonic() + seconds
    why = "nothing"
    while (began := time.monotonic()) < deadline:
        try:
            if result := attempt():
                return result
        except (RustGuardError, OSError) as error:
            why = str(error)
        time.sleep(rest(began))
    raise AssertionError(f"{what} did not come within {seconds:.0f} s: {why}")


@dataclass(slots=True)
class Station:
    """A host, one state directory in it, and the programs of ours that work on that.

    Attributes:
        host: Where they run.
        state: Their state directory, as that host sees it.
        runtime: Where their control sockets are.
        token: Handed to them in the environment; None for none.
        environment: Variables besides.
    """

    host: Host
    state: Path
    runtime: Path
    token: str | None = field(default=TOKEN, repr=False)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where the programs that `start` started say what they have to say."""
        return self.runtime.with_suffix(".log")

    @property
    def seen(self) -> Path:
        """The state directory as it is seen from outside of the host."""
        return Path(f"/proc/{self.host.pid}/root{self.state}")

    def argv(self, words: str) -> list[str]:
        """The command line of `rustguard WORDS`, its state directory named."""
        return [sys.executable, "-m", "rustguard_py.cli", *words.split(), "--state", str(self.state)]

    def variables(self) -> dict[str, str]:
        """What the environment says to it."""
        secret = {} if self.token is None else {"RUSTGUARD_TOKEN": self.token}
        return {"RUSTGUARD_RUNTIME": str(self.runtime), "COLUMNS": "110", **secret, **self.environment}

    def run(self, words: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rustguard WORDS` to its end."""
        return preloaded.run(self.host, self.argv(words), env=self.variables(), check=check, timeout=120)

    def start(self, words: str, *before: str) -> subprocess.Popen[str]:
        """Start `BEFORE rustguard WORDS`; what it says goes to the log."""
        return preloaded.popen(self.host, [*before, *self.argv(words)], log=self.log, env=self.variables())

    def serve(self, words: str = OPEN) -> subprocess.Popen[str]:
        """Start a server and come back when it answers at its control socket."""
        pool = "" if "--pool" in words else f"--pool {POOL}"
        program = self.start(f"serve {pool} {words}")
        self.wait_answering(program)
        return program

    def wait_answering(self, program: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait until this very program answers; give its status."""

        def answers() -> dict[str, Any] | None:
            assert program.poll() is None, f"it ended with {program.returncode}:\n{self.said()}"
            status = self.status()
            return status if status["pid"] == program.pid else None

        return until("an answer at the control socket", answers)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the daemon, without the half second that a command takes to start."""
        digest = sha256(str(self.state.resolve()).encode()).hexdigest()[:16]
        return call(self.runtime / f"{digest}.sock", method, params)

    def status(self) -> dict[str, Any]:
        """The daemon's status document."""
        return self.ask("status")

    def peers(self) -> dict[str, dict[str, Any]]:
        """The server's peers by public key."""
        return {peer["public_key"]: peer for peer in self.status()["peers"]}

    def kept(self) -> dict[str, Any]:
        """What its state file holds; it must verify."""
        return envelope.decode((self.seen / "state.json").read_bytes())[1]

    def public_key(self) -> str:
        """That of the private key it keeps, in base64."""
        return b64encode(public_key(b64decode(self.kept()["private_key"]))).decode()

    def reaches(self, address: str = GATEWAY, wait: float = 1.0) -> bool:
        """Whether one ping is answered."""
        return self.host.run(["ping", "-c", "1", "-W", str(wait), address], check=False).returncode == 0

    def said(self) -> str:
        """What the programs said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass(slots=True)
class Site:
    """A server, and hosts that can reach it over a link of their own each.

    Attributes:
        server: The server's station; it listens on all addresses.
        hosts: The others.
        here: The server's end of each link.
        there: Each host's end.
    """

    folder: Path
    server: Station
    hosts: list[Host]
    here: list[End]
    there: list[End]
    _made: int = 0

    def client(self, nth: int = 0, *, token: str | None = TOKEN) -> Station:
        """A new client, with a state directory of its own, on the nth host."""
        self._made += 1
        name = f"client{self._made}"
        return Station(self.hosts[nth], self.folder / name, self.folder / f"{name}-run", token)

    def address(self, nth: int = 0) -> str:
        """Where the nth host reaches the server."""
        return str(self.here[nth].ipv4)


def site(lab: Lab, folder: Path, hosts: int = 1, *, own_run: bool = False) -> Site:
    """Lay out a server and hosts around it, none of which runs anything yet."""
    # A directory of ours above the state: what programs make in it is then theirs alone.
    folder.chmod(0o700)
    server = Station(lab.host("server", own_run=own_run), folder / "server", folder / "server-run")
    others = [lab.host(f"host{n}") for n in range(hosts)]
    links = [lab.link(server.host, other, ipv4=f"198.51.100.{8 * n}/29") for n, other in enumerate(others)]
    return Site(folder, server, others, [a for a, _ in links], [b for _, b in links])


def end(program: subprocess.Popen[str], how: int = signal.SIGTERM) -> int:
    """End a program, and give its exit code."""
    with suppress(ProcessLookupError):
        program.send_signal(how)
    return program.wait(PATIENCE)


def halt(program: subprocess.Popen[str]) -> None:
    """Stop a program (SIGSTOP), and come back when each of its threads stands still."""
    program.send_signal(signal.SIGSTOP)
    until("its halt", lambda: set(re.findall(r"State:\t(\w)", _statuses(program.pid))) == {"T"})


def settled(look: Callable[[], T]) -> T:
    """Look until nothing has changed for a while: what was under way has arrived by then."""

    def same() -> list[T] | None:
        before = look()
        time.sleep(0.5)
        return [before] if look() == before else None

    return until("rest", same)[0]


# -- at a chosen system call --------------------------------------------------------------------------------------


@cache
def why_no_strace() -> str:
    """Strace is here and may follow a process that lets nobody look into it."""
    if shutil.which("strace") is None:
        return "no strace (apt-get install strace)"
    undumpable = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print('', flush=True); time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", undumpable], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            with attached(child.pid, "-e", "trace=none"):
                return ""
        except AssertionError as error:
            return str(error)
        finally:
            child.kill()


def need_strace() -> None:
    """Skip the test, with the reason, where strace can't do what it must."""
    if reason := why_no_strace():
        pytest.skip(f"needs strace: {reason}")


@contextmanager
def attached(pid: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Have strace follow all threads of a process; it lets go at the end."""
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(pid), *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _wait_traced(strace, pid)
        yield strace
    finally:
        # SIGINT has it detach; SIGTERM too, but it says so.
        strace.send_signal(signal.SIGINT)
        assert strace.stderr is not None
        strace.stderr.close()
        try:
            strace.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # It was seen to wait for ever for threads that it had killed; until it is gone nobody can reap them.
            strace.kill()
            strace.wait(PATIENCE)


def _wait_traced(strace: subprocess.Popen[str], pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        statuses = _statuses(pid)
        if not statuses or "State:\tZ" in statuses:
            # It made its last call before we looked.
            return
        if strace.poll() is not None:
            assert strace.stderr is not None
            raise AssertionError(strace.stderr.read().strip() or f"strace ended with {strace.returncode}")
        tracers = re.findall(r"TracerPid:\t(\d+)", statuses)
        if tracers and all(int(tracer) == strace.pid for tracer in tracers):
            return
        time.sleep(0.005)
    raise AssertionError("strace did not attach")


def _statuses(pid: int) -> str:
    """What the kernel says of every thread of a process; nothing when it is gone."""
    said = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                said.append((task / "status").read_text())
    return "".join(said)


Call = tuple[str, int]


def calls_of(trace: Path) -> list[Call]:
    """The system calls in what `strace -f -o` wrote, in order, each with how often its thread had made it by then.

    That is how `inject=NAME:…:when=N` counts; a call that two threads made as often comes once.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[Call, None] = {}
    for line in trace.read_text(errors="replace").splitlines():
        entry = re.match(r"(\d+) +(\w+)\(", line)
        if entry is None:
            continue
        thread, name = entry.groups()
        counts[thread, name] += 1
        found[name, counts[thread, name]] = None
    return list(found)


def spread(points: list[T], count: int, *, all_of_them: bool) -> list[T]:
    """So many of them, evenly spread, first and last included; or all."""
    if all_of_them or len(points) <= count:
        return points
    return [points[round(n * (len(points) - 1) / (count - 1))] for n in range(count)]


# -- datagrams ------------------------------------------------------------------------------------------------------

# Sends what it reads (hex, one a line) to an address, from one fresh socket, with a pause after each few, and prints
# what comes back until nothing has for half a second.
_SENDER = """
import select, socket, sys, time
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
there, pause, at_once = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), int(sys.argv[4])
for number, line in enumerate(sys.stdin):
    here.sendto(bytes.fromhex(line), there)
    if number % at_once == 0: time.sleep(pause)
while select.select([here], [], [], 0.5)[0]:
    try: print(here.recv(65535).hex())
    except ConnectionError: pass
"""


def send_all(
    host: Host, address: str, port: int, datagrams: list[bytes], pause: float = 0.002, at_once: int = 1
) -> list[bytes]:
    """Send datagrams from a host, so many between two pauses, and give every answer that came."""
    text = "".join(f"{each.hex()}\n" for each in datagrams)
    argv = [sys.executable, "-c", _SENDER, address, str(port), str(pause), str(at_once)]
    return [bytes.fromhex(line) for line in host.run(argv, stdin=text, timeout=300).stdout.split()]


def recorded(record: Path, way: str) -> list[bytes]:
    """What a relay recorded that went `to target` or `to client`."""
    # The last line may be half written.
    lines = [json.loads(line) for line in record.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return [bytes.fromhex(line["datagram"]) for line in lines if line["way"] == way]


def counted(peer: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a peer moves when something from it was accepted."""
    return peer["endpoint"], peer["rx_bytes"], peer["last_handshake"] is None


# Between a client and a server: flips one bit in the first so many pairing messages of a kind, passes on the rest.
_MEDDLER = """
import select, socket, sys
kind, bit, times = map(int, sys.argv[5:8])
front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); front.bind((sys.argv[1], int(sys.argv[2])))
back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); back.bind((sys.argv[8], 0))
back.connect((sys.argv[3], int(sys.argv[4])))
print("ready", flush=True)
client = None
while True:
    for each in select.select([front, back], [], [])[0]:
        try: datagram, source = each.recvfrom(65535)
        except ConnectionError: continue
        if times and datagram[:4] == b"RGE3" and datagram[4] == kind:
            times -= 1
            changed = bytearray(datagram)
            changed[bit // 8 % len(changed)] ^= 1 << bit % 8
            datagram = bytes(changed)
            print("changed", flush=True)
        try:
            if each is front: client = source; back.send(datagram)
            elif client: front.sendto(datagram, client)
        except OSError: pass
"""


def meddle(
    host: Host, listen: tuple[str, int], target: tuple[str, int], kind: int, bit: int, times: int, source: str
) -> subprocess.Popen[str]:
    """Start one who flips this bit in the first `times` pairing messages of a kind, -1 for all; for one client.

    `source` is what the target sees it come from.
    """
    ends = [*map(str, listen), *map(str, target), str(kind), str(bit), str(times), source]
    program = host.popen([sys.executable, "-c", _MEDDLER, *ends], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


# Tries wrong tokens from several addresses, all at once; prints the address of each that was told that it is wrong.
# Its tokens are wrong whatever it makes of them: stretching a thousand would only take time.
_GUESSER = """
import asyncio, hashlib, os, socket, sys
from rustguard_py.model.clock import now
from rustguard_py.enroll.client.pair import ask
from rustguard_py.enroll.pairing.client import PairingClient
from rustguard_py.model.errors import RefusedError, RustGuardError
server, tries, patience, sources = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
async def guess(source, nth):
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); here.bind((source, 0))
    cheap = lambda token, server_id: hashlib.sha256(token.encode() + server_id).digest()
    client = PairingClient(f"wrong-{source}-{nth}", os.urandom(32), "guest", os.urandom, now(), stretching=cheap)
    try: await asyncio.wait_for(ask(client, [here], [(server, 51820)]), patience)
    except RefusedError: print(source, flush=True)
    except (TimeoutError, RustGuardError): pass
    else: print("JOINED", flush=True)
async def main(): await asyncio.gather(*(guess(s, n) for n in range(tries) for s in sources))
asyncio.run(main())
"""


def guess(
    host: Host,
    server: str,
    sources: list[str],
    tries: int,
    patience: float,
    enough: Callable[[Counter[str]], bool] | None = None,
) -> Counter[str]:
    """Try so many wrong tokens from each address, all at once; give how often each was told that it is wrong.

    Args:
        host: Where they are tried.
        server: Its address.
        sources: Addresses of the host.
        tries: From each of them.
        patience: Seconds for each try; after `enough`, how long to go on for more that shouldn't come.
        enough: Whether all that should come has come, by what was told so far. Without it, patience is the end.
    """
    argv = [sys.executable, "-c", _GUESSER, server, str(tries), str(10 * PATIENCE if enough else patience), *sources]
    with TemporaryFile() as said:

        def told() -> Counter[str]:
            # Where the program writes next is not for us to change.
            return Counter(os.pread(said.fileno(), 1 << 20, 0).decode().split())

        program = host.popen(argv, stdout=said)
        if enough:
            until("enough guesses", lambda: enough(told()), 5 * PATIENCE)
            time.sleep(patience)
            program.kill()
        program.wait(10 * PATIENCE)
        return told()
