"""What the kernel has is read with our own netlink, and compared with what we set."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from rustguard_py.daemon import watched
from rustguard_py.daemon.steps import Address, Route, Rule, Step
from rustguard_py.daemon.watched import Connected
from rustguard_py.system.changes import program
from rustguard_py.system.kernel_view import Link, RuleSeen, View, attributes, messages, read, split
from rustguard_py.system.place import boot_id, namespace_id

RTM_GETRULE = 34


def view(*, up: bool = True) -> View:
    return View(
        links={"wg0": Link(7, up, 1420)},
        addresses={7: {split("10.9.0.1/24"), split("fd09::1/64")}},
        routes={(254, split("10.9.0.0/24")): [frozenset({7})], (51820, split("0.0.0.0/0")): [frozenset({3, 7})]},
        rules={RuleSeen(4, 100, 254, 0, True), RuleSeen(4, 101, 51820, 51820, False)},
    )


@pytest.mark.parametrize(
    ("thing", "holds"),
    [
        (Address("wg0", "10.9.0.1/24"), True),
        (Address("wg0", "fd09:0::1/64"), True),
        (Address("wg0", "10.9.0.1/32"), False),
        (Address("wg0", "10.9.0.2/24"), False),
        (Connected("wg0", "10.9.0.1/24"), True),
        (Connected("wg0", "fd09::1/64"), False),
        # Without its address it comes back with that.
        (Connected("wg0", "10.8.0.1/24"), True),
        (Route("wg0", "0.0.0.0/0", 51820), True),
        (Route("wg0", "0.0.0.0/0"), False),
        (Rule(4, 100, 254, 0), True),
        (Rule(4, 101, 51820, 51820), True),
        (Rule(6, 101, 51820, 51820), False),
        (Rule(4, 102, 51820, 51820), False),
    ],
)
def test_what_is_missing_is_seen(thing: Step | Connected, holds: bool) -> None:
    assert watched.holds(thing, view()) is holds


def test_nothing_of_an_interface_that_is_down_or_gone_is_missing_but_rules_are() -> None:
    for given in (view(up=False), View()):
        assert watched.holds(Address("wg0", "10.9.0.9/24"), given)
        assert watched.holds(Route("wg0", "10.0.0.0/8"), given)
        assert not watched.holds(Rule(6, 101, 51820, 51820), given)


def test_the_route_to_an_addresss_network_is_watched_too_but_a_host_has_none() -> None:
    done = [Address("wg0", "10.9.0.1/24"), Address("wg0", "10.9.0.2/32"), Address("wg0", "fd09::1/128")]
    assert [each for each in watched.things(done) if isinstance(each, Connected)] == [Connected("wg0", "10.9.0.1/24")]


def test_this_machines_own_interface_is_read() -> None:
    seen = read(["lo", "there-is-none"])
    assert set(seen.links) == {"lo"}
    assert seen.links["lo"].index == socket.if_nametoindex("lo")
    assert any(rule.table == 255 for rule in seen.rules)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM])
def test_a_dump_that_is_refused_before_it_is_sent_is_empty_only_where_it_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As qemu does with requests for rules, which it can't translate."""
    send = socket.socket.send

    def refusing(self: socket.socket, request: bytes) -> int:
        if struct.unpack_from("IH", request)[1] == RTM_GETRULE:
            raise OSError(code, os.strerror(code))
        return send(self, request)

    monkeypatch.setattr(socket.socket, "send", refusing, raising=False)
    if code == errno.EPERM:
        with pytest.raises(PermissionError):
            read(["lo"])
    else:
        seen = read(["lo"])
        assert set(seen.links) == {"lo"}
        assert seen.rules == set()


def test_malformed_netlink_messages_end_the_reading() -> None:
    header = struct.Struct("IHHII")
    for received in (b"", bytes(8), header.pack(0, 16, 0, 0, 0), header.pack(4, 16, 0, 0, 0)):
        assert list(messages(received)) == []
    for body in (b"", b"\0", struct.pack("HH", 0, 1), struct.pack("HH", 3, 1)):
        assert list(attributes(body, 0)) == []


def test_the_program_behind_a_port_is_named_unless_it_is_the_kernel_or_us() -> None:
    assert program(0) is None
    assert program(os.getpid()) is None
    assert program(os.getpid() | 5 << 22) is None
    assert isinstance(program(os.getppid()), str)


def test_a_boot_and_a_namespace_have_one_name() -> None:
    assert boot_id() == boot_id()
    assert namespace_id() == namespace_id()
    assert len(boot_id()) == 36
