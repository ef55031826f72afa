"""The record of a run: a row for each request and a row for each batch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.request import Request
from llminfer.workload import Workload

_COLUMNS = (
    "arrival_time",
    "prompt_length",
    "output_length",
    "queue_entry_time",
    "processing_start_time",
    "first_token_time",
    "processing_end_time",
    "request_class",
)
_TIMES = tuple(name for name in _COLUMNS if name.endswith("_time"))
COMPLETED, REFUSED, GIVEN_UP = range(3)  # how a request ends


@dataclass(frozen=True, eq=False)
class StepLog:
    """What a continuous run leaves behind beside requests and batches.

    There a row of batches is a stretch of steps with the same sequences.

    Attributes:
        replica: The server that took each request, shape (n,).
        batch_replica: The server of each stretch, shape (batches,).
        batch_steps: Steps in each, same shape.
        batch_decoding: Sequences that decode in each of these steps, same shape.
        batch_prefill: Prompt tokens prefilled in each of these steps, same shape.
        max_prefill: Prompt tokens of a request that a step prefills at most.
        replicas: How many servers there were.
        kv_blocks: Blocks of KV memory each has; None without limit.
        first_blocks: Blocks held in each stretch's first step; empty without limit.
        last_blocks: Blocks held in its last.
        preempted_request: Request preempted, shape (preemptions,), in order of time.
        preempted_time: When, seconds.
        resumed_time: When it was admitted again.
        caught_up_time: When its next token appeared; NaN if it was preempted before.
        cached_tokens: Prompt tokens that each request found in the prefix cache when it
            was first admitted, shape (n,); None without a cache.
    """

    replica: IntArray
    batch_replica: IntArray
    batch_steps: IntArray
    batch_decoding: IntArray
    batch_prefill: IntArray
    max_prefill: float
    replicas: int
    kv_blocks: int | None
    first_blocks: IntArray
    last_blocks: IntArray
    preempted_request: IntArray
    preempted_time: FloatArray
    resumed_time: FloatArray
    caught_up_time: FloatArray
    cached_tokens: IntArray | None = None


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run as columns; times in seconds.

    Attributes:
        arrival_time: When each came to the client, shape (n,), in order of arrival; so
            are all columns of requests.
        prompt_length: Tokens.
        output_length: Tokens made, or that would have been.
        request_class: Class number.
        queue_entry_time: When each was sent, and entered the queue.
        processing_start_time: When its batch began; NaN if it never was in one.
        first_token_time: When its first token appeared.
        processing_end_time: When it was complete, refused or given up.
        batch_start: Shape (batches,), in order of time.
        batch_end: Shape (batches,).
        batch_size: Requests in each, shape (batches,).
        limit_time: When the batch limit was set or changed, ascending.
        batch_limit: The limit from then on, same shape.
        steps: What a continuous server adds; None from a static one.
        outcome: 0 of a request that was completed, 1 refused, 2 given up; None if all
            were completed by the nature of the run.
        wasted_tokens: Prompt and output tokens computed for those given up.
        only_class: The number of the class that ``of_class`` asks for.

    >>> from llminfer import SimulationConfig, Workload, simulate
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> record.latency.round(3).tolist()  # the first waits for the second
    [0.71, 0.21, 0.265]
    >>> record.wait.round(3).tolist()
    [0.5, 0.0, 0.0]
    >>> record.ttft.round(3).tolist()
    [0.7, 0.2, 0.25]
    >>> record.batch_size.tolist()
    [2, 1]
    >>> record.max_queue_length
    2
    """

    arrival_time: FloatArray
    prompt_length: IntArray
    output_length: IntArray
    request_class: IntArray
    queue_entry_time: FloatArray
    processing_start_time: FloatArray
    first_token_time: FloatArray
    processing_end_time: FloatArray
    batch_start: FloatArray
    batch_end: FloatArray
    batch_size: IntArray
    limit_time: FloatArray = field(default_factory=lambda: np.empty(0))
    batch_limit: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    steps: StepLog | None = None
    outcome: IntArray | None = None
    wasted_tokens: IntArray | None = None
    only_class: int | None = None

    def __post_init__(self) -> None:
        """From now on nobody can write into a column, nor into the workload's own."""
        logged = () if self.steps is None else vars(self.steps).values()
        for column in (*vars(self).values(), *logged):
            if isinstance(column, np.ndarray):
                column.setflags(write=False)

    @classmethod
    def served(
        cls, workload: Workload, times: Iterable[FloatArray], more: Mapping[str, Any]
    ) -> Self:
        """The record of a served workload; each request is queued as it arrives.

        Args:
            workload: What was served.
            times: When each request's batch began, when its first token appeared, and
                when it was complete, seconds.
            more: The columns of batches, the path of the limit, the steps, and columns
                of requests that clients know better.
        """
        known = {"queue_entry_time": workload.arrival_time, **workload.columns}
        return cls(**{**known, **dict(zip(_TIMES[-3:], times, strict=True)), **more})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Self:
        """The record of a table of requests; a batch is a shared start and end.

        The table of a continuous run says nothing about its batches: there are none.

        Args:
            frame: Columns as ``to_frame`` gives them; requests that have not
                finished (NaN), were refused or given up are left out, and all are of
                class 0 if none is given.
        """
        if "outcome" in frame:
            frame = frame[frame["outcome"] == COMPLETED]
        done = frame.dropna(subset=list(_TIMES)).sort_values(
            ["arrival_time", "request_id"], kind="stable"
        )
        starts, ends = done["processing_start_time"], done["processing_end_time"]
        classes = done.get("request_class", pd.Series(0, done.index))
        batches = done.groupby([starts, ends], sort=True).size()
        if "replica" in done:
            batches = batches[:0]
        times: dict[str, Any] = {t: done[t].to_numpy(np.float64) for t in _TIMES}
        return cls(
            prompt_length=done["prompt_length"].to_numpy(dtype=np.int64),
            output_length=done["output_length"].to_numpy(dtype=np.int64),
            request_class=classes.to_numpy().astype(np.int64),
            batch_start=batches.index.get_level_values(0).to_numpy(dtype=np.float64),
            batch_end=batches.index.get_level_values(1).to_numpy(dtype=np.float64),
            batch_size=batches.to_numpy().astype(np.int64),
            **times,
        )

    @classmethod
    def from_requests(cls, requests: Iterable[Request]) -> Self:
        """The record of served ``Request`` objects."""
        names = [f.name for f in fields(Request)]
        frame = pd.DataFrame([asdict(r) for r in requests], columns=names)
        made, asked = frame["actual_output_length"], frame["expected_output_length"]
        frame["output_length"] = made.fillna(asked)
        return cls.from_frame(frame.rename(columns={"id": "request_id"}))

    def to_frame(self) -> pd.DataFrame:
        """One row a request, in order of arrival, warm-up too."""
        frame = pd.DataFrame(
            {
                "request_id": np.arange(len(self.arrival_time)),
                **{name: getattr(self, name) for name in _COLUMNS},
            }
        )
        if self.steps is not None:
            frame["preemptions"] = self.preemptions
            frame["replica"] = self.steps.replica
            if self.steps.cached_tokens is not None:
                frame["cached_tokens"] = self.steps.cached_tokens
        if self.outcome is not None:
            frame["outcome"] = self.outcome
        return frame

    def of_class(self, number: int) -> Self:
        """This run, whose metrics and goodput are those of one class of requests.

        Its columns still hold all requests, and rates are over the time of all.

        >>> from llminfer import SimulationConfig, Workload, goodput, simulate
        >>> work = Workload.from_arrays([0, 1], [9, 9], [20, 20], request_class=[0, 1])
        >>> run = simulate(SimulationConfig(batch_size=1, warmup_requests=0), work)
        >>> every = [run, run.of_class(0), run.of_class(1)]
        >>> [round(goodput(its, ttft_limit=1.0, tpot_limit=0.1), 2) for its in every]
        [1.87, 0.94, 0.94]
        """
        return replace(self, only_class=number)

    def asked(self, skip: int = 0) -> Any:
        """Which requests came after the first ``skip``, of all or of one class."""
        if self.only_class is None:
            return slice(skip, None)
        return skip + np.flatnonzero(self.request_class[skip:] == self.only_class)

    def measured(self, skip: int = 0) -> Any:
        """Which of these requests count: those completed."""
        if self.outcome is None:
            return self.asked(skip)
        done = self.outcome == COMPLETED
        return np.arange(len(done))[self.asked(skip)][done[self.asked(skip)]]

    @property
    def sent_time(self) -> FloatArray:
        """When each request was sent, seconds: as it came, unless it was held back."""
        return self.queue_entry_time

    @property
    def client_wait(self) -> FloatArray:
        """Seconds each request was held back at the client before it was sent."""
        return self.sent_time - self.arrival_time

    @property
    def latency(self) -> FloatArray:
        """Seconds from each request's sending to its last token, shape (n,)."""
        return self.processing_end_time - self.sent_time

    @property
    def wait(self) -> FloatArray:
        """Seconds each request spent in the queue before it was first served."""
        return self.processing_start_time - self.queue_entry_time

    @property
    def ttft(self) -> FloatArray:
        """Time to first token of each request, seconds from its sending."""
        return self.first_token_time - self.sent_time

    @property
    def tpot(self) -> FloatArray:
        """Time per output token after the first, seconds; NaN for a single token."""
        after_first = np.where(self.output_length > 1, self.output_length - 1.0, np.nan)
        return (self.processing_end_time - self.first_token_time) / after_first

    @property
    def waits(self) -> tuple[FloatArray, FloatArray]:
        """When each wait in the queue began, and when it ended, seconds.

        A preempted request waits again, and some give up before they are served.
        """
        begin, end = self.queue_entry_time, self.processing_start_time
        if self.outcome is not None:
            some = self.outcome != REFUSED
            left = np.where(np.isnan(end), self.processing_end_time, end)
            begin, end = begin[some], left[some]
        if self.steps is not None and len(self.steps.preempted_time):
            begin = np.concatenate((begin, self.steps.preempted_time))
            end = np.concatenate((end, self.steps.resumed_time))
        return begin, end

    @property
    def batch_steps(self) -> IntArray:
        """Steps in each row of batches, shape (batches,): 1 of a static server."""
        if self.steps is None:
            return np.ones(len(self.batch_start), dtype=np.int64)
        return self.steps.batch_steps

    @property
    def max_queue_length(self) -> int:
        """Most requests that ever waited at once.

        A queue only grows until a request leaves it, so it is greatest just before.
        """
        if self.steps is None and self.outcome is None:
            begin, leave = self.queue_entry_time, self.batch_start
            left = np.cumsum(self.batch_size) - self.batch_size
        else:
            begin, leave = map(np.sort, self.waits)
            left = np.searchsorted(leave, leave)
        entered = np.searchsorted(begin, leave, side="right")
        return int((entered - left).max(initial=0))

    @property
    def preemptions(self) -> IntArray:
        """How often each request was preempted, shape (n,)."""
        n = len(self.arrival_time)
        if self.steps is None:
            return np.zeros(n, dtype=np.int64)
        return np.bincount(self.steps.preempted_request, minlength=n)
