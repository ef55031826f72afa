"""Prompts that begin alike: which of several system prompts a request has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import number, whole
from llminfer.laws.lengths import LengthLaw


@dataclass(frozen=True)
class SharedPrefixes:
    """One of ``count`` system prompts of ``tokens`` tokens before each prompt.

    Prompt k = 1, 2, ... is drawn with a chance in proportion to k^-``zipf``: 0 draws
    all alike.

    >>> SharedPrefixes(2, 100, zipf=1.0).segments(np.array([0.0, 0.6, 0.7]))
    (((0, 100),), ((0, 100),), ((1, 100),))
    """

    count: int
    tokens: int
    zipf: float = 0.0

    def __post_init__(self) -> None:
        whole("count", self.count, 1)
        whole("tokens", self.tokens, 1)
        number("zipf", self.zipf, least=0.0)

    def segments(self, u: FloatArray) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The path of each request, from a number in [0, 1) each."""
        below = np.cumsum(np.arange(1.0, self.count + 1.0) ** -self.zipf)
        drawn = np.searchsorted(below / below[-1], u, side="right")
        paths = [((k, self.tokens),) for k in range(self.count)]
        return tuple(paths[k] for k in drawn)


@dataclass(frozen=True)
class Longer(LengthLaw):
    """Lengths of another law, and so many tokens more."""

    law: LengthLaw
    more: int

    @property
    def support(self) -> tuple[int, float]:
        low, high = self.law.support
        return low + self.more, high + self.more

    def _quantile(self, u: FloatArray) -> FloatArray:
        return self.law._quantile(u) + self.more

    def _exceeds(self, x: FloatArray) -> FloatArray:
        return self.law._exceeds(np.maximum(x - self.more, 1.0))
