"""What `inbound` and `outbound` share to handle a batch of datagrams without a Python loop."""

from __future__ import annotations

from collections import deque

import numpy as np

from rustguard_py.planes.offload import MAX_SEGMENTS

# 0, 1, 2, …: added to the first counter of a run it gives all of them.
INDEX = np.arange(MAX_SEGMENTS, dtype=np.uint64)
# Views over a buffer are kept for this many datagram sizes: those of small datagrams take up to 40 KiB.
LAYOUTS_KEPT = 48
# Exhausts an iterator for its effects: `run_all(map(function, …))` calls the function without a Python loop.
run_all = deque[object](maxlen=0).extend
