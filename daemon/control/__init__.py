"""The control socket: its language, its server and its client."""
