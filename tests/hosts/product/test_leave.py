"""A client that leaves tells its server, and says so plainly if the server doesn't answer."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from rustguard_py.lab.hosts import Lab
from rustguard_py.model.errors import RefusedError
from rustguard_py.state.client_records import ClientState
from rustguard_py.state.document import Document
from support.product import INNER, OPEN, POOL, Site


def test_the_server_removes_a_client_that_leaves_and_lets_it_come_back(tmp_path: Path, lab: Lab) -> None:
    site = Site(lab, tmp_path)
    home = site.home()
    first, second = site.client("first", home), site.client("second", home)
    home.serve(f"--pool {POOL} {OPEN}")
    for each in (first, second):
        each.join(str(each.servers_end.ipv4))
    assert set(home.peers()) == {"first", "second"}

    left = first.run("leave --yes")
    assert "The server has removed first, and its address is free." in left.stderr
    assert set(home.peers()) == {"second"}
    assert [peer["name"] for peer in home.saved()["data"]["peers"]] == ["second"]
    assert home.saved()["data"]["revoked"] == []
    assert "first left the network and was removed: 10.150.0.2 is free" in home.run("audit").stdout
    assert second.reaches(INNER)
    # With token and window it comes back.
    first.join()
    assert home.peers()["first"]["address4"] == "10.150.0.2"

    # A server that doesn't answer, such as one of an older version, is waited for, but not for long.
    home.host.nft("table inet quiet { chain input { type filter hook input priority 0; udp dport 51871 drop; }; }")
    began = time.monotonic()
    left = second.run("leave --yes")
    print(f"leaving without an answer took {time.monotonic() - began:.1f} s, the command's start included")
    assert "The server didn't answer within three seconds." in left.stderr
    key = home.peers()["second"]["public_key"]
    assert f"may still list second. On the server: rustguard peers revoke {key}" in left.stderr
    assert second.saved()["data"]["networks"] == []
    # Nor is a copy of its keys left.
    assert [path.name for path in second.state.glob("state.json*")] == ["state.json"]
    assert set(home.peers()) == {"first", "second"}
    home.run(f"peers revoke {key}")

    # A client that is connected to another network isn't disconnected by it.
    first.run("stop", state=False)
    document = Document.open(first.state)
    state = ClientState.from_json(document.load())
    another = replace(state.networks[0], host="office.example")
    document.save(replace(state, networks=(*state.networks, another)).to_json())
    document.close()
    first.join(str(first.servers_end.ipv4), token=None)
    kept = first.saved()
    refused = first.run("leave office.example --yes", check=False)
    assert refused.returncode == RefusedError.exit_code
    assert "Leaving office.example would disconnect it." in refused.stderr
    assert "rustguard stop" in refused.stderr
    assert first.saved() == kept
    assert first.reaches(INNER)

    # Nothing is connected any more, so no server hears of it.
    first.run("stop", state=False)
    assert "Left office.example." in first.run("leave office.example --yes").stderr
    assert "It wasn't connected, so its server may still list first." in first.run("leave --yes").stderr
