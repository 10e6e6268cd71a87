"""Refusing system calls that no daemon makes (`native/plane/src/seccomp.rs`)."""

from __future__ import annotations

from rustguard_py.sandbox.report import Report


def refuse(*, uring: bool, xdp: bool, modes: bool = False) -> Report:
    """Refuse them to this thread and to all that it starts, for good. `privileges.give_up` comes first.

    Args:
        uring: Whether io_uring is used.
        xdp: Whether AF_XDP is used.
        modes: Whether modes and owners of files are to stay as they are.

    Returns:
        How many are refused, or why none is: the process goes on.
    """
    try:
        from rustguard_py._native import refuse_system_calls
    except ImportError:
        why = "this installation has no native engine, which brings the filter"
    else:
        try:
            return Report((f"{refuse_system_calls(uring=uring, xdp=xdp, modes=modes)} system calls refused",))
        except OSError as error:
            # Rust adds the number.
            why = (error.strerror or str(error)).partition(" (os error ")[0]
    return Report((), (f"No system call is refused: {why}.",))
