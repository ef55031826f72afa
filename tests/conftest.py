"""What all tests share: a store of their own, and the data or a word on it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no deadline: a slow machine is no failure.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
# Others every time, after a change: pytest --hypothesis-profile=random; see
# test_random_examples.py.
settings.register_profile("random", deadline=None, derandomize=False, max_examples=20)


_STORES = itertools.count()


@pytest.fixture(autouse=True)
def store_folder(tmp_path_factory, monkeypatch):
    """An empty store of runs, so that no test sees another's results.

    Who stores something makes the folder: few do.
    """
    folder = tmp_path_factory.getbasetemp() / f"store-{next(_STORES)}"
    monkeypatch.setenv("LLMINFER_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def fresh_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels that start where they are told, not where another test left them."""
    if loaded := sys.modules.get("llminfer.panels.panel"):
        monkeypatch.setattr(loaded.Panel, "memory", {})


@pytest.fixture(autouse=True)
def own_policies() -> Iterator[None]:
    """What a test registers is gone after it: others list all that there are."""
    loaded = sys.modules.get("llminfer.policies")
    known = dict(loaded.POLICIES) if loaded else {}
    yield
    if known:
        loaded.POLICIES.clear()
        loaded.POLICIES.update(known)


@pytest.fixture(scope="module")
def unpainted() -> Iterator[None]:
    """Panels whose axes nobody paints, only the curves: for what is said beside them.

    To paint is two thirds of what a panel takes; pictures have tests of their own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with pytest.MonkeyPatch.context() as patch:
        blank = lambda canvas: canvas.get_renderer().clear()  # noqa: E731
        patch.setattr(FigureCanvasAgg, "draw", blank)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of measured traces; without it a skip, and in CI a failure."""
    folder = os.environ.get("LLMINFER_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    missing = f"LLMINFER_DATA={folder!r} names no folder with the measured traces"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
