"""Where the CPU time of a packet goes, by stage, without touching the engine.

The kernel counts each thread's time in the program and in the kernel. With a channel or a memif there is no device in
the kernel, so all system time of a thread of the native plane is its UDP side's, but for what wakes the other side.
A few calls of the device itself are timed. What remains of a thread's own time is look-up and sealing, or opening and
the window.
"""

from __future__ import annotations

from collections.abc import Mapping

from rustguard_py.cli.generate.trial import Cpu, Trial

_OUT, _IN = "rg-out-", "rg-in-"


def stages(trial: Trial) -> dict[str, float]:
    """Return nanoseconds per packet that arrived, by stage, in the order that a packet passes them."""
    if not trial.received:
        return {}
    named = {**trial.out, **trial.inward}
    if not any(name.startswith(_OUT) for name in named):
        found: dict[str, float] = {"sending end": _total(trial.out), "receiving end": _total(trial.inward)}
    else:
        found = _native(trial)
    whole: dict[str, float] = {"generator": trial.generator.total, **found, "sink": trial.sink.total}
    return {name: nanoseconds / trial.received for name, nanoseconds in whole.items()}


def _native(trial: Trial) -> dict[str, float]:
    out, inward = _sum(trial.out, _OUT), _sum(trial.inward, _IN)
    others = _total(trial.out) + _total(trial.inward) - out.total - inward.total
    if {"read", "write"} <= set(trial.device):
        read, write = (min(trial.device[way], cpu.user) for way, cpu in (("read", out), ("write", inward)))
        return {
            "device read": read,
            "seal": out.user - read,
            "send": out.system,
            "receive": inward.system,
            "open": inward.user - write,
            "device write": write,
            "other threads": others,
        }
    return {
        "seal": out.user,
        "device read, send": out.system,
        "receive, device write": inward.system,
        "open": inward.user,
        "other threads": others,
    }


def _sum(threads: Mapping[str, Cpu], prefix: str) -> Cpu:
    of = [cpu for name, cpu in threads.items() if name.startswith(prefix)]
    return Cpu(sum(cpu.user for cpu in of), sum(cpu.system for cpu in of))


def _total(threads: Mapping[str, Cpu]) -> int:
    return sum(cpu.total for cpu in threads.values())
