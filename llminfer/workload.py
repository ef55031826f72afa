"""The table of requests: synthetic or from a trace, the servers cannot tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from llminfer.arrivals import ArrivalRate, unit_arrivals
from llminfer.checks import TraceError, fail, number, whole
from llminfer.config import SimulationConfig
from llminfer.csvfile import read_csv
from llminfer.lengths import MOST_TOKENS, FloatArray, IntArray, length_law
from llminfer.request import Request
from llminfer.streams import stream


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival, as columns of shape (n,).

    Attributes:
        arrival_time: Seconds, never decreasing.
        prompt_length: Tokens, at least 1.
        output_length: Tokens, at least 1.
        request_class: Class number, from 0.
    """

    arrival_time: FloatArray
    prompt_length: IntArray
    output_length: IntArray
    request_class: IntArray

    @classmethod
    def generate(cls, config: SimulationConfig) -> Workload:
        """The synthetic workload of a configuration: same seed, same requests."""
        generator = RequestGenerator(
            config.arrivals,
            config.prompt_length_dist,
            config.prompt_dist_params,
            config.output_length_dist,
            config.output_dist_params,
            arrival_cv=config.arrival_cv,
            class_shares=tuple(its.share for its in config.classes),
            random_seed=config.random_seed,
        )
        return generator.generate(config.num_requests)

    @classmethod
    def from_arrays(
        cls,
        arrival_time: npt.ArrayLike,
        prompt_length: npt.ArrayLike,
        output_length: npt.ArrayLike,
        request_class: npt.ArrayLike | None = None,
    ) -> Self:
        """A workload of given columns, each of shape (n,).

        Args:
            arrival_time: Seconds, never decreasing.
            prompt_length: Tokens.
            output_length: Tokens.
            request_class: Class numbers, from 0; None puts all in class 0.

        Raises:
            TraceError: Columns of unlike length, nothing in them, arrivals that are
                unsorted, negative or not finite, or tokens or classes that are no
                whole numbers of at least 1 or 0.
        """
        arrival = _column("arrival_time", arrival_time)
        if not len(arrival):
            raise TraceError("arrival_time: empty: must have at least one request")
        _first_bad("arrival_time", arrival, ~np.isfinite(arrival), "finite")
        _first_bad("arrival_time", arrival, arrival < 0.0, "at least 0")
        earlier = np.concatenate(([False], np.diff(arrival) < 0.0))
        _first_bad("arrival_time", arrival, earlier, "no earlier than the one before")
        classes = np.zeros(len(arrival)) if request_class is None else request_class
        return cls(
            arrival,
            _whole("prompt_length", prompt_length, len(arrival), 1, "tokens"),
            _whole("output_length", output_length, len(arrival), 1, "tokens"),
            _whole("request_class", classes, len(arrival), 0, "a class"),
        )

    @classmethod
    def from_csv(cls, path: str | Path, limit: int | None = None) -> Self:
        """A workload from a CSV trace: see ``llminfer.csvfile.read_csv``.

        Raises:
            TraceError: A bad row, named by its number, or no such file.
        """
        if limit is not None:
            whole("limit", limit, 1)
        return cls.from_arrays(*read_csv(path, limit))

    def __len__(self) -> int:
        return len(self.arrival_time)

    def __repr__(self) -> str:
        return (
            f"Workload({len(self):,} requests in {self.arrival_time[-1]:,.1f} s, "
            f"mean prompt {self.prompt_length.mean():.1f}, "
            f"mean output {self.output_length.mean():.1f} tokens)"
        )

    def requests(self) -> Iterator[Request]:
        """Fresh ``Request`` objects in order of arrival."""
        columns = (
            self.arrival_time.tolist(),
            self.prompt_length.tolist(),
            self.output_length.tolist(),
            self.request_class.tolist(),
        )
        for i, row in enumerate(zip(*columns, strict=True)):
            yield Request(i, *row)

    def scaled(self, rate_factor: float) -> Self:
        """The same requests arriving ``rate_factor`` times as fast.

        Raises:
            ConfigError: ``rate_factor`` is not above 0.
        """
        factor = number("rate_factor", rate_factor, above=0.0)
        return type(self)(**{**vars(self), "arrival_time": self.arrival_time / factor})

    def to_frame(self) -> pd.DataFrame:
        """One row a request: request_id and the columns."""
        return pd.DataFrame({"request_id": np.arange(len(self)), **vars(self)})

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


@dataclass(frozen=True)
class RequestGenerator:
    """Makes workloads from an arrival rate and two length laws.

    Args:
        arrival_rate: lambda(t), from ``constant_rate`` and its kin.
        prompt_length_dist: Law of prompt lengths.
        prompt_dist_params: Its parameters.
        output_length_dist: Law of output lengths.
        output_dist_params: Its parameters.
        arrival_cv: Coefficient of variation of the gaps; 1 is Poisson.
        class_shares: Each class's part of the arrivals, relative; empty for one class.
        random_seed: One seed for all streams; None draws a fresh one.

    Raises:
        ConfigError: A law, a parameter or the rate cannot be used.
    """

    arrival_rate: ArrivalRate
    prompt_length_dist: str = "lognormal"
    prompt_dist_params: Mapping[str, Any] = field(
        default_factory=lambda: {"mu": 4, "sigma": 1.5}
    )
    output_length_dist: str = "truncated_normal"
    output_dist_params: Mapping[str, Any] = field(
        default_factory=lambda: {"mu": 100, "sigma": 30, "min": 10, "max": 500}
    )
    arrival_cv: float = 1.0
    class_shares: tuple[float, ...] = ()
    random_seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arrival_rate, ArrivalRate):
            must = "made by constant_rate, step_rate, sinusoidal_rate or ramp_rate"
            raise fail("arrival_rate", self.arrival_rate, must)
        number("arrival_cv", self.arrival_cv, least=0.0, most=100.0)
        if self.random_seed is not None:
            whole("random_seed", self.random_seed, 0)
        for share in self.class_shares:
            number("class_shares", share, least=0.0)
        if self.class_shares and not sum(self.class_shares) > 0.0:
            raise fail("class_shares", self.class_shares, "of a sum above 0")
        length_law("prompt", self.prompt_length_dist, self.prompt_dist_params)
        length_law("output", self.output_length_dist, self.output_dist_params)

    def generate(self, num_requests: int) -> Workload:
        """The first ``num_requests`` requests; more would begin with the same ones."""
        n = whole("num_requests", num_requests, 1)
        prompts = length_law("prompt", self.prompt_length_dist, self.prompt_dist_params)
        outputs = length_law("output", self.output_length_dist, self.output_dist_params)
        seed = self.random_seed
        unit = unit_arrivals(n, self.arrival_cv, stream(seed, "arrivals"))
        return Workload(
            self.arrival_rate.inverse(unit),
            prompts.tokens(stream(seed, "prompts").random(n)),
            outputs.tokens(stream(seed, "outputs").random(n)),
            self._classes(stream(seed, "classes").random(n)),
        )

    def _classes(self, u: FloatArray) -> IntArray:
        """Class numbers, the quantiles at ``u`` in [0, 1) of the shares."""
        below = np.cumsum(self.class_shares or (1.0,))
        return np.searchsorted(below / below[-1], u, side="right")
