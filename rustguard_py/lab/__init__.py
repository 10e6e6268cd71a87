"""Hosts on one machine, in network namespaces."""
