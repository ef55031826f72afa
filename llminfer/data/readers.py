"""Logs, benchmark results and traces of any known format, read as data.

A file becomes rows of requests (``rows``), its columns are recognised by their names
(``base.trace_csv``), and what they hold decides what comes back: a log if it says when
requests were sent and answered, a workload if only what was asked and when, a table
if only means and percentiles of whole runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base import trace_csv as cell
from llminfer.base.errors import TraceError
from llminfer.base.trace_csv import TRACE, Names, place, recognised, refuse, say
from llminfer.data.logs import ServedLog, inside, read_settings
from llminfer.data.rows import FORMATS, read_runs
from llminfer.workload import Workload

Columns = Mapping[str, pd.Series]

_ONE_CLOCK = 1.0  # s; where the least delay of a log is not below, clocks are two
_LONGEST_DELAY = 3600.0  # s on the way from the client to the engine's queue
_SAYS = {k: re.compile(v, re.IGNORECASE) for k, v in FORMATS["failures"].items()}
_ANSWER = {"output_length", "first_token_time", "last_token_time", "ttft", "latency"}
_NOTHING = ("None", "", "0", "0.0")  # cells that say that there was no answer
_STATISTIC = re.compile(r"(?:^|_)(?:(mean|avg|average)|(median|p50)|(p9[059]))(?=_|$)")
_MEASURE = re.compile(
    r"(?:^|_)(?:(ttft|time_to_first_token)|(tpot|time_per_output_token)"
    r"|(itl|inter_token)|(e2el?|latency|response_time))(?=_|$)"
)
_MEASURES = ("ttft", "tpot", "itl", "latency")


def read_log(
    path: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    columns: Names = None,
    unit: str | None = None,
    run: int | None = None,
) -> ServedLog | Workload | pd.DataFrame:
    r"""What a file of requests holds, whatever wrote it.

    A ``ServedLog`` where it says when each request was sent and answered; a
    ``Workload`` where only what was asked and when; a table of means and percentiles,
    a row a run, where it has no single requests. Its ``source`` (of a table:
    ``attrs["source"]``) names the format.

    Requests that were refused are left out and counted; those that were cut off
    stay, for they worked the engine, without the times that nobody knows.

    Args:
        path: A file, plain or as ``.gz`` or ``.xz``, or the folder of a vLLM log.
        settings: Of the engine, for what goes on from the log: fields of a
            configuration, or vLLM's own flags. Else those of the log's ``meta.json``.
        columns: Names of columns by what they hold, where names do not say it.
        unit: Of times, where names do not say it: s, ms, us or ns.
        run: Which one, from 1, of a file of several.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "mine.csv"
    >>> _ = path.write_text("sent_ms;n_in;n_out;ttft_ms;e2e_ms\n5;9;2;50;75\n")
    >>> flags = {"--max-num-seqs": 8, "--max-num-batched-tokens": 512}
    >>> log = read_log(path, settings=flags)
    >>> log, log.latency.tolist(), log.settings["batch_size"]
    (ServedLog(1 requests in 0.1 s, from CSV), [0.075], 8)

    Raises:
        TraceError: The file cannot be read, or lacks what is needed; says what it has.

    Warns:
        UserWarning: Requests that failed, rows that were not in order.
    """
    file = inside(path, "requests.jsonl")
    runs = read_runs(file)
    if not 1 <= (number := run or int(len(runs) == 1)) <= len(runs):
        sizes = ", ".join(f"{len(cells)} requests" for _, cells in runs)
        must = f"must be one of {len(runs)}: {sizes}"
        raise TraceError(f"{file.name}, run={run}: {must}")
    about, cells = runs[number - 1]
    form = _format({*about, *cells}, file)
    unit = unit or form.get("unit")
    if (table := _aggregates(cells, unit)) is not None:
        table.attrs["source"] = form["name"]
        return table
    if cells.empty or "advice" in form:
        how = form.get("advice", "no requests: must have at least one")
        raise TraceError(f"{file.name}, {form['name']}: {how}")
    found = _needed(about, cells, columns)
    if not _is_served(found):
        return _workload(cells.loc[found["prompt_length"].index], columns, unit, form)
    given = _settings(settings, file)
    return _served(found, unit, settings=given, source=form["name"])


def read_vllm_log(path: str | Path) -> ServedLog:
    """The log of a vLLM engine, a JSON object a line, put in order of arrival.

    A request arrives when its client sent it. Where the client's clock is another
    than the engine's, the smallest ``queued_ts - arrival_time`` lines them up.
    Requests that were refused are left out, those that were cut off stay (see
    ``ServedLog``); a warning counts both.

    Args:
        path: A ``requests.jsonl``, plain or as ``.gz`` or ``.xz``, or its folder. Its
            rows have ``request_id``, ``input_toks``, ``output_toks``,
            ``arrival_time``, ``first_token_ts`` and ``last_token_ts``; they may have
            ``queued_ts`` (else the arrival), ``scheduled_ts``, ``cached_toks`` and
            ``prefix``.

    Raises:
        TraceError: The file cannot be read as such a log; names row and column.
    """
    if not isinstance(read := read_log(path), ServedLog):
        must = "must say when requests were sent and answered"
        raise TraceError(f"{Path(path).name}: no log of requests: {must}")
    return read


def read_bench(path: str | Path) -> ServedLog:
    """What ``vllm bench serve --save-result --save-detailed`` saved: see ``read_log``.

    >>> import json
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "result.json"
    >>> columns = {"start_times": [7.0, 8.5], "input_lens": [5, 6]}
    >>> columns |= {"output_lens": [2, 1], "ttfts": [0.5, 0.25], "itls": [[0.125], []]}
    >>> _ = path.write_text(json.dumps(columns))
    >>> log = read_bench(path)
    >>> log.ttft.tolist(), log.latency.tolist()
    ([0.5, 0.25], [0.625, 0.25])

    Raises:
        TraceError: The file cannot be read as such a result; names row and column.
    """
    return read_vllm_log(path)


def _format(there: set[str], file: Path) -> dict[str, Any]:
    """The format that a run is in, by what it has."""
    known = (form for form in FORMATS["formats"] if there.issuperset(form["has"]))
    return next(known, {"name": "JSON" if ".json" in file.name else "CSV"})


def _settings(given: Mapping[str, Any] | None, file: Path) -> dict[str, Any]:
    """The engine's settings: given, or those beside its log; else none."""
    beside = file.with_name("meta.json")
    if given or not (file.name.startswith("requests.jsonl") and beside.exists()):
        return read_settings(given) if given else {}
    with suppress(TraceError):  # it does not say all that is needed
        return read_settings(beside)
    return {}


def _needed(
    about: dict[str, Any], cells: pd.DataFrame, columns: Names
) -> dict[str, pd.Series]:
    """The columns of a run by what they hold, without the requests of its warm-up."""
    found = recognised(cells, columns, TRACE[1:])
    if isinstance(asked := about.get("num_prompts"), int) and asked != len(cells):
        say(cells, f"num_prompts={asked}, and {len(cells)} are in the file")
    if "arrival_time" not in found:
        load = {k: about[k] for k in ("request_rate", "max_concurrency") if k in about}
        if str(load.get("request_rate")) != "inf" or load.get("max_concurrency"):
            has = ", ".join(str(column.name) for column in found.values())
            what = f"no arrivals: {len(cells)} requests have {has}; {load}"
            how = "columns={'arrival_time': '...'}, or save details with vLLM of 2026"
            how += ", or run with --request-rate inf without --max-concurrency"
            raise TraceError(f"{place(cells)}: {what}: {how}")
        found["arrival_time"] = pd.Series(0.0, cells.index, name="request_rate")
    if "phase" in found:
        early = found["phase"].map(lambda phase: "warm" in str(phase).lower())
        if early.any():
            say(cells, f"{_counted(early)} are of the warm-up, and are left out")
        found = {role: column[~early] for role, column in found.items()}
    return found


def _is_served(found: Columns) -> bool:
    """Whether both first and last tokens have a time; says if only one has."""
    pace = {"itls", "tpot"} & found.keys()
    first = {"first_token_time", "ttft"} & found.keys()
    last = {"last_token_time", "latency"} & found.keys()
    served = bool((first and last) or (pace and (first or last)))
    for role in [] if served else sorted(first | last | pace):
        what = "is not enough to tell when first and last tokens came"
        say(found[role], f"{found[role].name} {what}: a workload is read, no log")
    return served


def _workload(
    cells: pd.DataFrame, columns: Names, unit: str | None, form: dict[str, Any]
) -> Workload:
    """What was asked, and when."""
    rows, paths = cell.requests(cells, columns, unit), None
    if size := form.get("block"):
        hashes = cells.loc[rows.index, "hash_ids"]
        good = hashes.map(
            lambda ids: isinstance(ids, list) and {*map(type, ids)} <= {int}
        )
        refuse(hashes, ~good, "a list of whole numbers")
        pairs = zip(hashes, rows["prompt_length"].tolist(), strict=True)
        paths = [
            [(h, min(size, n - size * i)) for i, h in enumerate(p)] for p, n in pairs
        ]
    work = Workload.from_arrays(**rows)
    return _with(work, form["name"], paths)


def _with(work: Workload, source: str, paths: Any) -> Workload:
    """The workload, and of these what it can hold.

    Args:
        work: Of so many requests.
        source: The format it was read from.
        paths: Of (id, tokens) that prompts begin with, a list a request; or None.
    """
    segments = paths and tuple(tuple(p for p in path if p[1] > 0) for path in paths)
    more: dict[str, Any] = {"source": source, "segments": segments}
    return replace(
        work, **{f.name: more.get(f.name, getattr(work, f.name)) for f in fields(work)}
    )


def _served(found: Columns, unit: str | None, **more: Any) -> ServedLog:
    """The log of requests in order of arrival; the first arrives at 0."""
    answered, stay = _answered(found)
    found = {role: column[stay] for role, column in found.items()}
    lengths = _outputs(found, answered[stay])
    rows, origin = _times(found, answered[stay], lengths, unit)
    _say_failed(answered, stay, lengths)
    rows["prompt"] = cell.tokens(found["prompt_length"])
    rows["output"] = lengths.fillna(lengths.max())
    rows["cached"] = cell.tokens(_given(found, "cached_tokens"), 0)
    rows["prefix"] = cell.tokens(_given(found, "prefix"), -1)
    rows = rows.iloc[np.argsort(rows["sent"], kind="stable")]
    optional: list[Any] = [
        None if rows[name].hasnans else rows[name].to_numpy(kind)
        for name, kind in (("scheduled", float), ("cached", int), ("prefix", int))
    ]
    work = Workload.from_arrays(rows["sent"], rows["prompt"], rows["output"])
    return ServedLog(
        _with(work, more["source"], _prefixes(rows)),
        *(rows[name].to_numpy() for name in ("queued", "first", "last")),
        *optional,
        refused=int((~stay).sum()),
        origin=origin,
        **more,
    )


def _answered(found: Columns) -> tuple[pd.Series, pd.Series]:
    """Which requests got their whole answer, and which stay in the load."""
    if "request_id" in found:
        names = found["request_id"]
        refuse(names, names.duplicated() & names.notna(), "a name of its own")
    said = found["prompt_length"].map(lambda _: "")
    for role in ("error", "status", "cancelled", "success"):
        if role in found:
            said += found[role].map(lambda cell, role=role: f"{role}={cell};")
    failed = said.map(_SAYS["failed"].search).notna()
    for role in _ANSWER & found.keys():
        nothing = _NOTHING[: 2 if role in ("ttft", "latency") else None]
        failed |= found[role].map(str).isin(nothing)
    if failed.all():
        what = "no requests answered: must have at least one"
        raise TraceError(f"{place(failed)}: {what}")
    cut = said.map(_SAYS["ended"].search).notna() | _begun(found)
    cut &= said.map(_SAYS["refused"].search).isna()
    return ~failed, ~failed | (cut & (cell.numbers(found["prompt_length"]) >= 1.0))


def _begun(found: Columns) -> pd.Series:
    """Which requests have a time of their first token."""
    begun = found["prompt_length"].map(lambda _: False)
    for role in {"first_token_time", "ttft"} & found.keys():
        begun |= cell.numbers(found[role]) > 0.0
    return begun


def _given(found: Columns, role: str, where: pd.Series | None = None) -> pd.Series:
    """The cells of those rows that have one, and are asked for."""
    cells = found.get(role, pd.Series(dtype=object, name=role))
    there = ~cells.map(str).isin(["None", ""])
    return cells[there if where is None else there & where]


def _times(
    found: Columns, answered: pd.Series, lengths: pd.Series, unit: str | None
) -> tuple[pd.DataFrame, float]:
    """Seconds when each was sent, queued, scheduled, begun and done; and time 0.

    Pandas aligns the columns by row, so that one that some rows lack has NaN there.
    """
    sent = cell.moments(found["arrival_time"], unit)
    # a client does not know when the engine queued its request
    queued = cell.moments(_given(found, "queued_time"), unit).combine_first(sent)
    scheduled = cell.moments(_given(found, "scheduled_time"), unit, queued)

    least = scheduled.combine_first(queued)

    def at(clock: str, duration: str, where: pd.Series, least: pd.Series) -> Any:
        if clock in found:
            return cell.moments(_given(found, clock, where), unit, least)
        least = (least - sent - 1e-6).clip(0.0)  # of floats that were added
        after = cell.seconds(_given(found, duration, where), least, unit)
        return sent + after if duration in found else None

    first = at("first_token_time", "ttft", answered | _begun(found), least)
    last = at("last_token_time", "latency", answered, least if first is None else first)
    if first is None or last is None:
        decode = _decode(found, answered, lengths, unit)
        first = last - decode if first is None else first
        last = first + decode if last is None else last
    delay = queued - (sent - sent.min())
    must = f"within {_LONGEST_DELAY:g} s of arrival_time once their clocks agree"
    for column in [found[role] for role in {"queued_time"} & found.keys()]:
        refuse(column, delay - delay.min() > _LONGEST_DELAY, must)
    single = 0.0 <= delay.min() - sent.min() < _ONE_CLOCK  # clock for all of them
    origin = sent.min() if single else delay.min()
    columns = {"queued": queued, "first": first, "last": last[answered]}
    rows = pd.DataFrame({**columns, "scheduled": scheduled}, sent.index) - origin
    return rows.assign(sent=sent - sent.min()), float(origin)


def _decode(
    found: Columns, answered: pd.Series, lengths: pd.Series, unit: str | None
) -> pd.Series:
    """Seconds from the first token to the last, of those that got a whole answer."""
    made = lengths[answered] - 1
    if "itls" not in found:
        pace = cell.seconds(_given(found, "tpot", answered), unit=unit)
        return (pace * made).reindex(made.index, fill_value=0.0)
    gaps = found["itls"][answered]
    refuse(gaps, ~gaps.map(type).isin([list]), "a list of seconds")
    count = gaps.map(len)
    total = cell.seconds(gaps[count > 0].explode(), unit=unit).groupby(level=0).sum()
    total = total.reindex(made.index, fill_value=0.0)
    if count.nunique() == 1 and made.nunique() > 1 and (count < made).any():
        refuse(gaps, count == 0, "gaps between tokens: stream the answers")
        kept = f"only {count.iloc[0]} gaps between tokens are kept of each request"
        say(gaps, f"{kept}: the others are taken to be as long as these on average")
        total = total / count * made
    return total


def _outputs(found: Columns, answered: pd.Series) -> pd.Series:
    """Tokens that were made: of who was cut off those seen, or NaN."""
    cells = found["output_length"]
    seen = cell.numbers(cells).where(~answered)
    if "itls" in found:
        gaps = found["itls"].map(lambda gaps: len(gaps) if type(gaps) is list else 0)
        streamed = gaps + _begun(found)
        seen = seen.where(seen >= streamed, streamed)
    return seen.where(seen >= 1.0).where(~answered, cell.tokens(cells[answered]))


def _prefixes(rows: pd.DataFrame) -> list[list[tuple[int, int]]] | None:
    """What prompts begin with: as much of a prefix as the engine found cached."""
    shared = rows["cached"].where(rows["cached"] > 0).groupby(rows["prefix"]).median()
    length = rows["prefix"].where(rows["prefix"] >= 0).map(shared)
    length = length.clip(upper=rows["prompt"]).fillna(0).astype(int)
    if not length.any():
        return None
    pairs = zip(rows["prefix"].astype(int).tolist(), length.tolist(), strict=True)
    return [[pair] for pair in pairs]


def _say_failed(answered: pd.Series, stay: pd.Series, lengths: pd.Series) -> None:
    """One warning for all that failed."""
    cut = stay & ~answered
    kinds = (~stay, "refused, and are left out"), (cut, "cut off, and stay in the load")
    what = [f"{_counted(rows)} were {how}" for rows, how in kinds if rows.any()]
    if lengths.hasnans:
        unknown = f"{lengths.isna().sum()} unknown output lengths"
        what.append(f"{unknown} are taken to be the longest, {lengths.max():g}")
    if what:
        say(answered, "; ".join(what))


def _counted(rows: pd.Series) -> str:
    """How many of all, and the first rows of them."""
    some = ", ".join([*map(str, rows.index[rows][:10]), *["..."] * (sum(rows) > 10)])
    return f"{rows.sum()} of {len(rows)} requests ({rows.mean():.1%}; rows {some})"


def _aggregates(cells: pd.DataFrame, unit: str | None) -> pd.DataFrame | None:
    """A table of means and percentiles, a row a run; None if there are none."""
    statistics = dict[str, pd.Series]()
    for name in cells:
        words = cell.plain_name(str(name))[0]
        kind, of = _STATISTIC.search(words), _MEASURE.search(words)
        if kind and of:
            stat = (None, "mean", "p50", kind[3])[kind.lastindex or 0]
            key = f"{stat}_{_MEASURES[(of.lastindex or 1) - 1]}"
            statistics.setdefault(key, cell.seconds(cells[name].dropna(), unit=unit))
    if not statistics or recognised(cells).keys() >= {*TRACE}:
        return None
    found = recognised(cells, known=FORMATS["aggregates"])
    counts = {role: cell.numbers(column) for role, column in found.items()}
    for role, column in found.items():
        refuse(column, counts[role].isna() & column.notna(), "a number")
    requests, empty = counts.get("requests"), pd.Series(np.nan, cells.index)
    totals = {role: counts.pop(f"total_{role}", empty) for role in ("prompt", "output")}
    lasted = counts.pop("duration", empty)
    if requests is not None:
        counts.setdefault("achieved_rate", requests / lasted)
        for role, total in totals.items():
            counts.setdefault(f"{role}_length", total / requests)
    order = [role for role in FORMATS["aggregates"] if role in counts]
    table = pd.DataFrame({role: counts[role] for role in order} | statistics)
    return table.dropna(axis=1, how="all").reset_index(drop=True)
