"""The changes made to the system: what each asks of the kernel and of nft, how it is undone, and what is refused."""

from __future__ import annotations

import errno
import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from rustguard_py import conf
from rustguard_py.daemon import ledger, steps
from rustguard_py.daemon.ledger import Ledger, Left
from rustguard_py.daemon.steps import Address, Firewall, Route, Rule, Step, Sysctl
from rustguard_py.model.errors import RefusedError, RustGuardError
from rustguard_py.state import paths
from rustguard_py.system import netlink_batch
from rustguard_py.system.interface import RT_TABLE_MAIN
from rustguard_py.system.netlink_library import NetlinkError

# The loopback interface, which every machine has.
HERE = "lo"
NO_NETLINK = cast(Any, None)
# include/uapi/linux/fib_rules.h: FIB_RULE_INVERT, the rule is for packets that don't match.
INVERT = 0x02
RULES = """table ip rustguard-wg0
delete table ip rustguard-wg0
table ip rustguard-wg0 {
chain raw {
type filter hook prerouting priority -300;
iifname != "wg0" ip daddr 10.9.0.1 fib saddr type != local drop
iifname != "wg0" ip daddr 10.9.1.1 fib saddr type != local drop
}
chain answers {
type filter hook prerouting priority -150;
meta l4proto udp meta mark set ct mark
}
chain sent {
type filter hook postrouting priority -150;
meta l4proto udp meta mark 51820 ct mark set meta mark
}
}
"""
FIREWALL = Firewall("wg0", 4, ("10.9.0.1", "10.9.1.1"), 51820)


class Kernel:
    """Takes what is asked of pyroute2, and refuses with `code` if that is set."""

    def __init__(self) -> None:
        self.code = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def rule(self, verb: str, **what: Any) -> None:
        self.asked.append((verb, what))
        if self.code:
            raise NetlinkError(self.code)


class Programs:
    """What is run, and how it ends: `code` None if the program is missing."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.code: int | None = 0
        self.out, self.error = "", ""

    def run(self, argv: list[str], stdin: str = "") -> subprocess.CompletedProcess[str] | None:
        self.ran.append((" ".join(argv), stdin))
        return None if self.code is None else subprocess.CompletedProcess(argv, self.code, self.out, self.error)


class Batches:
    """What is sent in batches: `codes` are the kernel's answers to the next requests, and then all go well."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.sent: list[netlink_batch.Request] = []
        self.stops: list[bool] = []

    def send(self, requests: list[netlink_batch.Request], *, stop: bool) -> list[int]:
        self.sent += requests
        self.stops.append(stop)
        answered, self.codes = self.codes[: len(requests)], self.codes[len(requests) :]
        return answered + [0] * (len(requests) - len(answered))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(steps, "run", made.run)
    return made


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    made = Batches()
    monkeypatch.setattr(netlink_batch, "send", made.send)
    return made


@pytest.fixture
def sysctls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(steps, "SYSCTLS", tmp_path)
    monkeypatch.setattr(steps, "SRC_VALID_MARK", "x")
    return tmp_path


@pytest.mark.parametrize(
    "step", [Address(HERE, "10.9.0.1/24"), Route(HERE, "10.8.0.0/16"), Rule(4, 1, 2, 3), FIREWALL]
)
def test_what_needs_no_memo_has_an_empty_one(step: Step) -> None:
    assert step.prepare() == ""


# -- rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "command", "what"),
    [
        (
            Rule(4, 100, RT_TABLE_MAIN, 0),
            "ip -4 rule {} table main suppress_prefixlength 0 priority 100",
            {"family": socket.AF_INET, "priority": 100, "table": 254, "FRA_SUPPRESS_PREFIXLEN": 0},
        ),
        (
            Rule(6, 101, 51820, 7),
            "ip -6 rule {} not fwmark 7 table 51820 priority 101",
            {
                "family": socket.AF_INET6,
                "priority": 101,
                "table": 51820,
                "fwmark": 7,
                "fwmask": 0xFFFFFFFF,
                "flags": INVERT,
            },
        ),
    ],
)
def test_a_rule_is_added_and_deleted_as_its_command_says(rule: Rule, command: str, what: dict[str, Any]) -> None:
    kernel, said = Kernel(), list[str]()
    rule.apply(cast(Any, kernel), "", said.append)
    rule.undo(cast(Any, kernel), "", said.append)
    assert kernel.asked == [("add", what), ("del", what)]
    assert said == [f"[#] {command.format('add')}", f"[#] {command.format('delete')}"]


def test_a_rule_that_the_kernel_refuses_is_an_error_with_the_command_but_not_when_it_is_undone() -> None:
    kernel = Kernel()
    for kernel.code, why in ((errno.EPERM, "needs root"), (errno.EEXIST, "it's there already"), (errno.EIO, "EIO")):
        with pytest.raises(RustGuardError, match=why) as caught:
            Rule(4, 100, 51820, 7).apply(cast(Any, kernel), "", lambda _: None)
        assert "ip -4 rule add not fwmark 7" in caught.value.message
    kernel.code = errno.ENOENT
    Rule(4, 100, 51820, 7).undo(cast(Any, kernel), "", lambda _: None)


# -- the firewall -------------------------------------------------------------------------------------------


def test_the_firewall_is_one_table_of_three_chains(programs: Programs) -> None:
    said: list[str] = []
    FIREWALL.apply(NO_NETLINK, "", said.append)
    Firewall("wg0", 6, ("fd09::1",), 51820).apply(NO_NETLINK, "", said.append)
    (command, rules), (_, rules6) = programs.ran
    assert (command, rules) == ("nft -f -", RULES)
    assert 'iifname != "wg0" ip6 daddr fd09::1 fib saddr type != local drop' in rules6
    assert said == ["[#] nft add table ip rustguard-wg0", "[#] nft add table ip6 rustguard-wg0"]


def test_a_name_that_nft_takes_for_a_sign_is_written_in_letters(programs: Programs) -> None:
    said: list[str] = []
    Firewall("a=b+ä", 4, ("10.9.0.1",), 51820).apply(NO_NETLINK, "", said.append)
    [(_, rules)] = programs.ran
    assert rules.startswith("table ip rustguard-a_3db_2b_e4\n")
    assert 'iifname != "a=b+ä"' in rules


def test_rules_that_nft_refuses_are_an_error_with_the_first_line_of_what_it_said(programs: Programs) -> None:
    programs.code, programs.out, programs.error = 1, "on stdout\n", "Error: no such hook\n  here\n"
    with pytest.raises(RustGuardError, match=r"^nft refused the rules of wg0: Error: no such hook$"):
        FIREWALL.apply(NO_NETLINK, "", lambda _: None)
    programs.error = ""
    with pytest.raises(RustGuardError, match="on stdout"):
        FIREWALL.apply(NO_NETLINK, "", lambda _: None)


def test_without_nft_the_tunnel_starts_and_warns(programs: Programs) -> None:
    programs.code = None
    said: list[str] = []
    FIREWALL.apply(NO_NETLINK, "", said.append)
    FIREWALL.undo(NO_NETLINK, "", said.append)
    assert [line[:12] for line in said] == ["[#] nft add ", "[!] nft is m"]
    assert FIREWALL.look("") is None


def test_the_firewall_is_looked_at_and_deleted_by_its_table(programs: Programs) -> None:
    programs.out = "table ip rustguard-wg0 {}"
    said: list[str] = []
    assert FIREWALL.look("") == programs.out
    FIREWALL.undo(NO_NETLINK, "", said.append)
    assert said == ["[#] nft delete table ip rustguard-wg0"]
    assert [command for command, _ in programs.ran] == [
        "nft list table ip rustguard-wg0",
        "nft delete table ip rustguard-wg0",
    ]
    # One that is gone is nothing to report.
    programs.code = 1
    FIREWALL.undo(NO_NETLINK, "", said.append)
    assert len(said) == 1


def test_a_firewall_with_other_addresses_takes_the_place_of_the_old_one() -> None:
    assert FIREWALL.place == Firewall("wg0", 4, (), 0).place
    assert len({FIREWALL.place, Firewall("wg0", 6, (), 0).place, Firewall("wg1", 4, (), 0).place}) == 3


# -- variables ----------------------------------------------------------------------------------------------


def test_a_variable_is_set_and_gets_its_old_value_back(sysctls: Path) -> None:
    path, step = sysctls / "net/ipv4/x", Sysctl("net.ipv4.x", "1")
    path.parent.mkdir(parents=True)
    path.write_text("0\n")
    said: list[str] = []
    memo = step.prepare()
    assert memo == "0"
    for _ in range(2):
        step.apply(NO_NETLINK, memo, said.append)
        assert path.read_text() == "1"
    for _ in range(2):
        step.undo(NO_NETLINK, memo, said.append)
        assert path.read_text() == "0"
    # What is as wanted already isn't written again.
    assert said == ["[#] sysctl -q net.ipv4.x=1", "[#] sysctl -q net.ipv4.x=0"]


def test_a_variable_that_is_not_there_is_an_error_but_not_when_it_is_undone(sysctls: Path) -> None:
    step = Sysctl("net.ipv4.x", "1")
    with pytest.raises(RustGuardError, match="can't be read"):
        step.prepare()
    with pytest.raises(RustGuardError, match="can't be read"):
        step.apply(NO_NETLINK, "0", lambda _: None)
    step.undo(NO_NETLINK, "0", lambda _: None)
    assert list(sysctls.iterdir()) == []


# -- many at once -------------------------------------------------------------------------------------------


def test_addresses_and_routes_are_made_in_order_and_reported_as_ip_commands(batches: Batches) -> None:
    wanted: list[Address | Route] = [
        Address(HERE, "10.9.0.1/24"),
        Address(HERE, "fd09::1/64"),
        Route(HERE, "10.8.0.0/16"),
        Route(HERE, "::/0", 7),
    ]
    said, made = list[str](), list[Step]()
    assert steps.apply_all(wanted, said.append, made.append) == []
    assert made == wanted
    index = socket.if_nametoindex(HERE)
    assert batches.sent == [
        netlink_batch.address("10.9.0.1/24", index, add=True),
        netlink_batch.address("fd09::1/64", index, add=True),
        netlink_batch.route("10.8.0.0/16", index, add=True),
        netlink_batch.route("::/0", index, 7, add=True),
    ]
    assert batches.stops == [True]
    assert said == [
        f"[#] ip -4 address add 10.9.0.1/24 dev {HERE}",
        f"[#] ip -6 address add fd09::1/64 dev {HERE} nodad",
        f"[#] ip -4 route add 10.8.0.0/16 dev {HERE}",
        f"[#] ip -6 route add ::/0 dev {HERE} table 7",
    ]


def test_the_first_refusal_is_the_error_and_what_was_made_is_known(batches: Batches) -> None:
    batches.codes = [0, errno.EPERM, errno.EIO, 0]
    made: list[Step] = []
    routes = [Route(HERE, f"10.{number}.0.0/16") for number in range(4)]
    with pytest.raises(RefusedError, match=r"ip -4 route add 10\.1\.0\.0/16"):
        steps.apply_all(routes, lambda _: None, made.append)
    assert made == [routes[0], routes[3]]


def test_what_is_there_already_can_wait_or_is_an_error(batches: Batches) -> None:
    routes = [Route(HERE, f"10.{number}.0.0/16") for number in range(3)]
    said, made = list[str](), list[Step]()
    batches.codes = [0, errno.EEXIST, 0]
    assert steps.apply_all(routes, said.append, made.append, wait=True) == [routes[1]]
    assert made == [routes[0], routes[2]]
    assert len(said) == 2
    assert batches.stops == [False]
    batches.codes = [errno.EEXIST]
    with pytest.raises(RustGuardError, match="it's there already"):
        routes[0].apply(NO_NETLINK, "", said.append)


def test_what_is_already_gone_is_skipped_when_it_is_undone(batches: Batches) -> None:
    said: list[str] = []
    batches.codes = [0, errno.ESRCH, 0]
    steps.undo_all([Route(HERE, f"10.{number}.0.0/16") for number in range(3)], said.append)
    assert said == [f"[#] ip -4 route delete 10.{number}.0.0/16 dev {HERE}" for number in (0, 2)]
    assert batches.stops == [False]
    steps.undo_all([], said.append)
    # With its interface, all is gone.
    steps.undo_all([Route("no-such-link", "10.0.0.0/8")], said.append)
    assert len(said) == 2
    assert len(batches.sent) == 3


@pytest.mark.usefixtures("batches")
def test_when_an_address_goes_the_kernel_keeps_the_others_of_its_network(sysctls: Path) -> None:
    path = sysctls / f"net/ipv4/conf/{HERE}/promote_secondaries"
    path.parent.mkdir(parents=True)
    Address(HERE, "fd09::1/64").undo(NO_NETLINK, "", lambda _: None)
    Route(HERE, "10.8.0.0/16").undo(NO_NETLINK, "", lambda _: None)
    Address(HERE, "10.9.0.1/24").apply(NO_NETLINK, "", lambda _: None)
    assert not path.exists()
    Address(HERE, "10.9.0.1/24").undo(NO_NETLINK, "", lambda _: None)
    assert path.read_text() == "1"


def test_on_an_interface_that_is_gone_nothing_can_be_made(batches: Batches) -> None:
    with pytest.raises(RustGuardError, match="There is no interface no-such-link any more"):
        Address("no-such-link", "10.9.0.1/24").apply(NO_NETLINK, "", lambda _: None)
    assert batches.sent == []


# -- programs -----------------------------------------------------------------------------------------------


def test_a_program_gets_its_input_and_what_it_says_is_returned() -> None:
    done = steps.run(["sh", "-c", "cat; echo no >&2; exit 3"], "yes")
    assert done is not None
    assert (done.returncode, done.stdout, done.stderr) == (3, "yes", "no\n")
    assert steps.run(["no-such-program"]) is None


def test_a_program_that_does_not_end_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PROGRAM_SECONDS", 0.05)
    done = steps.run(["sleep", "20"])
    assert done is not None
    assert done.returncode
    assert done.stderr == "sleep did not end within 0.05 s"


# -- the ledger ---------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ledger:
    kernel = Kernel()
    monkeypatch.setattr(ledger, "with_netlink", lambda work: work(kernel))
    monkeypatch.setattr(paths, "running", list)
    (tmp_path / "wg0").mkdir()
    return Ledger(tmp_path / "wg0/undo.json", Left("wg0", conf.Hooks()))


def load(made: Ledger) -> Ledger | None:
    return Ledger.load(made._path)


@pytest.mark.parametrize("where", ["boot_id", "namespace_id"])
def test_after_a_reboot_or_in_another_namespace_there_is_nothing_to_undo(
    kept: Ledger, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    kept.become([Rule(4, 100, 7, 7)], lambda _: None)
    assert load(kept) is not None
    monkeypatch.setattr(ledger, where, lambda: "another")
    assert load(kept) is None


def test_a_step_that_outlives_us_is_on_disk_before_it_is_done(kept: Ledger) -> None:
    on_disk: list[list[Step]] = []

    def note(_line: str) -> None:
        again = load(kept)
        on_disk.append([] if again is None else list(again.done))

    one, other = Rule(4, 100, 7, 7), Rule(6, 100, 7, 7)
    kept.become([one, other], note)
    assert on_disk == [[one], [one, other]]


@pytest.mark.usefixtures("batches", "programs")
def test_another_configuration_does_what_is_new_and_then_undoes_what_is_old(kept: Ledger) -> None:
    said: list[str] = []
    same = Rule(4, 99, 7, 7)
    old: list[Step] = [same, Route(HERE, "10.1.0.0/16"), FIREWALL, Rule(4, 100, 7, 7), Rule(4, 101, 7, 7)]
    kept.become(old, said.append)
    assert list(kept.done) == old
    said.clear()
    new: list[Step] = [same, Firewall("wg0", 4, ("10.9.0.2",), 51820), Route(HERE, "10.2.0.0/16")]
    kept.become(new, said.append)
    assert list(kept.done) == new
    assert said == [
        # It replaces the old table, which is not deleted.
        "[#] nft add table ip rustguard-wg0",
        f"[#] ip -4 route add 10.2.0.0/16 dev {HERE}",
        "[#] ip -4 rule delete not fwmark 7 table 7 priority 101",
        "[#] ip -4 rule delete not fwmark 7 table 7 priority 100",
        f"[#] ip -4 route delete 10.1.0.0/16 dev {HERE}",
    ]


@pytest.mark.usefixtures("sysctls")
def test_what_an_old_address_is_in_the_way_of_is_done_once_that_is_gone(kept: Ledger, batches: Batches) -> None:
    said: list[str] = []
    kept.become([Address(HERE, "10.9.0.1/24")], said.append)
    said.clear()
    batches.codes = [errno.EEXIST]
    kept.become([Route(HERE, "10.9.0.0/24")], said.append)
    assert said == [f"[#] ip -4 address delete 10.9.0.1/24 dev {HERE}", f"[#] ip -4 route add 10.9.0.0/24 dev {HERE}"]
    assert list(kept.done) == [Route(HERE, "10.9.0.0/24")]


@pytest.mark.usefixtures("batches")
def test_the_end_undoes_what_outlives_the_interface_and_removes_the_file(kept: Ledger) -> None:
    said: list[str] = []
    kept.become([Route(HERE, "10.1.0.0/16"), Rule(4, 100, 7, 7), Rule(4, 101, 7, 7)], lambda _: None)
    kept.undo(said.append)
    assert [line[-12:] for line in said] == ["priority 101", "priority 100"]
    assert kept.done == {}
    assert load(kept) is None
    kept.undo(said.append)
    assert len(said) == 2


def test_a_variable_stays_set_while_another_tunnel_needs_it(kept: Ledger, sysctls: Path) -> None:
    variable = sysctls / "x"
    variable.write_text("0")
    (kept._path.parent.parent / "wg1").mkdir()
    other = Ledger(kept._path.parent.parent / "wg1/undo.json", Left("wg1", conf.Hooks()))
    for each in (kept, other):
        each.become([Sysctl("x", "1")], lambda _: None)
    kept.undo(lambda _: None)
    assert variable.read_text() == "1"
    other.undo(lambda _: None)
    assert variable.read_text() == "0"
