"""What the operating system knows: interfaces, networks, routes, sockets."""
