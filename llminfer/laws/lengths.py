"""Laws of prompt and output lengths: sampling and exact moments in whole tokens.

Every law is a quantile function, one uniform number a request, so that one seed
gives smoothly moving lengths when a parameter moves; and a survival function on
whole tokens, from which the moments that theory needs are summed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.special import boxcox, inv_boxcox, ndtr, ndtri, xlog1py

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import build, choice, fail, inside, number, numbers, whole

Fields = Mapping[str, Any]
LAW_FIELDS = "_length_dist", "_dist_params"  # of a configuration, and of a class
_SUMMED = 2**15  # an endless law's survival is summed up to here, then integrated
_SUMMED_WHOLE = 2**20  # a law with a greatest token is summed to that, up to here


@dataclass(frozen=True)
class LengthLaw(ABC):
    """A law of whole token counts, at least 1."""

    def tokens(self, u: FloatArray) -> IntArray:
        """Token counts, the quantiles at ``u`` in [0, 1), same shape."""
        low, high = self.support
        real = np.nan_to_num(np.floor(self._quantile(u)), nan=1.0)
        tokens = np.clip(real, low, min(high, MOST_TOKENS))
        return np.asarray(tokens, dtype=np.int64)

    def quantile(self, u: FloatArray) -> IntArray:
        """The same, in order also where ``tokens`` are not: of parts that overlap."""
        return self.tokens(u)

    def survival(self, k: FloatArray) -> FloatArray:
        """P(tokens > k) for k >= 0; between whole numbers, a smooth continuation."""
        low, high = self.support
        inside = (k >= low) & (k < high)
        with np.errstate(divide="ignore", over="ignore"):
            smooth = self._exceeds(np.asarray(k, dtype=np.float64) + 1.0)
        return np.where(inside, smooth, np.where(k < low, 1.0, 0.0))

    @property
    @abstractmethod
    def support(self) -> tuple[int, float]:
        """Least and greatest token count; infinite if there is no greatest."""

    @abstractmethod
    def _quantile(self, u: FloatArray) -> FloatArray:
        """Real-valued quantiles, before the floor."""

    @abstractmethod
    def _exceeds(self, x: FloatArray) -> FloatArray:
        """P(X >= x) of the real value before floor and clipping."""

    def expectation(self, copies: int = 1) -> float:
        """E[M], tokens, with M the greatest of ``copies`` independent lengths."""
        return _summed(self, copies, 0)

    def pairs(self, copies: int = 1) -> float:
        """E[M(M-1)/2], tokens squared, with M the greatest of ``copies`` lengths."""
        return _summed(self, copies, 1)

    def partner(self, prompts: LengthLaw) -> LengthLaw:
        """The law of prompts that these outputs go with.

        Raises:
            ConfigError: It is another.
        """
        return prompts

    def beside(self, prompts: LengthLaw, at: FloatArray, own: FloatArray) -> IntArray:
        """Outputs of requests, tokens, same shape.

        Args:
            prompts: Law of their prompts.
            at: Which of its quantiles these are, in [0, 1).
            own: Which of the outputs' are theirs, where these do not depend on prompts.
        """
        return self.tokens(own)

    def of_class(self, number: int) -> LengthLaw:
        """The law of the requests of one class."""
        return self

    def weighted(self, prompts: LengthLaw) -> LengthLaw:
        """The law of outputs if a request counts as often as its prompt has tokens.

        This very law if outputs do not depend on prompts.
        """
        return self

    def joint(self, prompts: LengthLaw, copies: int = 1) -> float:
        """E[P M], tokens squared: a prompt, times the greatest of ``copies`` outputs.

        One of those outputs is the prompt's own.

        >>> Constant(4).joint(Constant(5)), Paired((1, 3)).joint(Empirical((1, 3)))
        (20.0, 5.0)
        """
        if (own := self.weighted(prompts)) is self:
            return prompts.expectation() * self.expectation(copies)
        return prompts.expectation() * _summed(self, copies, 0, own)

    @property
    def listed(self) -> float:
        """Sums over its tokens are taken one by one up to here."""
        high = self.support[1]
        return high if high <= _SUMMED_WHOLE else _SUMMED

    def variance(self) -> float:
        """Var[X], tokens squared."""
        mean = self.expectation()
        return 2.0 * self.pairs() + mean - mean * mean

    def pmf(self) -> FloatArray:
        """P(tokens = k) for k = 0, 1, ..., to the last that has a chance above 1e-15.

        Raises:
            ConfigError: The law reaches beyond a million tokens.
        """
        top = float(self.quantile(np.array([1.0 - 1e-15]))[0]) + 1.0
        top = min(top, self.support[1])
        if top > 1e6:
            raise fail("max", None, "given, or the law's table is endless")
        survival = self.survival(np.arange(-1.0, top + 1.0))
        # a difference of two numbers near 1 may come out a rounding below 0
        return np.maximum(survival[:-1] - survival[1:], 0.0)


@lru_cache(maxsize=4096)
def _summed(
    law: LengthLaw, copies: int, power: int, own: LengthLaw | None = None
) -> float:
    """Sum over k >= 0 of k^power P(M > k), M the greatest of ``copies``.

    One of them has the law ``own`` if that is given.
    """

    def term(k: FloatArray) -> FloatArray:
        some = law.survival(k)
        with np.errstate(divide="ignore"):
            if own is None:
                short = copies * np.log1p(-some)
            else:
                short = xlog1py(copies - 1, -some) + np.log1p(-own.survival(k))
        return -np.expm1(short) * k**power  # type: ignore[no-any-return]

    high, summed = law.support[1], law.listed
    total = float(term(np.arange(summed, dtype=np.float64)).sum())
    if high > summed:  # the sum's tail by its midpoint integral, on a log scale
        far = min(high, float(law.quantile(np.array([1.0 - 2.0**-53]))[0]) * 8.0)
        edges = np.linspace(math.log(summed - 0.5), math.log(far - 0.5), 65)
        nodes, weights = np.polynomial.legendre.leggauss(16)
        half = (edges[1:] - edges[:-1])[:, None] / 2.0
        x = np.exp(edges[:-1, None] + half * (nodes + 1.0))
        total += float((half * weights * term(x) * x).sum())
    return total


@lru_cache(maxsize=4096)
def mean_shortfall(
    law: LengthLaw, places: int, room: float, enters: float = 1.0, stays: float = 0.0
) -> float:
    """E[(room - S)+], tokens, for the sum S of what ``places`` places bring.

    Each brings a length of ``law``, or one token, or none, independently. Only sums
    below ``room`` matter: a power of the generating function is needed just so far.

    Args:
        law: Of lengths.
        places: How many.
        room: Tokens.
        enters: A place's chance of a length.
        stays: Its chance of one token.

    >>> round(mean_shortfall(Constant(10), 2, 15.0, enters=0.5), 9)  # none, or one
    6.25
    """
    if room > _SUMMED_WHOLE:  # far above all sums there are
        return max(room - places * (enters * law.expectation() + stays), 0.0)
    from scipy.signal import fftconvolve  # takes longer to import than all else here

    few = np.arange(int(room) + 1.0)
    one = enters * -np.diff(law.survival(np.append(-1.0, few)))
    one[:1] += 1.0 - enters - stays
    one[1:2] += stays
    total = np.eye(1, len(few))[0]
    for bit in bin(places)[2:]:
        total = fftconvolve(total, total)[: len(few)]
        if bit == "1":
            total = fftconvolve(total, one)[: len(few)]
    return float(total @ (room - few))


def _ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise fail(high_name, high, f"at least {low_name}={low:g}")


def _interval(law: LengthLaw, part: str = "") -> None:
    """Check the ends of an interval of lengths, ``min`` and ``max`` after ``part``."""
    names = f"{part}min", f"{part}max"
    low, high = (getattr(law, name) for name in names)
    number(names[0], low, least=1.0)
    number(names[1], high, least=1.0, most=MOST_TOKENS)
    _ordered(names[0], low, names[1], high)


@dataclass(frozen=True)
class LogNormal(LengthLaw):
    """exp of a normal with ``mu`` and ``sigma``; clipped to [``min``, ``max``]."""

    mu: float
    sigma: float
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        number("mu", self.mu, most=30.0)
        number("sigma", self.sigma, least=0.0, most=10.0)
        whole("min", self.min, 1, MOST_TOKENS)
        if self.max is not None:
            _ordered("min", self.min, "max", whole("max", self.max, 1, MOST_TOKENS))

    @property
    def support(self) -> tuple[int, float]:
        most = math.inf if self.max is None else self.max
        if self.sigma == 0.0:
            most = min(most, max(self.min, math.floor(math.exp(self.mu))))
        return self.min, most

    def _quantile(self, u: FloatArray) -> FloatArray:
        if self.sigma == 0.0:
            return np.full_like(u, math.exp(self.mu))
        return np.asarray(np.exp(self.mu + self.sigma * ndtri(u)))

    def _exceeds(self, x: FloatArray) -> FloatArray:
        if self.sigma == 0.0:
            return (x <= math.exp(self.mu)).astype(np.float64)
        return np.asarray(ndtr((self.mu - np.log(x)) / self.sigma))


class _Between(LengthLaw):
    """A law of real lengths from ``min`` to ``max``."""

    min: float
    max: float

    def __post_init__(self) -> None:
        _interval(self)

    @property
    def support(self) -> tuple[int, float]:
        return int(self.min), math.ceil(self.max)


@dataclass(frozen=True)
class Uniform(_Between):
    """Uniform on [``min``, ``max``]."""

    min: float
    max: float

    def _quantile(self, u: FloatArray) -> FloatArray:
        return self.min + (self.max - self.min) * u

    def _exceeds(self, x: FloatArray) -> FloatArray:
        if self.min == self.max:
            return (x <= self.min).astype(np.float64)
        return np.clip((self.max - x) / (self.max - self.min), 0.0, 1.0)


@dataclass(frozen=True)
class TruncatedNormal(_Between):
    """Normal given that it lies in [``min``, ``max``]: no atoms at the ends."""

    mu: float
    sigma: float
    min: float
    max: float

    def __post_init__(self) -> None:
        number("mu", self.mu)
        number("sigma", self.sigma, above=0.0)
        super().__post_init__()
        low, high = self._ends()
        if abs(low - high) < 1e-12:
            raise fail(
                "mu", self.mu, "near enough to [min, max] to have a chance there"
            )

    def _ends(self) -> tuple[float, float]:
        """P(X > min), P(X > max) of the normal before truncation."""
        low = float(ndtr((self.mu - self.min) / self.sigma))
        return low, float(ndtr((self.mu - self.max) / self.sigma))

    def _quantile(self, u: FloatArray) -> FloatArray:
        low, high = self._ends()
        return np.asarray(self.mu - self.sigma * ndtri(low - (low - high) * u))

    def _exceeds(self, x: FloatArray) -> FloatArray:
        low, high = self._ends()
        tail = ndtr((self.mu - x) / self.sigma)
        return np.asarray(np.clip((tail - high) / (low - high), 0.0, 1.0))


@dataclass(frozen=True)
class PowerLaw(_Between):
    """Density proportional to x^-``alpha`` on [``min``, ``max``]: no atom at max."""

    alpha: float
    min: float
    max: float

    def __post_init__(self) -> None:
        number("alpha", self.alpha, least=0.0, most=50.0)
        super().__post_init__()
        if self.min == self.max:
            raise fail("max", self.max, f"above min={self.min:g}")

    def _quantile(self, u: FloatArray) -> FloatArray:
        e = 1.0 - self.alpha
        return np.asarray(self.min * inv_boxcox(u * boxcox(self.max / self.min, e), e))

    def _exceeds(self, x: FloatArray) -> FloatArray:
        y = np.clip(x, self.min, self.max) / self.min
        e = 1.0 - self.alpha
        return np.asarray(1.0 - boxcox(y, e) / boxcox(self.max / self.min, e))


@dataclass(frozen=True)
class Bimodal(LengthLaw):
    """Uniform short with chance ``short_prob``, else uniform long."""

    short_min: float
    short_max: float
    long_min: float
    long_max: float
    short_prob: float

    def __post_init__(self) -> None:
        _interval(self, "short_")
        _interval(self, "long_")
        number("short_prob", self.short_prob, least=0.0, most=1.0)

    @property
    def _parts(self) -> tuple[Uniform, Uniform]:
        short = Uniform(self.short_min, self.short_max)
        return short, Uniform(self.long_min, self.long_max)

    @property
    def support(self) -> tuple[int, float]:
        low = min(self.short_min, self.long_min)
        return int(low), math.ceil(max(self.short_max, self.long_max))

    def _quantile(self, u: FloatArray) -> FloatArray:
        (short, long), share = self._parts, self.short_prob
        with np.errstate(divide="ignore", invalid="ignore"):  # a part of no requests
            of_short = short._quantile(u / share)
            of_long = long._quantile((u - share) / (1.0 - share))
        return np.where(u < share, of_short, of_long)

    def quantile(self, u: FloatArray) -> IntArray:
        shares = self.short_prob, 1.0 - self.short_prob
        return ByClass(self._parts, shares).tokens(u)

    def _exceeds(self, x: FloatArray) -> FloatArray:
        short, long = (part._exceeds(x) for part in self._parts)
        return self.short_prob * short + (1.0 - self.short_prob) * long


@dataclass(frozen=True)
class Geometric(LengthLaw):
    """Geometric from 1 with ``mean`` before the clip at ``max``."""

    mean: float
    max: int | None = None

    def __post_init__(self) -> None:
        number("mean", self.mean, least=1.0, most=1e9)
        if self.max is not None:
            whole("max", self.max, 1, MOST_TOKENS)

    @property
    def support(self) -> tuple[int, float]:
        return 1, math.inf if self.max is None else self.max

    @property
    def _log_fail(self) -> float:
        """log(1 - p), p = 1/mean."""
        if self.mean == 1.0:
            return -math.inf
        return math.log1p(-1.0 / self.mean)

    def _quantile(self, u: FloatArray) -> FloatArray:
        return 1.0 + np.log1p(-u) / self._log_fail

    def _exceeds(self, x: FloatArray) -> FloatArray:
        return np.exp((np.maximum(x, 1.0) - 1.0) * max(self._log_fail, -1e300))


@dataclass(frozen=True)
class Constant(LengthLaw):
    """Always ``value``."""

    value: int

    def __post_init__(self) -> None:
        whole("value", self.value, 1, MOST_TOKENS)

    @property
    def support(self) -> tuple[int, float]:
        return self.value, self.value

    def _quantile(self, u: FloatArray) -> FloatArray:
        return np.full_like(u, self.value)

    def _exceeds(self, x: FloatArray) -> FloatArray:
        return (x <= self.value).astype(np.float64)


@dataclass(frozen=True)
class Empirical(LengthLaw):
    """One of ``values``, each with its weight (None: all alike)."""

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        values = numbers("values", self.values, 1.0, MOST_TOKENS)
        object.__setattr__(self, "values", values)
        if self.weights is not None:
            weights = numbers("weights", self.weights, 0.0)
            object.__setattr__(self, "weights", weights)
            if len(weights) != len(values):
                raise fail("weights", weights, f"as many as values: {len(values)}")

    @cached_property
    def _table(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Token counts in order, P(tokens <= each), and which of ``values`` each is."""
        weights = self.weights or (1.0,) * len(self.values)
        order = np.argsort(self.values, kind="stable")
        below = np.cumsum(np.asarray(weights, dtype=np.float64)[order])
        return np.floor(np.asarray(self.values)[order] * 1.0), below / below[-1], order

    @property
    def support(self) -> tuple[int, float]:
        values = self._table[0]
        return int(values[0]), float(values[-1])

    def rows(self, u: FloatArray) -> IntArray:
        """Which of ``values`` the quantiles at ``u`` in [0, 1) are, same shape."""
        _, below, order = self._table
        return order[
            np.minimum(np.searchsorted(below, u, side="right"), len(order) - 1)
        ]

    def _quantile(self, u: FloatArray) -> FloatArray:
        return np.asarray(self.values, dtype=np.float64)[self.rows(u)]

    def _exceeds(self, x: FloatArray) -> FloatArray:
        values, below, _ = self._table
        fewer = np.searchsorted(values, x, side="left")
        return 1.0 - np.concatenate(([0.0], below))[fewer]


@dataclass(frozen=True)
class Paired(Empirical):
    """Outputs by row: a request has the output of the row its prompt is drawn from.

    Prompts are empirical, of as many values and the same weights; each law alone is
    what it is without the other.

    >>> outputs, prompts = Paired((7, 8, 9)), Empirical((30, 10, 20))
    >>> outputs.beside(prompts, np.array([0.1, 0.9]), np.zeros(2))
    array([8, 7])
    >>> prompts.tokens(np.array([0.1, 0.9]))
    array([10, 30])
    """

    def partner(self, prompts: LengthLaw) -> Empirical:
        its = prompts if isinstance(prompts, Empirical) else None
        n = len(self.values)
        if its is None or (len(its.values), its.weights) != (n, self.weights):
            must = f"empirical, of {n} values with the weights of the paired outputs"
            raise fail("prompt_length_dist", prompts, must)
        return its

    def beside(self, prompts: LengthLaw, at: FloatArray, own: FloatArray) -> IntArray:
        rows = self.partner(prompts).rows(at)
        return np.asarray(self.values)[rows].astype(np.int64)

    def weighted(self, prompts: LengthLaw) -> LengthLaw:
        tokens = np.floor(self.partner(prompts).values)
        weights = tokens * np.asarray(self.weights or 1.0)
        return Empirical(self.values, tuple(weights.tolist()))


@dataclass(frozen=True)
class ByClass(LengthLaw):
    """Lengths of all classes together, each of which has its law and its share.

    >>> law = ByClass((Constant(4), Constant(10)), (3.0, 1.0))
    >>> law.expectation(), law.tokens(np.array([0.7, 0.8])).tolist()
    (5.5, [4, 10])
    """

    laws: tuple[LengthLaw, ...]
    shares: tuple[float, ...]

    @cached_property
    def there(self) -> dict[int, float]:
        """The part of all requests that each class has, if it has any, by number."""
        total = sum(self.shares)
        return {k: share / total for k, share in enumerate(self.shares) if share > 0.0}

    @property
    def support(self) -> tuple[int, float]:
        low, high = zip(*(self.laws[k].support for k in self.there), strict=True)
        return min(low), max(high)

    @property
    def listed(self) -> float:
        return max(self.laws[k].listed for k in self.there)

    def _quantile(self, u: FloatArray) -> FloatArray:
        each = [self.laws[k].quantile(u) for k in self.there]
        low, high = np.min(each, axis=0), np.max(each, axis=0)
        while (low < high).any():  # it lies between those of the classes
            middle = (low + high) // 2
            short = 1.0 - self.survival(middle) <= u
            low, high = np.where(short, middle + 1, low), np.where(short, high, middle)
        return np.asarray(high, dtype=np.float64)

    def _exceeds(self, x: FloatArray) -> FloatArray:
        parts = [
            part * self.laws[k].survival(x - 1.0) for k, part in self.there.items()
        ]
        return np.asarray(np.minimum(np.sum(parts, axis=0), 1.0))

    def of_class(self, number: int) -> LengthLaw:
        return self.laws[number]

    def weighted(self, prompts: LengthLaw) -> LengthLaw:
        of = [prompts.of_class(k) for k in range(len(self.laws))]
        laws = tuple(law.weighted(its) for law, its in zip(self.laws, of, strict=True))
        if laws == self.laws and not isinstance(prompts, ByClass):
            return self
        tokens = [its.expectation() for its in of]
        return ByClass(laws, tuple(np.multiply(self.shares, tokens).tolist()))


def by_class(laws: Sequence[LengthLaw], shares: Sequence[float]) -> LengthLaw:
    """The law of all classes together: if they are alike, that of each."""
    first = laws[0]
    alike = all(law == first for law in laws) and not isinstance(first, Paired)
    if alike or len(laws) == 1:
        return first
    return ByClass(tuple(laws), tuple(shares))


def drawn_lengths(
    laws: tuple[LengthLaw, LengthLaw],
    classes: IntArray,
    at: FloatArray,
    own: FloatArray,
) -> tuple[IntArray, IntArray]:
    """Prompts and outputs of requests, tokens, each from the laws of its class.

    Args:
        laws: Of prompts, and of outputs.
        classes: Class numbers, shape (n,).
        at: Which quantiles the prompts are, in [0, 1), same shape.
        own: Which the outputs are, where these do not depend on prompts.
    """
    prompts, outputs = laws
    if not isinstance(prompts, ByClass) and not isinstance(outputs, ByClass):
        return prompts.tokens(at), outputs.beside(prompts, at, own)
    found = np.zeros((2, len(classes)), dtype=np.int64)
    for kind in np.unique(classes):
        its, law = prompts.of_class(kind), outputs.of_class(kind)
        some = np.flatnonzero(classes == kind)
        found[0, some] = its.tokens(at[some])
        found[1, some] = law.beside(its, at[some], own[some])
    return found[0], found[1]


LENGTH_LAWS: Mapping[str, type[LengthLaw]] = {
    "lognormal": LogNormal,
    "uniform": Uniform,
    "truncated_normal": TruncatedNormal,
    "powerlaw": PowerLaw,
    "bimodal": Bimodal,
    "geometric": Geometric,
    "constant": Constant,
    "empirical": Empirical,
}
_OUTPUT_LAWS: Mapping[str, type[LengthLaw]] = {**LENGTH_LAWS, "paired": Paired}


def length_law(which: str, name: str, params: Mapping[str, Any]) -> LengthLaw:
    """The law ``name`` with parameters ``params`` (DESIGN section 2 has the table).

    Args:
        which: ``"prompt"`` or ``"output"``, for messages.
        name: One of ``LENGTH_LAWS``; for outputs also ``paired``.
        params: Its parameters by name.

    Raises:
        ConfigError: Unknown law, unknown or missing parameter, or a bad value.

    >>> law = length_law("prompt", "uniform", {"min": 10, "max": 20})
    >>> law.tokens(np.array([0.0, 0.55, 0.99])).tolist()
    [10, 15, 19]
    """
    laws = _OUTPUT_LAWS if which == "output" else LENGTH_LAWS
    law = laws[choice(f"{which}_length_dist", name, laws)]
    return build(law, name, params, f"{which}_dist_params")


def length_laws(
    which: str, name: str, params: Fields, classes: Mapping[str, Fields]
) -> list[LengthLaw]:
    """The law of each class; or the law of all, if no class brings one of its own.

    Args:
        which: ``"prompt"`` or ``"output"``.
        name: Of the law that a class has if it brings none.
        params: Of that law.
        classes: By name, each with the fields that it brings.

    Raises:
        ConfigError: As ``length_law``; names the class.
    """
    laws = [length_law(which, name, params)]
    given = (field for its in classes.values() for field in its)
    unlike = any(field.endswith(LAW_FIELDS) for field in given)
    for of, its in classes.items() if unlike else ():
        own, its_params = (its.get(which + end) for end in LAW_FIELDS)
        with inside(f"request_classes.{of}"):
            laws.append(length_law(which, own or name, its_params or params))
    return laws[1:] or laws  # of each class, or of all
