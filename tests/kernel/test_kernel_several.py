"""Several tunnels with the kernel's engine: flows are spread, a dead tunnel is left, nothing stays."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from rustguard_py.kernel import napi
from rustguard_py.kernel.messages import KernelPeerChange
from rustguard_py.kernel.netlink import KernelInterface
from support.flows import FLOWS, Stream, carries_all, spread, sysctls
from support.forked import ForkedSite
from support.product import HOME4, Machine, eventually

PATIENCE = 60.0
TUNNELS = 2


def carry(machines: tuple[Machine, ...], tunnels: int) -> None:
    for machine in machines:
        eventually(partial(carries_all, machine, tunnels), PATIENCE, f"{tunnels} tunnels")


# Both ends the kernel's; in the long run each of ours on one side too.
PAIRS = [(("kernel", "kernel"), 6, "both ways")]
if os.environ.get("RUSTGUARD_SOAK") == "1":
    PAIRS += [
        (("kernel", "native"), 4, "to the client"),
        (("native", "kernel"), 4, "to the server"),
        (("kernel", "portable"), 6, "both ways"),
    ]


@pytest.mark.parametrize(
    ("engines", "family", "where"), PAIRS, ids=[f"{'-'.join(pair)}-{where}" for pair, _, where in PAIRS]
)
def test_flows_are_spread_and_leave_a_tunnel_that_dies_and_nothing_stays(
    site: ForkedSite, tmp_path: Path, engines: tuple[str, str], family: int, where: str
) -> None:
    home = site.home()
    laptop = site.client("laptop", home)
    before = [(machine.network(), sysctls(machine)) for machine in (home, laptop)]
    words = f"--tunnels {TUNNELS} --engine {engines[0]}"
    serving = home.start(f"serve --pool 10.150.0.0/24 --open 3600 {words}", "maple-comet-fjord")
    eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
    joining = laptop.start(f"join {HOME4} --name laptop --engine {engines[1]}", "maple-comet-fjord")
    eventually(lambda: laptop.alive(joining) and laptop.sockets(), PATIENCE, "the client")
    carry((home, laptop), TUNNELS)
    assert sysctls(home) == sysctls(laptop) == ["1", "1"]
    for machine, engine in ((home, engines[0]), (laptop, engines[1])):
        status = machine.status()
        assert status["engine"] == engine
        assert [row["port"] for row in status["tunnels"]] == [51820, 51822]
        assert [row["interface"] for row in status["tunnels"]] == ["rg0", "rg0-1"]
        assert [row["sessions"] for row in status["tunnels"]] == [1, 1]

    inner = home.status()["addresses"][family == 6].split("/")[0]
    # By chance alone one of them has fewer than 12 in one run of five million.
    assert min(spread(laptop, inner, "UDP", 20000, FLOWS, TUNNELS)) >= 12

    stream = Stream(laptop, home, inner, tmp_path / "stream")
    stream.until_whole(PATIENCE)
    arrivals = {"to the server": (home, "dport"), "to the client": (laptop, "sport")}
    chosen = [arrivals[name] for name in arrivals if where in (name, "both ways")]
    lasted, lost = stream.break_port(chosen, 51822, PATIENCE)
    print(f"{engines}, IPv{family}, {where}: {lost} of {FLOWS} flows, all went on after {lasted:.1f} s")
    assert lost > 0
    for machine in (home, laptop):
        eventually(
            lambda m=machine: [row["carries_for"] for row in m.status()["tunnels"]] == [1, 0],  # type: ignore[misc]
            PATIENCE,
            "the dead tunnel left out",
        )
    stream.restore_port(chosen)
    carry((home, laptop), TUNNELS)
    assert lasted < 10

    # One is removed: it is made again, traffic goes on, and who comes is let in all the same.
    home.host.ip(["link del rg0"])
    eventually(lambda: "removed the interface rg0; put back" in home.said(), PATIENCE, "the interface again")
    assert [row["state"] for row in home.status()["tunnels"]] == ["running", "running"]
    eventually(lambda: laptop.pings(inner, 2.0), PATIENCE, "traffic")
    home.run("export --new phone --endpoint home.example:51820")
    assert set(home.peers()) == {"laptop", "phone"}

    # What a kill leaves in the kernel goes with the next start.
    serving.send_signal(signal.SIGKILL)
    serving.wait()
    assert ("rg0-1" in home.host.run(["ip", "-br", "link"]).stdout) == (engines[0] == "kernel")
    serving = home.start(f"serve {words}")
    eventually(lambda: home.alive(serving) and home.said().count("Serving ") == 2, PATIENCE, "the server again")
    carry((laptop,), TUNNELS)
    # The phone knows the first alone.
    eventually(lambda: [row["carries_for"] for row in home.status()["tunnels"]] == [2, 1], PATIENCE, "both tunnels")
    for program in (joining, serving):
        program.terminate()
        assert program.wait() == 0
    # A killed one can't put back what it has set.
    after = [(machine.network(), sysctls(machine)) for machine in (home, laptop)]
    assert [network for network, _ in after] == [network for network, _ in before]
    assert after[1] == before[1]


def test_threaded_napi_is_refused_where_it_is_not_safe_and_taken_by_the_kernel(site: ForkedSite) -> None:
    home = site.home()
    unsafe = napi.why_unsafe(napi.this_linux())
    words = "serve --pool 10.150.0.0/24 --threaded-napi"
    if unsafe is None:
        serving = home.start(words, "maple-comet-fjord")
        eventually(lambda: home.alive(serving) and home.sockets(), PATIENCE, "the server")
        assert "threaded NAPI" in home.status()["engine_reason"]
    else:
        ended = home.run(words, "maple-comet-fjord", check=False)
        assert ended.returncode == 4
        assert unsafe in ended.stderr
        assert "--threaded-napi" in ended.stderr
    device = KernelInterface.make("rgtest", "rustguard a test")
    try:
        device.set_peers([KernelPeerChange(bytes(range(32)), remove=True)])
        for threaded in (True, False):
            assert napi._set("rgtest", device, threaded=threaded) is None
            assert napi.is_threaded("rgtest") is threaded
        assert device.read().peers == {}
    finally:
        device.remove()
