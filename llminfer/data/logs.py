"""What real engines left behind: logs and benchmark results, read as data.

A plain CSV and the Azure traces are workloads: ``Workload.from_csv`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import TraceError, number
from llminfer.base.trace_csv import seconds, text_lines, tokens
from llminfer.record import RunRecord
from llminfer.workload import Workload

T = TypeVar("T")
_LARGEST = 64 * 2**20  # bytes of one JSON document
_TOKENS = ("input_toks", "output_toks")
_BENCH = ("start_times", "ttfts", "itls", "input_lens", "output_lens")


@dataclass(frozen=True, eq=False, repr=False)
class ServedLog:
    """Requests as a server saw them, on one clock that starts at the first arrival.

    Attributes:
        workload: What was asked, and when; in order of arrival, as all columns are.
        queued_time: When each entered the engine's queue, seconds, shape (n,).
        first_token_time: When its first token came out, seconds.
        last_token_time: When its last did.
        failed: Requests that got no answer; they are left out.
    """

    workload: Workload
    queued_time: FloatArray
    first_token_time: FloatArray
    last_token_time: FloatArray
    failed: int = 0

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
        return cls(workload, record.queue_entry_time, *ends)

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
    """The log of a vLLM engine, a JSON object a line.

    Arrivals are on the clock of day and the rest on another; the smallest
    ``queued_ts - arrival_time`` of the log lines them up.

    Args:
        path: A ``requests.jsonl``, or its folder. Its rows are in order of arrival
            and have ``request_id``, ``input_toks``, ``output_toks``,
            ``arrival_time``, ``queued_ts``, ``first_token_ts``, ``last_token_ts``.

    Raises:
        TraceError: The file cannot be read as such a log; names row and column.
    """
    file = _inside(path, "requests.jsonl")
    seen: dict[Any, int] = {}
    rows: list[list[float]] = []
    for row, entry in _objects(file):
        where = f"{file.name}, row {row}"
        if not isinstance(who := entry.get("request_id"), str | int):
            raise TraceError(f"{where}, request_id={who!r:.40}: must be a name")
        if (first := seen.setdefault(who, row)) != row:
            what = f"must be unlike that of row {first}"
            raise TraceError(f"{where}, request_id={who!r:.40}: {what}")
        lengths = [_cell(tokens, entry, column, where) for column in _TOKENS]
        times = [_cell(seconds, entry, "arrival_time", where)]
        if rows and times[0] < rows[-1][0]:
            must = "must not be before the last: the clock runs backwards"
            raise TraceError(f"{where}, arrival_time={times[0]!r}: {must}")
        least = rows[-1][1] if rows else 0.0
        for column in ("queued_ts", "first_token_ts", "last_token_ts"):
            least = _cell(seconds, entry, column, where, least)
            times.append(least)
        rows.append([*times, *lengths])
    if not rows:
        raise TraceError(f"{file.name}: no requests: must have at least one row")
    arrivals, *clock, prompts, outputs = np.array(rows).T
    arrivals = arrivals - arrivals[0]
    origin = (clock[0] - arrivals).min()
    workload = Workload.from_arrays(arrivals, prompts, outputs)
    return ServedLog(workload, *(column - origin for column in clock))


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

    What the file does not say is vLLM's own default: prefix caching is on.

    Args:
        path: A ``meta.json``, or its folder.

    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "meta.json"
    >>> limits = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    >>> _ = path.write_text(json.dumps({"engine_kwargs": limits}))
    >>> read_settings(path)["batch_size"]
    8

    Raises:
        TraceError: The file cannot be read, or has no limits of the batch.
    """
    file = _inside(path, "meta.json")
    meta = _document(file)
    engine, cache = (_part(meta, key) for key in ("engine_kwargs", "kv_cache"))
    resolved = _part(meta, "resolved_config")
    scheduler = _part(resolved, "scheduler_config")
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if name not in engine:
            raise TraceError(f"{file.name}, engine_kwargs.{name}: missing")
    return {
        "server": "continuous",
        "batch_size": engine["max_num_seqs"],
        "max_batched_tokens": engine["max_num_batched_tokens"],
        "kv_blocks": cache.get("num_gpu_blocks"),
        "block_size": cache.get("block_size", 16),
        "prefix_caching": cache.get("enable_prefix_caching", True),
        "chunked_prefill": scheduler.get("enable_chunked_prefill", True),
        "reserve_full_prompt": scheduler.get("scheduler_reserve_full_isl", True),
    }


def _inside(path: str | Path, name: str) -> Path:
    return Path(path) / name if Path(path).is_dir() else Path(path)


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
