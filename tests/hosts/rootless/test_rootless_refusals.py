"""What refuses an ordinary user namespaces or the TUN device is named, with the line that allows it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.system import container
from support.product import HOME4, TOKEN, Site
from support.rootless import User, processes, user_on

pytestmark = pytest.mark.needs_second_uid
# Linux' number of unshare(2), and AUDIT_ARCH.
_UNSHARE = {"x86_64": (272, 0xC000003E), "aarch64": (97, 0xC00000B7)}
# A program under a filter by which one system call gets EPERM (seccomp(2)).
_FILTERED = """
import ctypes, os, struct, sys
number, words = int(sys.argv[1]), sys.argv[2:]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filter))
library = ctypes.CDLL(None, use_errno=True)
assert library.prctl(38, 1, 0, 0, 0) == 0
assert library.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(words[0], words)
"""


@pytest.fixture
def laptop(lab: Lab, tmp_path: Path) -> Iterator[User]:
    site = Site(lab, tmp_path)
    with user_on(site, "laptop", site.home()) as made:
        yield made


def refused(laptop: User) -> str:
    """Join, and return with which words that is refused before anybody is asked."""
    done = laptop.run(f"join {HOME4} --rootless", TOKEN, check=False)
    assert done.returncode == 4, done.stderr
    assert "Asking" not in done.stderr
    assert processes() == {}
    return done.stderr


@pytest.mark.parametrize(
    ("setting", "kind"), [("max_user_namespaces", "user"), ("max_net_namespaces", "network")], ids=["user", "network"]
)
def test_a_limit_of_namespaces_is_named(laptop: User, setting: str, kind: str) -> None:
    # The limits of a user namespace are its owner's to set.
    enter = f'echo 0 > /proc/sys/user/{setting} && exec "$@"'
    laptop.prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", enter, "sh"]
    said = refused(laptop)
    assert f"needs a {kind} namespace. This one was refused: user.{setting} is 0." in said
    assert f"sysctl -w user.{setting}=15000" in said


def test_a_filter_of_system_calls_is_named(laptop: User) -> None:
    number, _ = _UNSHARE[platform.machine()]
    laptop.prefix = [sys.executable, "-c", _FILTERED, str(number)]
    said = refused(laptop)
    assert ("seccomp" if container.kind() is None else "container") in said


def test_a_missing_device_is_named(laptop: User) -> None:
    laptop.host.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
    said = refused(laptop)
    assert "/dev/net/tun is missing" in said
    assert "modprobe tun" in said or "--device /dev/net/tun" in said


def test_a_device_that_only_root_may_open_is_named(laptop: User) -> None:
    laptop.host.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
    if laptop.host.run(["mknod", "-m", "600", "/dev/net/tun", "c", "10", "200"], check=False).returncode:
        pytest.skip("this root may make no device nodes")
    said = refused(laptop)
    if container.kind() is None:
        assert "/dev/net/tun may not be opened by this user: Permission denied." in said
        assert "chmod 0666 /dev/net/tun" in said
