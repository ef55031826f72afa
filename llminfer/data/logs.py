"""What real engines left behind: logs and benchmark results, read as data.

A plain CSV and the Azure traces are workloads: ``Workload.from_csv`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import MOST_TOKENS, FloatArray
from llminfer.base.errors import TraceError, number
from llminfer.base.trace_csv import text_lines
from llminfer.record import RunRecord
from llminfer.workload import Workload

_LATEST = 1e15  # s; the clock of day is at 1.8e9
_LARGEST = 64 * 2**20  # bytes of one JSON document
_TOKENS = ("input_toks", "output_toks")
_CLOCK = ("queued_ts", "first_token_ts", "last_token_ts")
_BENCH = ("start_times", "input_lens", "output_lens", "ttfts", "itls")


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
        """A simulated run as the log it would have left."""
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

    def to_frame(self) -> pd.DataFrame:
        """One row a request: the workload, and seconds to each token."""
        times = {"ttft": self.ttft, "tpot": self.tpot, "latency": self.latency}
        return self.workload.to_frame().assign(**times)


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
    tokens: list[list[int]] = []
    times: list[list[float]] = []
    for row, entry in _objects(file):
        where = f"{file.name}, row {row}"
        if not isinstance(who := entry.get("request_id"), str | int):
            raise TraceError(f"{where}, request_id={who!r:.40}: must be a name")
        if (first := seen.setdefault(who, row)) != row:
            what = f"must be unlike that of row {first}"
            raise TraceError(f"{where}, request_id={who!r:.40}: {what}")
        tokens.append([_tokens(entry, column, where) for column in _TOKENS])
        arrival = _seconds(entry, "arrival_time", where)
        queued = _seconds(entry, "queued_ts", where, times[-1][1] if times else 0.0)
        if times and arrival < times[-1][0]:
            must = "must not be before the last: the clock runs backwards"
            raise TraceError(f"{where}, arrival_time={arrival!r}: {must}")
        first_token = _seconds(entry, "first_token_ts", where, queued)
        last_token = _seconds(entry, "last_token_ts", where, first_token)
        times.append([arrival, queued, first_token, last_token])
    if not times:
        raise TraceError(f"{file.name}: no requests: must have at least one row")
    arrivals, *clock = np.array(times).T
    arrivals = arrivals - arrivals[0]
    origin = (clock[0] - arrivals).min()
    return ServedLog(
        Workload.from_arrays(arrivals, *np.array(tokens).T),
        *(column - origin for column in clock),
    )


def read_bench(path: str | Path) -> ServedLog:
    """What ``vllm bench serve --save-result --save-detailed`` saved.

    Its times are the client's: a request arrives when it is sent. Requests that
    failed are left out and counted.

    Args:
        path: The JSON file.

    Raises:
        TraceError: The file cannot be read as such a result; names row and column.
    """
    file = Path(path)
    result = _document(file)
    if not isinstance(result, dict):
        raise TraceError(f"{file.name}: must be a JSON object, as vllm bench saves it")
    columns = {name: _bench_column(result, name, file.name) for name in _BENCH}
    errors = result.get("errors") or [""] * len(columns["ttfts"])
    sizes = {name: len(column) for name, column in columns.items()}
    if not isinstance(errors, list) or {len(errors), *sizes.values()} != {len(errors)}:
        raise TraceError(f"{file.name}: columns of unlike length: {sizes}")
    tokens: list[list[int]] = []
    times: list[list[float]] = []
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        entry = dict(zip(_BENCH, values, strict=True))
        if errors[row] or entry["output_lens"] == 0:
            continue
        where = f"{file.name}, request {row}"
        lens = ("input_lens", "output_lens")
        tokens.append([_tokens(entry, column, where) for column in lens])
        sent = _seconds(entry, "start_times", where)
        first = sent + _seconds(entry, "ttfts", where)
        times.append([sent, first, first + _gaps(entry["itls"], where)])
    if not times:
        raise TraceError(f"{file.name}: no request succeeded: must have at least one")
    order = np.argsort(np.array(times)[:, 0], kind="stable")
    arrival, first_token, last_token = np.array(times)[order].T
    start = arrival[0]
    return ServedLog(
        Workload.from_arrays(arrival - start, *np.array(tokens)[order].T),
        arrival - start,
        first_token - start,
        last_token - start,
        failed=len(errors) - len(times),
    )


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of the engine that left a vLLM log, as fields of a configuration.

    What the file does not say is vLLM's own default: prefix caching is on.

    Args:
        path: A ``meta.json``, or its folder.

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
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise TraceError(f"{file.name}: over {_LARGEST // 2**20} MiB: save less")
    try:
        return _parsed(content.decode("utf-8-sig"), file.name)
    except UnicodeDecodeError:
        raise TraceError(f"{file.name}: binary: must be UTF-8 text") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{where}: not JSON: {what:.80}") from None


def _tokens(entry: Mapping[str, Any], column: str, where: str) -> int:
    value = entry.get(column)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and 1 <= value <= MOST_TOKENS):  # type: ignore[operator]
        must = "must be a whole number of tokens, at least 1"
        raise TraceError(f"{where}, {column}={value!r:.40}: {must}")
    return int(value)  # type: ignore[arg-type]


def _seconds(
    entry: Mapping[str, Any], column: str, where: str, least: float = 0.0
) -> float:
    value = entry.get(column)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and least <= value <= _LATEST):  # type: ignore[operator]
        must = f"must be seconds, a finite number of at least {least:.16g}"
        raise TraceError(f"{where}, {column}={value!r:.40}: {must}")
    return float(value)  # type: ignore[arg-type]


def _bench_column(result: Mapping[str, Any], name: str, file: str) -> Sequence[Any]:
    column = result.get(name)
    if not isinstance(column, list):
        hint = "saved by `vllm bench serve --save-result --save-detailed`"
        raise TraceError(f"{file}, {name}: missing: must be a list, as {hint}")
    return column


def _gaps(gaps: Any, where: str) -> float:
    """Seconds from the first token to the last."""
    if not isinstance(gaps, list):
        raise TraceError(f"{where}, itls={gaps!r:.40}: must be a list of seconds")
    return sum(_seconds({"itls": gap}, "itls", where) for gap in gaps)
