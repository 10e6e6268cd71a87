"""Which of the kernel's offloads our own engines use: one read or write that stands for many packets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rustguard_py.model.errors import UsageError

_OFF = "no-"


@dataclass(frozen=True, slots=True)
class Offloads:
    """Whether each offload is used where the kernel has it. Its name for people has hyphens.

    Attributes:
        tun_checksum: The interface hands us packets whose checksum we complete. TSO and USO need it.
        tso: The interface hands us many TCP packets as one superpacket.
        uso: The same for UDP.
        tcp_merging: We hand the interface many TCP packets as one superpacket.
        udp_merging: The same for UDP.
        short_tail: The last packet of such a superpacket may be shorter than the others.
        udp_segmentation: The kernel cuts a message that we send into datagrams (UDP_SEGMENT).
        udp_gro: The kernel merges datagrams that we receive into messages (UDP_GRO).
    """

    tun_checksum: bool = True
    tso: bool = True
    uso: bool = True
    tcp_merging: bool = True
    udp_merging: bool = True
    short_tail: bool = True
    udp_segmentation: bool = True
    udp_gro: bool = True

    @property
    def needs_vnet(self) -> bool:
        """Whether packets of the interface need a virtio_net_hdr."""
        return self.tun_checksum or self.tcp_merging or self.udp_merging

    @property
    def needs_missing(self) -> list[str]:
        """The names of those that are asked for and can't be used, because they need one that is off."""
        return [] if self.tun_checksum else [name for name in ("tso", "uso") if getattr(self, name)]

    @property
    def off(self) -> list[str]:
        """The names of those that aren't used."""
        return [name for name in OFFLOADS if not getattr(self, _member(name))]

    def without(self, *names: str) -> Offloads:
        """Return the same without these."""
        return replace(self, **{_member(name): False for name in names})


def _member(name: str) -> str:
    return name.replace("-", "_")


OFFLOADS = tuple(each.name.replace("_", "-") for each in fields(Offloads))
ALL = Offloads()
NONE = ALL.without(*OFFLOADS)


def choose_offloads(text: str, auto: Offloads) -> Offloads:
    """Return the offloads that a list such as `no-tso,no-uso` or `none,udp-gro` asks for.

    Args:
        text: `auto`, `all`, `none`, or names that are turned on (`tso`) and off (`no-tso`), separated by commas.
            Later ones count. It begins from `auto`.
        auto: What this kernel does right.

    Raises:
        UsageError: A name is unknown.
    """
    chosen = auto
    for item in text.split(","):
        match item.strip():
            case "auto":
                chosen = auto
            case "all":
                chosen = ALL
            case "none":
                chosen = NONE
            case name if name.removeprefix(_OFF) in OFFLOADS:
                chosen = replace(chosen, **{_member(name.removeprefix(_OFF)): not name.startswith(_OFF)})
            case name:
                raise UsageError(
                    f"There is no offload {name!r}.",
                    f"Choose from: auto, all, none, {', '.join(OFFLOADS)}; `{_OFF}` in front turns one off.",
                )
    return chosen
