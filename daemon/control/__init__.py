"""The control socket: its protocol, server and client."""
