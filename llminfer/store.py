"""Finished runs on disk, so that nothing is simulated twice.

A run's key is its configuration, its seed and the source of everything that can
change its numbers: an edit to the model is never answered from an old result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from llminfer.config import SimulationConfig
from llminfer.policies import SchedulingPolicy

_DRAW = ("panels", "report")  # folders of the package that change no number


class RunStore:
    """Metrics of finished runs in one SQLite file, shared by notebooks and workers.

    The file is ``runs.sqlite`` in the folder that ``LLMINFER_CACHE`` names, or else
    in ``~/.cache/llminfer``. Where none can be written, nothing is remembered.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        home = Path.home() / ".cache" / "llminfer"
        self.folder = Path(folder or os.environ.get("LLMINFER_CACHE") or home)
        self._file: sqlite3.Connection | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.folder / "runs.sqlite", timeout=60.0)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=OFF")
            with self._file:
                table = "runs (key TEXT PRIMARY KEY, metrics TEXT)"
                self._file.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        except (OSError, sqlite3.Error):
            self.close()

    def get(
        self, config: SimulationConfig, measure: Callable[..., Any]
    ) -> dict[str, Any] | None:
        """What ``measure`` made of an earlier run of ``config``, or None."""
        key = run_key(config, measure)
        if key is None or self._file is None:
            return None
        row = self._file.execute("SELECT metrics FROM runs WHERE key = ?", (key,))
        found = row.fetchone()
        return dict(json.loads(found[0])) if found else None

    def put(
        self,
        config: SimulationConfig,
        measure: Callable[..., Any],
        metrics: dict[str, Any],
    ) -> None:
        """Remember what ``measure`` made of a run of ``config``."""
        key = run_key(config, measure)
        if key is not None and self._file is not None:
            row = (key, json.dumps(metrics))
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", row)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def run_key(config: SimulationConfig, measure: Callable[..., Any]) -> str | None:
    """The key of a run; None if it has no seed or runs code from elsewhere."""
    by_object = isinstance(config.scheduling_policy, SchedulingPolicy)
    if config.random_seed is None or by_object:
        return None
    code = (type(config.policy()), measure)
    if not all(part.__module__.startswith("llminfer.") for part in code):
        return None
    name = f"{measure.__module__}.{measure.__qualname__}"
    text = json.dumps(config.to_dict())  # in order: it numbers the request classes
    return hashlib.sha256((source_digest() + name + text).encode()).hexdigest()


@functools.cache
def source_digest() -> str:
    """Digest of the package's source, but what only draws, and of numpy and scipy."""
    home = Path(__file__).parent
    digest = hashlib.sha256(f"{np.__version__} {scipy.__version__}".encode())
    for path in sorted(home.rglob("*.py")):
        place = path.relative_to(home)
        if place.parts[0] not in _DRAW:
            digest.update(place.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
