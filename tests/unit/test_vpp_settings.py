"""wireguard-go-vpp's files: every key of its README, what each must be, and where an error is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from rustguard_py.model.errors import RefusedError, RustGuardError, UsageError
from rustguard_py.vpp import plan
from rustguard_py.vpp.conflicts import refuse_overlaps
from rustguard_py.vpp.json_file import read_object
from rustguard_py.vpp.plan import Bvi
from rustguard_py.vpp.settings import Families, Places, read_bridge, read_interface

# The examples of its README.
INTERFACE: dict[str, object] = {
    "uid": 3,
    "secret": "some_secret",
    "IPv4ArpResponseRanges": ["172.22.77.33/32"],
    "IPv6NdpNeighAdvRanges": ["fd28:cb8f:4c92::33/128", "fe80::42:1817:1/128"],
    "IPv4ArpLearningRanges": [],
    "IPv6NdpLearningRanges": [],
    "VppBridgeID": 4242,
}
BRIDGE: dict[str, object] = {
    "GatewayMacAddr": "42:42:42:42:42:42",
    "WgIfMacaddrPrefix": "98:D2:93",
    "VppIfMacaddrPrefix": "A4:77:33",
    "VppBridgeLoop_InstallMethod": "api",
    "VppBridgeLoop_CheckRouteConflict": True,
    "VppBridgeLoop_CheckRouteConfigPaths": ["/etc/wggo-vpp"],
    "VppBridgeLoop_VppctlBin": "vppctl",
    "VppBridgeLoop_SwIfName": "loop42",
    "VppBridgeLoop_SwIfIndex": 1,
    "VppBridgeLoop_InstallNeighbor": {"IPv4": False, "IPv6": False, "IPv6 link-local": False},
    "VppBridgeLoop_InstallNeighbor_Flag": {"static": True, "no-fib-entry": False},
    "VppBridgeLoop_InstallRoutes": {"IPv4": True, "IPv6": False, "IPv6 link-local": True},
}
FOUR, SIX, LOCAL = (
    IPv4Network("172.22.77.33/32"),
    IPv6Network("fd28:cb8f:4c92::33/128"),
    IPv6Network("fe80::42:1817:1/128"),
)


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file and return its path; None leaves a key out."""

    def written(name: str, example: dict[str, object], **changes: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in (example | changes).items() if value is not None}
        path.write_text(json.dumps(kept, indent=1))
        return path

    return written


def places(folder: Path) -> Places:
    return Places(folder / "run", folder, folder / "api.sock")


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("uid", 7, "uid", 7),
        ("secret", "psst", "secret", b"psst"),
        ("secret", None, "secret", b""),
        ("IPv4ArpResponseRanges", ["172.22.77.33/32"], "answered4", (FOUR,)),
        ("IPv4ArpResponseRanges", ["10.9.8.7/24"], "answered4", (IPv4Network("10.9.8.0/24"),)),
        ("IPv4ArpResponseRanges", None, "answered4", ()),
        ("IPv6NdpNeighAdvRanges", ["fe80::1/128"], "answered6", (IPv6Network("fe80::1/128"),)),
        ("IPv4ArpLearningRanges", ["10.1.0.0/16"], "learnt4", (IPv4Network("10.1.0.0/16"),)),
        ("IPv4ArpLearningRanges", None, "learnt4", ()),
        ("IPv6NdpLearningRanges", ["fd00::/64"], "learnt6", (IPv6Network("fd00::/64"),)),
        ("VppBridgeID", 9, "bridge", 9),
    ],
)  # fmt: skip
def test_each_key_of_an_interface(
    write: Callable[..., Path], warned: list[str], key: str, value: object, field: str, expected: object
) -> None:
    found = read_interface(write("if.home.json", INTERFACE, **{key: value}), warned.append)
    assert getattr(found, field) == expected
    assert warned == []
    assert "psst" not in repr(found)


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("GatewayMacAddr", "42:42:42:42:42:0a", "gateway", b"BBBBB\n"),
        ("WgIfMacaddrPrefix", "02:03", "own_prefix", b"\2\3"),
        ("VppIfMacaddrPrefix", "02:03:04:05:06", "vpp_prefix", b"\2\3\4\5\6"),
        ("InstallMethod", "vppctl", "method", "vppctl"),
        ("InstallMethod", None, "method", "none"),
        ("CheckRouteConflict", False, "check", False),
        ("CheckRouteConfigPaths", ["/a", "/b/c"], "check_paths", (Path("/a"), Path("/b/c"))),
        ("VppctlBin", "/opt/vppctl", "vppctl", "/opt/vppctl"),
        ("VppctlBin", None, "vppctl", "vppctl"),
        ("VppctlBinary", "/opt/other", "vppctl", "/opt/other"),
        ("SwIfName", "loop7", "bvi", "loop7"),
        ("SwIfIndex", 0, "bvi_index", 0),
        ("InstallNeighbor", {"IPv4": True}, "neighbours", Families(ipv4=True)),
        ("InstallNeighbor", {"IPv6 link-local": True}, "neighbours", Families(link_local=True)),
        ("InstallNeighbor_Flag", {"static": False, "no-fib-entry": True}, "no_fib_entry", True),
        ("InstallNeighbor_Flag", {"no-fib-entry": True}, "static", False),
        ("InstallNeighbor_Flag", None, "static", False),
        ("InstallRoutes", {"IPv6": True}, "routes", Families(ipv6=True)),
    ],
)  # fmt: skip
def test_each_key_of_a_bridge(
    write: Callable[..., Path], warned: list[str], key: str, value: object, field: str, expected: object
) -> None:
    key = key if key.endswith(("Addr", "Prefix")) else f"VppBridgeLoop_{key}"
    found = read_bridge(write("gw.4242.json", BRIDGE, **{key: value}), warned.append)
    assert getattr(found, field) == expected
    assert warned == []


_NUMBERS = [("x", "quotes"), (True, "quotes"), (-1, "quotes"), (1 << 32, "quotes"), (3.0, "quotes")]
_RANGES = [("10.0.0.0/8", '["'), ([1], '["'), (["10.0.0.1"], '"'), (["fd00::/129"], '"'), (["10.0.0.0/33"], '"')]


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        *[(key, *case) for key in ("uid", "VppBridgeID") for case in _NUMBERS],
        *[(key, *case) for key in INTERFACE if key.endswith("Ranges") for case in _RANGES],
        ("IPv4ArpResponseRanges", ["fd00::/64"], "172"),
        ("IPv4ArpLearningRanges", ["10.0.0.0/255.0.0.0"], "172"),
        ("IPv6NdpNeighAdvRanges", ["10.0.0.0/8"], "fd28"),
        ("secret", 3, "quotes"),
        ("secret", "x" * 24, "another"),
        ("secret", "two words", "another"),
        ("uid", None, '"uid": 3'),
        ("VppBridgeID", None, "4242"),
        ("uid", 0, "number"),
        ("uid", (1 << 32) - 1, "number"),
    ],
)
def test_a_wrong_value_of_an_interface_is_refused_with_its_line(
    write: Callable[..., Path], warned: list[str], key: str, value: object, fix: str
) -> None:
    path = write("if.home.json", INTERFACE, **{key: value})
    with pytest.raises(UsageError) as refused:
        read_interface(path, warned.append)
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if f'"{key}"' in line]
    place = f"{path}, line {lines[0]}: " if lines and value not in (0, (1 << 32) - 1) else str(path)
    assert refused.value.message.startswith(place)
    assert key in refused.value.message
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GatewayMacAddr", "42:42:42:42:42"),
        ("GatewayMacAddr", "43:42:42:42:42:42"),
        ("GatewayMacAddr", "42-42-42-42-42-42"),
        ("GatewayMacAddr", 42),
        ("GatewayMacAddr", "00:00:00:00:00:00"),
        ("GatewayMacAddr", None),
        ("WgIfMacaddrPrefix", "98"),
        ("WgIfMacaddrPrefix", "98:D2:93:1:2:3"),
        ("WgIfMacaddrPrefix", "+8:D2:93"),
        ("WgIfMacaddrPrefix", None),
        ("VppIfMacaddrPrefix", "A5:77:33"),
        ("VppIfMacaddrPrefix", "A4:77:3g"),
        ("VppIfMacaddrPrefix", None),
        ("VppBridgeLoop_InstallMethod", "API"),
        ("VppBridgeLoop_CheckRouteConflict", "true"),
        ("VppBridgeLoop_CheckRouteConfigPaths", "/etc"),
        ("VppBridgeLoop_CheckRouteConfigPaths", ["etc"]),
        ("VppBridgeLoop_VppctlBin", ["vppctl"]),
        ("VppBridgeLoop_SwIfName", "loop 42"),
        ("VppBridgeLoop_SwIfName", "-h"),
        ("VppBridgeLoop_SwIfIndex", "1"),
        ("VppBridgeLoop_InstallNeighbor", True),
        ("VppBridgeLoop_InstallNeighbor", {"IPv4": 1}),
        ("VppBridgeLoop_InstallNeighbor_Flag", {"static": "yes"}),
        ("VppBridgeLoop_InstallRoutes", {"IPv6 link-local": None, "IPv6": "no"}),
    ],
)
def test_a_wrong_value_of_a_bridge_is_refused_with_its_file(
    write: Callable[..., Path], warned: list[str], key: str, value: object
) -> None:
    path = write("gw.4242.json", BRIDGE, **{key: value})
    with pytest.raises(UsageError) as refused:
        read_bridge(path, warned.append)
    assert str(path) in refused.value.message
    assert refused.value.fix
    inner = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else key
    assert inner in refused.value.message or "IPv6" in refused.value.message


def test_an_unknown_key_is_warned_about_with_its_line_and_ignored(tmp_path: Path, warned: list[str]) -> None:
    path = tmp_path / "gw.1.json"
    path.write_text(
        '{"GatewayMacAddr": "42:42:42:42:42:42",\n "Comment": {"IPv4": 1},\n"WgIfMacaddrPrefix": "98:D2:93",\n'
        '"VppIfMacaddrPrefix": "A4:77:33", "VppBridgeLoop_InstallRoutes": {\n\n"IPv4": true, "IPv5\\u001b": true}}'
    )
    assert read_bridge(path, warned.append).routes == Families(ipv4=True)
    assert warned == [
        f"{path}, line 2: Comment isn't known, so it is ignored.",
        f"{path}, line 6: IPv5\\x1b in VppBridgeLoop_InstallRoutes isn't known, so it is ignored.",
    ]


def test_keys_are_matched_as_go_does(tmp_path: Path, warned: list[str]) -> None:
    path = tmp_path / "if.a.json"
    path.write_text('{"UID": 1, "vppbridgeid": 2, "uid": 3, "secret": null, "x\\"y: z": 1}')
    found = read_interface(path, warned.append)
    assert (found.uid, found.bridge, found.secret) == (3, 2, b"")
    assert len(warned) == 1
    assert "line 1" in warned[0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{\n\n,}", "line 3"),
        ("[1]", "no JSON object"),
        ('{"uid": NaN}', "NaN"),
        ("[" * 100000, "isn't JSON"),
        (" " * ((1 << 20) + 1), "1 MiB"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_object(path)
    assert str(path) in refused.value.message
    assert word in refused.value.message


def test_a_byte_order_mark_is_none_of_the_file_and_a_comment_is_named_as_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"uid": 3}')
    assert [(each.key, each.value) for each in read_object(path)] == [("uid", 3)]
    path.write_text('// ours\n{"uid": 3}')
    with pytest.raises(UsageError, match="line 1") as refused:
        read_object(path)
    assert "no comments" in refused.value.fix


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_object(tmp_path / "if.x.json")
    (tmp_path / "latin").write_bytes(b'{"uid": "\xff"}')
    with pytest.raises(UsageError, match="UTF-8"):
        read_object(tmp_path / "latin")


def test_the_environment_says_where_things_are() -> None:
    assert Places.from_environment({"VPP_MEMIF_SOCKET_DIR": ""}) == Places(
        Path("/var/run/wggo-vpp"), Path("/etc/wggo-vpp"), Path("/run/vpp/api.sock")
    )
    named = {"VPP_MEMIF_SOCKET_DIR": "/s", "VPP_MEMIF_CONFIG_DIR": "/c", "VPP_API_SOCKET_PATH": "/a"}
    assert Places.from_environment(named) == Places(Path("/s"), Path("/c"), Path("/a"))


def test_this_mode_starts_by_either_directory_or_by_the_file(tmp_path: Path) -> None:
    here = places(tmp_path)
    assert here.why_this_mode("home", {}) == ""
    assert here.why_this_mode("home", {"VPP_API_SOCKET_PATH": "/a", "VPP_MEMIF_CONFIG_DIR": ""}) == ""
    for variable in ("VPP_MEMIF_SOCKET_DIR", "VPP_MEMIF_CONFIG_DIR"):
        assert here.why_this_mode("home", {variable: "/x"}) == f"{variable} is set"
    (tmp_path / "if.home.json").touch()
    assert here.why_this_mode("home", {}) == f"{tmp_path}/if.home.json is there"
    assert here.why_this_mode("other", {}) == ""


def test_the_examples_of_the_readme_as_a_plan(write: Callable[..., Path], tmp_path: Path, warned: list[str]) -> None:
    write("if.home.json", INTERFACE)
    write("gw.4242.json", BRIDGE, VppBridgeLoop_CheckRouteConfigPaths=[str(tmp_path)])
    wanted = plan.read(places(tmp_path), "home", warned.append).wanted
    assert (wanted.name, wanted.socket) == ("memif3/3", tmp_path / "run/home.sock")
    assert (wanted.own_mac.hex(":"), wanted.mac.hex(":")) == ("98:d2:93:00:00:03", "a4:77:33:00:00:03")
    assert (wanted.routes, wanted.neighbours, wanted.static) == ((FOUR, LOCAL), Families(), True)
    assert wanted.bvi == Bvi("loop42", 1)
    assert warned == []
    assert "some_secret" not in repr(wanted)


@pytest.mark.parametrize(
    ("changes", "routes"),
    [
        ({"VppBridgeLoop_InstallMethod": "none"}, ()),
        ({"VppBridgeLoop_InstallRoutes": {"IPv6": True}}, (SIX,)),
        ({"VppBridgeLoop_InstallRoutes": None}, ()),
    ],
)
def test_which_routes_vpp_gets(
    write: Callable[..., Path],
    tmp_path: Path,
    warned: list[str],
    changes: dict[str, object],
    routes: tuple[object, ...],
) -> None:
    ranges = ["172.22.77.33/32", "172.22.78.0/24"]
    write("if.home.json", INTERFACE, IPv4ArpResponseRanges=ranges)
    write("gw.4242.json", BRIDGE, VppBridgeLoop_CheckRouteConflict=False, **changes)
    assert plan.read(places(tmp_path), "home", warned.append).wanted.routes == routes


@pytest.mark.parametrize(
    ("interface", "bridge", "word"),
    [
        ({"uid": 1 << 24}, {}, "doesn't fit"),
        ({}, {"WgIfMacaddrPrefix": "98:D2"}, "different lengths"),
        ({}, {"WgIfMacaddrPrefix": "A4:77:33"}, "the same"),
        ({}, {"VppBridgeLoop_SwIfName": None, "VppBridgeLoop_SwIfIndex": 0}, "SwIfName"),
        ({}, {"VppBridgeLoop_SwIfName": None, "VppBridgeLoop_InstallMethod": "vppctl"}, "SwIfName"),
        ({"VppBridgeID": 5}, {}, "gw.5.json"),
        ({}, {"GatewayMacAddr": "98:D2:93:00:00:03"}, "our end"),
        ({}, {"GatewayMacAddr": "A4:77:33:00:00:03"}, "VPP's end"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    write: Callable[..., Path],
    tmp_path: Path,
    warned: list[str],
    interface: dict[str, object],
    bridge: dict[str, object],
    word: str,
) -> None:
    write("if.home.json", INTERFACE, **interface)
    write("gw.4242.json", BRIDGE, VppBridgeLoop_CheckRouteConflict=False, **bridge)
    with pytest.raises(RustGuardError) as refused:
        plan.read(places(tmp_path), "home", warned.append)
    assert word in refused.value.message
    assert refused.value.fix


@pytest.mark.parametrize(
    ("ranges", "overlap"),
    [
        ({"IPv4ArpResponseRanges": ["172.22.0.0/16"]}, ("172.22.77.33/32", "172.22.0.0/16")),
        ({"IPv6NdpNeighAdvRanges": ["fe80::42:1817:1/128"]}, ("fe80::42:1817:1/128", "fe80::42:1817:1/128")),
        ({"IPv4ArpLearningRanges": ["172.22.77.33/32"]}, None),
        ({"IPv4ArpResponseRanges": ["172.22.77.32/32"]}, None),
    ],
)
def test_an_address_that_another_file_answers_for_is_refused(
    write: Callable[..., Path],
    tmp_path: Path,
    warned: list[str],
    ranges: dict[str, object],
    overlap: tuple[str, str] | None,
) -> None:
    """It is looked for in folders below the named one too."""
    own = write("if.home.json", INTERFACE)
    other = write("deep/er/if.other.json", {"uid": 4, "VppBridgeID": 4242, "Unknown": 1}, **ranges)
    write("deep/gw.other.json", {"uid": "not an interface's"})
    write("gw.4242.json", BRIDGE, VppBridgeLoop_CheckRouteConfigPaths=[str(tmp_path), str(tmp_path / "deep")])
    if overlap is None:
        plan.read(places(tmp_path), "home", warned.append)
    else:
        with pytest.raises(RefusedError) as refused:
            plan.read(places(tmp_path), "home", warned.append)
        assert all(word in refused.value.message for word in (str(own), str(other), *overlap))
    assert warned == []


def test_conflicts_are_not_looked_for_elsewhere(
    write: Callable[..., Path], tmp_path: Path, warned: list[str]
) -> None:
    """On another bridge the same address is another one; and the check can be turned off."""
    own = write("if.home.json", INTERFACE)
    other = write("if.other.json", INTERFACE | {"VppBridgeID": 7})
    bridge = read_bridge(
        write("gw.4242.json", BRIDGE, VppBridgeLoop_CheckRouteConfigPaths=[str(tmp_path)]), warned.append
    )
    refuse_overlaps(read_interface(own, warned.append), bridge)
    other.write_text(own.read_text())
    with pytest.raises(RefusedError):
        refuse_overlaps(read_interface(own, warned.append), bridge)
    refuse_overlaps(read_interface(own, warned.append), replace(bridge, check=False))
    with pytest.raises(UsageError, match="No such file"):
        refuse_overlaps(read_interface(own, warned.append), replace(bridge, check_paths=(tmp_path / "none",)))
