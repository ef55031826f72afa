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
from pathlib import Path
from typing import Any

import numpy as np
import scipy

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

    def get(self, key: str | None) -> dict[str, Any] | None:
        """The metrics remembered under ``key``, or None."""
        if key is None or self._file is None:
            return None
        row = self._file.execute("SELECT metrics FROM runs WHERE key = ?", (key,))
        found = row.fetchone()
        return dict(json.loads(found[0])) if found else None

    def put(self, key: str | None, metrics: dict[str, Any]) -> None:
        """Remember ``metrics`` under ``key``; nothing under None."""
        if key is not None and self._file is not None:
            row = (key, json.dumps(metrics))
            with self._file:
                self._file.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", row)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None


@functools.cache
def source_digest() -> str:
    """Digest of the package's source, but what only draws, and of numpy and scipy."""
    home = Path(__file__).parents[1]
    digest = hashlib.sha256(f"{np.__version__} {scipy.__version__}".encode())
    for path in sorted(home.rglob("*.py")):
        place = path.relative_to(home)
        if place.parts[0] not in _DRAW:
            digest.update(place.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
