"""Skips the SIMT rung, with the reason, where its extensions cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from .build import unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = unavailable()
    if reason is None:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
