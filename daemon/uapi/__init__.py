"""WireGuard's cross-platform interface for wg(8): its protocol and its socket."""
