"""Arrival rates lambda(t) with their integrals, and arrival times by inversion."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import build, choice, fail, number

_BLOCKS = 10  # of a log's gaps that stay in their order


@dataclass(frozen=True)
class ArrivalRate(ABC):
    """A rate lambda(t), requests a second, for t >= 0 seconds.

    Call it for the rate at a time or at an array of times. A rate of your own is a
    subclass with ``cumulative`` and ``inverse``.
    """

    rate: float

    def __post_init__(self) -> None:
        number("arrival_rate", self.rate, above=0.0)

    def __call__(self, t: Any) -> Any:
        at = self._rate_at(np.asarray(t, dtype=np.float64))
        return at if isinstance(t, np.ndarray) else float(at)

    @abstractmethod
    def _rate_at(self, t: FloatArray) -> FloatArray:
        """lambda(t), requests a second, same shape."""

    @abstractmethod
    def cumulative(self, t: FloatArray) -> FloatArray:
        """Requests expected in [0, t], same shape."""

    @abstractmethod
    def inverse(self, count: FloatArray) -> FloatArray:
        """The time, seconds, by which ``count`` requests are expected, same shape."""

    def peak(self, horizon: float) -> float:
        """The greatest rate in [0, horizon], requests a second."""
        return float(self._rate_at(np.linspace(0.0, horizon, 4097)).max())

    def mean(self, requests: int) -> float:
        """The mean rate, requests a second, over a run of so many requests."""
        return requests / float(self.inverse(np.array([float(requests)]))[0])


@dataclass(frozen=True)
class ConstantRate(ArrivalRate):
    """lambda(t) = ``rate``, requests a second.

    >>> constant_rate(5.0)(2.0)
    5.0
    """

    def _rate_at(self, t: FloatArray) -> FloatArray:
        return np.full_like(t, self.rate)

    def cumulative(self, t: FloatArray) -> FloatArray:
        return self.rate * t

    def inverse(self, count: FloatArray) -> FloatArray:
        return count / self.rate

    def mean(self, requests: int) -> float:
        return self.rate


@dataclass(frozen=True)
class StepRate(ArrivalRate):
    """``rate`` until ``step_time`` seconds, ``step_rate`` from then on.

    >>> rate = step_rate(5.0, step_time=10.0, step_rate=8.0)
    >>> rate(9.0), rate(10.0)
    (5.0, 8.0)
    """

    step_time: float
    step_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number("step_time", self.step_time, least=0.0)
        number("step_rate", self.step_rate, above=0.0)

    def _rate_at(self, t: FloatArray) -> FloatArray:
        return np.where(t < self.step_time, self.rate, self.step_rate)

    def cumulative(self, t: FloatArray) -> FloatArray:
        before = np.minimum(t, self.step_time)
        return self.rate * before + self.step_rate * (t - before)

    def inverse(self, count: FloatArray) -> FloatArray:
        before = np.minimum(count, self.rate * self.step_time)
        return before / self.rate + (count - before) / self.step_rate


@dataclass(frozen=True)
class SinusoidalRate(ArrivalRate):
    """``rate`` + ``amplitude`` sin(2 pi t / ``period`` + ``phase``).

    >>> sinusoidal_rate(5.0, amplitude=2.0, period=40.0)(10.0)
    7.0
    """

    amplitude: float
    period: float
    phase: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("amplitude", self.amplitude, least=0.0)
        if self.amplitude > self.rate:
            must = f"at most arrival_rate={self.rate:g}, or the rate would be negative"
            raise fail("amplitude", self.amplitude, must)
        number("period", self.period, above=0.0)
        number("phase", self.phase)

    def _rate_at(self, t: FloatArray) -> FloatArray:
        angle = 2.0 * math.pi * t / self.period + self.phase
        return self.rate + self.amplitude * np.sin(angle)

    def cumulative(self, t: FloatArray) -> FloatArray:
        turn = 2.0 * math.pi / self.period
        swing = math.cos(self.phase) - np.cos(turn * t + self.phase)
        return self.rate * t + self.amplitude / turn * swing

    def inverse(self, count: FloatArray) -> FloatArray:
        a_period = self.rate * self.period
        periods = np.floor(count / a_period)
        rest = count - periods * a_period
        grid = np.linspace(0.0, self.period, 2049)
        reached = self.cumulative(grid)
        cell = np.clip(np.searchsorted(reached, rest, side="right"), 1, 2048)
        low, high = grid[cell - 1], grid[cell]
        time = np.interp(rest, reached, grid)
        for _ in range(6):  # Newton, kept inside the cell where the rate is near 0
            short = rest - self.cumulative(time)
            low = np.where(short > 0.0, time, low)
            high = np.where(short > 0.0, high, time)
            step = short / np.maximum(self._rate_at(time), 1e-300)
            inside = (time + step >= low) & (time + step <= high)
            time = np.where(inside, time + step, (low + high) / 2.0)
        return periods * self.period + time

    def peak(self, horizon: float) -> float:
        crest = (0.25 - self.phase / (2.0 * math.pi)) % 1.0 * self.period
        if crest <= horizon:
            return self.rate + self.amplitude
        return float(self._rate_at(np.array([0.0, horizon])).max())


@dataclass(frozen=True)
class RampRate(ArrivalRate):
    """From ``rate`` in a straight line to ``end_rate`` in ``duration``, then level.

    >>> ramp_rate(5.0, end_rate=9.0, duration=100.0)(50.0)
    7.0
    """

    end_rate: float
    duration: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number("end_rate", self.end_rate, above=0.0)
        number("duration", self.duration, above=0.0)

    @property
    def _slope(self) -> float:
        return (self.end_rate - self.rate) / self.duration

    def _rate_at(self, t: FloatArray) -> FloatArray:
        return self.rate + self._slope * np.minimum(t, self.duration)

    def cumulative(self, t: FloatArray) -> FloatArray:
        climb = np.minimum(t, self.duration)
        area = self.rate * climb + self._slope * climb**2 / 2.0
        return area + self.end_rate * (t - climb)

    def inverse(self, count: FloatArray) -> FloatArray:
        climbed = (self.rate + self.end_rate) / 2.0 * self.duration
        some = np.minimum(count, climbed)
        root = np.sqrt(np.maximum(self.rate**2 + 2.0 * self._slope * some, 0.0))
        return 2.0 * some / (self.rate + root) + (count - some) / self.end_rate


ARRIVAL_PATTERNS: Mapping[str, type[ArrivalRate]] = {
    "constant": ConstantRate,
    "step": StepRate,
    "sinusoidal": SinusoidalRate,
    "ramp": RampRate,
}


def arrival_law(pattern: str, rate: float, params: Mapping[str, Any]) -> ArrivalRate:
    """The rate lambda(t) of a configuration.

    Args:
        pattern: One of ``ARRIVAL_PATTERNS``.
        rate: Base rate, requests a second.
        params: The pattern's parameters by name (DESIGN section 2 has the table).

    Raises:
        ConfigError: Unknown pattern or parameter, or a bad value.
    """
    law = ARRIVAL_PATTERNS[choice("arrival_pattern", pattern, ARRIVAL_PATTERNS)]
    number("arrival_rate", rate, above=0.0)
    if "rate" in params:
        field = "arrival_pattern_params.rate"
        raise fail(field, params["rate"], "left to arrival_rate")
    named = {"rate": rate, **params}
    return build(law, f"pattern {pattern}", named, "arrival_pattern_params")


# The source design's names for them; each is called to make a rate.
constant_rate, step_rate = ConstantRate, StepRate
sinusoidal_rate, ramp_rate = SinusoidalRate, RampRate


def unit_arrivals(
    requests: int,
    arrival_cv: float,
    stream: np.random.Generator,
    gaps: Sequence[float] | None = None,
) -> FloatArray:
    """Arrival times of a unit-rate renewal stream, shape (requests,).

    Args:
        requests: How many.
        arrival_cv: Coefficient of variation of the gaps; 1 is Poisson, 0 is a clock.
        stream: Source of randomness, one value a request.
        gaps: These over their mean instead, a tenth of them in a row, each from a
            place that is drawn: the pattern of bursts stays, and no two runs are alike.

    >>> unit_arrivals(4, 1.0, np.random.default_rng(1), gaps=[3.0, 1.0])
    array([0.5, 1. , 2.5, 3. ])

    Source: the circular block bootstrap, Politis and Romano (1992).
    """
    if gaps is not None:
        n = len(gaps)
        block = math.ceil(n / _BLOCKS)
        begin = (stream.random(math.ceil(requests / block)) * n).astype(np.int64)
        place = (begin[:, None] + np.arange(block)).ravel()[:requests]
        each = np.asarray(gaps)[place % n] / np.mean(gaps)
    elif arrival_cv == 1.0:
        each = stream.standard_exponential(requests)
    elif arrival_cv < 1e-100:  # its square is no number
        each = np.ones(requests)
    else:
        shape = arrival_cv**-2
        each = stream.standard_gamma(shape, requests) / shape
    return np.cumsum(each)
