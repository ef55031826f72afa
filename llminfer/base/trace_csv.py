"""Files of requests, read as data: what is bad is named by row and column."""

from __future__ import annotations

import csv
import gzip
import lzma
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import TraceError

_LONGEST_LINE = 64 * 1024  # bytes; a line of a trace has well under a hundred
_LATEST = 1e15  # s; the clock of day is at 1.8e9
_NO_DATE = np.iinfo(np.int64).min  # what numpy makes of "NaT"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def read_csv(path: str | Path) -> tuple[FloatArray, IntArray, IntArray]:
    r"""Arrival times, prompt and output lengths of a CSV trace, each of shape (n,).

    A request of no tokens cannot be served, and a row of one is refused; the Azure
    traces of 2023 have none.

    Args:
        path: A file with columns ``arrival_time,prompt_length,output_length``
            (seconds from 0 on, tokens), or with the Azure traces'
            ``TIMESTAMP,ContextTokens,GeneratedTokens``, whose first request
            arrives at 0.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "trace.csv"
    >>> _ = path.write_text("arrival_time,prompt_length,output_length\n0,9,2\n4,7,3\n")
    >>> [column.tolist() for column in read_csv(path)]
    [[0.0, 4.0], [9, 7], [2, 3]]

    Raises:
        TraceError: The file cannot be read as such a trace; names row and column.
    """
    name = Path(path).name
    rows = csv_rows(Path(path))
    _, header = next(rows, (1, []))
    columns, moment = _layout(name, [column.strip() for column in header])
    times: list[float] = []
    lengths: list[list[int]] = []
    for number, row in rows:
        where = f"{name}, row {number}"
        at, *rest = ((row[i], f"{where}, {column}") for column, i in columns.items())
        times.append(moment(*at))
        if times[-1] < max(times[-2:]):
            raise TraceError(f"{at[1]}={at[0]!r:.40}: must not be before the last")
        lengths.append([tokens(*cell) for cell in rest])
    if not times:
        raise TraceError(f"{name}: no requests: must have at least one row")
    arrival = np.array(times)
    if moment is _nanoseconds:
        arrival = (arrival - arrival[0]) / 1e9
    prompts, outputs = np.array(lengths).T
    return arrival, prompts, outputs


def tokens(cell: Any, where: str, least: int = 1) -> int:
    """A count of tokens from a cell that holds a number or its digits.

    >>> tokens(" 20", "trace.csv, row 2, prompt_length")
    20

    Raises:
        TraceError: It holds none; begins with ``where``.
    """
    whole = isinstance(cell, int) and not isinstance(cell, bool)
    if isinstance(cell, str):
        whole = re.fullmatch(r"\s*[0-9]{1,18}\s*", cell) is not None
    if whole and least <= int(cell) <= MOST_TOKENS:
        return int(cell)
    must = f"must be a whole number of at least {least}"
    raise TraceError(f"{where}={cell!r:.40}: {must}")


def seconds(cell: Any, where: str, least: float = 0.0) -> float:
    """Seconds, at least ``least``, from a cell that holds a number or its text.

    >>> seconds("2.5", "trace.csv, row 2, arrival_time")
    2.5

    Raises:
        TraceError: It holds none; begins with ``where``.
    """
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not least <= value <= _LATEST:
        must = f"must be seconds, a finite number of at least {least:.16g}"
        raise TraceError(f"{where}={cell!r:.40}: {must}")
    return value


def _nanoseconds(cell: str, where: str) -> int:
    """A date and time as nanoseconds since 1970."""
    try:
        with warnings.catch_warnings():  # of zones: times are differences here
            warnings.simplefilter("ignore", UserWarning)
            moment = int(np.datetime64(cell, "ns").astype(np.int64))
    except ValueError:
        moment = _NO_DATE
    if moment == _NO_DATE:
        must = "must be a date and time such as 2023-11-16 18:15:46.68"
        raise TraceError(f"{where}={cell!r:.40}: {must}")
    return moment


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV by number; blank ones count, and are left out.

    Raises:
        TraceError: The file cannot be read, or a row has not as many fields as the
            first.
    """
    number, wide = 0, 0
    try:
        for number, row in enumerate(csv.reader(text_lines(path)), start=1):
            wide = wide or len(row)
            if row and len(row) != wide:
                what = f"{len(row)} fields: must have {wide}, as the header has"
                raise TraceError(f"{path.name}, row {number}: {what}")
            if row:
                yield number, row
    except csv.Error as error:
        raise TraceError(f"{path.name}, row {number + 1}: {error}") from None


def text_lines(path: Path) -> Iterator[str]:
    """The file's lines as text, in bounded memory; ``.gz`` and ``.xz`` are unpacked."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    what = f"longer than {_LONGEST_LINE} bytes: no row of a trace"
                    raise TraceError(f"{path.name}, row {number}: {what}")
                if b"\0" in line:
                    raise TraceError(f"{path.name}, row {number}: binary: must be text")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise TraceError(f"{path.name}, row {number}: must be UTF-8 text") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path.name}: damaged: must be a whole archive") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def _layout(
    name: str, header: list[str]
) -> tuple[dict[str, int], Callable[[str, str], float]]:
    """Where the three columns are, by name, and how to read the first."""
    if not header:
        raise TraceError(f"{name}: empty: must have a header and rows")
    for wanted, moment in _LAYOUTS:
        if set(wanted) <= set(header):
            return {column: header.index(column) for column in wanted}, moment
    known = " or ".join(",".join(wanted) for wanted, _ in _LAYOUTS)
    shown = ",".join(header)[:80]
    raise TraceError(f"{name}, row 1: columns {shown}: must include {known}")


_LAYOUTS: tuple[tuple[tuple[str, str, str], Callable[[str, str], float]], ...] = (
    (("arrival_time", "prompt_length", "output_length"), seconds),
    (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _nanoseconds),
)
