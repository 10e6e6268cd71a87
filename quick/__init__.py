"""wg-quick's files, run: a WireGuard interface that nobody enrols at, its routes, its DNS and its hooks."""
