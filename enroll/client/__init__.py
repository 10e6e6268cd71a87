"""A client: how it joins, runs and answers its control socket."""
