"""What a running tunnel keeps of its privileges, once its state is open and before its interface is made.

| kept | for |
|---|---|
| CAP_NET_ADMIN | the interface, netlink, marks, /proc/sys/net, nftables |
| CAP_NET_BIND_SERVICE | a UDP port below 1024, also after it was changed |
| CAP_NET_RAW, CAP_BPF | `--xdp`: raw frames, a program and maps in the kernel (CAP_SYS_ADMIN before Linux 5.8) |
| CAP_IPC_LOCK | `--uring` and `--xdp`, only where the limit of locked memory can't be lifted instead |
| CAP_CHOWN | `--group`: the control socket is made again when somebody removes it |
| CAP_DAC_OVERRIDE | only where a directory that is needed can't be used without it |

Where the kernel has Landlock, it writes only to its state directory and, without a memif, to settings of the network
and to /dev/net/tun. A helper makes the sockets then (`daemon.places`), and it is the one that keeps CAP_CHOWN.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rustguard_py.daemon import places
from rustguard_py.daemon.control.server import group_id
from rustguard_py.daemon.uapi.socket import directory as wg_sockets
from rustguard_py.engine import Engine
from rustguard_py.sandbox import capabilities, writing
from rustguard_py.sandbox.capabilities import Capability
from rustguard_py.sandbox.privileges import Needs, give_up
from rustguard_py.sandbox.report import Report
from rustguard_py.sandbox.system_calls import refuse
from rustguard_py.state.paths import runtime_path
from rustguard_py.system.interface import SYSCTLS, TUN_DEVICE

NO_SANDBOX = Report((), ("Everything that this user may do is permitted, as --no-sandbox asks for.",))
# Settings of interfaces, with one directory for each.
_INTERFACES = Path("/sys/devices/virtual/net")


def confine(
    stack: AsyncExitStack,
    directory: Path,
    engine: Engine,
    group: str | None,
    *,
    wanted: bool,
    log: Path | None = None,
    reads: Sequence[Path] = (),
) -> Report:
    """Give up what a tunnel doesn't need, for good.

    Args:
        stack: Ends the helper for sockets, after all that uses it.
        directory: The state directory, which exists.
        engine: The engine that will run.
        group: Group of the control socket, or None.
        wanted: Whether to do it; `--no-sandbox` says no.
        log: The log file of a daemon in the background, or None.
        reads: Further files that it reads.

    Returns:
        What was given up and what wasn't, for the status.
    """
    if not wanted:
        return NO_SANDBOX
    sockets = _for_sockets(directory, engine, group, log)
    why_not = writing.why_not() or _start_helper(stack, directory, engine, group, log, sockets)
    kept, devices = _capabilities(engine), [TUN_DEVICE] if engine.memif is None and not engine.in_kernel else []
    own = Needs(kept, [directory], [*reads, *filter(os.path.lexists, [*devices, *_to_connect(engine)])])
    report = give_up(own if why_not is None else own + sockets)
    if why_not is None:
        # With a memif, the network of this machine stays as it is.
        files = [SYSCTLS / "net/ipv4", SYSCTLS / "net/ipv6"] if engine.memif is None else []
        if engine.threaded_napi:
            files.append(_INTERFACES)
        limited = writing.limit(writing.Places([directory], files, devices))
    else:
        limited = writing.not_limited(why_not)
    # Modes and owners, which Landlock leaves alone.
    modes = bool(limited.applied)
    return report + limited + refuse(uring=engine.uring, xdp=engine.xdp is not None, modes=modes)


def _start_helper(
    stack: AsyncExitStack, directory: Path, engine: Engine, group: str | None, log: Path | None, needs: Needs
) -> str | None:
    """Fork the helper for sockets. Return why there is none, or None."""
    wg = None if engine.in_kernel else wg_sockets()
    try:
        helper = places.PlacesHelper.start(directory, group_id(group), wg, log, needs, _to_listen(engine))
    except OSError as error:
        return f"the process that would make sockets can't be started ({error.strerror})"
    stack.callback(helper.close)
    places.use(helper)
    stack.callback(places.use, None)
    return None


def _to_listen(engine: Engine) -> Path | None:
    """Return the socket that the engine's memif listens at, or None."""
    return engine.memif.socket if engine.memif is not None and engine.memif.server else None


def _to_connect(engine: Engine) -> list[Path]:
    """Return the socket that the engine's memif connects to."""
    return [] if engine.memif is None or engine.memif.server else [engine.memif.socket]


def _for_sockets(directory: Path, engine: Engine, group: str | None, log: Path | None) -> Needs:
    """Return what making the sockets needs, and the log file."""
    # Made later, and again when somebody removes them.
    made = [runtime_path()]
    if not engine.in_kernel:
        made.append(wg_sockets() or directory)
    used = [each for each in made if each.is_dir()]
    above = [next(filter(Path.is_dir, each.parents)) for each in made if not each.is_dir()]
    if (listens := _to_listen(engine)) is not None and listens.parent.is_dir():
        # Other files of that directory are none of ours.
        above.append(listens.parent)
    if log is not None:
        above.append(log if log.exists() else log.parent)
    return Needs(set() if group is None else {Capability.CHOWN}, used, above)


def _capabilities(engine: Engine) -> set[Capability]:
    needed = {Capability.NET_ADMIN, Capability.NET_BIND_SERVICE}
    if engine.xdp is not None:
        bpf = Capability.BPF if capabilities.exist(Capability.BPF) else Capability.SYS_ADMIN
        needed |= {Capability.NET_RAW, bpf}
    if (engine.uring or engine.xdp is not None) and not _lift_memory_limit():
        needed.add(Capability.IPC_LOCK)
    return needed


def _lift_memory_limit() -> bool:
    """Let this process lock as much memory as it asks for. Return False if that was refused."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return False
    return True
