"""A server: how it starts, admits peers, runs and answers its control socket."""
