"""Which of several tunnels are left, and which aren't: two ends, a virtual clock, bursts, stalls and cuts."""

from __future__ import annotations

import itertools

import pytest

from support.several_tunnels import OTHER, Tunnels

NEW_FLOWS, FLOWS = 64, 8
# What a flow may be without its tunnel, in seconds; a cut tunnel is left sooner where nobody stalls.
PROMISED = 10.0


def burst(tunnels: Tunnels, name: str, kind: str, seconds: float) -> None:
    """Begin flows from one end; each has one packet, and one back where it is answered."""
    first = tunnels.random.randrange(60000)
    for flow in range(first, first + NEW_FLOWS):
        tunnels.send(name, flow)
        tunnels.run(seconds / NEW_FLOWS)
        for _ in range(tunnels.delivered(OTHER[name])):
            if kind == "answered" or (kind == "limited" and tunnels.random.random() < 0.1):
                tunnels.send(OTHER[name], tunnels.random.randrange(60000))


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("kind", ["unanswered", "limited", "answered"])
def test_no_burst_of_new_flows_makes_an_end_leave_a_tunnel(number: int, kind: str, soak: bool) -> None:
    """Both ends stall for up to two seconds at any time, and a datagram in a hundred is lost."""
    tunnels = Tunnels(number, seed=number)
    assert tunnels.carry()
    tunnels.network.weather.loss = 0.01
    chance = tunnels.random
    for turn in range(100 if soak else 10):
        for name in ("client", "server"):
            if chance.random() < 0.5:
                tunnels.stall(name, chance.uniform(0.0, 2.0))
        burst(tunnels, chance.choice(["client", "server"]), kind, chance.uniform(0.1, 3.0))
        for _ in range(int(chance.uniform(0, 16))):
            tunnels.run(0.5)
            assert tunnels.carry(), f"burst {turn}: {[end.carrying for end in tunnels.ends.values()]}"


def seconds_until_whole(tunnels: Tunnels, sender: str, flows: int, *, answered: bool) -> float:
    """Send on each flow five times a second, for as long as is promised; give when the last packet was missed."""
    began, missed = tunnels.now, tunnels.now
    for end in tunnels.ends:
        tunnels.delivered(end)
    while tunnels.now < began + PROMISED:
        for flow in range(flows):
            tunnels.send(sender, flow)
        tunnels.run(0.1)
        came = tunnels.delivered(OTHER[sender])
        for answer in range(came if answered else 0):
            tunnels.send(OTHER[sender], answer)
        tunnels.run(0.1)
        if came < flows or (answered and tunnels.delivered(sender) < flows):
            missed = tunnels.now
    return missed - began


@pytest.mark.parametrize("cut", [("client",), ("server",), ("client", "server")], ids="-".join)
@pytest.mark.parametrize("idle", [0.0, 20.0, 200.0])
def test_no_flow_stays_on_a_tunnel_that_is_dead_towards_an_end(cut: tuple[str, ...], idle: float, soak: bool) -> None:
    """Many flows or one, answered or not, from either end, after traffic or none."""
    for seed in range(10 if soak else 1):
        for sender, flows, answered in itertools.product(("client", "server"), (FLOWS, 1), (False, True)):
            tunnels = Tunnels(2, seed)
            seconds_until_whole(tunnels, sender, flows, answered=answered)
            tunnels.run(idle)
            tunnels.cut = {(tunnels.way_of(sender, 0), towards) for towards in cut}
            taken = seconds_until_whole(tunnels, sender, flows, answered=answered)
            print(f"dead to {cut}, idle for {idle:g} s; {flows} from {sender}, answered {answered}: {taken:.1f} s")
            assert taken < PROMISED - 1.0
            tunnels.cut = set()
            tunnels.run(8.0)
            assert tunnels.carry()
