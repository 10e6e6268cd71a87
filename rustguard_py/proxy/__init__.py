"""The proxy of a join without root: SOCKS5, HTTP CONNECT and forwarded ports, from the host into the tunnel and back.

Python decides: it reads what a client asks for and opens the connection. Then a relay moves the bytes: in Rust
(`native/relay`), or in Python where the extension isn't built. Sockets in the tunnel come from an `Inside`, so this
room knows nothing of namespaces.
"""
