"""Tunnels inside a Python program: IP packets in batches, without an interface (docs/guide/embedding.md)."""
