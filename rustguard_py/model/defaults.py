"""The values that a tunnel has unless a person or a file says otherwise."""

# UDP; the usual one for WireGuard.
DEFAULT_PORT = 51820
# Bytes. Fits a link of 1,500 bytes with WireGuard over IPv6, as wg-quick assumes.
DEFAULT_MTU = 1420
# Seconds between the persistent keepalives of a client: often enough for the usual NAT.
DEFAULT_KEEPALIVE = 25
