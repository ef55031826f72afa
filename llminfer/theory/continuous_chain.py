"""Continuous batching as a Markov chain on (decoding, waiting), a step at a time.

With geometric outputs every request of a step ends with the same chance, so the
numbers at the start of a step are all that matters. While somebody has to wait, those
that go on are binomial whatever was before, and the queue is a random walk.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import binom

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.laws.lengths import Geometric, LengthLaw
from llminfer.theory import random_walk as walk
from llminfer.theory.service_time import ComplexArray, exponential_sum, token_pmf
from llminfer.timing import StepTime


@dataclass(frozen=True)
class ContinuousChain:
    """A stable continuous server under Poisson arrivals and FCFS, solved exactly.

    A step that starts with m decoding and q waiting admits k = min(q, B - m), takes
    (alpha prompts + beta)[k > 0] + (gamma + delta m)[m > 0] seconds, and leaves
    Bin(m + k, 1 - 1/E[O]) decoding and q - k + Poisson(lambda step) waiting.

    Args:
        arrival_rate: lambda, requests a second, below ``StepTime.saturation_rate``.
        step_time: The coefficients; kappa is taken as 0.
        prompts: Law of prompt tokens, capped.
        outputs: Geometric law of output tokens.
        batch_size: B.

    Source: a chain of M/G/1 type, Neuts (1989).
    """

    arrival_rate: float
    step_time: StepTime
    prompts: LengthLaw
    outputs: Geometric
    batch_size: int

    def __post_init__(self) -> None:
        _ = self.state  # what has no answer is refused at once

    @cached_property
    def _going_on(self) -> FloatArray:
        """P(j of n go on after a step), shape (B + 1, B + 1) for n and j = 0 ... B."""
        end = 1.0 / self.outputs.mean
        j = np.arange(self.batch_size + 1)
        n, stay = j[:, None], np.maximum(j[:, None] - j, 0)
        return np.asarray(binom(n, j) * (1.0 - end) ** j * end**stay)

    def _arrivals(
        self, decoding: IntArray, admitted: IntArray, z: ComplexArray
    ) -> ComplexArray:
        """E[z^arrivals] in steps of shape (n,), shape (n, points)."""
        s = self.arrival_rate * (1.0 - z)
        each = exponential_sum(token_pmf(self.prompts), self.step_time.alpha * s)
        powers = each ** np.arange(self.batch_size + 1)[:, None]
        own = self._fixed(decoding, admitted)
        return np.asarray(powers[admitted] * np.exp(-np.outer(own, s)))

    def _fixed(self, decoding: IntArray, admitted: IntArray) -> FloatArray:
        """Seconds of a step that do not depend on prompts, same shape."""
        law = self.step_time
        decode = np.where(decoding > 0, law.gamma + law.delta * decoding, 0.0)
        return np.asarray(decode + np.where(admitted > 0, law.beta, 0.0))

    @cached_property
    def state(self) -> FloatArray:
        """P(m decoding, q waiting) at the start of a step, shape (B + 1, ...).

        The chain is watched where a seat is free and, after a step of a full batch,
        where fewer than B wait: there it has few states, and the walk does the rest.
        """
        most, binomial = self.batch_size, self._going_on[-1]
        every = np.arange(most + 1)
        m, q = np.nonzero(np.add.outer(every, every[:-1]) < most)  # a seat is free
        k = np.where(m + q == 0, 1, q)  # an idle server starts with the next arrival
        circle = walk.circle_for(self._stays_and_comes, most, self.arrival_rate)
        steps = np.concatenate((m, every)), np.concatenate((k, most - every))
        scaled, circle = walk.scaled_counts(lambda z: self._arrivals(*steps, z), circle)
        few, busy = np.split(scaled, [len(m)])
        terms = scaled.shape[1]
        shrink = circle.shrinking(terms)
        total = np.zeros(terms + most)
        for j in every:  # those who go on, and the arrivals of a full step
            total[j : j + terms] += binomial[j] * circle.radius**j * busy[j]
        entry = walk.first_entry(total, most, circle)
        stay = np.vstack((self._going_on[m + k], np.tile(binomial, (most, 1))))
        come = np.vstack((few * shrink, np.eye(most, terms)))
        reach = walk.higher(walk.folded(busy * shrink, entry), entry, terms)
        chain = _watched(stay, come, reach, m, q)
        visits, queue = np.split(walk.stationary(chain), [len(m)])
        inflow = (self._going_on[m + k] * visits[:, None]).T @ few
        inflow[m, q] = 0.0
        start = inflow.copy()
        start[m, q] = -binomial[m] * (queue / circle.shrinking(most))[q]
        queue = _queue(start, busy, total, circle)
        state = np.zeros((most + 1, max(len(queue), terms)))
        state[:, : len(queue)] = np.outer(binomial, queue)
        state[:, :terms] += inflow * shrink
        state[m, q] = visits
        return np.asarray(state / state.sum())

    def _stays_and_comes(self, z: ComplexArray) -> ComplexArray:
        """E[z^(those who go on after a full step, and its arrivals)], same shape."""
        every = np.arange(self.batch_size + 1)
        arrivals = self._arrivals(every, self.batch_size - every, z)
        return np.asarray(self._going_on[-1] @ (arrivals * z ** every[:, None]))

    @cached_property
    def _step(self) -> dict[str, float]:
        """What a step and the idle time before it bring, means over steps."""
        m = np.arange(self.batch_size + 1)[:, None]
        q = np.arange(self.state.shape[1])
        inside = np.maximum(m + q, 1)  # an idle server starts with the next arrival
        admitted = np.minimum(inside - m, self.batch_size - m)
        tokens = self.step_time.alpha * self.prompts.expectation()
        spread = self.step_time.alpha**2 * self.prompts.variance()
        time = self._fixed(m, admitted) + tokens * admitted
        joining = self.arrival_rate * (time**2 + spread * admitted) / 2.0
        idle = (m + q == 0) / self.arrival_rate
        brings = {
            "admitted": admitted,
            "prefill": admitted * time,
            "running": m + admitted,
            "busy": time,
            "length": time + idle,
            "waiting": (inside - m - admitted) * time + joining,
            "inside": inside * time + joining,
        }
        return {name: float((self.state * its).sum()) for name, its in brings.items()}

    @property
    def mean(self) -> float:
        """E[W], seconds from arrival to admission."""
        return self._step["waiting"] / self._step["length"] / self.arrival_rate

    @property
    def mean_ttft(self) -> float:
        """E[time to first token], seconds."""
        return self.mean + self._step["prefill"] / self._step["admitted"]

    @property
    def mean_latency(self) -> float:
        """E[latency], seconds."""
        return self._step["inside"] / self._step["length"] / self.arrival_rate

    @property
    def mean_batch(self) -> float:
        """Requests in a step, the mean over steps."""
        return self._step["running"]

    @property
    def utilization(self) -> float:
        """Busy share of the time."""
        return self._step["busy"] / self._step["length"]


def _watched(
    stay: FloatArray, come: FloatArray, reach: FloatArray, m: IntArray, q: IntArray
) -> FloatArray:
    """The chain between watched states: free seats (m, q), then queues 0 ... B-1.

    Args:
        stay: P(j go on) after the step of each, shape (states, B + 1).
        come: P(so many wait) after it, shape (states, terms).
        reach: Where the queue is first below B, from m decoding and B - m + x waiting,
            after a full step and all that follow, shape (B + 1, terms, B).
        m: Decoding, where a seat is free.
        q: Waiting, there.
    """
    most = stay.shape[1] - 1
    beyond = [come[:, most - j :] for j in range(most + 1)]
    landed = (its @ reach[j, : its.shape[1]] for j, its in enumerate(beyond))
    queues = sum(stay[:, j : j + 1] * there for j, there in enumerate(landed))
    return np.concatenate((stay[:, m] * come[:, q], queues), axis=1)


def _queue(
    start: FloatArray, busy: FloatArray, total: FloatArray, circle: walk.Circle
) -> FloatArray:
    """How often q wait after a full step, q = 0, 1, ...

    Args:
        start: Scaled visits of full states after a free seat, less those of queues
            below B after a full step, shape (B + 1, terms).
        busy: Scaled arrivals in full steps, shape (B + 1, terms).
        total: Scaled law of those going on plus arrivals.
        circle: Of the scaled series.
    """
    z = circle.at(circle.points)
    found = np.zeros_like(z)
    for m, (before, arrivals) in enumerate(zip(start, busy, strict=True)):
        found += z**m * circle.values(arrivals) * circle.values(before)
    return circle.series(found / (z ** (len(busy) - 1) - circle.values(total)))
