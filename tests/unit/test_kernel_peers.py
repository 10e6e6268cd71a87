"""What the kernel's counters tell: sessions, moves, silence; and how a lost preshared key is found.

The kernel is a list of the commands it was sent, and readings written here: `tests/kernel` has the real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from rustguard_py.kernel.counters import Counters
from rustguard_py.kernel.kernel_peers import KernelPeers
from rustguard_py.kernel.messages import KernelInterfaceState, KernelPeerChange, KernelPeerState
from rustguard_py.model.endpoint import Endpoint
from rustguard_py.model.keys import public_key
from rustguard_py.model.peer import PeerConfig
from rustguard_py.model.tunnel import Listeners

KEY = bytes([9]) * 32
HERE: Endpoint = ("192.0.2.1", 51820)
NEWEST, OLDER, OLDEST = (bytes([n]) * 32 for n in (1, 2, 3))
CONFIG = PeerConfig(KEY, (ip_network("10.0.0.2/32"),), NEWEST, HERE, 25)
# The wall's clock when ours is 0.
EPOCH = 1_700_000_000.0


class Kernel:
    """What it was told, and the next reading."""

    def __init__(self) -> None:
        self.told: list[KernelPeerChange] = []
        self.peers = KernelPeers(bytes([7]) * 32, self)
        self.happened: list[tuple[str, object]] = []
        self.state = Counters(HERE)
        self.listeners = Listeners(
            unanswered=lambda _, attempts: self.happened.append(("unanswered", attempts)),
            session=lambda peer: self.happened.append(("session", peer.key_in_use)),
            moved=lambda _, endpoint: self.happened.append(("moved", endpoint)),
        )

    def set_peers(self, changes: Iterable[KernelPeerChange]) -> None:
        self.told += changes

    def configure(self, *, private_key: bytes) -> None:
        self.private_key = private_key

    def read(self, at: float, *, received: int = 0, sent: int = 0, handshake: float | None = None) -> None:
        state = self.state
        state.rx_bytes += received
        state.tx_bytes += sent
        if handshake is not None:
            state.last_handshake = EPOCH + handshake
        self.peers.observe({KEY: state}, at, EPOCH + at, self.listeners)

    def take(self) -> list[KernelPeerChange]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def kernel() -> Kernel:
    made = Kernel()
    made.peers.set_peer(CONFIG)
    made.take()
    return made


def test_a_handshake_and_a_move_are_told_once(kernel: Kernel) -> None:
    kernel.read(1.0, sent=148)
    kernel.read(2.0, received=92, sent=32, handshake=1.5)
    kernel.read(3.0, received=64)
    assert kernel.happened == [("session", 0)]
    peer = kernel.peers.get(KEY)
    assert peer is not None
    assert peer.session_began == pytest.approx(1.5)
    kernel.state.endpoint = ("192.0.2.9", 4)
    kernel.read(4.0, received=64)
    kernel.read(5.0, received=64)
    assert kernel.happened[1:] == [("moved", ("192.0.2.9", 4))]
    assert peer.endpoint == ("192.0.2.9", 4)
    stats = kernel.peers.stats()[peer.id]
    assert (stats.rx_bytes, stats.tx_bytes, stats.handshakes) == (284, 180, 1)
    assert stats.last_received == 5.0


def test_with_another_key_of_ours_the_peers_stay_but_for_ourselves(kernel: Kernel) -> None:
    fresh = public_key(bytes([8]) * 32)
    kernel.peers.set_peer(replace(CONFIG, public_key=fresh))
    kernel.take()
    kernel.peers.set_private_key(bytes([8]) * 32, 1.0)
    assert kernel.private_key == bytes([8]) * 32
    assert [peer.config.public_key for peer in kernel.peers] == [KEY]
    assert kernel.take() == [KernelPeerChange(fresh, remove=True)]


def test_handshakes_that_go_unanswered_are_counted(kernel: Kernel) -> None:
    for second in range(0, 21, 5):
        kernel.read(float(second), sent=148)
    assert kernel.happened == [("unanswered", 1), ("unanswered", 2), ("unanswered", 3), ("unanswered", 4)]
    # It stops trying: there is nothing to tell. Then it is answered.
    for second in range(25, 60, 5):
        kernel.read(float(second))
    assert len(kernel.happened) == 4
    kernel.read(60.0, received=92, sent=148, handshake=59.0)
    assert kernel.happened[4:] == [("session", 0)]


def test_where_nobody_listens_nothing_is_counted_and_nothing_fails(kernel: Kernel) -> None:
    kernel.listeners = Listeners()
    for second in range(0, 61, 5):
        kernel.read(float(second), sent=148)
    kernel.state.endpoint = ("192.0.2.9", 4)
    kernel.read(61.0, received=92, handshake=60.5)
    peer = kernel.peers.get(KEY)
    assert peer is not None
    assert (peer.attempts, peer.endpoint, kernel.happened) == (0, ("192.0.2.9", 4), [])


def test_a_session_that_is_quiet_is_no_silence(kernel: Kernel) -> None:
    kernel.read(0.0, received=92, sent=148, handshake=0.0)
    kernel.happened.clear()
    # Keepalives of ours need no answer.
    for second in range(5, 100, 5):
        kernel.read(float(second), sent=32 if second % 25 == 0 else 0)
    assert kernel.happened == []
    # What was sent is answered within the 10 s that a keepalive of theirs may take.
    kernel.read(100.0, sent=1500)
    kernel.read(105.0)
    kernel.read(110.0, received=32)
    kernel.read(119.0)
    assert kernel.happened == []


def test_data_without_an_answer_is_told_after_the_handshake_for_it(kernel: Kernel) -> None:
    kernel.read(0.0, received=92, sent=148, handshake=0.0)
    kernel.happened.clear()
    for second in range(5, 41, 5):
        kernel.read(float(second), sent=1500)
    assert kernel.happened[0] == ("unanswered", 1)
    # 15 s to the handshake and 5 s for its answer, counted from second 5.
    assert [each for each in kernel.happened if each[0] == "unanswered"] == [("unanswered", n) for n in (1, 2, 3, 4)]


def test_a_peer_with_an_older_preshared_key_is_found_by_its_vain_handshakes(kernel: Kernel) -> None:
    kernel.peers.set_peer(replace(CONFIG, preshared_key=NEWEST, previous_preshared_keys=(OLDER, OLDEST)))
    kernel.take()
    assert kernel.peers.unsettled()
    tried = []
    for second in range(1, 30):
        # An initiation each five seconds, answered and not confirmed.
        kernel.read(float(second), **({"received": 148, "sent": 92} if second % 5 == 0 else {}))
        tried += [change.preshared_key for change in kernel.take()]
    assert tried == [OLDER, OLDEST, NEWEST, OLDER, OLDEST]
    kernel.read(31.0, received=148 + 32, sent=92, handshake=30.5)
    assert kernel.happened[-1] == ("session", 2)
    # Data, whatever its size, makes nobody change.
    kernel.read(32.0, received=16 * 37)
    assert kernel.take() == []
    # Told that it has settled, the key in the kernel stays what the peer has.
    kernel.peers.set_peer(replace(CONFIG, previous_preshared_keys=(OLDER, OLDEST), endpoint=None))
    assert [change.preshared_key for change in kernel.take()] == [OLDEST]


def test_another_preshared_key_ends_the_session_and_keeps_where_the_peer_is(kernel: Kernel) -> None:
    kernel.read(1.0, received=92, sent=148, handshake=1.0)
    kernel.peers.set_peer(replace(CONFIG, preshared_key=OLDER, endpoint=None))
    removed, put = kernel.take()
    assert (removed.public_key, removed.remove) == (KEY, True)
    assert (put.preshared_key, put.endpoint, put.keepalive, put.allowed_ips) == (OLDER, HERE, 25, CONFIG.allowed_ips)
    peer = kernel.peers.get(KEY)
    assert peer is not None
    assert peer.session_began is None


def test_only_what_changed_is_told(kernel: Kernel) -> None:
    kernel.peers.set_peer(replace(CONFIG, endpoint=None, persistent_keepalive=0))
    [change] = kernel.take()
    assert (change.endpoint, change.keepalive, change.allowed_ips) == (None, 0, None)
    peer = kernel.peers.get(KEY)
    assert peer is not None
    kernel.peers.set_endpoint(peer, HERE, 0.0)
    assert kernel.take() == []
    kernel.peers.set_endpoint(peer, ("192.0.2.9", 1), 0.0)
    assert kernel.take() == [KernelPeerChange(KEY, endpoint=("192.0.2.9", 1), update_only=True)]


def test_a_handshake_is_asked_for_by_a_keepalive_and_expected_for_a_while(kernel: Kernel) -> None:
    peer = kernel.peers.get(KEY)
    assert peer is not None
    assert not kernel.peers.expects(0.0)
    kernel.peers.begin_handshake(peer, 0.0)
    assert [change.keepalive for change in kernel.take()] == [0, 25, 25]
    assert kernel.peers.expects(19.0)
    assert not kernel.peers.expects(21.0)
    # A greeting is not waited for; and what has no endpoint can't be greeted.
    kernel.peers.begin_handshake(peer, 30.0, patience=0.0)
    assert not kernel.peers.expects(30.0)
    kernel.take()
    peer.endpoint = None
    kernel.peers.begin_handshake(peer, 30.0)
    assert kernel.take() == []
    assert kernel.peers.remove_peer(KEY)
    assert kernel.take() == [KernelPeerChange(KEY, remove=True)]
    assert not kernel.peers.remove_peer(KEY)
    assert kernel.peers.get(KEY) is None


def test_asking_makes_the_kernel_forget_the_session_and_no_counter_goes_back(kernel: Kernel) -> None:
    kernel.read(1.0, received=92, sent=180, handshake=0.9)
    kernel.read(2.0, received=1000, sent=2000)
    peer = kernel.peers.get(KEY)
    assert peer is not None
    kernel.state.endpoint = there = ("192.0.2.99", 7)
    kernel.read(2.5)
    kernel.happened.clear()
    kernel.peers.ask(peer, 3.0)
    told = kernel.take()
    assert told[0] == KernelPeerChange(KEY, remove=True)
    assert (told[1].preshared_key, told[1].endpoint, told[1].keepalive) == (NEWEST, there, 25)
    assert told[1].allowed_ips == CONFIG.allowed_ips
    assert peer.session_began is None
    # The kernel tries on by itself.
    kernel.peers.ask(peer, 4.0)
    assert kernel.take() == []
    kernel.peers.ask(peer, 9.0)
    assert [each.remove for each in kernel.take()] == [False] * 3

    kernel.state = Counters(there)
    kernel.read(9.1, received=92, sent=328, handshake=9.05)
    assert kernel.happened == [("session", 0)]
    stats = kernel.peers.stats()[peer.id]
    assert (stats.rx_bytes, stats.tx_bytes, stats.handshakes) == (1092 + 92, 2180 + 328, 2)


# -- what wg(8) changes behind our back ---------------------------------------------------------------------


def test_what_wg_changed_in_the_kernel_is_taken_over_and_sends_nothing() -> None:
    kernel = Kernel()
    gone, new = bytes([8]) * 32, bytes([10]) * 32
    known = kernel.peers.set_peer(CONFIG)
    kernel.peers.set_peer(replace(CONFIG, public_key=gone, allowed_ips=()))
    kernel.take()
    moved: Endpoint = ("192.0.2.9", 1)
    networks = [ip_network("10.9.0.0/16"), ip_network("10.0.0.2/32")]
    state = KernelInterfaceState(public_key(OLDEST), OLDEST)
    state.peers = {
        KEY: KernelPeerState(KEY, OLDER, moved, None, 0, 0, 0, networks),
        new: KernelPeerState(new, NEWEST, None, None, 7, 0, 0, networks[:1]),
    }
    kernel.peers.adopt(state)
    assert kernel.peers.public_key == public_key(OLDEST)
    assert [peer.config.public_key for peer in kernel.peers] == [KEY, new]
    assert kernel.peers.get(KEY) is known
    assert known.config == PeerConfig(KEY, tuple(networks), OLDER, HERE, 0)
    assert known.endpoint == moved
    added = kernel.peers.get(new)
    assert added is not None
    assert added.config == PeerConfig(new, tuple(networks[:1]), NEWEST, None, 7)
    assert kernel.take() == []
    # A new interface gets all of it.
    kernel.peers.put_all_again()
    assert {(each.public_key, each.preshared_key, each.endpoint) for each in kernel.take() if not each.remove} == {
        (KEY, OLDER, moved),
        (new, NEWEST, None),
    }
    assert set(kernel.peers.stats()) == {known.id, added.id}


def test_what_is_as_we_set_it_stays_as_it_is_in_whatever_order_the_kernel_lists_it() -> None:
    kernel = Kernel()
    networks = (ip_network("10.9.0.0/16"), ip_network("10.0.0.2/32"))
    peer = kernel.peers.set_peer(replace(CONFIG, allowed_ips=networks, previous_preshared_keys=(OLDER,)))
    before, ours = peer.config, kernel.peers.public_key
    state = KernelInterfaceState(ours, bytes([7]) * 32)
    state.peers = {KEY: KernelPeerState(KEY, OLDER, None, None, 25, 0, 0, list(reversed(networks)))}
    kernel.peers.adopt(state)
    assert (peer.config, peer.endpoint, kernel.peers.public_key) == (before, HERE, ours)
    # While no key is set there is none to take over.
    kernel.peers.adopt(KernelInterfaceState(peers=state.peers))
    assert kernel.peers.public_key == ours
