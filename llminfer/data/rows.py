"""Files as tables of requests, whatever they are: CSV, JSON, or JSON in lines."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from llminfer.base.errors import TraceError
from llminfer.base.trace_csv import COLUMNS, UNITS, csv_table, plain_name, text_lines

_LARGEST = 64 * 2**20  # characters of one JSON document, unpacked
FORMATS = tomllib.loads(Path(__file__).with_name("formats.toml").read_text("utf-8"))
_NAMES = {name for names in COLUMNS.values() for name in names.split()}
_INTO = ("requests", "results", "successful", "errored", "incomplete", "benchmarks")


# What is said of a run, by name, and its requests: a row each, a column a path
Run = tuple[dict[str, Any], pd.DataFrame]


def read_runs(file: Path) -> list[Run]:
    """The runs in a file: one in a CSV or a log, several in some results.

    Raises:
        TraceError: The file cannot be read, or is damaged; names the row.
    """
    if not (entries := _entries(file)):
        return [({}, csv_table(file))]
    runs = {n: _runs(entry, file.name) for n, entry in entries.items()}
    single = {n: entry for n, entry in entries.items() if not runs[n]}
    if single:
        runs[-1] = [({}, table(single, f"{file.name}, row "))]
    return [*chain.from_iterable(runs.values())]


def document(file: Path) -> Any:
    """The one JSON value in a file of bounded size."""
    lines, room = list[str](), _LARGEST
    for line in text_lines(file, _LARGEST):
        lines.append(line)
        if (room := room - len(line)) < 0:
            raise TraceError(f"{file.name}: over {_LARGEST // 2**20} MiB: save less")
    return _parsed("".join(lines), file.name)


def table(entries: dict[int, dict[str, Any]], place: str) -> pd.DataFrame:
    """JSON objects as rows, and paths into them as columns.

    >>> entry = {"usage": {"tokens": 5}, "ttft": {"value": 7.0, "unit": "ms"}}
    >>> table({1: entry}, "a.json, row ").columns.to_list()
    ['usage.tokens', 'ttft_ms']
    """
    rows = [dict(_flat(entry)) for entry in entries.values()]
    names = dict.fromkeys(chain.from_iterable(rows))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame(columns, [*entries], dtype=object).rename_axis(place)


def _flat(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a JSON object by their paths, which end in the unit if any."""
    unit = f"_{part['unit']}" if str(part.get("unit")) in UNITS else ""
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        elif key != "unit":
            yield (path[:-1] if key == "value" else path + key) + unit, value


def _entries(file: Path) -> dict[int, dict[str, Any]]:
    """The JSON objects of a file, or the one that it is, by row; none in a CSV."""
    start = next((line for line in text_lines(file) if line.strip()), "")
    if start.lstrip()[:1] not in ("{", "["):
        return {}
    in_lines = False
    with suppress(TraceError):
        in_lines = isinstance(_parsed(start, ""), dict)
    if in_lines:
        lines = enumerate(text_lines(file), 1)
        parts = {n: _parsed(t, f"{file.name}, row {n}") for n, t in lines if t.strip()}
    else:
        whole = document(file)
        parts = dict(enumerate(whole if isinstance(whole, list) else [whole]))
    for n, part in parts.items():
        if not isinstance(part, dict):
            raise TraceError(f"{file.name}, row {n}: must be a JSON object")
    return parts


def _runs(entry: dict[str, Any], name: str) -> list[Run]:
    """The runs in one JSON object; none if it is a single request."""
    place = f"{name}, request "
    if isinstance(entry.get("input_lens"), list):  # a list a column
        columns = {k: v for k, v in entry.items() if v and isinstance(v, list)}
        columns = {k: v for k, v in columns.items() if plain_name(k)[0] in _NAMES}
        if len(sizes := {len(column) for column in columns.values()}) > 1:
            raise TraceError(f"{name}: columns of unlike length: {sizes}")
        return [(entry, pd.DataFrame(columns, dtype=object).rename_axis(place))]
    several = entry.get("benchmarks")
    if not isinstance(several, list):
        several = [entry] if _within(entry) else []
    return [(entry, table(dict(enumerate(_leaves(each))), place)) for each in several]


def _leaves(part: Any, under: str = "") -> Iterator[dict[str, Any]]:
    """The requests in a part of a document, however deep; where each lay is said."""
    for each in part if isinstance(part, list) else [part]:
        into = _within(each)
        for key, value in into.items():
            yield from _leaves(value, key)
        if not into:  # a null is a request too, of which nothing is known
            yield {"outcome": under, **(each if isinstance(each, dict) else {})}


def _within(part: Any) -> dict[str, Any]:
    """What in a part of a document may hold requests, by name."""
    its = part if isinstance(part, dict) else {}
    return {key: its[key] for key in _INTO if isinstance(its.get(key), list | dict)}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as its:
        raise TraceError(f"{where}: not JSON: {str(its).splitlines()[0]:.80}") from None
