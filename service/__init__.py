"""What runs RustGuard at boot: units of systemd, and how they are installed; services of OpenRC."""
