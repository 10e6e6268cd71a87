"""The pairing protocol, sans-IO, below both ends (docs/internals/enrollment.md)."""
