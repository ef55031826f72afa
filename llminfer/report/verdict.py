"""Verdicts: a hypothesis, and what an interval says of it."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Self

from llminfer.base.errors import fail, number
from llminfer.report.latex import escape, shown, shown_with_bounds
from llminfer.stats.intervals import Estimate, Row

_COLORS = {"supported": "#009E73", "refuted": "#D55E00", "undecided": "#666666"}


@dataclass(frozen=True, repr=False)
class Verdict:
    """A hypothesis that a quantity lies in a range, judged by its interval.

    The outcome follows from the numbers and cannot be set. Make one with
    ``that_between``, ``that_above`` or ``that_below``.

    Attributes:
        hypothesis: In words, as stated before the run.
        number: The estimate.
        interval: Its lower and upper confidence bound.
        low: The hypothesis' lower bound.
        high: Its upper bound.
        strict: Whether the bounds themselves are outside.
        unit: Of all these numbers, such as ``s``.
        spec: Python's format for them, such as ``.1%``; by default their interval
            decides how many digits.
    """

    hypothesis: str
    number: float
    interval: tuple[float, float]
    low: float
    high: float
    strict: bool
    unit: str = ""
    spec: str = ""

    @classmethod
    def that_between(
        cls,
        hypothesis: str,
        estimate: Estimate | Row,
        low: float,
        high: float,
        *,
        unit: str = "",
        spec: str = "",
    ) -> Self:
        """The verdict on ``low <= quantity <= high``.

        Args:
            hypothesis: In words.
            estimate: What was measured: an ``Estimate``, or a row with ``mean``,
                ``ci_lower`` and ``ci_upper``.
            low: Lower bound of the claim.
            high: Upper bound of the claim.
            unit: Of the numbers.
            spec: Python's format for them.

        Raises:
            ConfigError: The bounds are no numbers, or in the wrong order.
        """
        if number("low", low) > number("high", high):
            raise fail("low", low, f"at most high={high!r}")
        value, interval = _measured(estimate)
        return cls(hypothesis, value, interval, low, high, False, unit, spec)

    @classmethod
    def that_above(
        cls,
        hypothesis: str,
        estimate: Estimate | Row,
        bound: float,
        *,
        unit: str = "",
        spec: str = "",
    ) -> Self:
        """The verdict on ``quantity > bound``; arguments as ``that_between``."""
        low, high = number("bound", bound), math.inf
        value, interval = _measured(estimate)
        return cls(hypothesis, value, interval, low, high, True, unit, spec)

    @classmethod
    def that_below(
        cls,
        hypothesis: str,
        estimate: Estimate | Row,
        bound: float,
        *,
        unit: str = "",
        spec: str = "",
    ) -> Self:
        """The verdict on ``quantity < bound``; arguments as ``that_between``."""
        low, high = -math.inf, number("bound", bound)
        value, interval = _measured(estimate)
        return cls(hypothesis, value, interval, low, high, True, unit, spec)

    @property
    def outcome(self) -> str:
        """``supported``, ``refuted`` or ``undecided``.

        Supported if the whole interval lies in the range, refuted if all of it lies
        on one side of the range, else undecided.
        """
        lower, upper = self.interval
        if self.strict:
            inside = lower > self.low and upper < self.high
            outside = upper <= self.low or lower >= self.high
        else:
            inside = lower >= self.low and upper <= self.high
            outside = upper < self.low or lower > self.high
        return "supported" if inside else "refuted" if outside else "undecided"

    @property
    def measured(self) -> str:
        """``5.96 s (5.90 to 6.02)``."""
        value, lower, upper = shown_with_bounds(self.number, *self.interval, self.spec)
        return f"{self._with_unit(value)} ({lower} to {upper})"

    @property
    def claimed(self) -> str:
        """``5 to 7 s``, ``above 5 s`` or ``below 7 s``."""
        low, high = (shown(bound, self.spec or "g") for bound in (self.low, self.high))
        if not self.strict:
            return self._with_unit(f"{low} to {high}")
        one = f"above {low}" if self.low > -math.inf else f"below {high}"
        return self._with_unit(one)

    def _with_unit(self, text: str) -> str:
        return f"{text} {self.unit}" if self.unit else text

    def __str__(self) -> str:
        return f"{self.outcome}: measured {self.measured}, claimed {self.claimed}"

    def __repr__(self) -> str:
        return f"{self.hypothesis}\n{self}"

    def _repr_html_(self) -> str:
        word, _, rest = str(self).partition(":")
        color = _COLORS[self.outcome]
        head = f'<b style="color:{color}">{word.capitalize()}</b>'
        hypothesis = html.escape(self.hypothesis)
        return f"<p><i>{hypothesis}</i><br>{head}: {html.escape(rest.strip())}</p>"

    def to_latex(self) -> str:
        """The verdict as a sentence of LaTeX, without the hypothesis."""
        return escape(str(self))


def _measured(estimate: Estimate | Row) -> tuple[float, tuple[float, float]]:
    found = estimate if isinstance(estimate, Estimate) else Estimate.of(estimate)
    return found.value, (found.lower, found.upper)
