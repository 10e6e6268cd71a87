"""The container image with the limits of compose.yaml, and what it says where a thing that it needs is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support.container import Container, Image
from support.product import INNER, POOL, TOKEN, eventually

pytestmark = [pytest.mark.needs_containers, pytest.mark.timeout(600)]
SERVE = ("serve", "--pool", POOL, "--token-file", "/etc/rustguard/token")
NET_ADMIN = 1 << 12


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    made = Image(tmp_path_factory.mktemp("buildah"))
    try:
        yield made
    finally:
        made.close()


def container(image: Image, host: Host, folder: Path, **more: object) -> Container:
    folder.mkdir()
    made = Container(image, host, folder, **more)  # type: ignore[arg-type]
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    return made


def test_a_server_and_a_client_in_containers_carry_traffic(tmp_path: Path, lab: Lab, image: Image) -> None:
    home, laptop = lab.host("home"), lab.host("laptop")
    there, _ = lab.link(home, laptop, ipv4="192.0.2.0/24")
    server, client = container(image, home, tmp_path / "server"), container(image, laptop, tmp_path / "client")
    daemon = server.start(*SERVE, "--open", log=tmp_path / "server.log")
    check = image.config["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    eventually(lambda: server.execute(check[1:]).returncode == 0, what="a healthy server")
    joined = client.start(
        "join", str(there.ipv4), "--token-file", "/etc/rustguard/token", log=tmp_path / "client.log"
    )
    reaches = ["ping", "-n", "-c1", "-W1", INNER]
    eventually(lambda: laptop.run(reaches, check=False).returncode == 0, what="a ping between containers")
    assert client.execute(check[1:]).returncode == 0
    _look_at_the_limits(server)
    # The keys are in the volume: another container with it is the same server.
    daemon.terminate()
    assert daemon.wait(20) == 0
    assert "rg0" not in home.run(["ip", "-o", "link"]).stdout
    daemon = server.start(*SERVE, log=tmp_path / "server.log")
    eventually(lambda: laptop.run(reaches, check=False).returncode == 0, what="a ping after a new container")
    for each in (daemon, joined):
        each.terminate()
        assert each.wait(20) == 0


def _look_at_the_limits(server: Container) -> None:
    status = server.execute(["sh", "-c", "cat /proc/1/task/*/status"]).stdout
    fields = [line.split(":\t") for line in status.splitlines() if ":\t" in line]
    assert {int(value, 16) for name, value in fields if name in ("CapEff", "CapBnd")} == {NET_ADMIN}
    assert {value for name, value in fields if name == "NoNewPrivs"} == {"1"}
    assert {value for name, value in fields if name == "Seccomp"} == {"2"}
    for place in ("/etc/rustguard/new", "/usr/new"):
        assert "Read-only file system" in server.execute(["touch", place]).stderr


@pytest.mark.parametrize(
    ("missing", "engine", "line"),
    [
        ("device", "docker", "--device /dev/net/tun"),
        ("capability", "docker", "--cap-add NET_ADMIN"),
        ("device", "lxc", "lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file"),
        ("device", "", "--device /dev/net/tun"),
    ],
)
def test_what_is_missing_is_named_with_the_line_to_add(
    tmp_path: Path, lab: Lab, image: Image, missing: str, engine: str, line: str
) -> None:
    made = container(image, lab.host("home"), tmp_path / "made", **{missing: False, "engine": engine})
    # A kernel with WireGuard would do without the device.
    program = made.start(*SERVE, "--engine", "native", stderr=subprocess.PIPE)
    said = program.communicate(timeout=60)[1]
    assert program.returncode in (1, 4)
    assert line in said
    assert ("lxc.mount.entry" in said) == (engine != "docker")
    assert "Traceback" not in said
