"""Feeds the service manager's watchdog while everything answers, and keeps its status line up to date."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from rustguard_py.daemon.service_manager import ServiceManager
from rustguard_py.model.tunnel import AnyTunnel

log = logging.getLogger(__name__)

# How often the status line is refreshed where there is no watchdog, seconds.
PACE = 10.0
# How often per watchdog interval the planes are asked: one late answer doesn't end the daemon.
ASKED_PER_INTERVAL = 4


async def oversee(manager: ServiceManager, tunnels: Sequence[AnyTunnel], describe: Callable[[], str]) -> None:
    """Feed the watchdog until cancelled.

    Running at all shows that the event loop answers. The plane of each tunnel is asked too, thread by thread, and
    the watchdog is fed only if each has answered what it was asked the time before.

    Args:
        manager: The service manager. Without one this ends at once.
        tunnels: All tunnels.
        describe: Returns the status line.
    """
    if manager.address is None:
        return
    pace = PACE if manager.watchdog is None else manager.watchdog / ASKED_PER_INTERVAL
    while True:
        silent = [
            f"{thread} of tunnel {place}" if len(tunnels) > 1 else thread
            for place, tunnel in enumerate(tunnels)
            if tunnel.fault is None
            for thread in tunnel.plane.roll_call()
        ]
        if silent:
            log.error("no answer from the plane for %.3g s: %s; the watchdog isn't fed", pace, ", ".join(silent))
        else:
            manager.feed_watchdog()
        manager.status(describe())
        await asyncio.sleep(pace)
