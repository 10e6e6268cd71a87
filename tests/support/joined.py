"""A network as a client keeps it that has joined it."""

from __future__ import annotations

from ipaddress import IPv4Interface

from rustguard_py.state.client_records import NetworkRecord

NETWORK = NetworkRecord(
    host="home.example",
    port=51820,
    server_key=b"s" * 32,
    preshared_key=b"p" * 32,
    name="laptop",
    address4=IPv4Interface("10.150.0.2/24"),
    address6=None,
    routes=(),
    mtu=1420,
    keepalive=25,
    gateway4=None,
    gateway6=None,
    joined=0.0,
)
