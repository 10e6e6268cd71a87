"""A test on each of our data planes."""

from __future__ import annotations

import pytest

from rustguard_py.engine import has_native

needs_native = pytest.mark.skipif(
    not has_native(), reason="the native plane isn't built here (no cargo at installation)"
)
on_both_engines = pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "portable"])
