"""Units for systemd: their text, and how they are installed."""
