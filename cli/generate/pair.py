"""Two ends of a tunnel in namespaces of their own, joined by a veth pair, and trials between them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rustguard_py.cli.generate.end import Configuration
from rustguard_py.cli.generate.layout import MOST_SIZE
from rustguard_py.cli.generate.trial import Trial, put_together
from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.model.errors import RustGuardError, UnansweredError
from rustguard_py.system.own_python import import_path

PORT = 51820
ADDRESSES = "10.99.0.1", "10.99.0.2"
# Packets that may wait in a channel, each way.
CAPACITY = 4096
# What an end may take beyond the time of a trial, seconds.
PATIENCE = 15.0
# The packets that the first handshake is for.
_FIRST_RATE, _FIRST_SECONDS = 100.0, 0.1


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured.

    Attributes:
        name: For tables.
        device: `channel`, `memif` or `tun`: where packets come from and go to.
        side: The UDP side: `sockets`, `io_uring`, `AF_XDP`.
        engine: `native` or `portable`; not used with a program.
        program: Another program that is an end, or None for ours.
        offloads: The list of `--offloads`, or None; not used with a program.
    """

    name: str
    device: str
    side: str
    engine: str = "native"
    program: tuple[str, ...] | None = None
    offloads: str | None = None


class EndProcess:
    """A running end.

    Args:
        host: Where it runs.
        name: For errors.
        argv: The program.
        given: Its configuration.

    Attributes:
        about: What it says of itself.
        notes: What it does without.
    """

    def __init__(self, host: Host, name: str, argv: Sequence[str], given: Configuration) -> None:
        self._name = name
        self._host = host
        self._process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=import_path())
        self.say(asdict(given))
        ready = self.hear(PATIENCE)
        self.about, self.notes = str(ready["about"]), list(ready["notes"])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def socket_drops(self) -> int:
        """Return how many datagrams found a UDP socket of this host full, so far (proc_net_udp(5))."""
        rows = Path(f"/proc/{self._host.pid}/net/udp").read_text().splitlines()[1:]
        return sum(int(row.split()[-1]) for row in rows)

    def say(self, what: dict[str, Any]) -> None:
        """Send a request, as a line of JSON, to its standard input. One that has ended already is not an error."""
        into = self._process.stdin
        if into is None:
            raise RustGuardError(f"{self._name} has no standard input.")
        try:
            into.write(json.dumps(what) + "\n")
            into.flush()
        except BrokenPipeError:
            # It has said why.
            pass

    def hear(self, seconds: float) -> dict[str, Any]:
        """Return its next answer, waiting for it at most so many seconds.

        Raises:
            UnansweredError: None came in time.
            RustGuardError: It failed.
        """
        out = self._process.stdout
        if out is None or not select.select([out], [], [], seconds)[0]:
            raise UnansweredError(f"{self._name} didn't answer within {seconds:.0f} s.")
        line = out.readline()
        if not line:
            raise RustGuardError(f"{self._name} ended with exit code {self._process.wait(PATIENCE)}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RustGuardError(f"{self._name}: {answer['error']}")
        return answer

    def ask(self, what: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a line and return the answer."""
        self.say(what)
        return self.hear(seconds)


class Pair:
    """Two ends that reach each other.

    Args:
        sender: The end that sends.
        receiver: The end that receives.
    """

    def __init__(self, sender: EndProcess, receiver: EndProcess) -> None:
        self._sender = sender
        self._receiver = receiver
        self._numbers = count(1)

    @property
    def notes(self) -> list[str]:
        """What the ends do without, each note once."""
        return list(dict.fromkeys([*self._sender.notes, *self._receiver.notes]))

    @property
    def about(self) -> str:
        """What the ends say of their engine."""
        return self._sender.about

    def trial(self, load: float | None, seconds: float, sizes: Sequence[int], flows: int) -> Trial:
        """Offer a load, in packets per second or as much as the device takes, and return what came of it."""
        number = next(self._numbers)
        self._receiver.ask({"do": "receive", "trial": number, "flows": flows}, PATIENCE)
        order = {
            "do": "send",
            "trial": number,
            "sizes": list(sizes),
            "flows": flows,
            "rate": load or 0,
            "seconds": seconds,
        }
        full = self._receiver.socket_drops()
        sent = self._sender.ask(order, 2 * seconds + PATIENCE)
        received = self._receiver.ask({"do": "report", "sent": sent["sent"]}, PATIENCE)
        return put_together(load, sent, received, {"udp_socket_full": self._receiver.socket_drops() - full})

    def shake_hands(self) -> None:
        """Send a few packets until some arrive.

        Raises:
            UnansweredError: None did.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.trial(_FIRST_RATE, _FIRST_SECONDS, (64,), 1).received:
            if time.monotonic() > deadline:
                raise UnansweredError("No packet came through the tunnel.")


@contextmanager
def running(contender: Contender, interface: str | None = None, *, segmentation: bool = True) -> Iterator[Pair]:
    """Run a contender's two ends; the context is the pair, after its handshake.

    Args:
        contender: Which.
        interface: The name that the link's interfaces get, or None for names of the lab's.
        segmentation: Whether the link passes UDP messages of many datagrams whole, as veth does.

    Raises:
        RustGuardError: It can't run here.
    """
    with TemporaryDirectory() as folder, start_ends(contender, Path(folder), interface, segmentation) as ends:
        pair = Pair(*ends)
        pair.shake_hands()
        yield pair


@contextmanager
def start_ends(
    contender: Contender, folder: Path, interface: str | None = None, segmentation: bool = True
) -> Iterator[list[EndProcess]]:
    """Run a contender's two ends, which have no session yet; the context is the two, the sender first.

    Args:
        contender: Which.
        folder: Where an end with a memif makes its socket, see `memif_path`.
        interface: As in `running`.
        segmentation: As in `running`.
    """
    keys = [X25519PrivateKey.generate() for _ in ADDRESSES]
    with Lab() as lab:
        hosts = [lab.host(name) for name in ("sender", "receiver")]
        links = lab.link(*hosts, ipv4="198.51.100.0/29")
        if interface is not None:
            for link in links:
                _rename(link, interface)
        if not segmentation:
            for host in hosts:
                lab.udp_segmentation(host, on=False)
        argv = contender.program or (sys.executable, "-P", "-m", "rustguard_py.cli.generate.end")
        ends = []
        for own, other in ((0, 1), (1, 0)):
            given = Configuration(
                private_key=b64encode(keys[own].private_bytes_raw()).decode(),
                peer_key=b64encode(keys[other].public_key().public_bytes_raw()).decode(),
                port=PORT,
                endpoint=f"{links[other].ipv4}:{PORT}",
                address=ADDRESSES[own],
                peer_address=ADDRESSES[other],
                mtu=MOST_SIZE,
                capacity=CAPACITY,
                device=contender.device,
                engine=contender.engine,
                uring=contender.side == "io_uring",
                xdp=links[own].interface if contender.side == "AF_XDP" else None,
                memif=str(memif_path(folder, own)),
                offloads=contender.offloads,
            )
            ends.append(EndProcess(hosts[own], f"{contender.name}, {hosts[own].name}", argv, given))
        yield ends


def memif_path(folder: Path, end: int) -> Path:
    """Return where an end's memif has its socket; 0 is the sender."""
    return folder / f"memif-{end}"


def _rename(link: End, name: str) -> None:
    if link.interface != name:
        link.set("down")
        link.set("name", name)
        link.interface = name
        link.set("up")
