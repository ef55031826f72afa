"""Service times as random variables: exact moments, transforms, and their inversion.

Token counts are whole numbers with known laws, so the time of a batch is known to the
last digit: its moments from those of prompt and output, its Laplace transform from
their generating functions. Nothing here is sampled.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numpy.polynomial.chebyshev import chebpts1, chebvander

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail, number
from llminfer.laws.lengths import ByClass, LengthLaw
from llminfer.timing import StepTime

ComplexArray = npt.NDArray[np.complex128]

_BLOCK = 512  # points of a transform evaluated at once, to bound memory


class Service(Protocol):
    """A law of service times."""

    def moment(self, power: int) -> float:
        """E[S^power], seconds to that power, for powers 1 to 3."""

    def transform(self, s: ComplexArray) -> ComplexArray:
        """E[exp(-s S)] at ``s`` in 1/seconds, same shape."""


@dataclass(frozen=True)
class BatchTime:
    """T_b: a static batch prefills b prompts and decodes to the longest output.

    Given that output m, T_b = (alpha + kappa m) (sum of prompts) + beta +
    m (gamma + delta b) + kappa b m (m-1)/2, and the law of m is F^b.

    Args:
        step_time: The coefficients.
        prompts: Law of prompt tokens.
        outputs: Law of output tokens.
        size: b, requests in the batch.
    """

    step_time: StepTime
    prompts: LengthLaw
    outputs: LengthLaw
    size: int = 1

    def moment(self, power: int) -> float:
        longest = longest_output(self.prompts, self.outputs, [self.size])[0]
        m = np.arange(len(longest), dtype=np.float64)
        law = self.step_time
        slope = law.alpha + law.kappa * m
        fixed = law.beta + law.decode(self.size, 0.0, m)
        tokens = _sum_moments(self.prompts, self.size, power)
        terms = (
            math.comb(power, i) * slope**i * fixed ** (power - i) * tokens[i]
            for i in range(power + 1)
        )
        return float(longest @ sum(terms))

    def transform(self, s: ComplexArray) -> ComplexArray:
        parts = (self.step_time, self.prompts, self.outputs)
        values = batch_transforms(*parts, [self.size], s.ravel())[0]
        return np.asarray(values.reshape(s.shape))


@dataclass(frozen=True)
class AnyClassTime:
    """The time of a request alone, which may be of any class.

    Args:
        parts: Of each class the share of requests, and the time.
    """

    parts: tuple[tuple[float, BatchTime], ...]

    def moment(self, power: int) -> float:
        return sum(share * time.moment(power) for share, time in self.parts)

    def transform(self, s: ComplexArray) -> ComplexArray:
        each = [share * time.transform(s) for share, time in self.parts]
        return np.asarray(np.sum(each, axis=0))


def time_alone(step_time: StepTime, prompts: LengthLaw, outputs: LengthLaw) -> Service:
    """The time of a batch of one, whose prompt and output may depend on its class.

    >>> from llminfer.laws.lengths import Constant
    >>> law = StepTime(alpha=0.0, beta=0.0, gamma=0.5)
    >>> both = ByClass((Constant(4), Constant(10)), (3.0, 1.0))
    >>> time_alone(law, Constant(9), both).moment(1)
    2.75
    """
    its = outputs if isinstance(outputs, ByClass) else prompts
    shares = its.there if isinstance(its, ByClass) else {0: 1.0}
    laws = [(prompts.of_class(k), outputs.of_class(k)) for k in shares]
    times = [BatchTime(step_time, *law) for law in laws]
    return AnyClassTime(tuple(zip(shares.values(), times, strict=True)))


@lru_cache(maxsize=64)
def batch_moments(
    step_time: StepTime, prompts: LengthLaw, outputs: LengthLaw, sizes: range
) -> tuple[FloatArray, FloatArray]:
    """E[T_b] and E[T_b^2] for each b of ``sizes``; not to be written to.

    Args:
        step_time: The coefficients.
        prompts: Law of prompt tokens, with or without a cap.
        outputs: Law of output tokens, within a million.
        sizes: b.
    """
    times = [BatchTime(step_time, prompts, outputs, size) for size in sizes]
    mean, square = (np.array([t.moment(p) for t in times]) for p in (1, 2))
    for moments in (mean, square):
        moments.flags.writeable = False
    return mean, square


def batch_transforms(
    step_time: StepTime,
    prompts: LengthLaw,
    outputs: LengthLaw,
    sizes: Sequence[int],
    s: ComplexArray,
) -> ComplexArray:
    """E[exp(-s T_b)] for each b of ``sizes``, shape (sizes, s).

    A mixture over the longest output, exact with delta and kappa too.

    Args:
        step_time: The coefficients.
        prompts: Law of prompt tokens, within a million.
        outputs: Law of output tokens, within a million.
        sizes: b, increasing.
        s: Arguments in 1/seconds, shape (n,).
    """
    longest = longest_output(prompts, outputs, sizes)
    law, pmf = step_time, token_pmf(prompts)
    if law.delta == law.kappa == 0.0:  # then prompts and longest output are apart
        each = exponential_sum(pmf, law.alpha * s) ** np.array(sizes)[:, None]
        decode = exponential_sum(longest, law.gamma * s)
        return np.asarray(decode * each * np.exp(-law.beta * s))
    blocks = [_mixed(law, pmf, longest, sizes, part) for part in _parts(s, _BLOCK)]
    return np.concatenate(blocks, axis=1)


def _mixed(
    law: StepTime,
    pmf: FloatArray,
    longest: FloatArray,
    sizes: Sequence[int],
    s: ComplexArray,
) -> ComplexArray:
    """``batch_transforms`` where the longest output stretches the prompts' part."""
    steps = np.flatnonzero((longest > 1e-16).any(axis=0))
    longest = longest[:, steps]
    own = law.delta * steps + law.kappa * steps * (steps - 1.0) / 2.0
    each = _stretched(pmf, np.asarray(law.alpha + law.kappa * steps), s)
    each *= np.exp(-np.outer(own, s))
    common = np.exp(-np.outer(law.beta + law.gamma * steps, s))
    found, last = np.empty((len(sizes), len(s)), dtype=np.complex128), 0
    for row, size in enumerate(sizes):
        common = common * each ** (size - last)
        found[row], last = longest[row] @ common, size
    return found


def _stretched(pmf: FloatArray, slopes: FloatArray, s: ComplexArray) -> ComplexArray:
    """E[exp(-slope s P)], shape (slopes, s), by Chebyshev where slopes are many.

    As a function of the slope it is entire and turns through at most ``turn``
    radians, so a little more than ``turn`` nodes give all digits.
    """
    low, high = float(slopes[0]), float(slopes[-1])
    turn = float(np.abs(s).max()) * (high - low) / 2.0 * len(pmf)
    nodes = int(turn + 6.0 * turn ** (1.0 / 3.0)) + 20
    if nodes >= len(slopes):
        return exponential_sum(pmf, np.outer(slopes, s))
    at = chebpts1(nodes)
    slope = (low + high + at * (high - low)) / 2.0
    values = exponential_sum(pmf, np.outer(slope, s))
    to_series = chebvander(at, nodes - 1).T * (2.0 / nodes)
    to_series[0] /= 2.0
    x = (2.0 * slopes - low - high) / (high - low)
    return np.asarray(chebvander(x, nodes - 1) @ to_series @ values)


def exponential_sum(coefficients: FloatArray, theta: ComplexArray) -> ComplexArray:
    """The sum over k of coefficients[..., k] exp(-k theta), shape (..., *theta's).

    In rows of sqrt(n) coefficients, so that n terms cost a matrix product and
    2 sqrt(n) exponentials; in blocks too small for the product to be worth threads.
    """
    terms, lead = coefficients.shape[-1], coefficients.shape[:-1]
    if not theta.size or not terms:
        return np.zeros((*lead, *theta.shape), dtype=np.complex128)
    width = math.isqrt(terms - 1) + 1
    rows = -(-terms // width)
    table = np.zeros((*lead, rows * width))
    table[..., :terms] = coefficients
    table = table.reshape(-1, width)
    found = []
    for part in _parts(theta, max(2**18 // table.size, 1)):
        inner = table @ _exponentials(part, width).view(np.float64)
        inner = inner.view(np.complex128).reshape(-1, rows, len(part))
        found.append((inner * _exponentials(width * part, rows)).sum(axis=1))
    return np.concatenate(found, axis=-1).reshape(*lead, *theta.shape)


def _exponentials(theta: ComplexArray, count: int) -> ComplexArray:
    """exp(-k theta) for k = 0 ... count - 1, shape (count, theta), by doubling."""
    found = np.ones((count, len(theta)), dtype=np.complex128)
    known = 1
    while known < count:
        more = min(known, count - known)
        found[known : known + more] = found[:more] * np.exp(-known * theta)
        known += more
    return found


def power_series(coefficients: FloatArray, z: ComplexArray) -> ComplexArray:
    """The sum over k of coefficients[k] z^k, same shape as ``z``."""
    return exponential_sum(coefficients, -np.log(np.where(z == 0.0, 1e-300, z)))


def _parts(s: ComplexArray, size: int) -> list[ComplexArray]:
    flat = s.ravel()
    return [flat[i : i + size] for i in range(0, max(len(flat), 1), size)]


@lru_cache(maxsize=64)
def token_pmf(law: LengthLaw) -> FloatArray:
    """P(tokens = k), k = 0, 1, ..., summing to 1; not to be written to."""
    pmf = law.pmf()
    pmf /= pmf.sum()
    pmf.flags.writeable = False
    return pmf


def longest_output(
    prompts: LengthLaw, outputs: LengthLaw, sizes: Sequence[int]
) -> FloatArray:
    """P(greatest of b outputs = k) for each b of ``sizes``, shape (sizes, tokens).

    Raises:
        ConfigError: Outputs depend on prompts: then this says too little of a batch.
    """
    if outputs.weighted(prompts) is not outputs:
        if isinstance(outputs, ByClass):
            must = "alike in prompts or in outputs for theory of batches"
            raise fail("request_classes", outputs.laws, must)
        raise fail("output_length_dist", "paired", "independent of prompts for theory")
    below = np.minimum(np.cumsum(token_pmf(outputs)), 1.0)
    return np.diff(below ** np.array(sizes)[:, None], axis=1, prepend=0.0)


def _sum_moments(law: LengthLaw, copies: int, most: int) -> list[float]:
    """E[(sum of ``copies`` lengths)^i], i = 0 ... ``most`` <= 3, by cumulants."""
    mean = law.expectation()
    first, second, third = copies * mean, copies * law.variance(), 0.0
    if most >= 3:
        pmf = token_pmf(law)
        third = copies * float(pmf @ (np.arange(len(pmf)) - mean) ** 3)
    cube = first**3 + 3.0 * first * second + third
    return [1.0, first, second + first * first, cube][: most + 1]


_SHIFT = 23.0  # A of the Euler method: discretisation error exp(-A) = 1e-10
_PLAIN, _AVERAGED = 40, 12


def invert(
    transform: Callable[[ComplexArray], ComplexArray], t: FloatArray
) -> FloatArray:
    """f(t) from its Laplace transform, shape (..., n) for t > 0 of shape (n,).

    Good to about 1e-9 where f is smooth, to 1e-6 behind services that are capped,
    and to 5e-4 at the corners that waits behind a constant service have.

    Args:
        transform: The transform at arguments of shape (m,), returning (..., m).
        t: Seconds, above 0.

    Source: Abate and Whitt (2006), the Euler algorithm.
    """
    k = np.arange(_PLAIN + _AVERAGED + 1)
    terms = [math.comb(_AVERAGED, j) / 2.0**_AVERAGED for j in range(_AVERAGED + 1)]
    weight = np.ones(len(k))
    weight[_PLAIN:] = np.cumsum(terms[::-1])[::-1]
    weight[0] = 0.5
    signed = weight * (1.0 - 2.0 * (k % 2)) * math.exp(_SHIFT / 2.0)
    nodes = np.asarray((_SHIFT / 2.0 + 1j * math.pi * k) / t[:, None], np.complex128)
    values = transform(nodes.ravel()).real
    values = values.reshape(*values.shape[:-1], *nodes.shape)
    return np.asarray((values @ signed) / t)


class WaitLaw(ABC):
    """A wait in queue whose distribution is known by its transform."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """E[W], seconds."""

    @abstractmethod
    def _exceeds(self, t: FloatArray) -> FloatArray:
        """P(W > t) for t > 0, shape (n,)."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """P(W > 0)."""

    def survival(self, t: npt.ArrayLike) -> FloatArray:
        """P(W > t), same shape as ``t`` in seconds, t >= 0."""
        at = np.asarray(t, dtype=np.float64)
        number("t", float(at.min()), least=0.0)
        result = np.full(at.shape, self.chance)
        later = at > 0.0
        if later.any():
            result[later] = np.clip(self._exceeds(at[later]), 0.0, 1.0)
        return result

    def quantile(self, q: float) -> float:
        """The wait, seconds, that a share ``q`` of requests does not exceed.

        Args:
            q: Between 0 and 0.99999; 0.99 for the p99.

        Raises:
            ConfigError: ``q`` is outside.
        """
        beyond = 1.0 - number("q", q, least=0.0, most=0.99999)
        if beyond >= self.chance:
            return 0.0

        def short(t: float) -> float:
            left = float(self.survival(np.array([t]))[0])
            return math.log(max(left, 1e-12) / beyond)

        high = self.mean / self.chance * math.log(self.chance / beyond)
        while short(high) > 0.0:
            high *= 1.5
        from scipy.optimize import brentq

        return float(brentq(short, 0.0, high, xtol=1e-8 * high, rtol=1e-8))
