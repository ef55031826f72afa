"""Notebooks without their data are skipped; in continuous integration they fail."""

from __future__ import annotations

import functools

import pytest
from execute import lacking

_lacking = functools.cache(lacking)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the cells of a notebook that lacks data, and say which."""
    for item in items:
        if item.path.suffix == ".ipynb" and (without := _lacking(item.path)):
            item.add_marker(pytest.mark.skip(reason=without))
