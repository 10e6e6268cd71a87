"""A test on each of our data planes."""

from __future__ import annotations

import pytest

from rustguard_py.engine import has_native
from support.attack_table import is_long

needs_native = pytest.mark.skipif(
    not has_native(), reason="the native plane isn't built here (no cargo at installation)"
)
on_both_engines = pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "portable"])

# Of what takes long: the portable plane, whose rules are tested at the contract too, in the long form alone.
on_the_better_engine = (
    on_both_engines if is_long() else pytest.mark.parametrize("engine", ["native" if has_native() else "portable"])
)
