"""What a running tunnel keeps of its privileges, once its state is open and before its interface is made.

| kept | for |
|---|---|
| CAP_NET_ADMIN | the interface, netlink, marks, /proc/sys/net, nftables |
| CAP_NET_BIND_SERVICE | a UDP port below 1024, also after it was changed |
| CAP_NET_RAW, CAP_BPF | `--xdp`: raw frames, a program and maps in the kernel (CAP_SYS_ADMIN before Linux 5.8) |
| CAP_IPC_LOCK | `--uring` and `--xdp`, only where the limit of locked memory can't be lifted instead |
| CAP_CHOWN | `--group`: the control socket is made again when somebody removes it |
| CAP_DAC_OVERRIDE | only where a directory that is needed can't be used without it |
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from rustguard_py.daemon.uapi.socket import directory as wg_sockets
from rustguard_py.engine import Engine
from rustguard_py.sandbox import capabilities
from rustguard_py.sandbox.capabilities import Capability
from rustguard_py.sandbox.privileges import Needs, give_up
from rustguard_py.sandbox.report import Report
from rustguard_py.sandbox.system_calls import refuse
from rustguard_py.state.paths import runtime_path
from rustguard_py.system.interface import TUN_DEVICE

NO_SANDBOX = Report((), ("Everything that this user may do is permitted, as --no-sandbox asks for.",))


def confine(
    directory: Path,
    engine: Engine,
    group: str | None,
    *,
    wanted: bool,
    places: Sequence[Path] = (),
    files: Sequence[Path] = (),
) -> Report:
    """Give up what a tunnel doesn't need, for good.

    Args:
        directory: The state directory, which exists.
        engine: The engine that will run.
        group: Group of the control socket, or None.
        wanted: Whether to do it; `--no-sandbox` says no.
        places: Further directories that it makes files in.
        files: Further files that it reads or writes.

    Returns:
        What was given up and what wasn't, for the status.
    """
    if not wanted:
        return NO_SANDBOX
    used = [directory, *places]
    # Made later, and again when somebody removes them.
    made = [runtime_path()]
    if not engine.in_kernel:
        made.append(wg_sockets() or directory)
        files = [*files, TUN_DEVICE] if os.path.lexists(TUN_DEVICE) else files
    used += [each for each in made if each.is_dir()]
    above = [next(filter(Path.is_dir, each.parents)) for each in made if not each.is_dir()]
    needs = Needs(_capabilities(engine, group), used, [*files, *above])
    report = give_up(needs)
    return report + refuse(uring=engine.uring, xdp=engine.xdp is not None)


def _capabilities(engine: Engine, group: str | None) -> set[Capability]:
    needed = {Capability.NET_ADMIN, Capability.NET_BIND_SERVICE}
    if engine.xdp is not None:
        bpf = Capability.BPF if capabilities.exist(Capability.BPF) else Capability.SYS_ADMIN
        needed |= {Capability.NET_RAW, bpf}
    if (engine.uring or engine.xdp is not None) and not _lift_memory_limit():
        needed.add(Capability.IPC_LOCK)
    if group is not None:
        needed.add(Capability.CHOWN)
    return needed


def _lift_memory_limit() -> bool:
    """Let this process lock as much memory as it asks for. Return False if that was refused."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return False
    return True
