"""Several tunnels between one server and one client, below both."""
