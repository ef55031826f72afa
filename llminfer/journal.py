"""What a continuous server writes down as it goes, and the record made of it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llminfer.config import SimulationConfig
from llminfer.lengths import IntArray
from llminfer.record import RunRecord, StepLog
from llminfer.workload import Workload


def _ints() -> array[int]:
    return array("q")


def _floats() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Requests:
    """What the requests of a run ask, and when things happened to them, by number."""

    arrival: array[float]  # s
    prompt: array[int]  # tokens
    output: array[int]  # tokens
    start: array[float]  # first admission, s
    first: array[float]  # first token, s
    end: array[float]  # last token, s

    @classmethod
    def of(cls, workload: Workload) -> Requests:
        """Those of a workload, to which nothing has happened yet."""
        nothing = array("d", bytes(8 * len(workload)))
        return cls(
            array("d", workload.arrival_time.tobytes()),
            array("q", workload.prompt_length.tobytes()),
            array("q", workload.output_length.tobytes()),
            nothing,
            nothing[:],
            nothing[:],
        )


@dataclass(slots=True)
class Log:
    """What one server did: a row a stretch of steps, and a row a preemption."""

    start: array[float] = field(default_factory=_floats)
    end: array[float] = field(default_factory=_floats)
    steps: array[int] = field(default_factory=_ints)
    size: array[int] = field(default_factory=_ints)  # sequences in each step
    decoding: array[int] = field(default_factory=_ints)  # of these
    first_blocks: array[int] = field(default_factory=_ints)  # held in the first step
    last_blocks: array[int] = field(default_factory=_ints)  # and in the last
    victim: array[int] = field(default_factory=_ints)
    preempted: array[float] = field(default_factory=_floats)
    resumed: array[float] = field(default_factory=_floats)
    caught_up: array[float] = field(default_factory=_floats)  # its next token


def write_up(
    config: SimulationConfig,
    workload: Workload,
    requests: Requests,
    logs: Sequence[Log],
    *,
    replica: IntArray,
    limit: Mapping[str, Any],
) -> RunRecord:
    """The record of a finished run.

    Args:
        config: What was simulated.
        workload: What was served.
        requests: What happened to it.
        logs: One a server.
        replica: The server that took each request, shape (n,).
        limit: The path of the batch limit, as columns of the record.
    """
    row = _Columns(logs, "start")
    preemption = _Columns(logs, "preempted")
    steps = StepLog(
        replica=replica,
        batch_replica=row.server(),
        batch_steps=row("steps"),
        batch_decoding=row("decoding"),
        max_prefill=config.max_batched_tokens if config.chunked_prefill else math.inf,
        replicas=config.replicas,
        kv_blocks=config.kv_blocks,
        first_blocks=row("first_blocks"),
        last_blocks=row("last_blocks"),
        preempted_request=preemption("victim"),
        preempted_time=preemption("preempted"),
        resumed_time=preemption("resumed"),
        caught_up_time=preemption("caught_up"),
    )
    return RunRecord(
        arrival_time=workload.arrival_time,
        prompt_length=workload.prompt_length,
        output_length=workload.output_length,
        request_class=workload.request_class,
        queue_entry_time=workload.arrival_time,
        processing_start_time=np.asarray(requests.start),
        first_token_time=np.asarray(requests.first),
        processing_end_time=np.asarray(requests.end),
        batch_start=row("start"),
        batch_end=row("end"),
        batch_size=row("size"),
        steps=steps,
        **limit,
    )


class _Columns:
    """The logs of several servers as one table in order of time.

    Args:
        logs: One a server.
        time: The column to order by.
    """

    def __init__(self, logs: Sequence[Log], time: str) -> None:
        self._logs = logs
        self._lengths = [len(getattr(log, time)) for log in logs]
        self._order: IntArray | None = None
        if len(logs) > 1:
            self._order = np.argsort(self(time), kind="stable")

    def __call__(self, name: str) -> Any:
        """The column ``name`` of all logs."""
        return self._ordered([np.asarray(getattr(log, name)) for log in self._logs])

    def server(self) -> Any:
        """The server of each row."""
        columns = [np.full(n, i, np.int32) for i, n in enumerate(self._lengths)]
        return self._ordered(columns)

    def _ordered(self, columns: list[Any]) -> Any:
        if len(columns) == 1:
            return columns[0]
        joined = np.concatenate(columns)
        ordered = self._order is not None and len(joined) == len(self._order)
        return joined[self._order] if ordered else joined
