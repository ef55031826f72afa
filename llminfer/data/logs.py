"""What a server saw of its requests, the engine's own steps, and its settings."""

import difflib
import re
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import LONGEST, TraceError, number
from llminfer.base.trace_csv import csv_table, refuse, seconds, tokens
from llminfer.data.rows import FORMATS, document
from llminfer.record import RunRecord
from llminfer.workload import Workload

_ORDER = ("arrival_time", "queued_time", "first_token_time", "last_token_time")
_CLOCK_ERROR = 1e-6  # s; the clock of day has so many digits in a float
_CLOCK = ("begin", "scheduled", "done")
_PARTS = ("prefill_tokens", "prefill_seqs", "prefill_kv", "decode_seqs", "decode_kv")
_STEP = (*_PARTS, "running", "waiting", "preempted")
_ASYNCHRONOUS = (0, 14)  # the version of vLLM since which it is the default
_LIMITS = ("max_num_seqs", "max_num_batched_tokens")  # must be said
_CONFIGS = ("cache_config", "scheduler_config", "parallel_config")
_OWN = ("max_concurrency", "step_law")  # of a configuration, that no engine has
_NEARLY = 0.82  # alike, from 0 to 1


@dataclass(frozen=True, eq=False, repr=False)
class ServedLog:
    """Requests as a server saw them, on one clock that starts at the first arrival.

    Attributes:
        workload: What was asked, and when; in order of arrival, as all columns are.
        queued_time: When each entered the engine's queue, seconds, shape (n,).
        first_token_time: When its first token came out, seconds; NaN where not known.
        last_token_time: When its last did; NaN if it was cut off: by a timeout, say.
        scheduled_time: When each was first in a step; None where that is not known.
        cached_tokens: Prompt tokens found in the prefix cache, or None.
        prefix: The number of the prefix it shares with others, -1 for none, or None.
        refused: Requests left out, as they put no load on the engine or nothing is
            known of them. Those that were cut off worked it, and stay.
        origin: What the engine's clock, which its steps are on, showed at time 0.
        settings: Of the engine, as fields of a configuration; empty if not known.
        source: The format it was read from.

    Raises:
        TraceError: Columns of unlike length, times that are out of order, or not in
            seconds, or no clock times, NaN where a request was completed.
    """

    workload: Workload
    queued_time: FloatArray
    first_token_time: FloatArray
    last_token_time: FloatArray
    scheduled_time: FloatArray | None = None
    cached_tokens: IntArray | None = None
    prefix: IntArray | None = None
    _: KW_ONLY
    refused: int = 0
    origin: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = "arrays"

    def __post_init__(self) -> None:
        for each in fields(self)[1:7]:
            if (given := getattr(self, each.name)) is not None:
                object.__setattr__(self, each.name, column := np.asarray(given))
                if column.shape != (len(self),):
                    must = f"must be ({len(self)},), a value a request"
                    raise TraceError(f"{each.name}: of shape {column.shape}: {must}")
        before, there = self.workload.arrival_time, np.ones(len(self), dtype=bool)
        for earlier, name in pairwise(_ORDER):
            times = np.asarray(getattr(self, name), dtype=np.float64)
            bad = ~(times >= before - _CLOCK_ERROR) | np.isinf(times)
            bad &= there | ~np.isnan(times + before)
            if bad.any():
                row = int(np.argmax(bad))
                must = f"must be seconds, no earlier than {earlier}, {before[row]:.6g}"
                how = "add the arrival to a duration; NaN is for who was cut off"
                raise TraceError(f"{name}[{row}]={times[row]:.6g}: {must}: {how}")
            before, there = times, self.completed
        # seconds that were taken for ms are shorter than any real engine's
        if (pace := pd.Series(self.tpot).median()) > LONGEST["tpot"] or 0 < pace < 2e-5:
            must = f"{pace:.3g} s a token: must be seconds, not ms: unit='...' says it"
            raise TraceError(f"last_token_time: requests take, in the median, {must}")

    @classmethod
    def from_record(cls, record: RunRecord) -> Self:
        """A simulated run as the log it would have left.

        >>> from llminfer import SimulationConfig, simulate
        >>> config = SimulationConfig(arrival_rate=2.0, num_requests=2000)
        >>> log = ServedLog.from_record(simulate(config.replace(random_seed=1)))
        >>> len(log), int(log.first_completed(0.4).sum())
        (2000, 800)
        """
        names = [f.name for f in fields(Workload) if hasattr(record, f.name)]
        columns = {name: getattr(record, name) for name in names}
        workload = Workload(**columns | {"arrival_time": record.sent_time})
        queued, begun = record.queue_entry_time, record.processing_start_time
        ends = record.first_token_time, record.processing_end_time
        return cls(workload, queued, *ends, begun, source="a simulation")

    def __len__(self) -> int:
        return len(self.workload)

    def __repr__(self) -> str:
        lasted = self.workload.arrival_time + np.nan_to_num(self.latency)
        cut = len(self) - int(self.completed.sum())
        more = f", {cut} cut off" * bool(cut) + f", from {self.source}"
        more = f", {self.refused} refused" * bool(self.refused) + more
        return f"ServedLog({len(self):,} requests in {lasted.max():,.1f} s{more})"

    @property
    def completed(self) -> npt.NDArray[np.bool_]:
        """Which requests got their whole answer, shape (n,)."""
        return ~np.isnan(self.last_token_time)

    @property
    def ttft(self) -> FloatArray:
        """Seconds from arrival to the first token; NaN if it was cut off."""
        since = self.first_token_time - self.workload.arrival_time
        return np.where(self.completed, since, np.nan)

    @property
    def tpot(self) -> FloatArray:
        """Seconds an output token after the first; NaN for one token, or if cut off."""
        more = self.workload.output_length - 1.0
        decode = self.last_token_time - self.first_token_time
        return decode / np.where(more > 0.0, more, np.nan)

    @property
    def latency(self) -> FloatArray:
        """Seconds from arrival to the last token; NaN if it was cut off."""
        return self.last_token_time - self.workload.arrival_time

    def first_completed(self, share: float) -> npt.NDArray[np.bool_]:
        """Which of those completed are among the first ``share``, shape (n,).

        Raises:
            ConfigError: ``share`` is not above 0 and at most 1.
        """
        share = number("share", share, above=0.0, most=1.0)
        most = int(share * self.completed.sum() + 1e-9)  # 0.29 of 100 are 29
        order = np.argsort(self.last_token_time, kind="stable")
        return np.argsort(order) < most


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
    file = inside(path, "engine_steps.csv")
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


def read_settings(path: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the engine that left a vLLM log, as fields of a configuration.

    What is not said is vLLM's own default: prefix caching and chunked
    prefill are on, and asynchronous scheduling is since version 0.14. Engines in data
    parallel are replicas, whose router sends to the least loaded. Of the KV blocks that
    vLLM counts (``num_gpu_blocks``) it keeps one for itself: ``kv_blocks`` is one less.

    Args:
        path: A ``meta.json``, or its folder. A setting may stand in ``engine_kwargs``,
            ``engine``, ``kv_cache``, ``resolved_config``, or at the top, which counts
            most. Or the settings themselves, by vLLM's flags or the fields' names, and
            ``max_concurrency`` and ``step_law`` with them.

    >>> import json
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "meta.json"
    >>> limits = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    >>> meta = {"vllm_version": "0.13.0", "engine_kwargs": limits}
    >>> _ = path.write_text(json.dumps(meta))
    >>> settings = read_settings(path)
    >>> settings["batch_size"], settings["async_scheduling"]
    (8, False)
    >>> flags = {"--max-num-seqs": 8, "--max-num-batched-tokens": 512}
    >>> read_settings(flags)["max_batched_tokens"]
    512

    Raises:
        TraceError: The file cannot be read, has no limits of the batch, or a setting
            that cannot be.

    Warns:
        UserWarning: Settings that change a run and are not modelled; names each. Or
            names that are nearly those of settings.
    """
    file = Path("settings") if isinstance(path, Mapping) else inside(path, "meta.json")
    said = _said(path if isinstance(path, Mapping) else document(file))
    usual = FORMATS["usual"] | {"async_scheduling": _recent(said)}
    said = dict.fromkeys(_LIMITS) | usual | said
    cells = pd.DataFrame([said], [""], dtype=object).rename_axis(file.name)
    settings: dict[str, Any] = {"server": "continuous"}
    for ours, name in FORMATS["settings"].items():
        settings[ours] = said.get(name)
        if isinstance(usual.get(name), bool):
            refuse(cells[name], cells[name].map(type).ne(bool), "true or false")
        elif name in said:
            settings[ours] = tokens(cells[name], int(ours != "graph_tokens")).item()
    if settings["kv_blocks"] is not None and "kv_blocks" not in said:
        settings["kv_blocks"] -= 1  # one is the engine's own
    if settings["graph_tokens"] is None:
        settings["graph_tokens"] = min(2 * settings["batch_size"], 512)
    if settings.pop("enforce_eager"):
        settings["graph_tokens"] = 0
    if settings["replicas"] == 1:
        said.pop("enable_expert_parallel", None)  # with more they would keep step
    fine = FORMATS["modelled"]
    odd = [name for name, ok in fine.items() if said.get(name, ok[0]) not in ok]
    if odd:
        what = ", ".join(f"{name}={said[name]!r:.40}" for name in odd)
        what += ": changes the run and is not modelled"
        warnings.warn(f"{file.name}: {what}", stacklevel=2)
    router = "round_robin" if settings["replicas"] == 1 else "least_loaded"
    own = _own(path) if isinstance(path, Mapping) else {}
    return {**settings, "router": said.get("router", router), **own}


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings by hand those that no engine has.

    Warns of names that are nearly those of settings; an engine has many more.
    """
    known = {*FORMATS["usual"], *FORMATS["aliases"], *FORMATS["modelled"], "router"}
    known |= {*_OWN, *FORMATS["settings"], *FORMATS["settings"].values()}
    for name in given:
        flag = name.lstrip("-").replace("-", "_").removeprefix("no_")
        near = difflib.get_close_matches(flag, known, 1, _NEARLY)
        if near and flag not in known:
            said = f"settings: {name}: unknown, and not used (did you mean {near[0]}?)"
            warnings.warn(said, stacklevel=3)
    return {name: given[name] for name in _OWN if name in given}


def _said(meta: Any) -> dict[str, Any]:
    """The settings that are in one place or another, by vLLM's names.

    They may be flags of its command line, or go by the names of our own fields.
    """
    top = _section(meta)
    resolved = _section(top.get("resolved_config"))
    parts = [top.get(key) for key in ("engine_kwargs", "engine", "kv_cache")]
    parts += [resolved, *map(resolved.get, _CONFIGS), top]
    said = {k: v for part in parts for k, v in _section(part).items() if v is not None}
    flags = {k.lstrip("-").replace("-", "_"): v for k, v in said.items()}
    flags |= {k[3:]: False for k in flags if k.startswith("no_")}
    vllm = FORMATS["aliases"] | FORMATS["settings"]
    return flags | {vllm.get(name, name): value for name, value in flags.items()}


def _recent(said: Mapping[str, Any]) -> bool:
    """Whether this vLLM, the newest if not said, schedules asynchronously unasked."""
    known = re.match(r"v?(\d+)\.(\d+)", str(said.get("vllm_version", said.get("vllm"))))
    return not known or tuple(map(int, known.groups())) >= _ASYNCHRONOUS


def inside(path: str | Path, name: str) -> Path:
    """The file of this name in a folder, or the one of this path, packed or not."""
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    packed = (file.with_name(f"{file.name}{end}") for end in ("", ".xz", ".gz"))
    return next((there for there in packed if there.exists()), file)


def _section(part: Any) -> Mapping[str, Any]:
    """A section of a JSON object, empty if it is none."""
    return part if isinstance(part, Mapping) else {}
