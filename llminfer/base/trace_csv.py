"""Files of requests as tables: what is bad is named by row and column."""

from __future__ import annotations

import csv
import gzip
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import TraceError

_LONGEST_LINE = 64 * 1024  # bytes; a line of a trace has well under a hundred
_LATEST = 1e15  # s; the clock of day is at 1.8e9
_DIGITS = re.compile(r"\s*[0-9]{1,18}\s*")
_LAYOUTS = (
    ("arrival_time", "prompt_length", "output_length"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
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
    table = csv_table(Path(path), *_LAYOUTS)
    plain = set(_LAYOUTS[0]) <= set(table)
    moment, *lengths = (table[column] for column in _LAYOUTS[not plain])
    arrival = seconds(moment) if plain else _since_first(moment)
    refuse(moment, arrival < arrival.cummax(), "no earlier than the one before")
    prompts, outputs = (tokens(cells).to_numpy(np.int64) for cells in lengths)
    return arrival.to_numpy(np.float64), prompts, outputs


def csv_table(path: Path, *layouts: Sequence[str]) -> pd.DataFrame:
    """The cells of a CSV as text; the index is their rows in the file.

    Blank rows count, and are left out. The index is named for messages.

    Raises:
        TraceError: The file cannot be read, has no rows or not all columns of one of
            the layouts, or a row has not as many fields as the first.
    """
    number, rows = 0, dict[int, list[str]]()
    try:
        for number, row in enumerate(csv.reader(text_lines(path)), start=1):
            if row:
                rows[number] = row
    except csv.Error as error:
        raise TraceError(f"{path.name}, row {number + 1}: {error}") from None
    header = [name.strip() for name in next(iter(rows.values()), [])]
    lacking = [[name for name in names if name not in header] for names in layouts]
    if header and all(lacking):
        must = " or ".join(map(",".join, lacking))
        shown = ",".join(header)[:80]
        raise TraceError(f"{path.name}, row 1: columns {shown}: must include {must}")
    if len(rows) < 2:
        raise TraceError(f"{path.name}: empty: must have a header and rows")
    for number, row in rows.items():
        if len(row) != len(header):
            what = f"{len(row)} fields: must have {len(header)}, as the header has"
            raise TraceError(f"{path.name}, row {number}: {what}")
    table = pd.DataFrame([*rows.values()], [*rows], header, dtype=object)[1:]
    return table.loc[:, ~table.columns.duplicated()].rename_axis(f"{path.name}, row ")


def tokens(cells: pd.Series, least: int = 1) -> pd.Series:
    """Counts of tokens from cells that hold numbers or their digits.

    >>> tokens(pd.Series([" 20", 7], name="prompt_length")).tolist()
    [20, 7]

    Args:
        cells: A column of a table, its index named as that of ``csv_table`` is.
        least: The least count.

    Raises:
        TraceError: A cell holds none; names the first by row and column.
    """
    counts = pd.Series([_count(cell) for cell in cells], cells.index)
    bad = ~counts.between(least, MOST_TOKENS)
    refuse(cells, bad, f"a whole number of at least {least}")
    return counts


def seconds(cells: pd.Series, least: float | pd.Series = 0.0) -> pd.Series:
    """Seconds from cells that hold numbers or their text.

    >>> seconds(pd.Series(["2.5", 7], name="arrival_time")).tolist()
    [2.5, 7.0]

    Args:
        cells: A column of a table, its index named as that of ``csv_table`` is.
        least: The least, of all cells or of each.

    Raises:
        TraceError: A cell holds none; names the first by row and column.
    """
    times = pd.Series([_time(cell) for cell in cells], cells.index, np.float64)
    least = pd.Series(least, cells.index)
    bad = ~times.between(least, _LATEST)
    for bound in least[bad][:1]:
        refuse(cells, bad, f"seconds, a finite number of at least {bound:.16g}")
    return times


def refuse(cells: pd.Series, bad: pd.Series, must: str) -> None:
    """Raise for the first cell that is bad, by its row in the file and its column.

    >>> rows = pd.Index([2, 3, 5], name="a.csv, row ")
    >>> steps = pd.Series([5, -1, -2], rows, name="x")
    >>> refuse(steps, steps < 0, "at least 0")
    Traceback (most recent call last):
    llminfer.base.errors.TraceError: a.csv, row 3, x=-1: must be at least 0

    Raises:
        TraceError: One is.
    """
    for row, cell in cells[bad][:1].items():
        where = f"{cells.index.name}{row}, {cells.name}"
        raise TraceError(f"{where}={cell!r:.40}: must be {must}")


def _count(cell: Any) -> float:
    """The whole number that a cell holds, or NaN."""
    if isinstance(cell, str) and _DIGITS.fullmatch(cell):
        return int(cell)
    return cell if isinstance(cell, int) and not isinstance(cell, bool) else math.nan


def _time(cell: Any) -> float:
    """The number that a cell holds, or NaN."""
    try:
        return math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _since_first(cells: pd.Series) -> pd.Series:
    """Dates and times as seconds since the first."""
    digits = cells.where(cells.str.match(r"\s*\d"))  # and neither now nor today
    dates = pd.to_datetime(digits, format="ISO8601", utc=True, errors="coerce")
    refuse(cells, dates.isna(), "a date and time such as 2023-11-16 18:15:46.68")
    return (dates - dates.iloc[0]) / pd.Timedelta(1, "s")


def text_lines(path: Path, longest: int = _LONGEST_LINE) -> Iterator[str]:
    """The file's lines as text, in bounded memory; ``.gz`` and ``.xz`` are unpacked."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            number = 0
            while line := file.readline(longest):
                number += 1
                if len(line) == longest or b"\0" in line:
                    what = "binary" if b"\0" in line else f"longer than {longest} bytes"
                    must = "must be text, in lines"
                    raise TraceError(f"{path.name}, row {number}: {what}: {must}")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise TraceError(f"{path.name}, row {number}: must be UTF-8 text") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path.name}: damaged: must be a whole archive") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
