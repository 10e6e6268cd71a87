"""What a WireGuard promises doesn't depend on its device. In the long form, each test here runs on each device."""

from __future__ import annotations

from rustguard_py.lab.hosts import Lab
from support.wireguards import HERE4, HERE6, THERE4, THERE6, Implementation, Pair, carry, linked, ping, wg


def test_both_families_go_through_a_channel(lab: Lab, on_a_channel: Implementation) -> None:
    pair = Pair(*linked(lab), on_a_channel)
    one, other = pair.here.host, pair.there.host
    for there, here in ((THERE4, HERE4), (THERE6, HERE6)):
        ping(one, there, "-s", "1000", "-l", "10", count=20)
        ping(other, here, "-s", "5000", count=2)
        carry(one, other, there, 500_000)
        carry(other, one, here, 500_000)
    if on_a_channel.channel == "xdp":
        assert "prog/xdp" in one.run(["ip", "link", "show", "dev", pair.here.interface]).stdout
    received, sent = (int(word) for word in wg(one, "show", "wg0", "transfer").split()[1:])
    assert min(received, sent) > 1_000_000
