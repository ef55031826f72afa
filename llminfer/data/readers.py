"""Logs, benchmark results and traces of any known format, read as data.

A file becomes rows of requests (``rows``), its columns are recognised by their names
(``base.trace_csv``), and what they hold decides what comes back: a log if it says when
requests were sent and answered, a workload if only what was asked and when, a table
if only means and percentiles of whole runs.
"""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base import trace_csv as cell
from llminfer.base.errors import LONGEST, TraceError
from llminfer.base.trace_csv import TRACE, Names, place, recognised, refuse, say
from llminfer.data.logs import ServedLog, inside, read_settings
from llminfer.data.rows import FORMATS, read_runs
from llminfer.workload import Workload

Columns = Mapping[str, pd.Series]

_ONE_CLOCK = 1.0  # s; where the least delay of a log is not below, clocks are two
_LONGEST_DELAY = 3600.0  # s on the way from the client to the engine's queue
_LONGEST_FIRST = 890.0  # s till the quickest first token; time zones are 900 s apart
_ANSWER = {"output_length", "first_token_time", "last_token_time", "ttft", "latency"}
_NOTHING = ("None", "", "0", "0.0")  # cells that say that there was no answer


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
    a row a run, where it has no single requests. The log's ``source``, and the table's
    ``attrs["source"]``, name the format.

    Requests that were refused are left out and counted; those that were cut off
    stay, for they worked the engine, without the times that nobody knows.

    Args:
        path: A file, plain or as ``.gz`` or ``.xz``, or the folder of a vLLM log.
        settings: Of the engine, for what goes on from the log: fields of a
            configuration, or vLLM's own flags. Else those of the log's ``meta.json``.
        columns: Names of columns by what they hold, where names do not say it.
        unit: Of times, where names do not say it: s, ms, us or ns. Else the first of
            these in which a token takes as long as on a real engine, with a warning.
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
        UserWarning: Requests that failed, rows that were not in order, times whose
            unit is in doubt.
    """
    file = inside(path, "requests.jsonl")
    runs = read_runs(file)
    if not 1 <= (number := run or int(len(runs) == 1)) <= len(runs):
        sizes = ", ".join(f"{len(cells)} requests" for _, cells in runs)
        raise TraceError(f"{file.name}, run={run}: must be one of {len(runs)}: {sizes}")
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
        return _workload(found, unit, form)
    settings = _settings(settings, file)
    if settings and (users := _users(about)):
        settings["clients"] = users
    found = found if unit else _told(found)
    return _served(found, unit, settings=settings, source=form["name"])


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


def _users(about: Mapping[str, Any]) -> int | None:
    """How many users without a pause sent the requests, if a run was driven so."""
    closed = str(about.get("request_rate")) == "inf"
    users = about.get("max_concurrency")
    return users if closed and type(users) is int and users > 0 else None


def _sent_by(users: int, found: Columns) -> pd.Series:
    """When so many users sent the requests, in order, each when he was answered, s."""
    decode = found["itls"].map(lambda its: sum(its) if type(its) is list else 0.0)
    free, sent = [0.0] * users, list[float]()
    for took in cell.numbers(found["ttft"]).fillna(0.0) + decode:
        sent.append(heappop(free))
        heappush(free, sent[-1] + took)
    return pd.Series(sent, decode.index, name="request_rate")


def _format(there: set[str], file: Path) -> dict[str, Any]:
    """The format that a run is in, by what it has."""
    known = (form for form in FORMATS["formats"] if there.issuperset(form["has"]))
    return next(known, {"name": "JSON" if ".json" in file.name else "CSV"})


def _settings(given: Mapping[str, Any] | None, file: Path) -> dict[str, Any]:
    """The engine's settings: given, or those beside its log; else none."""
    if given:
        return read_settings(given)
    with suppress(TraceError):  # there are none, or not all that is needed
        if file.name.startswith("requests.jsonl"):
            return read_settings(file.with_name("meta.json"))
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
        users, answers = _users(about) or len(cells), {"ttft", "itls"}
        closed = users < len(cells)
        if str(load.get("request_rate")) != "inf" or closed > (answers <= found.keys()):
            has = ", ".join(str(column.name) for column in found.values())
            what = f"no arrivals: {len(cells)} requests have {has}; {load}"
            how = "columns={'arrival_time': '...'}, vLLM of 2026, or --request-rate inf"
            raise TraceError(f"{place(cells)}: {what}: {how}")
        found["arrival_time"] = pd.Series(0.0, cells.index, name="request_rate")
        if closed:
            found["arrival_time"] = _sent_by(users, found)
            what = f"sent by {users} users without a pause"
            say(cells, f"{what}: arrivals follow from it")
    if "phase" in found:
        early = found["phase"].astype(str).str.contains("warm", case=False)
        if early.any():
            say(cells, f"{_counted(early)} are of the warm-up, and are left out")
        found = {role: column[~early] for role, column in found.items()}
    return found


def _is_served(found: Columns) -> bool:
    """Whether both first and last tokens have a time; says if only one has."""
    roles = "itls tpot", "first_token_time ttft", "last_token_time latency"
    there = [{*either.split()} & found.keys() for either in roles]
    served = sum(map(bool, there)) >= 2
    for role in [] if served else sorted(set[str]().union(*there)):
        what = "is not enough to tell when first and last tokens came"
        say(found[role], f"{found[role].name} {what}: a workload is read, no log")
    return served


def _workload(found: Columns, unit: str | None, form: dict[str, Any]) -> Workload:
    """What was asked, and when."""
    if found.keys() & {*cell.SAID}:
        found, _ = _kept(found)
    rows, paths = cell.requests(found, unit), None
    if size := form.get("block"):
        hashes = found["hash_ids"][rows.index]
        good = hashes.map(lambda ids: type(ids) is list and {*map(type, ids)} <= {int})
        refuse(hashes, ~good, "a list of whole numbers")
        blocks = zip(hashes, rows["prompt_length"], strict=True)
        paths = [list(zip(ids, _blocks(n, size), strict=False)) for ids, n in blocks]
    arrival, prompt, output = (rows[role] for role in TRACE)
    return Workload.from_arrays(arrival, prompt, output, segments=paths)


def _blocks(prompt: int, size: int) -> list[int]:
    """The tokens of a prompt by block."""
    return [min(size, prompt - start) for start in range(0, prompt, size)]


def _served(found: Columns, unit: str | None, **more: Any) -> ServedLog:
    """The log of requests in order of arrival; the first arrives at 0."""
    count = len(found["prompt_length"])
    found, answered = _kept(found)
    rows, origin = _times(found, answered, unit)
    rows["prompt"] = cell.tokens(found["prompt_length"])
    rows["output"] = found["output_length"]
    rows["cached"] = cell.tokens(_given(found, "cached_tokens"), 0)
    rows["prefix"] = cell.tokens(_given(found, "prefix"), -1)
    rows = rows.sort_values("sent", kind="stable")
    sent, prompt, output = (rows[name] for name in ("sent", "prompt", "output"))
    work = Workload.from_arrays(sent, prompt, output, segments=_prefixes(rows))
    times: list[Any] = [rows[name] for name in ("queued", "first", "last")]
    whole = rows.dropna(axis="columns")  # what is known of all
    times += map(whole.get, ("scheduled", "cached", "prefix"))
    return ServedLog(work, *times, refused=count - len(rows), origin=origin, **more)


def _told(found: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """The columns of a log, with a unit behind names without one where it must be one.

    It is the first in which half of the requests take at most 1 s a token, and 2 ms if
    it is not seconds. Up to 4 s they are taken for seconds, aloud; and so are answers
    that came all at once, of which nobody knows how much of their time they waited.
    """
    bare = {r: c for r, c in found.items() if r in FORMATS["times"] and cell.unsaid(c)}
    for unit in ("s", "ms", "us", "ns") if bare else ():
        told = found | {r: its.rename(f"{its.name} {unit}") for r, its in bare.items()}
        pace = np.inf
        with suppress(TraceError), warnings.catch_warnings(action="ignore"):
            log = _served(told, None)
            whole = log.latency / log.workload.output_length  # if all came at once
            pace = np.nanmedian(np.where(log.tpot > 0.0, log.tpot, whole))
        if unit == "s" and not pace > 1.0:
            break
        if pace < np.inf if unit == "s" else 2e-3 <= pace <= 1.0:
            names = ", ".join(str(its.name) for its in bare.values())
            raw = f"{pace / cell.UNITS[unit]:.3g} s a token if in s; unit= says another"
            say(found["arrival_time"], f"{names}: no unit, read as {unit}: {raw}")
            return told
    return found


def _kept(found: Columns) -> tuple[Columns, pd.Series]:
    """The columns without who was refused, and which of the others were answered.

    Output lengths are tokens that were made; of who was cut off those seen, or else as
    many as the longest. One warning says how many were refused and cut off.
    """
    answered, stay = _answered(found)
    kept = {role: column[stay] for role, column in found.items()}
    cells, cut = kept["output_length"], ~answered[stay]
    seen = cell.numbers(cells)
    if "itls" in kept:
        gaps = kept["itls"].map(lambda gaps: len(gaps) if type(gaps) is list else 0)
        seen = seen.fillna(0.0).clip(gaps + _begun(kept))
    made = seen.where(cut & (seen >= 1.0)).fillna(cell.tokens(cells[~cut]))
    kept["output_length"] = made.fillna(made.max())
    kinds = {"refused, and are left out": ~stay}
    kinds |= {"cut off, and stay in the load": stay & ~answered}
    what = [f"{_counted(its)} were {how}" for how, its in kinds.items() if its.any()]
    if made.hasnans:
        unknown = f"{made.isna().sum()} unknown output lengths"
        what.append(f"{unknown} are taken to be the longest, {made.max():g}")
    if what:
        say(answered, "; ".join(what))
    return kept, ~cut


def _answered(found: Columns) -> tuple[pd.Series, pd.Series]:
    """Which requests got their whole answer, and which stay in the load."""
    names = _given(found, "request_id")
    refuse(names, names.duplicated(), "a name of its own")
    said = pd.Series("", found["prompt_length"].index)
    for role in found.keys() & {*cell.SAID}:
        said += f"{role}=" + found[role].map(str) + ";"
    words = FORMATS["failures"].items()
    has = {kind: said.str.contains(its, case=False) for kind, its in words}
    failed = has["failed"]
    for role in _ANSWER & found.keys():
        nothing = _NOTHING[: 2 if role in ("ttft", "latency") else None]
        failed |= found[role].map(str).isin(nothing)
    if failed.all():
        raise TraceError(f"{place(failed)}: no requests answered: must have one")
    known = cell.numbers(found["prompt_length"]) >= 1.0
    worked = (has["ended"] | _begun(found)) & ~has["refused"]
    return ~failed, ~failed | (worked & known)


def _begun(found: Columns) -> pd.Series:
    """Which requests have a time of their first token."""
    begun = pd.Series(False, found["prompt_length"].index)
    for role in {"first_token_time", "ttft"} & found.keys():
        begun |= ~found[role].map(str).isin([*_NOTHING, "nan"])
    return begun


def _given(found: Columns, role: str, where: pd.Series | bool = True) -> pd.Series:
    """The cells of those rows that have one, and are asked for."""
    cells = found.get(role, pd.Series(dtype=object, name=role))
    return cells[where & ~cells.map(str).isin(["None", ""])]


def _clocks(found: Columns, unit: str | None) -> tuple[pd.DataFrame, float]:
    """Seconds when each was sent and queued; and what the engine's clock was at 0."""
    sent, origin = cell.arrivals(found["arrival_time"], unit)
    queued = cell.moments(_given(found, "queued_time"), unit)
    delay = queued - sent
    must = f"within {_LONGEST_DELAY:g} s of arrival_time once their clocks agree"
    refuse(found.get("queued_time", delay), delay - delay.min() > _LONGEST_DELAY, must)
    if len(queued) and not 0.0 <= delay.min() - origin < _ONE_CLOCK:
        origin = float(delay.min())
    # a client does not know when the engine queued its request
    queued = (queued - origin).reindex(sent.index).fillna(sent)
    return pd.DataFrame({"sent": sent, "queued": queued}), origin


def _times(
    found: Columns, answered: pd.Series, unit: str | None
) -> tuple[pd.DataFrame, float]:
    """Seconds when each was sent, queued, scheduled, begun and done; and time 0."""
    rows, origin = _clocks(found, unit)

    def at(least: pd.Series, where: Any, clock: str, duration: str = "") -> pd.Series:
        least = least - 1e-6  # of floats that were added
        if clock not in found:  # a client counts from when it sent
            after, least = _given(found, duration, where), least - rows["sent"]
            return rows["sent"] + cell.seconds(after, least.clip(0.0), unit)
        times, least = _given(found, clock, where), least + origin
        return cell.moments(times, unit, least.clip(0.0)) - origin

    rows["scheduled"] = at(rows["queued"], True, "scheduled_time")
    least, begun = rows["scheduled"].fillna(rows["queued"]), answered | _begun(found)
    rows["first"] = at(least, begun, "first_token_time", "ttft")
    least = rows["first"].fillna(least)
    rows["last"] = at(least, answered, "last_token_time", "latency")
    if rows.loc[answered, ["first", "last"]].isna().any(axis=None):
        decode = _decode(found, answered, unit)
        rows["first"] = rows["first"].fillna(rows["last"] - decode)
        rows["last"] = rows["last"].fillna(rows["first"] + decode)
    if (wait := (rows["first"] - rows["sent"]).min()) > _LONGEST_FIRST:
        must = f"{wait:.6g} s: must be seconds, and in one time zone, or give unit='ms'"
        raise TraceError(f"{place(rows)}: all wait for a first token, at least {must}")
    return rows, origin


def _decode(found: Columns, answered: pd.Series, unit: str | None) -> pd.Series:
    """Seconds from the first token to the last, of those that got a whole answer."""
    made = found["output_length"][answered] - 1
    if "itls" not in found:
        pace = cell.seconds(found["tpot"][answered][made > 0], unit=unit)
        return pace.reindex(made.index, fill_value=0.0) * made
    gaps = found["itls"][answered]
    refuse(gaps, ~gaps.map(type).isin([list]), "a list of seconds")
    count = gaps.str.len()
    total = cell.seconds(gaps[count > 0].explode(), unit=unit).groupby(level=0).sum()
    total = total.reindex(made.index, fill_value=0.0)
    if count.nunique() == 1 and made.nunique() > 1 and (count < made).any():
        refuse(gaps, count == 0, "gaps between tokens: stream the answers")
        kept = f"only {count.iloc[0]} gaps between tokens are kept of each request"
        say(gaps, f"{kept}: the others are taken to be as long as these on average")
        total = total / count * made
    return total


def _prefixes(rows: pd.DataFrame) -> list[list[tuple[int, int]]] | None:
    """What prompts begin with: as much of a prefix as the engine found cached."""
    prefix = rows["prefix"].fillna(-1).astype(int)
    shared = rows["cached"].where(rows["cached"] > 0).groupby(prefix).median()
    length = prefix.where(prefix >= 0).map(shared).clip(upper=rows["prompt"])
    pairs = zip(prefix, length.fillna(0).astype(int), strict=True)
    return [[pair] * (pair[1] > 0) for pair in pairs] if length.any() else None


def _counted(rows: pd.Series) -> str:
    """How many of all, and the first rows of them."""
    some = ", ".join([*map(str, rows.index[rows][:10]), *["..."] * (sum(rows) > 10)])
    return f"{rows.sum()} of {len(rows)} requests ({rows.mean():.1%}; rows {some})"


def _aggregates(cells: pd.DataFrame, unit: str | None) -> pd.DataFrame | None:
    """A table of means and percentiles, a row a run; None if there are none."""
    statistics = dict[str, pd.Series]()
    for name in cells:
        words = cell.plain_name(str(name))[0]
        kind, of = (_among(words, FORMATS[key]) for key in ("statistics", "measures"))
        if kind and of:
            times = cell.seconds(given := cells[name].dropna(), unit=unit)
            slow = (times > LONGEST[of]) & (not unit and cell.unsaid(given))
            refuse(given, slow, "seconds, not ms, or read with unit='ms'")
            statistics.setdefault(f"{kind}_{of}", times)
    if not statistics or recognised(cells).keys() >= {*TRACE}:
        return None
    table = pd.DataFrame(np.nan, cells.index, [*FORMATS["aggregates"]])
    for role, column in recognised(cells, known=FORMATS["aggregates"]).items():
        table[role] = cell.numbers(column)
        refuse(column, table[role].isna() & column.notna(), "a number")
    for role, (of, by) in FORMATS["ratios"].items():
        table[role] = table[role].fillna(table[of] / table[by])
    table = table.drop(columns=["total_prompt", "total_output", "duration"])
    return table.assign(**statistics).dropna(axis=1, how="all").reset_index(drop=True)


def _among(words: str, known: Mapping[str, str]) -> str | None:
    """The first of what is known that a column's plain name has among its words."""
    for kind, names in known.items():
        if any(f"_{name}_" in f"_{words}_" for name in names.split()):
            return kind
    return None
