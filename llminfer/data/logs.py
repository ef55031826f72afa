"""What real engines left behind: logs and benchmark results, read as data.

A plain CSV and the Azure traces are workloads: ``Workload.from_csv`` reads them.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import TraceError, number
from llminfer.base.trace_csv import csv_rows, seconds, text_lines, tokens
from llminfer.record import RunRecord
from llminfer.workload import Workload

T = TypeVar("T")
_LARGEST = 64 * 2**20  # bytes of one JSON document
_BENCH = ("start_times", "ttfts", "itls", "input_lens", "output_lens")
_ANSWER = ("output_toks", "first_token_ts", "last_token_ts")  # null or 0: failed
_ENGINE = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_CLOCK = ("begin", "scheduled", "done")
_PARTS = ("prefill_tokens", "prefill_seqs", "prefill_kv", "decode_seqs", "decode_kv")
_STEP = (*_PARTS, "running", "waiting", "preempted", "pairs")
_OPTIONAL = ["scheduled_ts", "cached_toks", "prefix", "pairs"]
_LEAST = {"input_toks": 1, "output_toks": 1, "prefix": -1}  # of a count; else 0
_ONE_CLOCK = 1.0  # s; where the least delay of a log is not below, clocks are two
_LONGEST_DELAY = 3600.0  # s on the way from the client to the engine's queue
_ASYNCHRONOUS = (0, 14)  # the version of vLLM since which it is the default
_ONE = "pipeline_parallel_size prefill_context_parallel_size num_scheduler_steps "
_OFF = (
    "speculative_config speculative_model scheduler_cls enable_dbo enable_lora "
    "lora_config sliding_window kv_transfer_config kv_offloading_size "
    "long_prefill_token_threshold enable_expert_parallel"
)
_MODELLED: tuple[tuple[str, tuple[Any, ...]], ...] = (  # settings, and what they may be
    ("policy scheduling_policy", ("fcfs",)),
    (_ONE + "decode_context_parallel_size max_num_partial_prefills", (1,)),
    (_OFF, (None, False, 0)),
)


@dataclass(frozen=True, eq=False, repr=False)
class ServedLog:
    """Requests as a server saw them, on one clock that starts at the first arrival.

    Attributes:
        workload: What was asked, and when; in order of arrival, as all columns are.
        queued_time: When each entered the engine's queue, seconds, shape (n,).
        first_token_time: When its first token came out, seconds.
        last_token_time: When its last did.
        failed: Requests that got no whole answer; they are left out.
        scheduled_time: When each was first in a step; None where that is not known.
        cached_tokens: Prompt tokens found in the prefix cache, or None.
        prefix: The number of the prefix it shares with others, -1 for none, or None.
        origin: What the engine's clock, which its steps are on, showed at time 0.
    """

    workload: Workload
    queued_time: FloatArray
    first_token_time: FloatArray
    last_token_time: FloatArray
    failed: int = 0
    scheduled_time: FloatArray | None = None
    cached_tokens: IntArray | None = None
    prefix: IntArray | None = None
    origin: float = 0.0

    @classmethod
    def from_record(cls, record: RunRecord) -> Self:
        """A simulated run as the log it would have left.

        >>> from llminfer import SimulationConfig, simulate
        >>> config = SimulationConfig(arrival_rate=2.0, num_requests=2000)
        >>> log = ServedLog.from_record(simulate(config.replace(random_seed=1)))
        >>> len(log), int(log.first_completed(0.4).sum())
        (2000, 800)
        """
        workload = Workload(
            record.arrival_time,
            record.prompt_length,
            record.output_length,
            record.request_class,
        )
        ends = record.first_token_time, record.processing_end_time
        begun = record.processing_start_time
        return cls(workload, record.queue_entry_time, *ends, scheduled_time=begun)

    def __len__(self) -> int:
        return len(self.workload)

    def __repr__(self) -> str:
        lasted = self.last_token_time.max()
        failed = f", {self.failed} failed" if self.failed else ""
        return f"ServedLog({len(self):,} requests in {lasted:,.1f} s{failed})"

    @property
    def ttft(self) -> FloatArray:
        """Seconds from arrival to the first token."""
        return self.first_token_time - self.workload.arrival_time

    @property
    def tpot(self) -> FloatArray:
        """Seconds an output token after the first; NaN for a single token."""
        more = self.workload.output_length - 1.0
        decode = self.last_token_time - self.first_token_time
        tpot = np.full(len(self), np.nan)
        return np.asarray(np.divide(decode, more, out=tpot, where=more > 0))

    @property
    def latency(self) -> FloatArray:
        """Seconds from arrival to the last token."""
        return self.last_token_time - self.workload.arrival_time

    def first_completed(self, share: float) -> npt.NDArray[np.bool_]:
        """Which requests are among the first ``share`` to complete, shape (n,).

        Raises:
            ConfigError: ``share`` is not above 0 and at most 1.
        """
        most = int(number("share", share, above=0.0, most=1.0) * len(self))
        early = np.zeros(len(self), dtype=np.bool_)
        early[np.argsort(self.last_token_time, kind="stable")[:most]] = True
        return early


def read_vllm_log(path: str | Path) -> ServedLog:
    """The log of a vLLM engine, a JSON object a line, put in order of arrival.

    A request arrives when its client sent it. Where the client's clock is another
    than the engine's, the smallest ``queued_ts - arrival_time`` lines them up.
    Requests that failed or were aborted (an ``error``, a ``finish_reason`` that says
    so, no last token) are left out, counted, and named in a warning.

    Args:
        path: A ``requests.jsonl``, plain or as ``.gz`` or ``.xz``, or its folder. Its
            rows have ``request_id``, ``input_toks``, ``output_toks``,
            ``arrival_time``, ``first_token_ts`` and ``last_token_ts``; they may have
            ``queued_ts`` (else the arrival), ``scheduled_ts``, ``cached_toks`` and
            ``prefix``.

    Raises:
        TraceError: The file cannot be read as such a log; names row and column.
    """
    file = _inside(path, "requests.jsonl")
    names: dict[Any, int] = {}
    answered: dict[int, dict[str, float]] = {}
    for row, entry in _objects(file):
        where = f"{file.name}, row {row}"
        if not isinstance(who := entry.get("request_id"), str | int):
            raise TraceError(f"{where}, request_id={who!r:.40}: must be a name")
        if (first := names.setdefault(who, row)) != row:
            what = f"must be unlike that of row {first}"
            raise TraceError(f"{where}, request_id={who!r:.40}: {what}")
        if not _failed(entry):
            answered[row] = _request(entry, where)
    if not answered:
        raise TraceError(f"{file.name}: no requests answered: must have at least one")
    if failed := [row for row in names.values() if row not in answered]:
        some = ", ".join(map(str, failed[:10])) + ", ..." * (len(failed) > 10)
        what = f"of {len(names)} requests failed and are left out: rows {some}"
        warnings.warn(f"{file.name}: {len(failed)} {what}", stacklevel=2)
    table = pd.DataFrame.from_dict(answered, orient="index")
    table = table.sort_values("arrival_time", kind="stable")
    return _on_one_clock(table, file.name, len(failed))


def _failed(entry: Mapping[str, Any]) -> bool:
    """Whether a row says that its request got no whole answer."""
    return (
        bool(entry.get("error"))
        or entry.get("finish_reason") in ("abort", "error")
        or any(entry.get(column, 1) in (None, 0) for column in _ANSWER)
    )


def _request(entry: Mapping[str, Any], where: str) -> dict[str, float]:
    """The columns of an answered request; NaN where it has none."""
    sent = _numbers(entry, where, ["arrival_time"], ["input_toks", "output_toks"])
    seen = {name: value for name, value in entry.items() if value is not None}
    seen = {"queued_ts": sent["arrival_time"], **seen}  # a client does not know it
    found = _numbers(seen, where, _ENGINE, ["cached_toks", "prefix"])
    return {**dict.fromkeys(_OPTIONAL, np.nan), **sent, **found}


def _numbers(
    entry: Mapping[str, Any],
    where: str,
    times: Iterable[str],
    counts: Iterable[str],
) -> dict[str, float]:
    """The columns of a row: times, none before the last, and counts."""
    row: dict[str, float] = {}
    least = 0.0
    for column in times:
        if column in entry or column not in _OPTIONAL:
            row[column] = least = _cell(seconds, entry, column, where, least)
    for column in counts:
        if column in entry or column not in _OPTIONAL:
            row[column] = _cell(tokens, entry, column, where, _LEAST.get(column, 0))
    return row


def _on_one_clock(table: pd.DataFrame, name: str, failed: int) -> ServedLog:
    """The log of requests in order of arrival; the first arrives at 0."""
    begin = table["arrival_time"].iloc[0]
    arrival = table["arrival_time"] - begin
    delay = table["queued_ts"] - arrival
    origin = delay.min()
    must = f"within {_LONGEST_DELAY:g} s of arrival_time once their clocks agree"
    _refuse(table, delay - origin > _LONGEST_DELAY, "queued_ts", name, must)
    if 0.0 <= origin - begin < _ONE_CLOCK:  # of a single clock
        origin = begin

    def times(column: str) -> FloatArray:
        return np.asarray(table[column] - origin)

    def counts(column: str) -> IntArray | None:
        return None if table[column].hasnans else table[column].to_numpy(np.int64)

    return ServedLog(
        Workload.from_arrays(arrival, table["input_toks"], table["output_toks"]),
        times("queued_ts"),
        times("first_token_ts"),
        times("last_token_ts"),
        failed,
        None if table["scheduled_ts"].hasnans else times("scheduled_ts"),
        counts("cached_toks"),
        counts("prefix"),
        float(origin),
    )


def read_steps(path: str | Path) -> pd.DataFrame:
    r"""The steps of a vLLM engine, a row a step: what was in it, and its seconds.

    Columns: ``begin``, ``scheduled`` and ``done`` (seconds on the engine's clock);
    ``prefill_tokens`` (P), ``prefill_seqs``, ``prefill_kv`` (what those sequences had
    computed before), ``decode_seqs`` (b), ``decode_kv`` (K); ``running``, ``waiting``,
    ``preempted``; and two that follow from them. ``seconds`` runs from the end of the
    step before, or from ``scheduled`` if that is later, to ``done``. ``pairs`` (Q) is
    the sum of n (c + n/2) over the prefilled chunks; a file without it has only the
    sums of n and c, and several chunks of one step then count as equally long, which
    is exact for one chunk and misses the sum over a run by 2% on an H200.

    Args:
        path: An ``engine_steps.csv``, plain or as ``.gz`` or ``.xz``, or its folder.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "engine_steps.csv"
    >>> rows = "0,0.1,2.1,40,2,20,0,0,2,0,0", "1,1.1,3,0,0,0,2,60,2,0,0"
    >>> _ = path.write_text("\n".join([",".join([*_CLOCK, *_STEP][:-1]), *rows]))
    >>> read_steps(path)[["prefill_tokens", "decode_seqs", "pairs", "seconds"]]
       prefill_tokens  decode_seqs  pairs  seconds
    0              40            0  800.0      2.0
    1               0            2    0.0      0.9

    Raises:
        TraceError: The file cannot be read as such; names row and column.
    """
    file = _inside(path, "engine_steps.csv")
    rows = csv_rows(file)
    _, header = next(rows, (1, []))
    if missing := {*_CLOCK, *_STEP} - {"pairs", *header}:
        what = f"must have {', '.join(sorted(missing))} too"
        raise TraceError(f"{file.name}, row 1: {what}")
    steps = {}
    for row, cells in rows:
        entry = dict(zip(header, cells, strict=True))
        steps[row] = _numbers(entry, f"{file.name}, row {row}", _CLOCK, _STEP)
    if not steps:
        raise TraceError(f"{file.name}: no steps: must have at least one row")
    table = pd.DataFrame.from_dict(steps, orient="index")
    prompt, chunks = table["prefill_tokens"], table["prefill_seqs"]
    before = np.maximum(table["done"].shift(fill_value=0.0), table["scheduled"])
    table["seconds"] = table["done"] - before
    if "pairs" not in table:
        kv = table["prefill_kv"]
        table["pairs"] = prompt * (kv + prompt / 2) / np.maximum(chunks, 1)
    bad = table["seconds"] <= 0.0
    _refuse(table, bad, "done", file.name, "after that of the step before")
    bad = (chunks > prompt) | ((chunks == 0) & (prompt > 0))
    _refuse(table, bad, "prefill_seqs", file.name, "1 to prefill_tokens, or 0 with it")
    return table.reset_index(drop=True)


def _refuse(
    table: pd.DataFrame, bad: pd.Series, column: str, name: str, must: str
) -> None:
    """Raise for the first row that is bad, as it is numbered in the file."""
    if bad.any():
        at = int(np.argmax(bad))
        where = f"{name}, row {table.index[at]}, {column}"
        raise TraceError(f"{where}={table[column].iloc[at]:.16g}: must be {must}")


def read_bench(path: str | Path) -> ServedLog:
    """What ``vllm bench serve --save-result --save-detailed`` saved.

    Its times are the client's: a request arrives when it is sent. Requests that
    failed are left out and counted.

    Args:
        path: The JSON file.

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
    file = Path(path)
    requests = _bench_requests(file)
    rows = []
    for i, entry in enumerate(requests):
        where = f"{file.name}, request {i}"
        if entry["errors"] or entry["output_lens"] == 0:
            continue
        sent = _cell(seconds, entry, "start_times", where)
        first = sent + _cell(seconds, entry, "ttfts", where)
        if not isinstance(gaps := entry["itls"], list):
            raise TraceError(f"{where}, itls={gaps!r:.40}: must be a list of seconds")
        last = first + sum(seconds(gap, f"{where}, itls") for gap in gaps)
        lengths = [_cell(tokens, entry, column, where) for column in _BENCH[3:]]
        rows.append([sent, first, last, *lengths])
    if not rows:
        raise TraceError(f"{file.name}: no request succeeded: must have at least one")
    rows.sort(key=lambda row: row[0])
    *times, prompts, outputs = np.array(rows).T
    sent, first, last = np.array(times) - times[0][0]
    workload = Workload.from_arrays(sent, prompts, outputs)
    return ServedLog(workload, sent, first, last, len(requests) - len(rows))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of the engine that left a vLLM log, as fields of a configuration.

    What the file does not say is vLLM's own default: prefix caching and chunked
    prefill are on, and asynchronous scheduling is since version 0.14. Engines in data
    parallel are replicas, whose router sends to the least loaded.

    Args:
        path: A ``meta.json``, or its folder. A setting may stand in ``engine_kwargs``,
            ``engine``, ``kv_cache``, ``resolved_config``, or at the top, which counts
            most.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "meta.json"
    >>> limits = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    >>> meta = {"vllm_version": "0.13.0", "engine_kwargs": limits}
    >>> _ = path.write_text(json.dumps(meta))
    >>> settings = read_settings(path)
    >>> settings["batch_size"], settings["async_scheduling"]
    (8, False)

    Raises:
        TraceError: The file cannot be read, has no limits of the batch, or a setting
            that cannot be.

    Warns:
        UserWarning: Settings that change a run and are not modelled; names each.
    """
    file = _inside(path, "meta.json")
    said = _said(_document(file))

    def get(read: Callable[..., T], usual: T, *names: str) -> T:
        there = [name for name in names if name in said]
        return _cell(read, said, there[0], file.name) if there else usual

    sequences = _cell(tokens, said, "max_num_seqs", file.name)
    graphs = get(tokens, min(2 * sequences, 512), "max_cudagraph_capture_size")
    replicas = get(tokens, 1, "data_parallel_size")
    if replicas == 1:
        said.pop("enable_expert_parallel", None)  # with more they would keep step
    if other := _not_modelled(said):
        what = "changes the run and is not modelled"
        warnings.warn(f"{file.name}: {', '.join(other)}: {what}", stacklevel=2)
    return {
        "server": "continuous",
        "batch_size": sequences,
        "max_batched_tokens": _cell(tokens, said, "max_num_batched_tokens", file.name),
        "kv_blocks": get(tokens, None, "num_gpu_blocks"),
        "block_size": get(tokens, 16, "block_size"),
        "prefix_caching": get(_flag, True, "enable_prefix_caching", "prefix_caching"),
        "chunked_prefill": get(_flag, True, "enable_chunked_prefill", "chunked"),
        "reserve_full_prompt": get(_flag, True, "scheduler_reserve_full_isl"),
        "async_scheduling": get(_flag, _recent(said), "async_scheduling"),
        "graph_tokens": 0 if get(_flag, False, "enforce_eager") else graphs,
        "replicas": replicas,
        "router": "round_robin" if replicas == 1 else "least_loaded",
    }


def _said(meta: Any) -> dict[str, Any]:
    """The settings that a ``meta.json`` has in one place or another."""
    resolved = _part(meta, "resolved_config")
    parts = ("cache_config", "scheduler_config", "parallel_config")
    sections = [_part(meta, key) for key in ("engine_kwargs", "engine", "kv_cache")]
    sections += [resolved, *(_part(resolved, key) for key in parts)]
    sections.append(meta if isinstance(meta, dict) else {})
    return {k: v for part in sections for k, v in part.items() if v is not None}


def _recent(said: Mapping[str, Any]) -> bool:
    """Whether this vLLM, the newest if not said, schedules asynchronously unasked."""
    version = str(said.get("vllm_version", said.get("vllm")))
    known = re.match(r"v?(\d+)\.(\d+)", version)
    return not known or tuple(map(int, known.groups())) >= _ASYNCHRONOUS


def _not_modelled(said: Mapping[str, Any]) -> list[str]:
    """The settings that change a run in a way that no configuration has."""
    return [
        f"{name}={said[name]!r:.40}"
        for names, usual in _MODELLED
        for name in names.split()
        if said.get(name, usual[0]) not in usual
    ]


def _flag(cell: Any, where: str) -> bool:
    if not isinstance(cell, bool):
        raise TraceError(f"{where}={cell!r:.40}: must be true or false")
    return cell


def _inside(path: str | Path, name: str) -> Path:
    """The file of this name in a folder, or the one of this path, packed or not."""
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    packed = (file.with_name(f"{file.name}{end}") for end in ("", ".xz", ".gz"))
    return next((there for there in packed if there.exists()), file)


def _part(meta: Any, key: str) -> Mapping[str, Any]:
    """A section of ``meta``, empty if there is none."""
    part = meta.get(key) if isinstance(meta, dict) else None
    return part if isinstance(part, dict) else {}


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file by row, in bounded memory."""
    for row, line in enumerate(text_lines(file), start=1):
        if line.strip():
            entry = _parsed(line, f"{file.name}, row {row}")
            if not isinstance(entry, dict):
                raise TraceError(f"{file.name}, row {row}: must be a JSON object")
            yield row, entry


def _document(file: Path) -> Any:
    """The one JSON value in a file of bounded size."""
    try:
        if file.stat().st_size > _LARGEST:
            raise TraceError(f"{file.name}: over {_LARGEST // 2**20} MiB: save less")
        return _parsed(file.read_text("utf-8-sig"), file.name)
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{file.name}: binary: must be UTF-8 text") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{where}: not JSON: {what:.80}") from None


def _cell(
    read: Callable[..., T],
    entry: Mapping[str, Any],
    column: str,
    where: str,
    *at: float,
) -> T:
    """What ``read`` makes of a column of ``entry``."""
    return read(entry.get(column), f"{where}, {column}", *at)


def _bench_requests(file: Path) -> list[dict[str, Any]]:
    """The requests of a benchmark's result, each by name of column."""
    result = _document(file)
    if not isinstance(result, dict):
        raise TraceError(f"{file.name}: must be a JSON object, as vllm bench saves it")
    columns: dict[str, Any] = {name: result.get(name) for name in _BENCH}
    columns["errors"] = result.get("errors") or []
    for name, column in columns.items():
        if not isinstance(column, list):
            hint = "saved by `vllm bench serve --save-result --save-detailed`"
            what = f"missing: must be a list, as {hint}"
            raise TraceError(f"{file.name}, {name}: {what}")
    if not columns["errors"]:
        columns["errors"] = [""] * len(columns["ttfts"])
    if len(sizes := {len(column) for column in columns.values()}) > 1:
        raise TraceError(f"{file.name}: columns of unlike length: {sizes}")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
