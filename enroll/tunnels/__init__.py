"""Several tunnels between one server and one client: what both ends share."""
