"""wg-quick's files: a WireGuard interface without enrollment, with its routes, DNS and hooks."""
