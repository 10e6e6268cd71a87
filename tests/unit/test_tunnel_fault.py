"""A plane that reports a fault: what ends the tunnel, and what doesn't."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from rustguard_py.model.tunnel import Listeners
from rustguard_py.planes.contract import Fault
from rustguard_py.tunnel import Tunnel

# As the planes word it (`planes.contract`).
GONE = "rg0: File descriptor in bad state"
OTHER = "rg0: a fault of ours"


def tunnel(*, runs: bool = False, lost: list[str] | None = None) -> Tunnel:
    plane = SimpleNamespace(is_running=lambda: runs)
    listeners = Listeners() if lost is None else Listeners(lost=lambda: lost.append("lost"))
    return Tunnel(cast(Any, None), cast(Any, plane), listeners)


def report(made: Tunnel, *, fatal: bool, gone: bool) -> None:
    fault = Fault(GONE if gone else OTHER, fatal)
    assert fault.interface_is_gone is gone
    made._on_fault(fault)


def test_a_fatal_fault_ends_the_tunnel_with_an_error_that_names_it() -> None:
    async def main() -> None:
        for made in (tunnel(), tunnel(lost=[])):
            gone = made.listeners.lost is None
            report(made, fatal=True, gone=gone)
            assert made.stopped.is_set()
            assert made.fault is not None
            assert made.fault.message == f"The data plane stopped: {GONE if gone else OTHER}"

    asyncio.run(main())


def test_a_fault_that_is_not_fatal_ends_nothing() -> None:
    async def main() -> None:
        made = tunnel()
        report(made, fatal=False, gone=False)
        assert (made.fault, made.stopped.is_set()) == (None, False)

    asyncio.run(main())


def test_an_interface_that_is_gone_is_lost_once_where_somebody_makes_it_again() -> None:
    async def main() -> None:
        for runs, calls in ((False, ["lost"]), (True, [])):
            lost: list[str] = []
            made = tunnel(runs=runs, lost=lost)
            report(made, fatal=True, gone=True)
            assert (lost, made.fault, made.stopped.is_set()) == (calls, None, False)

    asyncio.run(main())
