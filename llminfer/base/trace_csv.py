"""Files of requests, read as data: what is bad is named by row and column."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import TraceError

_LONGEST_LINE = 64 * 1024  # bytes; a line of a trace has well under a hundred
_LAYOUTS = (  # names of: arrival, prompt tokens, output tokens; is the arrival a date
    (("arrival_time", "prompt_length", "output_length"), False),
    (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), True),
)


def read_csv(
    path: str | Path, limit: int | None = None
) -> tuple[FloatArray, IntArray, IntArray]:
    """Arrival times, prompt and output lengths of a CSV trace, each of shape (n,).

    A request of no tokens cannot be served, and a row of one is refused; the Azure
    traces of 2023 have none.

    Args:
        path: A file with columns ``arrival_time,prompt_length,output_length``
            (seconds from 0 on, tokens), or with the Azure traces'
            ``TIMESTAMP,ContextTokens,GeneratedTokens``, whose first request
            arrives at 0.
        limit: Read so many requests at most.

    Raises:
        TraceError: The file cannot be read as such a trace; names row and column.
    """
    name = Path(path).name
    rows = csv.reader(text_lines(Path(path)))
    try:
        header = [column.strip() for column in next(rows)]
    except StopIteration:
        raise TraceError(f"{name}: empty: must have a header and rows") from None
    except csv.Error as error:
        raise TraceError(f"{name}, row 1: {error}") from None
    columns, dated = _layout(name, header)
    at: list[int] = []  # the row of each request: blank rows count too
    times: list[str] = []
    tokens: tuple[list[int], list[int]] = ([], [])
    number = 1
    try:
        for number, row in enumerate(rows, start=2):
            if limit is not None and len(times) >= limit:
                break
            if not row:
                continue
            if len(row) != len(header):
                what = f"{len(row)} fields: must have {len(header)}, as the header has"
                raise TraceError(f"{name}, row {number}: {what}")
            at.append(number)
            times.append(row[columns[0]])
            for column, into in zip(columns[1:], tokens, strict=True):
                into.append(_tokens(row[column], name, number, header[column]))
    except csv.Error as error:
        raise TraceError(f"{name}, row {number + 1}: {error}") from None
    if not times:
        raise TraceError(f"{name}: no requests: must have at least one row")
    arrival = _dates(times, at, name) if dated else _seconds(times, at, name)
    backwards = np.flatnonzero(np.diff(arrival) < 0.0)
    if len(backwards):
        i = int(backwards[0]) + 1
        what = f"{header[columns[0]]}={times[i][:40]!r}: must not be before the last"
        raise TraceError(f"{name}, row {at[i]}, {what}")
    return arrival, np.array(tokens[0]), np.array(tokens[1])


def text_lines(path: Path) -> Iterator[str]:
    """The file's lines as text, in bounded memory."""
    try:
        with path.open("rb") as file:
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
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def _layout(name: str, header: list[str]) -> tuple[list[int], bool]:
    for wanted, dated in _LAYOUTS:
        if all(column in header for column in wanted):
            return [header.index(column) for column in wanted], dated
    known = " or ".join(",".join(wanted) for wanted, _ in _LAYOUTS)
    shown = ",".join(header)[:80]
    raise TraceError(f"{name}, row 1: columns {shown}: must include {known}")


def _tokens(text: str, name: str, row: int, column: str) -> int:
    digits = text.strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        value = -1
    else:
        value = int(digits)
    if not 1 <= value <= MOST_TOKENS:
        must = "must be a whole number of tokens, at least 1"
        raise TraceError(f"{name}, row {row}, {column}={text[:40]!r}: {must}")
    return value


def _seconds(times: list[str], at: list[int], name: str) -> FloatArray:
    result = np.empty(len(times))
    for i, text in enumerate(times):
        try:
            result[i] = float(text)
        except ValueError:
            result[i] = math.nan
        if not 0.0 <= result[i] < math.inf:
            must = "must be seconds, a finite number of at least 0"
            raise TraceError(f"{name}, row {at[i]}, arrival_time={text[:40]!r}: {must}")
    return result


def _dates(times: list[str], at: list[int], name: str) -> FloatArray:
    try:
        with warnings.catch_warnings():  # of zones: times are differences here
            warnings.simplefilter("ignore", UserWarning)
            stamps = np.array(times, dtype="datetime64[ns]")
        bad = np.flatnonzero(np.isnat(stamps))
    except ValueError:
        bad = np.array([i for i, text in enumerate(times) if not _is_date(text)])
    if len(bad):
        text, row = times[bad[0]][:40], at[bad[0]]
        must = "must be a date and time such as 2023-11-16 18:15:46.68"
        raise TraceError(f"{name}, row {row}, TIMESTAMP={text!r}: {must}")
    return np.asarray((stamps - stamps[0]) / np.timedelta64(1, "s"), dtype=np.float64)


def _is_date(text: str) -> bool:
    try:
        return not np.isnat(np.datetime64(text, "ns"))
    except ValueError:
        return False
