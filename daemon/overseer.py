"""Asks the planes for signs of life, and feeds the service manager's watchdog while everything answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from rustguard_py.daemon.service_manager import ServiceManager
from rustguard_py.model.tunnel import AnyTunnel

log = logging.getLogger(__name__)

# How often the planes are asked, and the status line is refreshed, where there is no watchdog, seconds.
PACE = 10.0
# How often per watchdog interval the planes are asked: one late answer doesn't end the daemon.
ASKED_PER_INTERVAL = 4


async def oversee(manager: ServiceManager, tunnels: Sequence[AnyTunnel], describe: Callable[[], str]) -> None:
    """Ask until cancelled, and feed the watchdog if there is one.

    Running at all shows that the event loop answers. The plane of each tunnel is asked too, thread by thread, and
    the watchdog is fed only if each has answered what it was asked the time before. Those that have not are the
    tunnel's `silent` ones, which `status` shows.

    Args:
        manager: The service manager, if there is one.
        tunnels: All tunnels.
        describe: Returns the status line.
    """
    pace = PACE if manager.watchdog is None else manager.watchdog / ASKED_PER_INTERVAL
    while True:
        for tunnel in tunnels:
            tunnel.silent = tunnel.plane.roll_call() if tunnel.fault is None else []
        silent = [
            f"{thread} of tunnel {place}" if len(tunnels) > 1 else thread
            for place, tunnel in enumerate(tunnels)
            for thread in tunnel.silent
        ]
        if silent:
            left = "; the watchdog isn't fed" if manager.watchdog is not None else ""
            log.error("no answer from the plane for %.3g s: %s%s", pace, ", ".join(silent), left)
        else:
            manager.feed_watchdog()
        manager.status(describe())
        await asyncio.sleep(pace)
