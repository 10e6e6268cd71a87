"""`rustguard demo`: a server and a client on this machine find each other, carry traffic, and part cleanly.

The hosts are network namespaces (rustguard_py.lab.hosts); what runs in them is the command `rustguard` itself.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rustguard_py.cli.machine import PATIENCE, Machine, eventually, offload_words
from rustguard_py.cli.render import Stage
from rustguard_py.cli.verb import Verb, offloads_option
from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import RustGuardError, UnansweredError

POOL = "10.150.0.0/24"
THROUGHPUT_SECONDS = 3
PINGS = 200


@click.command(
    "demo", cls=Verb, examples=[("sudo rustguard demo", "takes less than a minute and leaves nothing behind")]
)
@offloads_option
def command(offloads: str | None) -> None:
    """Watch a server and a client on this machine find each other with a token, carry traffic and part.

    A third host asks when the window is closed. The server is killed once, and comes back.
    """
    stage = Stage("rustguard demo", "three hosts in network namespaces on this machine; nothing else is touched")
    with tempfile.TemporaryDirectory(prefix="rustguard-demo-") as directory, Lab() as lab:
        Demo(lab, Path(directory), stage, offload_words(offloads)).play()
    stage.close()
    sys.exit(1 if stage.failed else 0)


class Demo:
    """The scenes of the demonstration. The first that fails ends it.

    Args:
        lab: Where the hosts are.
        directory: For what they keep.
        stage: What shows the scenes.
        words: Further words of `serve` and `join`.
    """

    def __init__(self, lab: Lab, directory: Path, stage: Stage, words: str = "") -> None:
        self._stage = stage
        self._words = words
        token = "-".join(secrets.choice(_WORDS) for _ in range(3))
        self._token = token
        self._machines = [
            Machine(lab.host(name), directory / name, directory / f"{name}-run", token)
            for name in ("server", "laptop", "phone")
        ]
        self._server, self._laptop, self._phone = self._machines
        lab.link(self._server.host, self._laptop.host, ipv4="198.51.100.0/29", ipv6="2001:db8:1::/64")
        lab.link(self._server.host, self._phone.host, ipv4="198.51.100.8/29", ipv6="2001:db8:2::/64")
        self._programs: dict[str, subprocess.Popen[str]] = {}

    def play(self) -> None:
        """Play every scene."""
        scenes: list[tuple[str, str, Callable[[], str]]] = [
            ("server", f"rustguard serve --pool {POOL} --token …", self._serve),
            ("server", "rustguard open 60", self._open),
            ("laptop", "rustguard join 198.51.100.1:51820 --token …", self._join),
            ("server", "rustguard status", self._status),
            ("both", "ping, both ways, over IPv4 and IPv6", self._ping),
            ("both", f"iperf3, {THROUGHPUT_SECONDS} s each way, and {PINGS} pings", self._measure),
            ("server", "rustguard close", self._close),
            ("phone", "rustguard join 198.51.100.9 --token …   (the window is closed)", self._refused),
            ("server", "kill -9, then rustguard serve again", self._crash),
            ("both", "the end: Ctrl-C for both", self._part),
        ]
        for where, what, scene in scenes:
            with self._stage.scene(where, what) as act:
                try:
                    act.succeed(scene())
                except (RustGuardError, subprocess.TimeoutExpired, OSError) as error:
                    act.fail(str(error))
                    self._stage.show_text(self._logs())
                    return

    def _serve(self) -> str:
        # Port 51820, on all addresses of both families.
        self._programs["server"] = self._server.start(f"serve --pool {POOL}{self._words}")
        document = self._await("the server's control socket", self._server.status)
        return f"listening on UDP {document['port']}, fingerprint {document['fingerprint']}, window closed"

    def _open(self) -> str:
        self._server.run("open 60")
        return f"open, {self._server.status()['window']['remaining']:.0f} s left"

    def _join(self) -> str:
        began = time.monotonic()
        self._programs["laptop"] = self._laptop.start(f"join 198.51.100.1:51820 --name laptop{self._words}")
        self._await("the first ping", lambda: self._laptop.reaches("10.150.0.1"))
        return f"joined; first ping answered {time.monotonic() - began:.2f} s after the command was typed"

    def _status(self) -> str:
        self._stage.show_text(self._server.run("status").stdout)
        peer = self._server.status()["peers"][0]
        _expect((peer["name"], peer["address4"]) == ("laptop", "10.150.0.2"), f"an unexpected peer: {peer}")
        return "one peer"

    def _ping(self) -> str:
        server, laptop = (m.status()["addresses"] for m in (self._server, self._laptop))
        for machine, targets in ((self._laptop, server), (self._server, laptop)):
            for target in targets:
                _expect(machine.reaches(target.split("/")[0]), f"no answer from {target}")
        return f"{', '.join(laptop)} ⇄ {', '.join(server)}"

    def _measure(self) -> str:
        listener = self._server.host.popen(
            ["iperf3", "-s", "-B", "10.150.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        there = self._throughput()
        back = self._throughput("-R")
        listener.terminate()
        listener.wait(10)
        said = self._laptop.host.run(["ping", "-q", "-i", "0.005", "-c", str(PINGS), "10.150.0.1"], timeout=PATIENCE)
        averages = re.findall(r"= [\d.]+/([\d.]+)/", said.stdout)
        _expect(len(averages) == 1, said.stdout)
        tcp = f"{there:,.0f} Mbit/s up, {back:,.0f} Mbit/s down over one TCP stream"
        engine = self._server.status()["engine"]
        return f"{tcp}; {float(averages[0]):.2f} ms there and back; engine: {engine}"

    def _throughput(self, *options: str) -> float:
        argv = ["iperf3", "-c", "10.150.0.1", "-t", str(THROUGHPUT_SECONDS), "-J", *options]

        def measured() -> float | None:
            # The listener may not be up yet at the first try.
            said = json.loads(self._laptop.host.run(argv, timeout=PATIENCE, check=False).stdout or "{}")
            if "sum_received" not in said.get("end", {}):
                raise RustGuardError(f"iperf3 failed: {said.get('error')}")
            return float(said["end"]["sum_received"]["bits_per_second"]) / 1e6

        return float(self._await("iperf3", measured))

    def _close(self) -> str:
        self._server.run("close")
        _expect(not self._server.status()["window"]["open"], "the window is still open")
        return "closed; laptop stays connected"

    def _refused(self) -> str:
        done = self._phone.run("join 198.51.100.9 --name phone", check=False)
        _expect(done.returncode == UnansweredError.exit_code, f"exit code {done.returncode}: {done.stderr}")
        self._stage.show_text(done.stderr)
        return "refused, exit code 5"

    def _crash(self) -> str:
        self._programs["server"].kill()
        self._programs["server"].wait()
        began = time.monotonic()
        self._programs["server"] = self._server.start(f"serve --pool {POOL}{self._words}")
        self._await("a ping through the new server", lambda: self._laptop.reaches("10.150.0.1"))
        elapsed = time.monotonic() - began
        _expect([peer["name"] for peer in self._server.status()["peers"]] == ["laptop"], "a peer was lost")
        return f"traffic again after {elapsed:.2f} s; nothing was lost, no window was open"

    def _part(self) -> str:
        for name in ("laptop", "server"):
            self._programs[name].terminate()
            code = self._programs[name].wait(10)
            _expect(code == 0, f"{name} ended with {code}")
        for machine in (self._server, self._laptop):
            left = machine.host.run(["ip", "-o", "link", "show"]).stdout
            _expect("rg0" not in left, f"an interface was left: {left}")
            _expect(not list(machine.runtime.glob("*")), "a control socket was left")
        return "both ended with exit code 0; no interface, route or socket left"

    def _await(self, what: str, attempt: Callable[[], Any]) -> Any:
        """Return the first true result of repeated attempts."""
        return eventually(what, attempt, self._programs)

    def _logs(self) -> str:
        logs = [f"output of {m.host.name}:\n{m.log.read_text()}" for m in self._machines if m.log.exists()]
        return "\n".join(logs).replace(self._token, "…")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RustGuardError(otherwise)


# Twenty guesses, which a window allows, are far too few for three of these words.
_WORDS = (
    *("acorn", "amber", "anchor", "bamboo", "basil", "beacon", "birch", "breeze", "cactus", "candle", "canyon"),
    *("cherry", "cinder", "clover", "cobalt", "comet", "copper", "coral", "cotton", "crater", "cricket", "dahlia"),
    *("ember", "falcon", "fennel", "fern", "fjord", "garnet", "ginger", "glacier", "harbor", "hazel", "heron"),
    *("iris", "island", "ivory", "jasmine", "juniper", "kelp", "lagoon", "lantern", "lemon", "lilac", "linden"),
    *("maple", "marble", "meadow", "mint", "mirror", "nectar", "oak", "ocean", "olive", "onyx", "orchid", "otter"),
)
