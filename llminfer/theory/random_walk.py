"""Queues as random walks: up by a count, down by at most a fixed step.

While more than a batch waits, what is left after a service is what was there, less
a step of B, plus a count of arrivals. How such a walk first comes below B follows
from a Wiener-Hopf factor, which two Fourier transforms find, without any roots.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail
from llminfer.theory.service_time import ComplexArray

_FEWEST, _MOST = 2**9, 2**20  # points of a Fourier transform
_REACH = 8.0  # radius^B is at most exp of this: what rounding is multiplied by

Generating = Callable[[ComplexArray], ComplexArray]


class Circle(NamedTuple):
    """A circle |z| = radius just outside 1, where nothing vanishes.

    Series are handled by their coefficients times radius^k, "scaled".
    """

    radius: float
    points: int

    def at(self, points: int) -> ComplexArray:
        """Half of ``points`` points round the circle, in the order of ``rfft``."""
        turn = np.arange(points // 2 + 1) / points
        return np.asarray(self.radius * np.exp(-2j * math.pi * turn))

    def values(self, scaled: FloatArray) -> ComplexArray:
        """A series at all the points, from its scaled coefficients."""
        return np.asarray(np.fft.rfft(scaled, self.points))

    def series(self, values: ComplexArray) -> FloatArray:
        """A series of chances from its values, to the last that is above 1e-17."""
        found = np.fft.irfft(values, self.points) * self.shrinking(self.points)
        keep = int(np.max(np.flatnonzero(found > 1e-17), initial=0)) + 1
        return np.maximum(found[:keep], 0.0)

    def shrinking(self, terms: int) -> FloatArray:
        """radius^-k for k = 0, 1, ..., shape (terms,)."""
        return np.asarray(np.exp(-math.log(self.radius) * np.arange(terms)))


def circle_for(count: Generating, step: int, arrival_rate: float) -> Circle:
    """A circle between 1 and the walk's decay, with points enough for all digits.

    Args:
        count: E[z^count] of the upward part, for real z > 1 too.
        step: B, the step down.
        arrival_rate: For the message.

    Raises:
        ConfigError: The load is so near 1 that a million points are too few.
    """
    height = min(_REACH / step, 1.0) * np.logspace(-5.0, 0.0, 61)
    with np.errstate(all="ignore"):
        drift = np.log(count(np.exp(height).astype(np.complex128)).real)
    drift -= step * height
    drift[~np.isfinite(drift)] = math.inf
    best = float(height[np.argmin(drift)])
    points = 2 ** math.ceil(math.log2(64.0 / best))
    if points > _MOST or drift.min() >= 0.0:
        must = "lower: the load is too near 1 for the queue to be solved"
        raise fail("arrival_rate", arrival_rate, must)
    return Circle(math.exp(best), max(points, _FEWEST))


def scaled_counts(count: Generating, circle: Circle) -> tuple[FloatArray, Circle]:
    """Scaled probabilities of counts, shape (..., terms), from E[z^count].

    Args:
        count: Takes z of shape (n,), returns (..., n).
        circle: Where it is evaluated; comes back with points enough for the terms.

    Raises:
        ConfigError: The counts reach too far to be listed.
    """
    points = _FEWEST
    while points <= _MOST // 8:
        scaled = np.fft.irfft(count(circle.at(points)), points)
        end = np.abs(scaled[..., -points // 4 :]).max(axis=-1)
        if (end <= 1e-14 * scaled.sum(axis=-1)).all():
            enough = circle._replace(points=max(circle.points, 2 * points))
            return scaled[..., : points - points // 4], enough
        points *= 2
    must = "lower: a step may see more arrivals than can be listed"
    raise ConfigError(f"prompt_dist_params.max: must be {must}")


def first_entry(scaled: FloatArray, step: int, circle: Circle) -> FloatArray:
    """Where a walk that starts at B first comes below B: chances of 0 ... B-1.

    The factor of 1 - z^-B E[z^count] in 1/z is the exponential of the negative half
    of its logarithm's Laurent series (Wiener and Hopf 1931, Spitzer 1957).

    Args:
        scaled: Scaled probabilities of the count a step, shape (terms,).
        step: B.
        circle: Where the logarithm is expanded.
    """
    points = circle.points
    log = np.log1p(-circle.values(scaled) / circle.at(points) ** step)
    series = np.fft.irfft(log, points)[: points // 2 : -1]  # of 1/z, 1/z^2, ...
    factor = np.zeros(step + 1)
    factor[0] = 1.0
    weighted = series[:step] * np.arange(1, step + 1)
    for n in range(1, step + 1):
        factor[n] = weighted[:n] @ factor[n - 1 :: -1][:n] / n
    entry = np.maximum(-(factor / circle.shrinking(step + 1))[:0:-1], 0.0)
    return np.asarray(entry / entry.sum())


def folded(law: FloatArray, entry: FloatArray) -> FloatArray:
    """A start's law carried to the first visit below B, shape (..., B).

    Args:
        law: Chances of starting at 0, 1, ..., shape (..., terms).
        entry: From ``first_entry``, shape (B,).
    """
    step = len(entry)
    if law.shape[-1] <= step:
        short = [(0, 0)] * (law.ndim - 1) + [(0, step - law.shape[-1])]
        return np.pad(law, short)
    reach = higher(entry, entry, law.shape[-1] - step)  # from B, B + 1, ...
    return np.asarray(law[..., :step] + law[..., step:] @ reach)


def higher(first: FloatArray, entry: FloatArray, starts: int) -> FloatArray:
    """The first visit below B from starts that are 0, 1, ... higher than of ``first``.

    Args:
        first: Its law, shape (..., B).
        entry: From ``first_entry``, shape (B,).
        starts: How many, at least 1.

    Returns:
        Shape (..., starts, B).
    """
    found = np.empty((*first.shape[:-1], starts, len(entry)))
    found[..., 0, :] = first
    for x in range(1, starts):
        found[..., x, :] = found[..., x - 1, -1:] * entry
        found[..., x, 1:] += found[..., x - 1, :-1]
    return found


def stationary(chain: FloatArray) -> FloatArray:
    """The stationary law of a chain's matrix of transitions, shape (n,)."""
    unit = np.eye(len(chain))
    system = chain.T - unit
    system[0] = 1.0
    return np.asarray(np.maximum(np.linalg.solve(system, unit[0]), 0.0))
