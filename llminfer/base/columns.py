"""Columns of requests: what is bad is named by its row."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pandas.api.types import infer_dtype

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray, Mask
from llminfer.base.errors import LARGEST, TraceError, fail

_NUMBERS = {"integer", "floating", "mixed-integer-float", "empty"}


def arrival_column(name: str, given: ArrayLike) -> FloatArray:
    """Times of requests, at least one, in order.

    Raises:
        TraceError: They are not.
    """
    column = _column(name, given)
    if not len(column):
        raise TraceError(f"{name}: empty: must have at least one request")
    _refuse(name, column, ~np.isfinite(column), "finite")
    _refuse(name, column, column < 0.0, "at least 0")
    _refuse(name, column, column > LARGEST, f"at most {LARGEST:g} s")
    earlier = np.diff(column, prepend=column[0]) < 0.0
    _refuse(name, column, earlier, "no earlier than the one before")
    return column


def whole_column(name: str, given: ArrayLike, n: int, least: int, of: str) -> IntArray:
    """So many whole numbers.

    Args:
        name: What they are called.
        given: The numbers.
        n: How many there must be.
        least: The least that each may be.
        of: What they count.

    >>> whole_column("prompt_length", [3.0, 4.0], 2, 1, "tokens")
    array([3, 4])

    Raises:
        TraceError: They are not.
    """
    column = _column(name, given)
    if len(column) != n:
        raise TraceError(f"{name}: {len(column)} values: must be {n}, as arrivals")
    bad = ~((column >= least) & (column <= MOST_TOKENS)) | (column % 1.0 != 0.0)
    _refuse(name, column, bad, f"a whole number of {of}, at least {least}")
    return column.astype(np.int64)


def mean_rate(arrival_time: FloatArray) -> float:
    """Requests a second from the first arrival to the last, both counted once.

    Raises:
        ConfigError: The times have no length.

    >>> mean_rate(np.array([0.0, 1.0, 4.0]))
    0.5
    """
    lasted = float(arrival_time[-1] - arrival_time[0]) if len(arrival_time) else 0.0
    if not lasted > 0.0:
        raise fail("arrival_time", arrival_time, "several times that differ")
    return (len(arrival_time) - 1) / lasted


def _column(name: str, given: ArrayLike) -> FloatArray:
    """Numbers as floats, NaN where one is masked or None."""
    try:
        cells: Any = np.ma.asarray(given)
        if infer_dtype(cells.data.ravel()) not in _NUMBERS:
            raise TypeError
        column = cells.astype(np.float64).filled(np.nan)
    except (TypeError, ValueError, OverflowError):
        raise TraceError(f"{name}: must be numbers, no dates or texts") from None
    if column.ndim != 1:
        raise TraceError(f"{name}: of {column.ndim} dimensions: must be a plain list")
    return np.asarray(column)


def _refuse(name: str, column: FloatArray, bad: Mask, must: str) -> None:
    for row in np.flatnonzero(bad)[:1]:
        raise TraceError(f"{name}[{row}]={column[row]:g}: must be {must}")
