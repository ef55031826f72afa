"""The table of requests: synthetic or from a trace, the servers cannot tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import TraceError, number
from llminfer.base.streams import stream
from llminfer.base.trace_csv import read_csv
from llminfer.config import SimulationConfig
from llminfer.laws.arrivals import ArrivalRate, unit_arrivals
from llminfer.laws.lengths import LengthLaw
from llminfer.laws.prefixes import Segments, SharedPrefixes, checked_paths
from llminfer.request import Request


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival, as columns of shape (n,).

    Attributes:
        arrival_time: Seconds, never decreasing.
        prompt_length: Tokens, at least 1.
        output_length: Tokens, at least 1.
        request_class: Class number, from 0.
        segments: How each request's tokens begin, for a prefix cache: a path of (id,
            tokens) pairs over its prompt and, where it goes on, its answer. Requests
            whose paths begin alike begin with the same tokens; None has no such.
    """

    arrival_time: FloatArray
    prompt_length: IntArray
    output_length: IntArray
    request_class: IntArray
    segments: Segments | None = None

    @classmethod
    def generate(cls, config: SimulationConfig) -> Self:
        """The synthetic workload of a configuration: same seed, same requests.

        >>> len(Workload.generate(SimulationConfig(num_requests=600, random_seed=1)))
        600
        """
        return cls.drawn(
            config.num_requests,
            config.random_seed,
            arrivals=config.arrivals,
            prompts=config.prompts,
            outputs=config.outputs,
            arrival_cv=config.arrival_cv,
            class_shares=[its.share for its in config.classes],
            prefixes=config.prefixes,
        )

    @classmethod
    def drawn(
        cls,
        n: int,
        seed: int | None,
        *,
        arrivals: ArrivalRate,
        prompts: LengthLaw,
        outputs: LengthLaw,
        arrival_cv: float = 1.0,
        class_shares: Sequence[float] = (),
        prefixes: SharedPrefixes | None = None,
    ) -> Self:
        """The first ``n`` requests of laws; more would begin with the same ones.

        Args:
            n: How many.
            seed: One seed for all streams; None draws a fresh one.
            arrivals: lambda(t).
            prompts: Law of prompt lengths.
            outputs: Law of output lengths.
            arrival_cv: Coefficient of variation of the gaps; 1 is Poisson.
            class_shares: Each class's part, relative; empty for one class.
            prefixes: What prompts begin with, all of them longer than that.
        """
        unit = unit_arrivals(n, arrival_cv, stream(seed, "arrivals"))
        below = np.cumsum(class_shares or (1.0,))
        classes, drawn = stream(seed, "classes").random(n), stream(seed, "prefixes")
        return cls(
            arrivals.inverse(unit),
            prompts.tokens(stream(seed, "prompts").random(n)),
            outputs.tokens(stream(seed, "outputs").random(n)),
            np.searchsorted(below / below[-1], classes, side="right"),
            None if prefixes is None else prefixes.segments(drawn.random(n)),
        )

    @classmethod
    def from_arrays(
        cls,
        arrival_time: npt.ArrayLike,
        prompt_length: npt.ArrayLike,
        output_length: npt.ArrayLike,
        request_class: npt.ArrayLike | None = None,
        segments: Iterable[Iterable[tuple[int, int]]] | None = None,
    ) -> Self:
        """A workload of given columns, each of shape (n,).

        Args:
            arrival_time: Seconds, never decreasing.
            prompt_length: Tokens.
            output_length: Tokens.
            request_class: Class numbers, from 0; None puts all in class 0.
            segments: A path of (id, tokens) pairs a request; None has none.

        Raises:
            TraceError: Columns of unlike length, nothing in them, arrivals that are
                unsorted, negative or not finite, tokens or classes that are no whole
                numbers of at least 1 or 0, or paths of more tokens than a request has.

        >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
        >>> work
        Workload(3 requests in 4.0 s, mean prompt 116.7, mean output 20.0 tokens)
        """
        arrival = _column("arrival_time", arrival_time)
        if not len(arrival):
            raise TraceError("arrival_time: empty: must have at least one request")
        _first_bad("arrival_time", arrival, ~np.isfinite(arrival), "finite")
        _first_bad("arrival_time", arrival, arrival < 0.0, "at least 0")
        earlier = np.concatenate(([False], np.diff(arrival) < 0.0))
        _first_bad("arrival_time", arrival, earlier, "no earlier than the one before")
        classes = np.zeros(len(arrival)) if request_class is None else request_class
        prompts = _whole("prompt_length", prompt_length, len(arrival), 1, "tokens")
        outputs = _whole("output_length", output_length, len(arrival), 1, "tokens")
        classes = _whole("request_class", classes, len(arrival), 0, "a class")
        paths = None if segments is None else checked_paths(segments, prompts + outputs)
        return cls(arrival, prompts, outputs, classes, paths)

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """A workload from a CSV trace: see ``llminfer.base.trace_csv.read_csv``.

        Raises:
            TraceError: A bad row, named by its number, or no such file.
        """
        return cls.from_arrays(*read_csv(path))

    def __len__(self) -> int:
        return len(self.arrival_time)

    def __repr__(self) -> str:
        return (
            f"Workload({len(self):,} requests in {self.arrival_time[-1]:,.1f} s, "
            f"mean prompt {self.prompt_length.mean():.1f}, "
            f"mean output {self.output_length.mean():.1f} tokens)"
        )

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of numbers by name: all but the segments."""
        return {name: its for name, its in vars(self).items() if name != "segments"}

    def requests(self) -> Iterator[Request]:
        """Fresh ``Request`` objects in order of arrival.

        >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
        >>> [request.prompt_length for request in work.requests()]
        [100, 50, 200]
        """
        columns = (column.tolist() for column in self.columns.values())
        for i, row in enumerate(zip(*columns, strict=True)):
            yield Request(i, *row)

    def scaled(self, rate_factor: float) -> Self:
        """The same requests arriving ``rate_factor`` times as fast.

        Raises:
            ConfigError: ``rate_factor`` is not above 0.

        >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
        >>> work.scaled(2).arrival_time.tolist()
        [0.0, 0.25, 2.0]
        """
        factor = number("rate_factor", rate_factor, above=0.0)
        return type(self)(**{**vars(self), "arrival_time": self.arrival_time / factor})

    def to_frame(self) -> pd.DataFrame:
        """One row a request: request_id and the columns."""
        return pd.DataFrame({"request_id": np.arange(len(self)), **self.columns})

    def to_csv(self, path: str | Path) -> None:
        """Write ``arrival_time,prompt_length,output_length``, exact to the last bit.

        Classes are not written: the format of traces has none.
        """
        columns = ["arrival_time", "prompt_length", "output_length"]
        self.to_frame()[columns].to_csv(path, index=False)


def _column(name: str, given: npt.ArrayLike) -> FloatArray:
    try:
        column = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise TraceError(f"{name}: must be numbers") from None
    if column.ndim != 1:
        raise TraceError(f"{name}: of {column.ndim} dimensions: must be a plain list")
    return column


def _whole(name: str, given: npt.ArrayLike, n: int, least: int, of: str) -> IntArray:
    column = _column(name, given)
    if len(column) != n:
        raise TraceError(f"{name}: {len(column)} values: must be {n}, as arrivals")
    bad = ~((column >= least) & (column <= MOST_TOKENS)) | (column % 1.0 != 0.0)
    _first_bad(name, column, bad, f"a whole number of {of}, at least {least}")
    return column.astype(np.int64)


def _first_bad(
    name: str, column: FloatArray, bad: npt.NDArray[np.bool_], must: str
) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        value = float(column[row])
        raise TraceError(f"{name}[{row}]={value:g}: must be {must}")
