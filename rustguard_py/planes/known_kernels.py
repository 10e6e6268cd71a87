"""Kernels that are known to get an offload wrong, each with the least that avoids it.

What a kernel refuses with an error needs no entry, because the planes then send or write the same packets one by one.
An entry is for what goes wrong without an error, or for an error that would come again and again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, ...]

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class KnownKernel:
    """Kernels that get an offload wrong.

    Attributes:
        offloads: The offloads to leave off, by name.
        fault: What goes wrong, as the end of a sentence.
        source: Where it was reported.
        first: The first upstream version, inclusive.
        fixed: The first upstream version that does it right.
        build: What the release of the distribution's build matches, instead of upstream versions.
        except_for: Builds within these versions that have the fix.
        guests_only: Whether it was seen in virtual machines only.
    """

    offloads: tuple[str, ...]
    fault: str
    source: str
    first: Version = (0,)
    fixed: Version = (0,)
    build: str | None = None
    except_for: str | None = None
    guests_only: bool = False

    def has(self, release: str, *, guest: bool) -> bool:
        """Return whether the kernel of this release (`uname -r`) is one of them. `guest`: in a virtual machine."""
        if self.guests_only and not guest:
            return False
        if self.build is not None:
            return re.match(self.build, release) is not None
        if self.except_for is not None and re.match(self.except_for, release):
            return False
        return self.first <= version_of(release) < self.fixed


KNOWN = (
    KnownKernel(
        ("udp-segmentation",),
        "Linux 7.0 to 7.1.4 damages messages that it cuts",
        "tailscale/tailscale#19777",
        first=(7, 0),
        fixed=(7, 1, 5),
        # Proxmox has both fixes in this build.
        except_for=r"7\.0\.14-\d+-pve",
    ),
    KnownKernel(
        ("udp-segmentation",),
        "this build of Ubuntu damages messages that it cuts in a virtual machine",
        "tailscale/tailscale#21335",
        build=r"6\.17\.0-41-generic$",
        guests_only=True,
    ),
    KnownKernel(
        ("udp-segmentation",),
        "Linux before 4.18 ignores that it should cut messages, and sends one large datagram",
        "hoaxisr/awg-manager#929",
        fixed=(4, 18),
    ),
    KnownKernel(
        ("udp-merging",),
        "Linux before 6.8.5 loses VXLAN and Geneve inside merged UDP packets",
        "tailscale/tailscale#11026, tailscale/wireguard-go#26",
        fixed=(6, 8, 5),
    ),
    KnownKernel(
        ("short-tail",),
        "Linux 6.6.44 refuses a superpacket whose last packet is shorter",
        "tailscale/tailscale#13041",
        first=(6, 6, 44),
        fixed=(6, 6, 45),
    ),
    KnownKernel(
        ("tcp-merging", "udp-merging"),
        "the kernel of ASUSTOR ADM refuses superpackets",
        "passteque/gluetun#3424",
        build=r"6\.6\.x",
    ),
)


def version_of(release: str) -> Version:
    """Return the upstream version in a release such as `6.8.12-amd64`; (0, 0, 0) if there is none."""
    found = _NUMBERS.match(release)
    return (0, 0, 0) if found is None else tuple(int(number or 0) for number in found.groups())


def known_faults(release: str, *, guest: bool) -> list[KnownKernel]:
    """Return the entries that hold for a kernel."""
    return [each for each in KNOWN if each.has(release, guest=guest)]


def faults_here() -> list[KnownKernel]:
    """Return the entries that hold for the running kernel."""
    return known_faults(os.uname().release, guest=_is_guest())


def _is_guest() -> bool:
    """Return whether the processor says that this is a virtual machine."""
    try:
        return re.search(r"^flags\s*:.*\bhypervisor\b", _CPUINFO.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
