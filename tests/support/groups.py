"""Keeps the tests of an xdist group in one worker.

pytest-xdist 3.8 adds a test's group to its id where pytest 9.2 doesn't look for it, so `--dist loadgroup` spreads the
tests as if they had no group: https://github.com/pytest-dev/pytest-xdist/issues/1386. What the tests of a group share
is then made by each worker. Here the id gets what was added. With an xdist that does so itself, nothing changes.
"""

from __future__ import annotations

import pytest


# After pytest-xdist's.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the group into the id of each test that has one."""
    for item in items:
        with_group = getattr(item, "_nodeid", item.nodeid)
        if with_group != item.nodeid:
            # The class of ids isn't public.
            item._id = type(item.id).parse(with_group)
