"""Interfaces of the kernel's WireGuard: made, found and removed, keys and peers set, statistics read.

Interfaces are made with rtnetlink, and everything else goes over generic netlink (`channel`, `messages`).
"""

from __future__ import annotations

import errno
import os
import socket
from base64 import b64encode
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from rustguard_py.kernel.channel import WireGuardChannel
from rustguard_py.kernel.counters import Counters, decode
from rustguard_py.kernel.messages import KernelInterfaceState, KernelPeerChange, batches, device_request, parse_dump
from rustguard_py.model.errors import NameTakenError, RefusedError, RustGuardError
from rustguard_py.system import container
from rustguard_py.system.interface import with_netlink
from rustguard_py.system.netlink_library import IPRoute, NetlinkError, uapi, wgmsg

KIND = "wireguard"
# linux/if.h: IFALIASZ without the zero at the end, in ASCII characters.
_ALIAS_LENGTH = 255
# A dump is read again if something changed while it was read. The last try is used as it is.
_DUMP_TRIES = 4


def why_absent() -> str | None:
    """Return in one sentence why this kernel's WireGuard can't be used, or None if it can. It loads the module."""
    try:
        WireGuardChannel().close()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"This kernel ({os.uname().release}) has no WireGuard."
        return f"This kernel's WireGuard can't be asked: {error.strerror}."
    return None


class KernelInterface:
    """A WireGuard interface of the kernel. It is identified by its number, because it can be renamed.

    Args:
        index: The interface's number.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._channel = WireGuardChannel()
        self._removed = False

    @classmethod
    def make(cls, name: str, alias: str) -> KernelInterface:
        """Make an interface. It is down and has no key.

        Args:
            name: 1 to 15 bytes.
            alias: Text that identifies it to people and to us; `ip link` shows it.

        Raises:
            RefusedError: No permission, or the name is taken.
        """

        def add(netlink: IPRoute) -> int:
            netlink.link("add", ifname=name, kind=KIND)
            index: int = netlink.link_lookup(ifname=name)[0]
            try:
                netlink.link("set", index=index, ifalias=alias[:_ALIAS_LENGTH])
            except BaseException:
                netlink.link("del", index=index)
                raise
            return index

        try:
            index = with_netlink(add)
        except NetlinkError as error:
            raise _refused(name, int(error.code)) from error
        try:
            return cls(index)
        except BaseException:
            _remove(index)
            raise

    def remove(self) -> None:
        """Remove the interface, if it is still there. May be called twice."""
        if not self._removed:
            self._removed = True
            _remove(self.index)
            self._channel.close()

    def close(self) -> None:
        """Let go of an interface that is gone. May be called twice."""
        if not self._removed:
            self._removed = True
            self._channel.close()

    def exists(self) -> bool:
        """Return whether the interface is still in this network namespace."""
        try:
            socket.if_indextoname(self.index)
        except OSError:
            return False
        return True

    def configure(
        self, *, private_key: bytes | None = None, port: int | None = None, fwmark: int | None = None
    ) -> None:
        """Change the settings that aren't None.

        Args:
            private_key: 32 bytes.
            port: UDP, 0 for any.
            fwmark: The mark of datagrams to peers, 0 for none.

        Raises:
            RustGuardError: The kernel refused the change.
        """
        attributes: list[list[Any]] = []
        if private_key is not None:
            attributes.append(["WGDEVICE_A_PRIVATE_KEY", b64encode(private_key)])
        if port is not None:
            attributes.append(["WGDEVICE_A_LISTEN_PORT", port])
        if fwmark is not None:
            attributes.append(["WGDEVICE_A_FWMARK", fwmark])
        self._set(attributes)

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        """Change peers, in order, with as many messages as needed.

        Raises:
            RustGuardError: The kernel refused a message. The earlier ones have taken effect.
        """
        for peers in batches(changes):
            self._set([["WGDEVICE_A_PEERS", peers]])

    def read(self, *, allowed_ips: bool = False) -> KernelInterfaceState:
        """Return the whole state. Decoding the peers' networks takes most of the time, so they are optional.

        Raises:
            RustGuardError: The interface is gone.
        """
        messages = []
        for data in self._dump():
            messages.append(wgmsg(data))
            messages[-1].decode()
        return parse_dump(messages, allowed_ips=allowed_ips)

    def read_counters(self) -> dict[bytes, Counters]:
        """Return only the peers' counters, by public key (32 bytes), in a fraction of the time.

        Raises:
            RustGuardError: The interface is gone.
        """
        return decode(self._dump())

    def _dump(self) -> list[bytes]:
        request = device_request(uapi.WG_CMD_GET_DEVICE, self.index, [])
        try:
            for _ in range(_DUMP_TRIES):
                messages, whole = self._channel.dump(request)
                if whole:
                    break
        except OSError as error:
            raise _lost(error) from error
        return messages

    def _set(self, attributes: list[list[Any]]) -> None:
        try:
            self._channel.command(device_request(uapi.WG_CMD_SET_DEVICE, self.index, attributes))
        except OSError as error:
            raise _lost(error) from error


def find(public_keys: Collection[bytes] | None, alias: str) -> list[int]:
    """Return the numbers of the WireGuard interfaces with this alias and, unless None, one of these keys."""

    def search(netlink: IPRoute) -> list[int]:
        return [
            message["index"]
            for message in netlink.get_links(kind=KIND)
            if message.get_attr("IFLA_IFALIAS") == alias[:_ALIAS_LENGTH] and _kind(message) == KIND
        ]

    try:
        found = with_netlink(search)
        return [index for index in found if public_keys is None or _key_of(index) in public_keys]
    except (NetlinkError, OSError):
        return []


def remove_leftovers(public_keys: Collection[bytes] | None, alias: str) -> int:
    """Remove the interfaces that `find` finds, left behind by a killed program. Return their number."""
    found = find(public_keys, alias)
    for index in found:
        _remove(index)
    return len(found)


# -- encoding -----------------------------------------------------------------------------------------------------


# -- decoding -----------------------------------------------------------------------------------------------------


# -- netlink ------------------------------------------------------------------------------------------------------


def _key_of(index: int) -> bytes | None:
    device = KernelInterface(index)
    try:
        return device.read().public_key
    except RustGuardError:
        return None
    finally:
        device._channel.close()


def _remove(index: int) -> None:
    with suppress(NetlinkError):
        with_netlink(lambda netlink: netlink.link("del", index=index))


def _kind(message: Any) -> str | None:
    info = message.get_attr("IFLA_LINKINFO")
    return None if info is None else info.get_attr("IFLA_INFO_KIND")


def _refused(name: str, code: int) -> RefusedError:
    if code == errno.EPERM:
        return RefusedError(
            f"The WireGuard interface {name} can't be made: that needs root or the capability CAP_NET_ADMIN.",
            container.capability_fix(),
        )
    if code == errno.EEXIST:
        return NameTakenError(f"There is an interface {name} already.", "Choose another: --interface NAME")
    reason = os.strerror(code)
    return RefusedError(
        f"The kernel refused to make the WireGuard interface {name}: {reason}.", "Choose: --engine native"
    )


def _lost(error: OSError) -> RustGuardError:
    if error.errno == errno.ENODEV:
        return RustGuardError("The interface is gone: another program removed it.", "Start again.")
    return RustGuardError(f"The kernel's WireGuard refused: {error.strerror}.", "Choose: --engine native")
