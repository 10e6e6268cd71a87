"""Enrollment: two machines that share a token become WireGuard peers (docs/enrollment.md)."""
