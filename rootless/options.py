"""What `join --rootless` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from rustguard_py.model.endpoint import IpAddress


@dataclass(frozen=True, slots=True)
class Rootless:
    """The options of a tunnel without root.

    Attributes:
        servers: Name servers to use inside; empty for the server's inner addresses.
    """

    servers: tuple[IpAddress, ...] = ()
