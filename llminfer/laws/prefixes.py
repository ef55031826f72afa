"""Prompts that begin alike: paths of segments, and a law of system prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index

import numpy as np

from llminfer.base.arrays import MOST_TOKENS, FloatArray, IntArray
from llminfer.base.errors import TraceError, number, whole
from llminfer.laws.lengths import LengthLaw

Segments = tuple[tuple[tuple[int, int], ...], ...]  # (id, tokens) by request


def checked_paths(
    given: Iterable[Iterable[tuple[int, int]]], room: IntArray
) -> Segments:
    """The path of each request, if it can be.

    Args:
        given: (id, tokens) pairs by request.
        room: The tokens of each one's prompt and answer, shape (n,).

    Raises:
        TraceError: Not a path a request, or of more tokens than it has.
    """
    try:
        paths = tuple(tuple((index(i), index(t)) for i, t in p) for p in given)
    except (TypeError, ValueError):
        raise TraceError("segments: must be a path of (id, tokens) a request") from None
    if len(paths) != len(room):
        raise TraceError(
            f"segments: {len(paths)} paths: must be {len(room)}, a request"
        )
    for i, (path, most) in enumerate(zip(paths, room.tolist(), strict=True)):
        tokens = [its for _, its in path]
        if min(tokens, default=1) < 1 or sum(tokens) > most:
            must = f"of tokens, at most the {most} of its prompt and output"
            raise TraceError(f"segments[{i}]={list(path)}: must be {must}")
    return paths


def rounds(segments: Segments | None, times: int) -> Segments | None:
    """The paths of so many rounds of the same requests, each with ids of its own.

    >>> rounds((((5, 30),), ()), times=2)
    (((10, 30),), (), ((11, 30),), ())
    """
    return segments and tuple(
        tuple((name * times + turn, tokens) for name, tokens in path)
        for turn in range(times)
        for path in segments
    )


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
        whole("count", self.count, 1, most=10**6)
        whole("tokens", self.tokens, 1, most=MOST_TOKENS)
        number("zipf", self.zipf, least=0.0)

    def segments(self, u: FloatArray) -> Segments:
        """The path of each request, from a number in [0, 1) each."""
        below = np.cumsum(np.arange(1.0, self.count + 1.0) ** -self.zipf)
        drawn = np.searchsorted(below / below[-1], u, side="right")
        paths = [((k, self.tokens),) for k in range(self.count)]
        return tuple(paths[k] for k in drawn.tolist())


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
