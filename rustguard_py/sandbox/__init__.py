"""Giving up what a daemon doesn't need: capabilities, new privileges, system calls, writing elsewhere."""
