"""A tunnel of a user without privileges: its interface is in a network namespace of its own."""
