"""What refuses an ordinary user namespaces or the TUN device is named, with the line that allows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Lab
from rustguard_py.system import container
from support.product import HOME4, TOKEN, Site
from support.rootless import User, processes, user_on, without

pytestmark = pytest.mark.needs_second_uid


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
    laptop.prefix = without("unshare")
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
