"""How long to rest between two looks at what is waited for."""

from __future__ import annotations

import time

_LEAST, _MOST = 0.01, 0.2


def rest(began: float) -> float:
    """Seconds to rest after a look that began then (monotonic).

    A look may start programs, such as a ping: it shall not take the machine from what it waits for.
    """
    return min(max(_LEAST, 5 * (time.monotonic() - began)), _MOST)
