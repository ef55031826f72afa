"""Files of requests as tables: what is bad is named by row and column."""

import csv
import gzip
import lzma
import re
import tomllib
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base.arrays import MOST_TOKENS
from llminfer.base.errors import LARGEST, TraceError, choice, shown

_LONGEST_LINE = 64 * 1024  # bytes; a line of a trace has well under a hundred
_LONGEST_OBJECT = 64 * 2**20  # bytes; the results of a whole run may be on one
_SPARSE = 60.0  # s between requests; milliseconds look like that
_OF_DAY = 1e9  # s; a clock that shows more is the time of day, and at most 4e9
_WHOLE = re.compile(r"\s*-?[0-9]{1,18}(\.(?!000\s*$)0*)?\s*")  # 1.000 may be 1000
_DATE = re.compile(r"\s*(19[7-9]|20\d)\d-\d\d?-\d")  # others are no clock's
_DOTTED = re.compile(r"^\s*(\d\d)\.(\d\d)\.(\d{4})\b"), r"\3-\2-\1"  # of a spreadsheet
_COMPACT = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])(\d{6})?(\.0*)?")
_ZONE = re.compile(r":[\d:.,]*\s*(?:z|[+-]\d\d:?(?:\d\d)?)\s*$", re.IGNORECASE)
_COMMA = re.compile(r"^\s*(-?\d+),(\d+)\s*$")
_SEPARATORS = ",;\t|"
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
_TABLE = tomllib.loads(Path(__file__).with_name("columns.toml").read_text("utf-8"))
COLUMNS: Mapping[str, str] = _TABLE["columns"]  # what they hold, and their names
UNITS: Mapping[str, float] = _TABLE["units"]
_UNIT = re.compile(rf"_({'|'.join(its for its in UNITS if its != 's')}|s$)(?=_|$)")
Names = Mapping[str, str] | None
TRACE = ("arrival_time", "prompt_length", "output_length")
SAID = ("error", "status", "cancelled", "success")  # how a request ended, in words


def requests(found: Mapping[str, pd.Series], unit: str | None = None) -> pd.DataFrame:
    """``arrival_time`` (seconds), ``prompt_length``, ``output_length``, by arrival.

    Requests without tokens to answer failed: they are left out. The first arrives at
    0, but in a table with these very columns, which is our own, as it says.

    Args:
        found: Columns by what they hold, as ``recognised`` gives them.
        unit: Of times whose column's name does not end in one: s, ms, us or ns.

    >>> table = pd.DataFrame({"sent": [9.5, 9.0], "n_in": [7, 9], "n_out": [3, 2]})
    >>> requests(recognised(table.iloc[[1, 0]]))
       arrival_time  prompt_length  output_length
    1           0.0              9              2
    0           0.5              7              3

    Raises:
        TraceError: A cell is bad; names row and column.

    Warns:
        UserWarning: Requests that are left out, and rows that were not in order.
    """
    table = pd.DataFrame({role: found[role] for role in TRACE})
    silent = numbers(table["output_length"]) == 0.0
    if silent.any() and not silent.all():
        what = f"of {len(table)} requests ({silent.mean():.1%}) have no output tokens"
        say(table, f"{silent.sum()} {what}: they failed, and are left out")
        table = table[~silent]
    moment, prompt, output = (found[role][table.index] for role in TRACE)
    table["arrival_time"], _ = arrivals(moment, unit)
    if (moment.name, prompt.name, output.name) == TRACE and _dates(moment) is None:
        table["arrival_time"] = seconds(moment, unit=unit)
        if (first := table["arrival_time"].min()) > _OF_DAY:
            say(table, f"first arrives at {first:.10g} s: subtract it if it is a date")
    table["prompt_length"], table["output_length"] = tokens(prompt), tokens(output)
    late = table["arrival_time"] < table["arrival_time"].cummax()
    if late.any():
        what = f"not in order of arrival, from row {late.idxmax()} on: put in order"
        say(table, what)
    return table.sort_values("arrival_time", kind="stable")


def recognised(
    table: pd.DataFrame,
    columns: Names = None,
    needed: Sequence[str] = (),
    known: Mapping[str, str] = COLUMNS,
) -> dict[str, pd.Series]:
    """The columns of a table by what they hold.

    >>> table = pd.DataFrame({"TTFT (ms)": [5], "ContextTokens": [7], "hue": [1]})
    >>> {role: cells.name for role, cells in recognised(table).items()}
    {'prompt_length': 'ContextTokens', 'ttft': 'TTFT (ms)'}

    Args:
        table: Cells; a column's name may be a path, as in ``usage.prompt_tokens``.
        columns: Names of columns by what they hold, where names do not say it.
        needed: What must be there.
        known: What there is, and the names that it goes by.

    Raises:
        ConfigError: ``columns`` names what no column can hold.
        TraceError: A column that is named or needed is not there.
    """
    table = table.loc[:, ~table.columns.duplicated()]  # the first of a name counts
    given, names = dict(columns or {}), dict[str, str]()
    for role in given:
        choice("columns", role, known)
    for name in sorted(map(str, table), key=lambda name: name.count(".")):
        for start in range(name.count(".") + 1):
            names.setdefault(plain_name(name.split(".", start)[-1])[0], name)
    found = dict[str, pd.Series]()
    for role, aliases in known.items():
        here = [names[alias] for alias in aliases.split() if alias in names]
        here = [given[role]] if role in given else here
        for column in [table[name] for name in here if name in table]:
            its = found.setdefault(role, column)
            if role in SAID and column is not its:
                found[role] = its.map(str) + f";{role}=" + column.map(str)
            elif role in TRACE[1:]:
                found[role] = its.where(its.notna() & (its != ""), column)
    needed = [*dict.fromkeys([*needed, *given])]
    if lacking := [role for role in needed if role not in found]:
        there = " ".join(",".join(map(str, table)).split())[:300]
        call = ", ".join(f"{role!r}: '...'" for role in lacking)
        must = f"must include {','.join(lacking)}: name them, columns={{{call}}}"
        raise TraceError(f"{table.index.name}1: columns {there}: {must}")
    return found


def plain_name(name: str) -> tuple[str, float | None]:
    """A column's name in plain words, and the unit that it has, if any.

    >>> plain_name("startTimeUnixNano"), plain_name("ttft_ms_p99"), plain_name("n_in")
    (('start_time_unix', 1e-09), ('ttft_p99', 0.001), ('n_in', None))
    """
    name = re.sub("[\u00b5\u03bc]", "u", name.replace("/", "_per_"))  # micro
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = re.sub(r"[^a-z0-9]+", "_", words).strip("_")
    unit = _UNIT.search(words)
    return (words.replace(unit[0], "", 1), UNITS[unit[1]]) if unit else (words, None)


def csv_table(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """The cells of a CSV as text; the index is their rows in the file.

    Blank rows count, and are left out. The index is named for messages.

    Raises:
        TraceError: The file cannot be read, has no rows or not all columns that are
            needed, or a row has not as many fields as the first.
    """
    first = next((line for line in text_lines(path) if line.strip()), "")
    apart = max(_SEPARATORS, key=first.count)
    number, rows = 0, dict[int, list[str]]()
    try:
        for number, row in enumerate(csv.reader(text_lines(path), delimiter=apart), 1):
            if row:
                rows[number] = row
    except csv.Error as error:
        raise TraceError(f"{path.name}, row {number + 1}: {error}") from None
    header = [name.strip() for name in next(iter(rows.values()), [])]
    if header and (lacking := ",".join(n for n in needed if n not in header)):
        there = " ".join(",".join(header).split())[:80]  # on one line
        raise TraceError(f"{path.name}, row 1: columns {there}: must include {lacking}")
    if len(rows) < 2:
        raise TraceError(f"{path.name}: empty: must have a header and rows")
    for number, row in rows.items():
        if len(row) != len(header):
            what = f"{len(row)} fields: must have {len(header)}, as the header has"
            raise TraceError(f"{path.name}, row {number}: {what}")
    table = pd.DataFrame([*rows.values()], [*rows], header, dtype=object)[1:]
    if apart != ",":  # then it may be a decimal point
        table = table.replace(_COMMA, r"\1.\2", regex=True)
    return table.rename_axis(f"{path.name}, row ")


def tokens(cells: pd.Series, least: int = 1) -> pd.Series:
    """Counts of tokens from cells that hold numbers or their digits.

    >>> tokens(pd.Series([" 20", 7, "9.0"], name="prompt_length")).tolist()
    [20, 7, 9]

    Args:
        cells: A column of a table, its index named as that of ``csv_table`` is.
        least: The least count.

    Raises:
        TraceError: A cell holds none; names the first by row and column.
    """
    counts = numbers(cells).where(cells.astype(str).str.fullmatch(_WHOLE))
    bad = ~counts.between(least, MOST_TOKENS)
    refuse(cells, bad, f"a whole number of at least {least}")
    return counts.astype(np.int64)


def seconds(
    cells: pd.Series, least: float | pd.Series = 0.0, unit: str | None = None
) -> pd.Series:
    """Seconds from cells that hold numbers or their text.

    >>> seconds(pd.Series(["2.5", 7], name="arrival_time")).tolist()
    [2.5, 7.0]
    >>> seconds(pd.Series(["2.5", 7], name="ttft_ms")).tolist()
    [0.0025, 0.007]

    Args:
        cells: A column of a table, its index named as that of ``csv_table`` is.
        least: The least, in seconds, of all cells or of each.
        unit: Of the cells, where the column's name does not end in one.

    Raises:
        TraceError: A cell holds none; names the first by row and column.
    """
    unit = unit and choice("unit", unit, UNITS)
    scale = plain_name(str(cells.name))[1] or UNITS[unit or "seconds"]
    times = numbers(cells) * scale
    least = pd.Series(least, cells.index)
    bad = ~times.between(least, LARGEST)
    name = next(name for name, each in UNITS.items() if each == scale)
    for bound in least[bad][:1]:
        refuse(cells, bad, f"{name}, a finite number of at least {bound / scale:.16g}")
    return times


def arrivals(cells: pd.Series, unit: str | None = None) -> tuple[pd.Series, float]:
    """Seconds since the first of clock times, exact for dates, and the first itself.

    Warns:
        UserWarning: Times that no name tells the unit of, and that look like
            milliseconds, or like the time of day in seconds where another is given.
    """
    times, dates = moments(cells, unit), _dates(cells)
    first = float(times.min())
    if dates is not None:
        return (dates - dates.min()) / pd.Timedelta(1, "s"), first
    whole = bool(cells.astype(str).str.strip().str.isdigit().all())
    gap = float(np.ptp(times)) / max(len(cells) - 1, 1)
    if not unit and unsaid(cells) and gap > (2.0 if whole else _SPARSE):
        meant = next((its for its in ("ms", "us") if gap * UNITS[its] < 10.0), "ns")
        what = f"{cells.name} is read as seconds: give unit='{meant}' if it is not"
        say(cells, f"{what}; no name says it, and a request comes every {gap:.3g} s")
    of_day = day_unit(cells) == "s" and not plain_name(str(cells.name))[1]
    if unit and of_day and UNITS[unit] < 1.0:
        say(cells, f"{cells.name} is read as {unit}, and looks like seconds since 1970")
    return times - first, first


def unsaid(cells: pd.Series) -> bool:
    """Whether numbers are times whose unit neither name nor clock of day tells."""
    told = plain_name(str(cells.name))[1] or day_unit(cells)
    return not told and bool(numbers(cells.explode()).notna().any())


def moments(
    cells: pd.Series, unit: str | None = None, least: float | pd.Series = 0.0
) -> pd.Series:
    """Clock times in seconds: numbers, or dates, which count from 1970.

    Args:
        cells: A column of a table, its index named as that of ``csv_table`` is.
        unit: Of numbers, where the column's name has none. Without it
            those of a clock of day are told by their size.
        least: The least, in seconds, of all cells or of each.

    Raises:
        TraceError: A cell holds none; names the first by row and column.
    """
    if (dates := _dates(cells)) is not None:
        times = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(1, "s")
        early = times < pd.Series(least, cells.index)
        refuse(cells, early, "no earlier than what came before it")
        return times
    if not (unit or plain_name(str(cells.name))[1]):
        bad = cells.astype(str).str.fullmatch(_COMPACT)
        refuse(cells, bad & bool(bad.all()), "as 2023-11-16, or of a unit given")
    return seconds(cells, least, unit or day_unit(cells))


def day_unit(cells: pd.Series) -> str | None:
    """The unit in which numbers are the time of day, since 1970; None if in none."""
    early, late = numbers(cells).quantile([0.1, 0.9])  # a few may be wrong
    within = [its for its in ("s", "ms", "us", "ns") if late < 1.05 * early]  # a year
    return next((its for its in within if 1 <= early * UNITS[its] / _OF_DAY < 4), None)


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
        raise TraceError(f"{where}={shown(cell):.40}: must be {must}")


def numbers(cells: pd.Series) -> pd.Series:
    """The numbers that cells hold, NaN where they hold none."""
    return pd.to_numeric(cells.astype(str), errors="coerce").astype(np.float64)


def place(cells: pd.Series | pd.DataFrame) -> str:
    """The file that cells are of."""
    return str(cells.index.name).rsplit(",", 1)[0]


def say(cells: pd.Series | pd.DataFrame, what: str) -> None:
    """Warn of something in the file that cells are of."""
    warnings.warn(f"{place(cells)}: {what}", stacklevel=4)


def _dates(cells: pd.Series) -> pd.Series | None:
    """Dates and times, or None where cells hold numbers."""
    text = cells.astype(str).str.replace(",", ".").str.replace(*_DOTTED, regex=True)
    text = text.where(text.str.match(_DATE))
    if text.isna().all():
        return None
    dates = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    refuse(cells, dates.isna(), "a date and time such as 2023-11-16 18:15:46.68")
    zoned = text.str.contains(_ZONE)
    refuse(cells, zoned != zoned.iloc[0], "with a time zone if the first has one")
    return dates


def text_lines(path: Path, longest: int = _LONGEST_LINE) -> Iterator[str]:
    """The file's lines as text, in bounded memory; ``.gz`` and ``.xz`` are unpacked."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            number = 0
            while line := file.readline(longest):
                number += 1
                if line[:1] in b"{[" and line[-1:] != b"\n" and b"\0" not in line:
                    line += file.readline(_LONGEST_OBJECT)
                if len(line) in (longest, longest + _LONGEST_OBJECT) or b"\0" in line:
                    what = "binary" if b"\0" in line else f"longer than {longest} bytes"
                    raise TraceError(f"{path.name}, row {number}: {what}: must be text")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise TraceError(f"{path.name}, row {number}: must be UTF-8 text") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path.name}: damaged: must be a whole archive") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
