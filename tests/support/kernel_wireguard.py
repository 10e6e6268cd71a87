"""The kernel's WireGuard in a host of the lab, set up with wireguard-tools as wireguard-go is."""

from __future__ import annotations

from pathlib import Path

from support.wireguard_go import WireGuardGo

# It makes the interface, and stands for it: so long as it runs, nobody took that away.
ARGV = ["sh", "-c", 'ip link add dev "$0" type wireguard && exec sleep infinity']


class KernelWireGuard(WireGuardGo):
    """An interface of the kernel's."""

    def _is_there(self) -> bool:
        return f" {self.interface}:" in Path(f"/proc/{self.host.pid}/net/dev").read_text()

    def stop(self) -> None:
        """End it."""
        super().stop()
        self.host.ip([f"link delete dev {self.interface}"])
