"""What happened in a run: a row a request, a row a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pandas as pd

from llminfer.lengths import FloatArray, IntArray
from llminfer.request import Request

_TIMES = (
    "arrival_time",
    "queue_entry_time",
    "processing_start_time",
    "first_token_time",
    "processing_end_time",
)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run as columns; times in seconds.

    Attributes:
        arrival_time: Shape (n,), in order of arrival; so are all columns of requests.
        prompt_length: Tokens.
        output_length: Tokens made.
        request_class: Class number.
        queue_entry_time: When each entered the queue.
        processing_start_time: When its batch began.
        first_token_time: When its first token appeared.
        processing_end_time: When it was complete.
        batch_start: Shape (batches,), in order of time.
        batch_end: Shape (batches,).
        batch_size: Requests in each, shape (batches,).
        limit_time: When the batch limit was set or changed, ascending.
        batch_limit: The limit from then on, same shape.
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

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Self:
        """The record of a table of requests; a batch is a shared start and end.

        Args:
            frame: Columns as ``to_frame`` gives them; requests that have not
                finished (NaN) are left out, and all are of class 0 if none is given.
        """
        done = frame.dropna(subset=list(_TIMES)).sort_values(
            ["arrival_time", "request_id"], kind="stable"
        )
        starts, ends = done["processing_start_time"], done["processing_end_time"]
        classes = done.get("request_class", pd.Series(0, done.index))
        batches = done.groupby([starts, ends], sort=True).size()
        times = {name: done[name].to_numpy(dtype=np.float64) for name in _TIMES}
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
        rows = [
            {
                "request_id": r.id,
                "prompt_length": r.prompt_length,
                "output_length": r.actual_output_length or r.expected_output_length,
                "request_class": r.request_class,
                **{name: getattr(r, name) for name in _TIMES},
            }
            for r in requests
        ]
        tokens = ["prompt_length", "output_length"]
        names = ["request_id", *tokens, "request_class", *_TIMES]
        return cls.from_frame(pd.DataFrame(rows, columns=names))

    def to_frame(self) -> pd.DataFrame:
        """One row a request, in order of arrival, warm-up too."""
        return pd.DataFrame(
            {
                "request_id": np.arange(len(self.arrival_time)),
                "arrival_time": self.arrival_time,
                "prompt_length": self.prompt_length,
                "output_length": self.output_length,
                "request_class": self.request_class,
                "queue_entry_time": self.queue_entry_time,
                "processing_start_time": self.processing_start_time,
                "first_token_time": self.first_token_time,
                "processing_end_time": self.processing_end_time,
            }
        )

    @property
    def max_queue_length(self) -> int:
        """Most requests that ever waited at once.

        A queue only grows until a batch leaves, so it is greatest at a dispatch.
        """
        entered = np.searchsorted(self.queue_entry_time, self.batch_start, side="right")
        left = np.concatenate(([0], np.cumsum(self.batch_size)[:-1]))
        return int((entered - left).max(initial=0))
