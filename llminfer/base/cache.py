"""Finished runs on disk, so that nothing is simulated twice.

A run's key is its configuration, its seed and the code that made its numbers: an edit
to the model is never answered from an old result. Each row carries a checksum, and
whatever is wrong with the file costs its contents, never a number.
"""

import contextlib
import hashlib
import inspect
import json
import os
import platform
import sqlite3
import warnings
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pandas as pd
import scipy
import simpy

_HOME = Path(__file__).parents[1]
_DRAW = ("panels", "report")  # folders of the package that change no number
_LARGEST = 2**30  # bytes of the file; over it the oldest rows go
_DAMAGE = {
    sqlite3.SQLITE_ERROR,  # not our table
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}
_TABLE = "runs_2 (key TEXT PRIMARY KEY, code TEXT, metrics TEXT, checksum TEXT)"


def digest_of_source(home: Path = _HOME) -> str:
    """Digest of the package's source, without what only draws, and of its versions.

    Args:
        home: The folder of the package.
    """
    versions = f"{np.__version__} {scipy.__version__} {simpy.__version__}"
    digest = hashlib.sha256(versions.encode())
    for path in sorted(home.rglob("*.py")):
        place = path.relative_to(home)
        if place.parts[0] not in _DRAW:
            digest.update(place.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


# Taken on import: an edit after it changes the file, and not the code that runs.
SOURCE = digest_of_source()


def made_by(**what: Any) -> str:
    """What makes results here, as JSON: the versions, the code's digest, and ``what``.

    >>> json.loads(made_by(random_seed=42))["random_seed"]
    42
    """
    versions = {its.__name__: its.__version__ for its in (np, scipy, simpy, pd)}
    versions["llminfer"] = " ".join(d.version for d in distributions(name="llminfer"))
    versions |= {"python": platform.python_version(), "code": SOURCE}
    return json.dumps(versions | what, default=repr, indent=1)


def code_of(part: type | Callable[..., Any]) -> str | None:
    """What a class with its bases, or a function, executes now, as text.

    So that a method replaced in a kernel, or a module loaded again, is other code. None
    if some of it is no code of this package.

    >>> code_of(RunStore) == code_of(RunStore), code_of(Path)
    (True, None)
    """
    bases = getattr(part, "__mro__", (part,))
    own = [its for its in bases if its.__module__ not in ("builtins", "abc")]
    members = [member for its in own for member in vars(its).values()]
    methods = [getattr(m, "__func__", getattr(m, "fget", m)) for m in members]
    functions = [f for f in (*own, *methods) if isinstance(f, FunctionType)]
    ours = [f for f in (*own, *functions) if f.__module__ != "dataclasses"]  # 3.13's
    if not all(f.__module__.startswith("llminfer.") for f in ours):
        return None
    return " ".join(_text(inspect.unwrap(f).__code__) for f in functions)


def _text(constant: Any) -> str:
    """A constant of a function, or its code, the same in every process."""
    if isinstance(constant, frozenset):
        return str(sorted(map(repr, constant)))
    if not isinstance(constant, CodeType):
        return repr(constant)
    inside = " ".join(map(_text, constant.co_consts))
    return f"{constant.co_code.hex()} {constant.co_names} {inside}"


class RunStore:
    """Metrics of finished runs in one SQLite file, shared by notebooks and workers.

    The file is ``runs.sqlite`` in the folder that ``LLMINFER_CACHE`` names, or else
    in ``~/.cache/llminfer``. Where none can be written, nothing is remembered. A
    damaged one is moved aside, and a new one begun.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        named = folder or os.environ.get("LLMINFER_CACHE") or "~/.cache/llminfer"
        self.path = Path(os.path.expanduser(named)) / "runs.sqlite"
        self._file: sqlite3.Connection | None = None
        self._forgivingly(self._open)

    def get(self, key: str | None) -> dict[str, Any] | None:
        """The metrics remembered under ``key``, or None."""
        query = "SELECT metrics, checksum FROM runs_2 WHERE key = ?"
        if key is None or not (row := self.execute(query, key)):
            return None
        metrics, checksum = row
        return dict(json.loads(metrics)) if checksum == _sum(key, metrics) else None

    def put(self, key: str | None, metrics: dict[str, Any]) -> None:
        """Remember ``metrics`` under ``key``; nothing under None."""
        if key is not None:
            text = json.dumps(metrics)
            row = key, SOURCE, text, _sum(key, text)
            self.execute("INSERT OR REPLACE INTO runs_2 VALUES (?, ?, ?, ?)", *row)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # each statement is a transaction of its own
        self._file = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE}")
        self._file.execute("DELETE FROM runs_2 WHERE code != ?", (SOURCE,))
        if self.path.stat().st_size > _LARGEST:
            half = "SELECT avg(rowid) FROM runs_2"
            self._file.execute(f"DELETE FROM runs_2 WHERE rowid <= ({half})")
            self._file.execute("VACUUM")

    def execute(self, statement: str, *values: Any) -> Any:
        """The first row that a statement gives, if any."""

        def first() -> Any:
            return self._file and self._file.execute(statement, values).fetchone()

        return self._forgivingly(first)

    def _forgivingly(self, action: Callable[[], Any]) -> Any:
        """What ``action`` gives; None where the file cannot be read or written."""
        try:
            return action()
        except (OSError, ValueError, sqlite3.Error) as error:
            was_open = self._file is not None
            self.close()
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            damaged = not isinstance(error, OSError) and code & 0xFF in _DAMAGE
            if damaged and self._moved_aside():
                what = f"damaged ({error}): moved aside, and a new one is begun"
            else:
                what = f"{error}: from here on runs are not remembered"
            if was_open:
                warnings.warn(f"{self.path}: {what}", stacklevel=5)
            return None

    def _moved_aside(self) -> bool:
        """Put a damaged file out of the way and begin another; did that work?"""
        try:
            os.replace(self.path, self.path.with_suffix(".damaged"))
            for end in ("-wal", "-shm"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            self._open()
        except (OSError, sqlite3.Error):
            self.close()
        return self._file is not None


def _sum(key: str, metrics: str) -> str:
    return hashlib.sha256(f"{key} {metrics}".encode()).hexdigest()


def info() -> dict[str, Any]:
    """What is remembered: the file, how many runs, and its size in bytes."""
    with contextlib.closing(RunStore()) as store:
        runs = (store.execute("SELECT count(*) FROM runs_2") or (0,))[0]
        size = store.path.stat().st_size if store.path.is_file() else 0
        return {"file": str(store.path), "runs": runs, "bytes": size}


def clear() -> None:
    """Forget all finished runs."""
    with contextlib.closing(RunStore()) as store:
        store.execute("DELETE FROM runs_2")
        store.execute("VACUUM")
