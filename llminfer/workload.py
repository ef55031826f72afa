"""The table of requests: synthetic or from a trace, the servers cannot tell."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.base.arrays import FloatArray, IntArray, check_room
from llminfer.base.columns import arrival_column, whole_column
from llminfer.base.errors import LARGEST, choice, number
from llminfer.base.streams import stream
from llminfer.base.trace_csv import TRACE, Names, csv_table, recognised, requests
from llminfer.config import SimulationConfig
from llminfer.laws.arrivals import ArrivalRate, unit_arrivals
from llminfer.laws.lengths import LengthLaw, drawn_lengths
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
        check_room("num_requests", config.num_requests, 100)  # bytes while it is drawn
        return cls.drawn(
            config.num_requests,
            config.random_seed,
            arrivals=config.arrivals,
            prompts=config.prompts,
            outputs=config.outputs,
            arrival_cv=config.arrival_cv,
            arrival_gaps=config.arrival_gaps,
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
        arrival_gaps: Sequence[float] | None = None,
        class_shares: Sequence[float] = (),
        prefixes: SharedPrefixes | None = None,
    ) -> Self:
        """The first ``n`` requests of laws; more would begin with the same ones.

        Args:
            n: How many.
            seed: One seed for all streams; None draws a fresh one.
            arrivals: lambda(t).
            prompts: Law of prompt lengths; of classes, each request from its own.
            outputs: Law of output lengths, likewise.
            arrival_cv: Coefficient of variation of the gaps; 1 is Poisson.
            arrival_gaps: Gaps to draw from, in any unit, a tenth of them in a row.
            class_shares: Each class's part, relative; empty for one class.
            prefixes: What prompts begin with, all of them longer than that.
        """
        unit = unit_arrivals(n, arrival_cv, stream(seed, "arrivals"), arrival_gaps)
        below = np.cumsum(class_shares or (1.0,))
        purposes = ("classes", "prompts", "outputs", "prefixes")
        of, prompt, output, prefix = (stream(seed, p).random(n) for p in purposes)
        classes = np.searchsorted(below / below[-1], of, side="right")
        return cls(
            arrivals.inverse(unit),
            *drawn_lengths((prompts, outputs), classes, prompt, output),
            classes,
            None if prefixes is None else prefixes.segments(prefix),
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
        arrival = arrival_column("arrival_time", arrival_time)
        n = len(arrival)
        classes = np.zeros(n) if request_class is None else request_class
        prompts = whole_column("prompt_length", prompt_length, n, 1, "tokens")
        outputs = whole_column("output_length", output_length, n, 1, "tokens")
        classes = whole_column("request_class", classes, n, 0, "a class")
        paths = None if segments is None else checked_paths(segments, prompts + outputs)
        return cls(arrival, prompts, outputs, classes, paths)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, columns: Names = None, unit: str | None = None
    ) -> Self:
        r"""A workload from a CSV trace, in order of arrival.

        Args:
            path: A file with any separator, plain or as ``.gz`` or ``.xz``. Its columns
                may be ``arrival_time`` (seconds from 0 on), ``prompt_length`` and
                ``output_length`` (tokens), those of the Azure traces, or others whose
                names say what they hold.
            columns: Names of its columns, where they do not say what they hold.
            unit: Of times whose column's name does not end in one: s, ms, us or ns.

        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "trace.csv"
        >>> _ = path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,9,2\n4,7,3")
        >>> Workload.from_csv(path).prompt_length.tolist()
        [9, 7]

        Raises:
            TraceError: A bad row, named by its number, or no such file.
        """
        found = recognised(csv_table(Path(path)), columns, TRACE)
        return cls.from_arrays(**requests(found, unit))

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, columns: Names = None, unit: str | None = None
    ) -> Self:
        """A workload from a table with a row a request, read as a CSV is.

        Args:
            frame: Times and lengths in columns whose names say what they hold.
            columns: Names of its columns, where they do not.
            unit: Of times whose column's name does not end in one: s, ms, us or ns.

        >>> frame = pd.DataFrame({"when": [0, 250], "n_in": [9, 7], "n_out": [2, 3]})
        >>> columns = {"arrival_time": "when"}
        >>> Workload.from_frame(frame, columns=columns, unit="ms").arrival_time.tolist()
        [0.0, 0.25]

        Raises:
            TraceError: A column is missing, or a cell is bad: names row and column.
        """
        table = pd.DataFrame(frame).astype(object).rename(columns=str)
        table = table.reset_index(drop=True).rename_axis("frame, row ")
        found = recognised(table, columns, TRACE)
        return cls.from_arrays(**requests(found, unit))

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

    def law(self, arrivals: str = "gaps") -> dict[str, Any]:
        """Fields of a configuration whose requests are like these, at the same rate.

        Lengths are drawn from the rows, a prompt and its output together. Classes are
        left out. Where all requests come at once the rate is infinite, which only a
        change of it mends.

        Args:
            arrivals: ``gaps`` are those of the workload, a tenth of them in a row from
                places that are drawn; ``gamma`` has their coefficient of variation,
                and ``poisson`` nothing of them but the rate.

        Raises:
            ConfigError: Other arrivals.

        >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
        >>> config = SimulationConfig(**work.law("poisson"))
        >>> config.arrival_rate, round(config.outputs.expectation(), 6)
        (0.5, 20.0)
        """
        choice("arrivals", arrivals, ("gaps", "gamma", "poisson"))
        gaps = np.diff(self.arrival_time)
        mean = float(gaps.mean()) if len(gaps) else 0.0
        unit = gaps / mean if mean > 0.0 else np.ones(1)
        return {
            "arrival_rate": min(1.0 / mean, LARGEST) if mean > 0.0 else float("inf"),
            "arrival_pattern": "constant",
            "arrival_pattern_params": {},
            "arrival_cv": float(unit.std()) if arrivals == "gamma" else 1.0,
            "arrival_gaps": unit if arrivals == "gaps" and mean > 0.0 else None,
            "prompt_length_dist": "empirical",
            "prompt_dist_params": {"values": self.prompt_length},
            "output_length_dist": "paired",
            "output_dist_params": {"values": self.output_length},
        }

    def resample(self, n: int, seed: int | None, arrivals: str = "gaps") -> Self:
        """So many requests like these: same seed, same ones; more begin with them.

        Args:
            n: How many.
            seed: None draws a fresh one.
            arrivals: gaps, gamma or poisson, as for ``law``.

        Raises:
            ConfigError: Other arrivals, or all requests come at once.

        >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
        >>> more = work.resample(2000, seed=1)
        >>> set(more.output_length[more.prompt_length == 50].tolist())
        {10}
        """
        its = SimulationConfig(num_requests=n, warmup_requests=0, **self.law(arrivals))
        return self.generate(its.replace(random_seed=seed))

    def to_frame(self) -> pd.DataFrame:
        """One row a request: request_id and the columns."""
        return pd.DataFrame({"request_id": np.arange(len(self)), **self.columns})

    def to_csv(self, path: str | Path) -> None:
        """Write ``arrival_time,prompt_length,output_length``, exact to the last bit.

        Classes are not written: the format of traces has none.
        """
        columns = ["arrival_time", "prompt_length", "output_length"]
        self.to_frame()[columns].to_csv(path, index=False)
