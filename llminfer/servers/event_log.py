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

# What a record has of each stretch, and of each preemption.
_STRETCH = [
    ("batch_start", "f8"),
    ("batch_end", "f8"),
    ("batch_steps", "i8"),
    ("batch_size", "i4"),  # sequences in each step
    ("batch_decoding", "i4"),  # of these
    ("batch_prefill", "i8"),  # tokens prefilled in each step
]
_BLOCKS = ("first_blocks", "last_blocks")  # held in these steps
# When, when it was admitted again, and when its next token appeared, seconds.
_PREEMPTION = ("preempted_request", "preempted_time", "resumed_time", "caught_up_time")


def columns_of(workload: Workload) -> list[Any]:
    """The columns of a workload, to be read one by one, also while they are filled."""
    return [memoryview(column) for column in list(vars(workload).values())[:4]]


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
        paths = None if segments is None else Paths(config.block_size, segments)
        n, columns = len(workload), columns_of(workload)[:3]
        columns += [array("d", [never]) * n for _ in range(3)]
        columns += [array("q", bytes(8 * n)), paths]
        return cls(*columns)


class Log:
    """What one server did: a row a stretch of steps, and a row a preemption.

    Stretches are packed as they come, in a tenth of the time that seven lists take.

    Args:
        blocks: How many there are to be counted; None counts none.
    """

    def __init__(self, blocks: int | None) -> None:
        counted = () if blocks is None else _BLOCKS
        code = "i" if (blocks or 0) < 2**31 else "q"
        self._kind = np.dtype(_STRETCH + [(name, code) for name in counted])
        self.pack = Struct("=ddqiiq" + code * len(counted)).pack
        self.rows = bytearray()
        self.preemptions = array("d")  # four values a row

    def preempt(self, i: int, now: float, back: float = math.nan) -> int:
        """Note that a request is preempted; where the two times are when it is back."""
        self.preemptions.extend((i, now, back, back))
        return len(self.preemptions) - 2

    def tables(self) -> tuple[Any, Any]:
        """The stretches, and the preemptions, each by column."""
        kind = [(name, "f8") for name in _PREEMPTION]
        rows = np.frombuffer(self.rows, self._kind)
        return rows, np.frombuffer(self.preemptions, kind)


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
    stretches, preemptions = zip(*(log.tables() for log in logs), strict=True)
    rows, server = _in_order(stretches, "batch_start")
    columns: dict[str, Any] = dict.fromkeys(_BLOCKS, np.empty(0, np.int64))
    columns |= {name: rows[name] for name in rows.dtype.names}
    outer = ("batch_start", "batch_end", "batch_size")
    own = {name: columns.pop(name) for name in outer}
    away, _ = _in_order(preemptions, "preempted_time")
    columns |= {name: away[name] for name in _PREEMPTION}
    columns["preempted_request"] = away["preempted_request"].astype(np.int64)
    steps = StepLog(
        replica=replica.astype(np.int32),
        batch_replica=server,
        max_prefill=config.max_batched_tokens if config.chunked_prefill else math.inf,
        replicas=config.replicas,
        kv_blocks=config.kv_blocks,
        cached_tokens=np.asarray(requests.cached) if config.prefix_caching else None,
        **columns,
    )
    times = [np.asarray(x) for x in (requests.start, requests.first, requests.end)]
    return RunRecord.served(workload, times, {**own, "steps": steps, **more})


def _in_order(tables: Sequence[Any], time: str) -> tuple[Any, Any]:
    """The tables of all servers as one in order of ``time``, and each row's server."""
    if len(tables) == 1:
        return tables[0], np.broadcast_to(np.int16(0), len(tables[0]))
    server = np.repeat(np.arange(len(tables), dtype=np.int16), [len(t) for t in tables])
    joined = np.concatenate(tables)
    order = np.argsort(joined[time], kind="stable")
    return joined[order], server[order]
