"""`rustguard-wg` whose plane has a channel: `channel_wg.py WHAT INTERFACE`.

The interface is that of a program which embeds the plane: it carries packets between the two, one by one, so that
ping and iproute2 can be used on it. WHAT is `sockets`, `io_uring` or `xdp`: the UDP side of the native plane.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from rustguard_py import engine
from rustguard_py.cli import wg
from rustguard_py.data_path import DataPath
from rustguard_py.engine import Engine
from rustguard_py.planes.contract import EventfulPlane, PacketChannel
from rustguard_py.planes.offload import PLAIN_VNET, VNET_SIZE

_TUNSETOFFLOAD = 0x400454D0
_AT_ONCE = 64
_WAIT = 0.5


class ChannelEngine(Engine):
    """An engine whose planes have channels. What they are given as interface is the far end's."""

    def make_plane(
        self,
        public_key: bytes,
        interface: str,
        sockets: Sequence[socket.socket],
        mtu: int,
        tun: Sequence[int] = (),
        channel: PacketChannel | None = None,
        listener: socket.socket | None = None,
    ) -> EventfulPlane:
        """See `Engine.make_plane`."""
        assert listener is None
        (descriptor,) = tun
        channel = channel or self.make_channel()
        plane = Engine.make_plane(self, public_key, interface, sockets, mtu, channel=channel)
        # No superpackets, and complete checksums.
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        for way in (_to_channel, _to_interface):
            threading.Thread(target=_carry, args=(way, os.dup(descriptor), channel), daemon=True).start()
        return plane


def _carry(way: Callable[[int, PacketChannel], None], tun: int, channel: PacketChannel) -> None:
    """Carry packets one way until either end is gone. Without the interface the whole program ends."""
    try:
        while True:
            way(tun, channel)
    except BrokenPipeError:
        pass
    except OSError:
        os.kill(os.getpid(), signal.SIGTERM)


def _to_channel(tun: int, channel: PacketChannel) -> None:
    select.select([tun], [], [], _WAIT)
    packets: list[bytes] = []
    try:
        while len(packets) < _AT_ONCE:
            packets.append(os.read(tun, 65_536)[VNET_SIZE:])
    except BlockingIOError:
        pass
    while packets := packets[channel.write_batch(packets) :]:
        select.select([channel.writable_fileno()], [], [], _WAIT)


def _to_interface(tun: int, channel: PacketChannel) -> None:
    channel.wait(_WAIT)
    for packet in channel.read_batch(_AT_ONCE):
        try:
            os.writev(tun, (PLAIN_VNET, packet))
        except OSError as error:
            # An interface that is down takes nothing.
            if error.errno != errno.EIO:
                raise


def _ethernet() -> str:
    """Return the first interface of this network namespace that isn't the loopback or a tunnel."""
    return next(name for _, name in socket.if_nameindex() if name != "lo" and not name.startswith("wg"))


def main() -> None:
    """Run `rustguard-wg`."""
    side = sys.argv.pop(1)
    choose = engine.choose

    def chosen(asked: DataPath) -> Engine:
        found = replace(choose(asked), queues=1, uring=side == "io_uring", xdp=_ethernet() if side == "xdp" else None)
        return ChannelEngine(**{name: getattr(found, name) for name in found.__slots__})

    engine.choose = chosen
    wg.main()


if __name__ == "__main__":
    main()
