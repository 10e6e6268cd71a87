"""The kernel's WireGuard as an engine."""
