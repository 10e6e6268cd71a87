"""The kernel's own WireGuard passes tests/conformance too: a test that it fails is wrong.

Here are the tests that another WireGuard passes only in part, or that look into its rules. A virtual machine has no
time for all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.test_peers import (
    test_a_public_key_of_low_order_has_nothing_sent_to_it,
    test_allowed_ips_move_with_what_they_let_in_and_out,
)
from conformance.test_setups import test_a_route_to_the_peer_through_its_own_tunnel_does_not_run_away
from conformance.test_source import test_answers_come_from_an_address_of_another_interface
from conformance.test_traffic import test_a_narrow_link_on_the_way_is_passed_in_fragments
from support.wireguards import Implementation

__all__ = [
    "test_a_narrow_link_on_the_way_is_passed_in_fragments",
    "test_a_public_key_of_low_order_has_nothing_sent_to_it",
    "test_a_route_to_the_peer_through_its_own_tunnel_does_not_run_away",
    "test_allowed_ips_move_with_what_they_let_in_and_out",
    "test_answers_come_from_an_address_of_another_interface",
]


@pytest.fixture
def implementation(tmp_path: Path) -> Implementation:
    """The kernel's."""
    return Implementation("kernel", tmp_path)


@pytest.fixture
def sticky(implementation: Implementation) -> Implementation:
    """The same: it knows which of its addresses was written to."""
    return implementation
