"""The static server as a bulk queue: Poisson arrivals, batches that take their time."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import gammainc, log1p

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.laws.lengths import LengthLaw
from llminfer.theory import random_walk as walk
from llminfer.theory import service_time
from llminfer.theory.service_time import ComplexArray, WaitLaw, invert, power_series
from llminfer.timing import StepTime


@dataclass(frozen=True)
class BulkQueue(WaitLaw):
    """A stable FCFS static server under Poisson arrivals, solved exactly.

    The chain of requests left at departures, n' = (n - b)^+ + A_b with
    b = min(max(n, a), B), where A_b counts the arrivals in T_b. All five
    coefficients may be above 0.

    Args:
        arrival_rate: lambda, requests a second, below lambda*(B).
        step_time: The coefficients.
        prompts: Law of prompt tokens, capped.
        outputs: Law of output tokens.
        batch_size: B.
        least: a, how many requests a batch waits for: 1 (greedy) or B (full).

    Source: Bailey (1954), Downton (1955), Neuts (1967).
    """

    arrival_rate: float
    step_time: StepTime
    prompts: LengthLaw
    outputs: LengthLaw
    batch_size: int
    least: int

    def __post_init__(self) -> None:
        _ = self.left  # what has no answer is refused at once

    @property
    def _batches(self) -> tuple[StepTime, LengthLaw, LengthLaw, range]:
        """What makes the times T_b for b = a ... B."""
        sizes = range(self.least, self.batch_size + 1)
        return self.step_time, self.prompts, self.outputs, sizes

    @cached_property
    def _moments(self) -> tuple[FloatArray, FloatArray]:
        """E[T_b] and E[T_b^2] for b = a ... B."""
        return service_time.batch_moments(*self._batches)

    def _transforms(self, s: ComplexArray) -> ComplexArray:
        """E[exp(-s T_b)] for b = a ... B, shape (B - a + 1, s)."""
        return service_time.batch_transforms(*self._batches, s)

    @cached_property
    def left(self) -> FloatArray:
        """P(n left at a departure), n = 0, 1, ..."""
        rate, most = self.arrival_rate, self.batch_size

        def count(z: ComplexArray) -> ComplexArray:
            return self._transforms(rate * (1.0 - z))

        circle = walk.circle_for(lambda z: count(z)[-1], most, rate)
        arrivals, circle = walk.scaled_counts(count, circle)
        entry = walk.first_entry(arrivals[-1], most, circle)
        after = walk.folded(arrivals * circle.shrinking(arrivals.shape[-1]), entry)
        size = self._sizes(np.arange(most))
        few = walk.stationary(after[size - self.least])
        z = circle.at(circle.points)
        served = circle.values(few @ arrivals[size - self.least])
        start = circle.values(few / circle.shrinking(most))
        more = (served - start) / (z**most - circle.values(arrivals[-1]))
        law = np.concatenate((few, circle.series(more)))
        return np.asarray(law / law.sum())

    def _sizes(self, left: IntArray) -> IntArray:
        """Requests in the next batch, where so many are left."""
        return np.clip(left, self.least, self.batch_size)

    @cached_property
    def _cycle(self) -> dict[str, float]:
        """What a departure and the cycle after it bring, means over departures."""
        left = np.arange(len(self.left))
        size = self._sizes(left)
        mean, square = (each[size - self.least] for each in self._moments)
        missing = np.maximum(self.least - left, 0.0)
        gathering = missing * (self.least + left - 1.0) / 2.0 / self.arrival_rate
        behind = np.maximum(left - size, 0.0)
        brings = {
            "size": size,
            "squared size": size**2.0,
            "busy": mean,
            "service": size * mean,
            "length": missing / self.arrival_rate + mean,
            "waiting": gathering + behind * mean + self.arrival_rate * square / 2.0,
        }
        return {name: float(self.left @ values) for name, values in brings.items()}

    @property
    def mean(self) -> float:
        """E[W], seconds."""
        return self._cycle["waiting"] / self._cycle["length"] / self.arrival_rate

    @property
    def mean_ttft(self) -> float:
        """E[time to first token], seconds: the wait and the batch's prefill."""
        others = self._cycle["squared size"] / self._cycle["size"]
        prefill = self.step_time.prefill(others * self.prompts.expectation())
        return self.mean + float(prefill)

    @property
    def mean_latency(self) -> float:
        """E[latency], seconds: the wait and the batch's time."""
        return self.mean + self._cycle["service"] / self._cycle["size"]

    @property
    def mean_batch(self) -> float:
        """E[b], requests a batch."""
        return self._cycle["size"]

    @property
    def utilization(self) -> float:
        """Busy share of the time."""
        return self._cycle["busy"] / self._cycle["length"]

    @property
    def chance(self) -> float:
        """P(W > 0): a batch is not complete, or the server is not free."""
        if self.least == 1:
            cycles = self.arrival_rate * self._cycle["length"]
            return 1.0 - float(self.left[0]) / cycles
        return 1.0 - float(self.left[: self.batch_size].sum()) / self.batch_size

    def _exceeds(self, t: FloatArray) -> FloatArray:
        return invert(self._greedy_wait, t) if self.least == 1 else self._full_wait(t)

    def _greedy_wait(self, s: ComplexArray) -> ComplexArray:
        """The transform of P(W > t), from that of the queue's length.

        No wait looks ahead, so the queue holds the arrivals of a wait: its E[z^n] is
        E[exp(-lambda (1-z) W)] (Keilson and Servi 1988).
        """
        times = self._transforms(s)
        few = self.left[: self.batch_size]
        size = self._sizes(np.arange(self.batch_size)) - 1
        served = few @ times[size]  # E[exp(-s T)] of batches that empty the queue
        behind = self._behind(1.0 - s / self.arrival_rate, served, times[-1])
        in_batch = few.sum() - served + behind * (1.0 - times[-1])
        idle = self.left[0] / self.arrival_rate
        wait = (idle + in_batch / s) / self._cycle["length"]
        return np.asarray((1.0 - wait) / s)

    def _behind(
        self, z: ComplexArray, served: ComplexArray, full: ComplexArray
    ) -> ComplexArray:
        """Sum over n >= B of P(n left) z^(n-B), outside the unit circle too."""
        few, many = np.split(self.left, [self.batch_size])
        out, found = np.abs(z) > 1.0, np.empty_like(z)
        found[~out] = power_series(many, z[~out])
        up = 1.0 / z[out]
        start = up * power_series(few[::-1], up)
        last = up**self.batch_size
        found[out] = (last * served[out] - start) / (1.0 - last * full[out])
        return found

    def _full_wait(self, t: FloatArray) -> FloatArray:
        """P(W > t) where batches are full.

        The i-th of a batch waits for the B - i behind it, an Erlang time F, and for
        the last batch to end, V - G: G is the Erlang time of the batch's first i
        gaps, and V runs from the last batch's being complete to its end. F, G and V
        are independent, and those left at the end are the arrivals during V.
        """
        busy = invert(self._still_busy, t)
        gaps = np.arange(self.batch_size - 1, -1, -1.0)[:, None]
        filled = gammainc(np.maximum(gaps, 1.0), self.arrival_rate * t)
        filled[-1] = 1.0
        return np.asarray(1.0 - (filled * (1.0 - busy)).mean(axis=0))

    def _still_busy(self, s: ComplexArray) -> ComplexArray:
        """The transform of P(V - G > t) for i = 1 ... B, shape (B, s)."""
        most, rate = self.batch_size, self.arrival_rate
        z = 1.0 - s / rate
        least = np.cumsum(self.left[::-1])[::-1] / rate  # P(n or more left) / lambda
        out, found = np.abs(z) > 1.0, np.empty((most + 1, len(s)), np.complex128)
        found[most, ~out] = power_series(least[most + 1 :], z[~out])
        for i in range(most, 0, -1):
            found[i - 1, ~out] = z[~out] * found[i, ~out] + least[i]
        few, time = self.left[:most].sum(), self._transforms(s[out])[-1]
        last_batch = time * (few + self._behind(z[out], few * time, time))  # of V
        found[0, out] = (1.0 - last_batch) / s[out]
        for i in range(1, most + 1):
            found[i, out] = (found[i - 1, out] - least[i]) / z[out]
        return found[1:]


class GammaQueue(BulkQueue):
    """The bulk queue of gamma batch times with the true means and variances.

    For curves behind sliders: its means are within 5% of the exact ones, within 0.1%
    where decoding takes most of the time, and exact at B = 1. Prompts need no cap.
    """

    def _transforms(self, s: ComplexArray) -> ComplexArray:
        mean, square = (each[:, None] for each in self._moments)
        mean = np.maximum(mean, 1e-300)
        scale = np.maximum(square / mean - mean, 1e-9 * mean)  # of the gamma law
        at = scale * s
        inside = at.real > -1.0
        log = log1p(np.where(inside, at, 0.0))  # numpy's loses digits near 0
        return np.where(inside, np.exp(-mean / scale * log), math.inf)
