"""What real engines left behind: logs and benchmark results, read as data.

A plain CSV and the Azure traces are workloads: ``Workload.from_csv`` reads them.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import TraceError, number
from llminfer.base.trace_csv import csv_table, refuse, seconds, text_lines, tokens
from llminfer.record import RunRecord
from llminfer.workload import Workload

_LARGEST = 64 * 2**20  # bytes of one JSON document
_BENCH = ("start_times", "ttfts", "itls", "input_lens", "output_lens")
_ANSWER = ("output_toks", "first_token_ts", "last_token_ts")  # null or 0: failed
_OPTIONAL = ("queued_ts", "scheduled_ts", "cached_toks", "prefix")  # or null
_LOG = ("request_id", "arrival_time", "input_toks", *_ANSWER, *_OPTIONAL)
_CLOCK = ("begin", "scheduled", "done")
_PARTS = ("prefill_tokens", "prefill_seqs", "prefill_kv", "decode_seqs", "decode_kv")
_STEP = (*_PARTS, "running", "waiting", "preempted")
_ONE_CLOCK = 1.0  # s; where the least delay of a log is not below, clocks are two
_LONGEST_DELAY = 3600.0  # s on the way from the client to the engine's queue
_ASYNCHRONOUS = (0, 14)  # the version of vLLM since which it is the default
_CONFIGS = ("cache_config", "scheduler_config", "parallel_config")
_OFF = (None, False, 0)
_MODELLED: dict[str, tuple[Any, ...]] = {  # settings, and what they may be
    "policy scheduling_policy": ("fcfs",),
    "pipeline_parallel_size prefill_context_parallel_size num_scheduler_steps": (1,),
    "decode_context_parallel_size max_num_partial_prefills": (1,),
    "speculative_config speculative_model scheduler_cls enable_dbo enable_lora": _OFF,
    "lora_config sliding_window kv_transfer_config kv_offloading_size": _OFF,
    "long_prefill_token_threshold enable_expert_parallel": _OFF,
}


@dataclass(frozen=True, eq=False, repr=False)
class ServedLog:
    """Requests as a server saw them, on one clock that starts at the first arrival.

    Attributes:
        workload: What was asked, and when; in order of arrival, as all columns are.
        queued_time: When each entered the engine's queue, seconds, shape (n,).
        first_token_time: When its first token came out, seconds.
        last_token_time: When its last did.
        scheduled_time: When each was first in a step; None where that is not known.
        cached_tokens: Prompt tokens found in the prefix cache, or None.
        prefix: The number of the prefix it shares with others, -1 for none, or None.
        failed: Requests that got no whole answer; they are left out.
        origin: What the engine's clock, which its steps are on, showed at time 0.
    """

    workload: Workload
    queued_time: FloatArray
    first_token_time: FloatArray
    last_token_time: FloatArray
    scheduled_time: FloatArray | None = None
    cached_tokens: IntArray | None = None
    prefix: IntArray | None = None
    _: KW_ONLY
    failed: int = 0
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
        columns = (each.name for each in fields(Workload) if each.name != "segments")
        workload = Workload(*(getattr(record, name) for name in columns))
        ends = record.first_token_time, record.processing_end_time
        begun = record.processing_start_time
        return cls(workload, record.queue_entry_time, *ends, begun)

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
        return decode / np.where(more > 0.0, more, np.nan)

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
        order = np.argsort(self.last_token_time, kind="stable")
        return np.argsort(order) < most


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
    entries = dict(_objects(file))
    columns = {name: [entry.get(name) for entry in entries.values()] for name in _LOG}
    cells = pd.DataFrame(columns, list(entries), dtype=object)
    cells = cells.rename_axis(f"{file.name}, row ")
    if not (answered := [row for row in entries if not _failed(entries[row])]):
        raise TraceError(f"{file.name}: no requests answered: must have at least one")
    name = cells["request_id"]
    refuse(name, ~name.map(type).isin([str, int, bool]), "a name")
    first = name.isin(name[again := name.duplicated()][:1]).idxmax()
    refuse(name, again, f"unlike that of row {first}")
    if failed := list(cells.index.difference(answered)):
        some = ", ".join(map(str, failed[:10])) + ", ..." * (len(failed) > 10)
        what = f"of {len(cells)} requests failed and are left out: rows {some}"
        warnings.warn(f"{file.name}: {len(failed)} {what}", stacklevel=2)
    return _on_one_clock(cells.loc[answered], len(failed))


def _failed(entry: Mapping[str, Any]) -> bool:
    """Whether a row says that its request got no whole answer."""
    said = entry.get("error") or entry.get("finish_reason") in ("abort", "error")
    return bool(said) or any(entry.get(column, 1) in (None, 0) for column in _ANSWER)


def _on_one_clock(cells: pd.DataFrame, failed: int) -> ServedLog:
    """The log of answered requests in order of arrival; the first arrives at 0.

    Pandas aligns the columns by row, so that one that some rows lack has NaN there.
    """
    given = {name: _given(cells[name]) for name in _OPTIONAL}
    arrival = seconds(cells["arrival_time"])
    # a client does not know when the engine queued its request
    queued = seconds(given["queued_ts"]).combine_first(arrival)
    scheduled = seconds(given["scheduled_ts"], queued)
    first = seconds(cells["first_token_ts"], scheduled.combine_first(queued))
    last = seconds(cells["last_token_ts"], first)
    begin = arrival.min()
    delay = queued - (arrival - begin)
    origin = delay.min()
    must = f"within {_LONGEST_DELAY:g} s of arrival_time once their clocks agree"
    refuse(cells["queued_ts"], delay - origin > _LONGEST_DELAY, must)
    if 0.0 <= origin - begin < _ONE_CLOCK:  # of a single clock
        origin = begin
    asked = [tokens(cells[name]) for name in ("input_toks", "output_toks")]
    times = [each - origin for each in (queued, first, last, scheduled)]
    found = [tokens(given["cached_toks"], 0), tokens(given["prefix"], -1)]
    table = pd.concat([arrival - begin, *asked, *times, *found], axis=1)
    table = table.iloc[np.argsort(arrival, kind="stable")]
    columns: Any = [None if c.hasnans else c.to_numpy() for _, c in table.items()]
    workload = Workload.from_arrays(*columns[:3])
    return ServedLog(workload, *columns[3:], failed=failed, origin=float(origin))


def _given(cells: pd.Series) -> pd.Series:
    """The cells of those rows that have one."""
    return cells[[cell is not None for cell in cells]]


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
    >>> _ = path.write_text("\n".join([",".join([*_CLOCK, *_STEP]), *rows]))
    >>> read_steps(path)[["prefill_tokens", "decode_seqs", "pairs", "seconds"]]
       prefill_tokens  decode_seqs  pairs  seconds
    0              40            0  800.0      2.0
    1               0            2    0.0      0.9

    Raises:
        TraceError: The file cannot be read as such; names row and column.
    """
    file = _inside(path, "engine_steps.csv")
    cells = csv_table(file, [*_CLOCK, *_STEP])
    table = pd.DataFrame(index=cells.index)
    least: float | pd.Series = 0.0
    for column in _CLOCK:  # no time is before the last
        table[column] = least = seconds(cells[column], least)
    for column in [*_STEP, *{"pairs"}.intersection(cells)]:
        table[column] = tokens(cells[column], 0)
    prompt, chunks = table["prefill_tokens"], table["prefill_seqs"]
    before = np.maximum(table["done"].shift(fill_value=0.0), table["scheduled"])
    table["seconds"] = table["done"] - before
    if "pairs" not in table:
        table["pairs"] = prompt * (table["prefill_kv"] + prompt / 2) / chunks.clip(1)
    refuse(cells["done"], table["seconds"] <= 0.0, "after that of the step before")
    bad = (chunks > prompt) | ((chunks == 0) & (prompt > 0))
    refuse(cells["prefill_seqs"], bad, "1 to prefill_tokens, or 0 with it")
    return table.reset_index(drop=True)


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
    cells = _bench_requests(Path(path))
    failed = cells["errors"].astype(bool) | (cells["output_lens"] == 0)
    if failed.all():
        raise TraceError(f"{Path(path).name}: no request succeeded: must have one")
    cells = cells[~failed]
    sent = seconds(cells["start_times"])
    first = sent + seconds(cells["ttfts"])
    gaps = cells["itls"]
    refuse(gaps, ~gaps.map(type).isin([list]), "a list of seconds")
    seconds(gaps[gaps.map(len) > 0].explode())
    last = first + gaps.map(lambda each: sum(map(float, each)))
    lengths = [tokens(cells[name]) for name in _BENCH[3:]]
    order = np.argsort(sent, kind="stable")
    times = [np.asarray(each - sent.min())[order] for each in (sent, first, last)]
    workload = Workload.from_arrays(times[0], *(each.iloc[order] for each in lengths))
    return ServedLog(workload, *times, failed=int(failed.sum()))


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

    said = {"max_num_seqs": None, "max_num_batched_tokens": None, **said}
    cells = pd.DataFrame([said], [""], dtype=object).rename_axis(file.name)

    def get(read: Callable[[pd.Series], pd.Series], usual: Any, *names: str) -> Any:
        there = [name for name in names if name in cells]
        return read(cells[there[0]]).item() if there else usual

    sequences = get(tokens, None, "max_num_seqs")
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
        "max_batched_tokens": get(tokens, None, "max_num_batched_tokens"),
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
    top = _section(meta)
    resolved = _section(top.get("resolved_config"))
    parts = [top.get(key) for key in ("engine_kwargs", "engine", "kv_cache")]
    parts += [resolved, *map(resolved.get, _CONFIGS), top]
    return {k: v for part in parts for k, v in _section(part).items() if v is not None}


def _recent(said: Mapping[str, Any]) -> bool:
    """Whether this vLLM, the newest if not said, schedules asynchronously unasked."""
    known = re.match(r"v?(\d+)\.(\d+)", str(said.get("vllm_version", said.get("vllm"))))
    return not known or tuple(map(int, known.groups())) >= _ASYNCHRONOUS


def _not_modelled(said: Mapping[str, Any]) -> list[str]:
    """The settings that change a run in a way that no configuration has."""
    return [
        f"{name}={said[name]!r:.40}"
        for names, usual in _MODELLED.items()
        for name in names.split()
        if said.get(name, usual[0]) not in usual
    ]


def _flag(cells: pd.Series) -> pd.Series:
    refuse(cells, ~cells.map(type).isin([bool]), "true or false")
    return cells


def _inside(path: str | Path, name: str) -> Path:
    """The file of this name in a folder, or the one of this path, packed or not."""
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    packed = (file.with_name(f"{file.name}{end}") for end in ("", ".xz", ".gz"))
    return next((there for there in packed if there.exists()), file)


def _section(part: Any) -> Mapping[str, Any]:
    """A section of a JSON object, empty if it is none."""
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
    if file.exists() and file.stat().st_size > _LARGEST:
        raise TraceError(f"{file.name}: over {_LARGEST // 2**20} MiB: save less")
    return _parsed("".join(text_lines(file, _LARGEST)), file.name)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{where}: not JSON: {what:.80}") from None


def _bench_requests(file: Path) -> pd.DataFrame:
    """The requests of a benchmark's result, a row each."""
    result = _section(_document(file))
    columns: dict[str, Any] = {name: result.get(name) for name in _BENCH}
    if errors := result.get("errors"):
        columns["errors"] = errors
    for name, column in columns.items():
        if not isinstance(column, list):
            must = "a list, saved by `vllm bench serve --save-result --save-detailed`"
            raise TraceError(f"{file.name}, {name}: missing: must be {must}")
    if len(sizes := {len(column) for column in columns.values()}) > 1:
        raise TraceError(f"{file.name}: columns of unlike length: {sizes}")
    table = pd.DataFrame(columns, dtype=object).rename_axis(f"{file.name}, request ")
    return table.reindex(columns=[*_BENCH, "errors"], fill_value="")
