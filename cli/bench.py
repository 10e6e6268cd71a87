"""`rustguard bench`: compare the engines that run on this machine.

Each is measured as a user runs it: `serve` on one host and `join` on another, in a lab of its own. The engines take
turns in every round, so that other load of the machine affects all of them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from rustguard_py.cli.bench_generate import command as generate
from rustguard_py.cli.machine import PATIENCE, Machine, eventually, offload_words
from rustguard_py.cli.render import Column, show_progress, show_table
from rustguard_py.cli.values import Duration, Number
from rustguard_py.cli.verb import VerbGroup, json_option, offloads_option
from rustguard_py.data_path import DataPath
from rustguard_py.lab.hosts import End, Host, Lab
from rustguard_py.lab.stream import warm_up
from rustguard_py.model.errors import RustGuardError
from rustguard_py.system.own_python import import_path

SCHEMA = 1
INNER = "10.150.0.1"
PORT = 5201
PINGS = 100


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured.

    Attributes:
        name: For the table.
        words: Options of `serve` and `join`; None for the link alone, with no tunnel on it.
    """

    name: str
    words: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of a contender.

    Attributes:
        up: One TCP stream from the client to the server, Mbit/s.
        down: The other way.
        ping: There and back, milliseconds, the median of `PINGS`.
        cpu: Seconds of both programs for a gigabyte up; None where the work isn't theirs.
    """

    up: float
    down: float
    ping: float
    cpu: float | None


@click.group(
    "bench",
    cls=VerbGroup,
    invoke_without_command=True,
    examples=[
        ("sudo rustguard bench", "takes a minute, touches no network and leaves nothing behind"),
        ("sudo rustguard bench --rounds 5 --seconds 5", "the same with less variation"),
    ],
)
@click.option(
    "--rounds", type=Number(1, 100), metavar="N", default=3, show_default=True, help="Number of turns of each engine."
)
@click.option("--seconds", type=Duration(0.2, 60), default=1.0, show_default=True, help="Length of each TCP stream.")
@offloads_option
@json_option
@click.pass_context
def command(context: click.Context, rounds: int, seconds: float, offloads: str | None, as_json: bool) -> None:
    """Compare the engines that run here, and show which one `auto` takes.

    Two hosts in network namespaces, a tunnel between them, one TCP stream each way, and pings. Both ends share this
    machine's cores: compare the rows with each other, not with what a network can do.
    """
    if context.invoked_subcommand is not None:
        return
    here, missing = contenders(offloads)
    samples: dict[str, list[Sample]] = {each.name: [] for each in here}
    for number in range(rounds):
        turn = number % len(here)
        for each in here[turn:] + here[:turn]:
            with show_progress(f"round {number + 1} of {rounds}: {each.name}", quiet=as_json):
                samples[each.name].append(measure(each, seconds))
    chosen = _auto()
    if as_json:
        _print_json(samples, missing, chosen, rounds, seconds, offloads)
    else:
        _print_table(samples, missing, chosen, rounds, offloads)


command.add_command(generate)


def contenders(offloads: str | None = None) -> tuple[list[Contender], dict[str, str]]:
    """Return what can run here, the link alone first, and why other engines can't, by name.

    Args:
        offloads: The list of `--offloads`, or None.
    """
    from rustguard_py import engine

    found, missing = [Contender("no tunnel", None)], {}
    for name in engine.ENGINES:
        if name == "auto":
            continue
        try:
            engine.choose(DataPath(name))
        except RustGuardError as error:
            missing[name] = error.message
            continue
        # The kernel's engine has offloads of its own.
        more = "" if name == "kernel" else offload_words(offloads)
        found.append(Contender(name, f"--engine {name}{more}"))
        if name == "native":
            found.append(Contender("native, io_uring", f"--engine native --uring{more}"))
    return found, missing


def _auto() -> tuple[str, str]:
    from rustguard_py import engine

    chosen = engine.choose(DataPath())
    return chosen.name, chosen.reason


# -- one turn -------------------------------------------------------------------------------------------------------


def measure(contender: Contender, seconds: float) -> Sample:
    """Return one sample of a contender, which carries traffic between two hosts of its own.

    Raises:
        RustGuardError: It carries none.
    """
    with tempfile.TemporaryDirectory(prefix="rustguard-bench-") as directory, Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        there, _ = lab.link(server, client, ipv4="198.51.100.0/29")
        if contender.words is None:
            return _sample(client, server, str(there.ipv4), [], seconds)
        with _tunnel(Path(directory), server, client, there, contender.words) as programs:
            # The kernel's work is in no process.
            ours = [] if contender.name == "kernel" else programs
            return _sample(client, server, INNER, ours, seconds)


@contextmanager
def _tunnel(directory: Path, server: Host, client: Host, there: End, words: str) -> Iterator[list[int]]:
    """Run a tunnel; the context is the process ids of its two ends."""
    token = secrets.token_urlsafe(24)
    home, guest = (
        Machine(host, directory / host.name, directory / f"{host.name}-run", token) for host in (server, client)
    )
    programs = {"serve": home.start(f"serve --pool 10.150.0.0/24 --open {words}")}
    try:
        eventually("the server's control socket", home.status, programs)
        programs["join"] = guest.start(f"join {there.ipv4} --name client {words}")
        eventually("the first ping", lambda: guest.reaches(INNER), programs)
        yield [program.pid for program in programs.values()]
    except RustGuardError as error:
        said = "\n".join(machine.log.read_text() for machine in (home, guest) if machine.log.exists())
        raise RustGuardError(f"{words}: {error.message}", fix=said.replace(token, "…").rstrip()) from error
    finally:
        for program in programs.values():
            program.terminate()
        for program in programs.values():
            program.wait(PATIENCE)


def _sample(client: Host, server: Host, address: str, programs: list[int], seconds: float) -> Sample:
    before = _cpu_seconds(programs)
    up = _stream(client, server, address, seconds)
    # The start that isn't counted moves bytes too, so divide by all bytes that went up, at the measured rate.
    gigabytes = up * (seconds + warm_up(seconds)) / 8 / 1e3
    cpu = (_cpu_seconds(programs) - before) / gigabytes if programs else None
    down = _stream(server, client, address, seconds, back=True)
    return Sample(up, down, _ping(client, address), cpu)


def _stream(sender: Host, taker: Host, address: str, seconds: float, *, back: bool = False) -> float:
    """Return the rate of one stream, in Mbit/s."""
    # The receiver listens. On the way back that is the client, at its own address.
    where = _own_address(taker, address) if back else address
    program = [sys.executable, "-P", "-m", "rustguard_py.lab.stream"]
    taking = taker.popen(
        [*program, "take", where, str(PORT), str(seconds)], stdout=subprocess.PIPE, env=import_path()
    )
    out = taking.stdout
    if out is None or out.readline() != "ready\n":
        raise RustGuardError(f"Nothing can listen at {where}.")
    sending = sender.popen([*program, "send", where, str(PORT)], env=import_path())
    said, _ = taking.communicate(timeout=seconds + PATIENCE)
    sending.wait(PATIENCE)
    if taking.returncode != 0:
        raise RustGuardError("The stream was interrupted.")
    return float(said)


def _own_address(host: Host, towards: str) -> str:
    """Return the address that a host sends from towards another."""
    routes = json.loads(host.run(["ip", "-j", "route", "get", towards]).stdout)
    return str(routes[0]["prefsrc"])


def _ping(host: Host, address: str) -> float:
    said = host.run(["ping", "-n", "-i", "0.005", "-c", str(PINGS), address], timeout=PATIENCE).stdout
    times = [float(each) for each in re.findall(r"time=([\d.]+)", said)]
    if not times:
        raise RustGuardError(f"No ping was answered by {address}.")
    return median(times)


def _cpu_seconds(programs: list[int]) -> float:
    """Return the CPU seconds of processes so far, with all threads: proc(5), utime and stime."""
    ticks = 0
    for pid in programs:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# -- what is shown --------------------------------------------------------------------------------------------------


def _medians(samples: list[Sample]) -> Sample:
    used = [each.cpu for each in samples if each.cpu is not None]
    return Sample(
        median(each.up for each in samples),
        median(each.down for each in samples),
        median(each.ping for each in samples),
        median(used) if used else None,
    )


def _print_json(
    samples: Mapping[str, list[Sample]],
    missing: Mapping[str, str],
    chosen: tuple[str, str],
    rounds: int,
    seconds: float,
    offloads: str | None,
) -> None:
    document = {
        "schema": SCHEMA,
        "rounds": rounds,
        "seconds": seconds,
        "offloads": offloads or "auto",
        "engines": [
            {"name": name, "medians": asdict(_medians(each)), "samples": [asdict(one) for one in each]}
            for name, each in samples.items()
        ],
        "missing": dict(missing),
        "auto": {"name": chosen[0], "reason": chosen[1]},
    }
    click.echo(json.dumps(document))


def _print_table(
    samples: Mapping[str, list[Sample]],
    missing: Mapping[str, str],
    chosen: tuple[str, str],
    rounds: int,
    offloads: str | None,
) -> None:
    rows = []
    for name, each in samples.items():
        middle = _medians(each)
        spread = f"{min(one.up for one in each):,.0f} to {max(one.up for one in each):,.0f}" if rounds > 1 else ""
        cpu = "" if middle.cpu is None else f"{middle.cpu:.2f}"
        rows.append([name, f"{middle.up:,.0f}", spread, f"{middle.down:,.0f}", f"{middle.ping:.3f}", cpu])
    columns = [
        Column("ENGINE"),
        Column("TCP up, Mbit/s", right=True),
        Column("least to most", right=True),
        Column("down", right=True),
        Column("ping, ms", right=True),
        Column("CPU s/GB", right=True),
    ]
    lines = [f"{name} is left out: {why}" for name, why in missing.items()]
    if offloads is not None:
        lines.append(f"Offloads of native and portable: {offloads}.")
    show_table(columns, rows, [*lines, f"auto takes {chosen[0]}: {chosen[1]}."])
