"""RustGuard: a zero-config enrollment VPN that speaks WireGuard on the wire."""

__version__ = "0.2.0"
