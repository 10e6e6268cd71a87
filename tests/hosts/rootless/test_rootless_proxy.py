"""The ways from this machine into a tunnel without root: the proxy, and forwarded ports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustguard_py.lab.hosts import Host, Lab
from support.product import HOME4, INNER, OPEN, PATIENCE, TOKEN, Machine, Site, eventually
from support.rootless import User, processes, user_on

pytestmark = pytest.mark.needs_second_uid
CONNECTIONS = 1000
# Answers each request with one line: its own word, and who asked.
_WEB = """
import http.server, socket, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{sys.argv[3]} {self.client_address[0]}".encode())
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 2048
Server((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
"""
# A name server that knows one name: it answers each question with an address, or with none.
_NAMES = """
import ipaddress, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    query, source = server.recvfrom(512)
    end = query.index(b"\\0", 12) + 5
    known = query[12:end - 4] == b"\\5files\\4home\\0" and query[end - 4:end - 2] == b"\\0\\1"
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\0\\0\\4" + ipaddress.ip_address(sys.argv[1]).packed if known else b""
    head = query[:2] + b"\\x81\\x80\\0\\1" + bytes([0, int(known)]) + bytes(4)
    server.sendto(head + query[12:end] + answer, source)
"""
# Holds connections open by SOCKS5, has something echoed on each, and says how many did it.
_CROWD = """
import asyncio, resource, sys
count = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def one(everybody):
    reader, writer = await asyncio.open_connection("127.0.0.1", 1080)
    writer.write(b"\\5\\1\\0\\5\\1\\0\\1" + bytes(map(int, sys.argv[1].split("."))) + (7).to_bytes(2, "big"))
    await reader.readexactly(2)
    assert (await reader.readexactly(10))[1] == 0
    await everybody.wait()
    writer.write(b"x" * 1000)
    assert await reader.readexactly(1000) == b"x" * 1000
    writer.close()
    return 1
async def main():
    everybody = asyncio.Barrier(count)
    print(sum(await asyncio.gather(*(one(everybody) for _ in range(count)))))
asyncio.run(main())
"""
_ECHO = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def answer(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()
async def main():
    await (await asyncio.start_server(answer, sys.argv[1], 7, backlog=2048)).serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def home(lab: Lab, tmp_path: Path) -> Machine:
    made = Site(lab, tmp_path).home()
    made.serve(f"--pool 10.150.0.0/24 {OPEN}")
    return made


@pytest.fixture
def laptop(lab: Lab, tmp_path: Path, home: Machine) -> Iterator[User]:
    with user_on(Site(lab, tmp_path), "laptop", home) as made:
        yield made


def _curl(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    return host.run(["curl", "-sS", "--noproxy", "", "-m", "30", *words], check=False)


def _run(host: Host, program: str, *words: str, port: int, protocol: str = "tcp") -> None:
    host.popen([sys.executable, "-c", program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    host.wait_listening(protocol, port, PATIENCE)


def test_names_and_both_families_are_reached_by_the_proxy_and_ports_lead_both_ways(
    laptop: User, home: Machine
) -> None:
    _run(home.host, _WEB, "::", "8000", "home", port=8000)
    _run(home.host, _NAMES, INNER, port=53, protocol="udp")
    _run(laptop.host, _WEB, "::", "8001", "laptop", port=8001)
    laptop.join(HOME4, "--rootless --socks -L 8080:files.home:8000 -R 9000:127.0.0.1:8001")
    inner6 = home.status()["addresses"][1].split("/")[0]
    ours = laptop.status()["addresses"][0].split("/")[0]
    for target in (INNER, f"[{inner6}]", "files.home"):
        for proxy in ("--socks5-hostname", "--proxytunnel"):
            words = [proxy, "127.0.0.1:1080"] if "socks" in proxy else [proxy, "-x", "http://127.0.0.1:1080"]
            done = _curl(laptop.host, *words, f"http://{target}:8000/")
            assert done.stdout.startswith("home "), (target, proxy, done.stderr)
            # It came by the tunnel.
            assert ours in done.stdout or ":" in target
    assert laptop.inside("getent ahostsv4 files.home").stdout.startswith(INNER)
    assert _curl(laptop.host, "http://127.0.0.1:8080/").stdout.startswith("home ")
    assert _curl(home.host, f"http://{ours}:9000/").stdout.startswith("laptop ")
    # The machine's own ports and names aren't those of the tunnel.
    assert _curl(laptop.host, "--socks5-hostname", "127.0.0.1:1080", "http://127.0.0.1:8001/").returncode == 97
    assert _curl(laptop.host, "--socks5-hostname", "127.0.0.1:1080", f"http://{HOME4}:8000/").returncode == 97
    assert "proxy at 127.0.0.1:1080" in laptop.run("status").stdout


def test_a_thousand_connections_are_open_at_once_and_none_is_left(laptop: User, home: Machine) -> None:
    _run(home.host, _ECHO, INNER, port=7)
    program = laptop.join(HOME4, "--rootless --socks")
    assert laptop.host.run([sys.executable, "-c", _CROWD, INNER, str(CONNECTIONS)]).stdout == f"{CONNECTIONS}\n"
    files = Path(f"/proc/{laptop.status()['pid']}/fd")
    eventually(lambda: len(list(files.iterdir())) < 100, what="closed connections")
    program.terminate()
    assert program.wait(PATIENCE) == 0
    eventually(lambda: not processes())


def test_a_port_that_is_taken_takes_the_join_back(laptop: User, home: Machine) -> None:
    _run(laptop.host, _WEB, "::", "1080", "laptop", port=1080)
    done = laptop.run(f"join {HOME4} --rootless --socks", TOKEN, check=False)
    assert done.returncode == 4, done.stderr
    assert "1080" in done.stderr
    assert not laptop.saved().get("networks")
    eventually(lambda: not home.peers(), what="a join taken back")
    assert processes() == {}


def test_a_login_keeps_others_of_the_machine_out(laptop: User, home: Machine) -> None:
    _run(home.host, _WEB, "::", "8000", "home", port=8000)
    login = laptop.state.parent / "login"
    login.write_text("ada:secret\n")
    refused = laptop.run(f"join {HOME4} --rootless --socks 0.0.0.0:1080", TOKEN, check=False)
    assert refused.returncode == 2
    assert "Add --socks-login FILE" in refused.stderr
    laptop.join(HOME4, f"--rootless --socks 0.0.0.0:1080 --socks-login {login}")
    target = f"http://{INNER}:8000/"
    assert _curl(laptop.host, "--socks5-hostname", "127.0.0.1:1080", target).returncode == 97
    assert _curl(laptop.host, "--socks5-hostname", "ada:secret@127.0.0.1:1080", target).stdout.startswith("home ")
