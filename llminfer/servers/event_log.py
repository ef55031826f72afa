"""What a continuous server writes down as it goes, and the record made of it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np

from llminfer.base.arrays import IntArray
from llminfer.config import SimulationConfig
from llminfer.record import RunRecord, StepLog
from llminfer.servers.prefixes import Paths
from llminfer.workload import Workload

_STRETCH = [
    ("start", "f8"),
    ("end", "f8"),
    ("steps", "i8"),
    ("size", "i4"),  # sequences in each step
    ("decoding", "i4"),  # of these
    ("prefill", "i8"),  # tokens prefilled in each step
]
_PREEMPTION = ("victim", "preempted", "resumed", "caught_up")
_BLOCKS = ("first_blocks", "last_blocks")  # held in these steps


@dataclass(slots=True)
class RequestTimes:
    """What the requests of a run ask, and when things happened to them, by number."""

    arrival: memoryview[float]  # s; the workload's own, as tokens are
    prompt: memoryview[int]  # tokens
    output: memoryview[int]  # tokens
    start: array[float]  # first admission, s
    first: array[float]  # first token, s
    end: array[float]  # last token, s
    cached: array[int]  # prompt tokens found as they were first admitted
    paths: Paths | None = None  # the blocks they share; None shares nothing

    @classmethod
    def of(
        cls, workload: Workload, config: SimulationConfig, never: float = 0.0
    ) -> RequestTimes:
        """Those of a workload, to which nothing has happened yet: ``never`` says so."""
        segments = workload.segments if config.prefix_caching else None
        nothing = array("d", [never]) * len(workload)
        return cls(
            memoryview(workload.arrival_time),  # type: ignore[arg-type]
            memoryview(workload.prompt_length),  # type: ignore[arg-type]
            memoryview(workload.output_length),  # type: ignore[arg-type]
            nothing,
            nothing[:],
            nothing[:],
            array("q", bytes(8 * len(workload))),
            None if segments is None else Paths.of(segments, config.block_size),
        )


class Log:
    """What one server did: a row a stretch of steps, and a row a preemption.

    Stretches are packed as they come, in a tenth of the time that seven lists take.

    Args:
        blocks: How many there are to be counted; None counts none.
    """

    __slots__ = ("_kind", "caught_up", "pack", "preempted", "resumed", "rows", "victim")

    def __init__(self, blocks: int | None) -> None:
        counted = () if blocks is None else _BLOCKS
        code = "i" if (blocks or 0) < 2**31 else "q"
        self._kind = np.dtype(_STRETCH + [(name, code) for name in counted])
        self.pack = Struct("=ddqiiq" + code * len(counted)).pack
        self.rows = bytearray()
        self.victim = array("q")
        self.preempted, self.resumed = array("d"), array("d")  # s
        self.caught_up = array("d")  # when its next token appeared, s

    def stretches(self) -> Any:
        """The stretches by column."""
        return np.frombuffer(self.rows, dtype=self._kind)

    def preemptions(self) -> Any:
        """The preemptions by column."""
        kind = [(name, "i8" if name == "victim" else "f8") for name in _PREEMPTION]
        table = np.empty(len(self.victim), dtype=kind)
        for name in _PREEMPTION:
            table[name] = getattr(self, name)
        return table


def write_up(
    config: SimulationConfig,
    workload: Workload,
    requests: RequestTimes,
    logs: Sequence[Log],
    *,
    replica: IntArray,
    more: Mapping[str, Any],
) -> RunRecord:
    """The record of a finished run.

    Args:
        config: What was simulated.
        workload: What was served.
        requests: What happened to it.
        logs: One a server.
        replica: The server that took each request, shape (n,).
        more: Columns of the record: the path of the batch limit, and what the clients
            know better.
    """
    rows, server = _in_order([log.stretches() for log in logs], "start")
    return RunRecord.served(
        workload,
        [np.asarray(x) for x in (requests.start, requests.first, requests.end)],
        {
            "batch_start": rows["start"],
            "batch_end": rows["end"],
            "batch_size": rows["size"],
            "steps": _step_log(
                config, requests, logs, rows, server=server, replica=replica
            ),
            **more,
        },
    )


def _step_log(
    config: SimulationConfig,
    requests: RequestTimes,
    logs: Sequence[Log],
    rows: Any,
    *,
    server: Any,
    replica: IntArray,
) -> StepLog:
    """What a record has beside requests and batches, from the stretches in order."""
    preempted, _ = _in_order([log.preemptions() for log in logs], "preempted")
    taken_by: Any = replica.astype(np.int32)
    nothing = dict.fromkeys(_BLOCKS, np.empty(0, dtype=np.int64))
    held = nothing if config.kv_blocks is None else rows
    return StepLog(
        replica=taken_by,
        batch_replica=server,
        batch_steps=rows["steps"],
        batch_decoding=rows["decoding"],
        batch_prefill=rows["prefill"],
        max_prefill=config.max_batched_tokens if config.chunked_prefill else math.inf,
        replicas=config.replicas,
        kv_blocks=config.kv_blocks,
        first_blocks=held["first_blocks"],
        last_blocks=held["last_blocks"],
        preempted_request=preempted["victim"],
        preempted_time=preempted["preempted"],
        resumed_time=preempted["resumed"],
        caught_up_time=preempted["caught_up"],
        cached_tokens=np.asarray(requests.cached) if config.prefix_caching else None,
    )


def _in_order(tables: Sequence[Any], time: str) -> tuple[Any, Any]:
    """The tables of all servers as one in order of ``time``, and each row's server."""
    server = np.repeat(np.arange(len(tables), dtype=np.int16), [len(t) for t in tables])
    if len(tables) == 1:
        return tables[0], server
    joined = np.concatenate(tables)
    order = np.argsort(joined[time], kind="stable")
    return joined[order], server[order]
