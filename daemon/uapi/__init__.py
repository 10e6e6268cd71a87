"""What wg(8) asks of a user-space WireGuard: the language and the socket."""
