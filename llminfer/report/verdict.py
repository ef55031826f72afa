"""Verdicts: a hypothesis, and what an interval says of it."""

import html
import math
from dataclasses import dataclass
from operator import le, lt
from typing import Any, Self

from llminfer.base.errors import fail, number
from llminfer.report.latex import shown, shown_with_bounds
from llminfer.stats.intervals import Estimate, Row

COLORS = {"supported": "#009E73", "refuted": "#D55E00", "undecided": "#666666"}


@dataclass(frozen=True, repr=False)
class Verdict:
    """A hypothesis that a quantity lies in a range, judged by its interval.

    The outcome follows from the numbers and cannot be set. Make one with
    ``that_between``, ``that_above`` or ``that_below``.

    Attributes:
        hypothesis: In words, as stated before the run.
        estimate: What was measured, with its interval.
        low: The hypothesis' lower bound, minus infinity if it has none.
        high: Its upper bound. In a one-sided claim the bound itself is outside.
        unit: Of all these numbers, such as ``s``.
        spec: Python's format for them, such as ``.1%``; by default their interval
            decides how many digits.
        margin: How far beyond its bound a claim must be to be refuted, in the
            quantity's unit. By default 1% of the bound; of a bound 0, which has no
            scale, 0.01 where the quantity has no unit, else nothing.
    """

    hypothesis: str
    estimate: Estimate
    low: float
    high: float
    unit: str = ""
    spec: str = ""
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.margin is not None:
            number("margin", self.margin, least=0.0)

    @classmethod
    def that_between(
        cls,
        hypothesis: str,
        estimate: Estimate | Row,
        low: float,
        high: float,
        **said: Any,
    ) -> Self:
        """The verdict on ``low <= quantity <= high``.

        Args:
            hypothesis: In words.
            estimate: What was measured: an ``Estimate``, or a row with ``mean``,
                ``ci_lower`` and ``ci_upper``.
            low: Lower bound of the claim.
            high: Upper bound of the claim.
            **said: ``unit``, ``spec`` and ``margin``, as in ``Verdict``.

        >>> rate = Estimate(5.96, 5.90, 6.02)
        >>> print(Verdict.that_between("It carries 5 to 7.", rate, 5, 7, unit="/s"))
        supported: measured 5.96 /s (5.90 to 6.02), claimed 5 to 7 /s

        Raises:
            ConfigError: The bounds are no numbers, or in the wrong order, or the margin
                is below 0.
        """
        if number("low", low) > number("high", high):
            raise fail("low", low, f"at most high={high!r}")
        return cls(hypothesis, _estimate(estimate), low, high, **said)

    @classmethod
    def that_above(
        cls, hypothesis: str, estimate: Estimate | Row, bound: float, **said: Any
    ) -> Self:
        """The verdict on ``quantity > bound``; arguments as ``that_between``.

        >>> Verdict.that_above("h", Estimate(2.0, 1.5, 2.5), 1.0).outcome
        'supported'
        """
        low, high = number("bound", bound), math.inf
        return cls(hypothesis, _estimate(estimate), low, high, **said)

    @classmethod
    def that_below(
        cls, hypothesis: str, estimate: Estimate | Row, bound: float, **said: Any
    ) -> Self:
        """The verdict on ``quantity < bound``; arguments as ``that_between``.

        >>> Verdict.that_below("h", Estimate(2.0, 1.5, 2.5), 2.2).outcome
        'undecided'
        """
        low, high = -math.inf, number("bound", bound)
        return cls(hypothesis, _estimate(estimate), low, high, **said)

    @property
    def outcome(self) -> str:
        """``supported``, ``refuted`` or ``undecided``.

        Supported if the whole interval lies in the range as it was claimed. Refuted if
        all of it lies on one side of the range, and farther from it than the margin.
        Else undecided: enough replications find any two numbers different, and a claim
        that is off by less than anyone would act on has not been shown wrong. The
        margin never helps a claim: outside the range it is not supported.

        >>> little, much = Estimate(-0.001, -0.002, -0.0005), Estimate(-0.1, -0.2, -0.1)
        >>> for other in (little, much):
        ...     print(Verdict.that_above("The other is worse.", other, 0, spec=".1%"))
        undecided: measured −0.1% (−0.2% to −0.1%), claimed above 0%
        refuted: measured −10.0% (−20.0% to −10.0%), claimed above 0%
        """
        lower, upper = self.estimate.lower, self.estimate.upper
        within, beyond = (lt, le) if self._one_sided else (le, lt)
        inside = within(self.low, lower) and within(upper, self.high)
        least = self.low - self._slack(self.low)
        most = self.high + self._slack(self.high)
        outside = beyond(upper, least) or beyond(most, lower)
        return "supported" if inside else "refuted" if outside else "undecided"

    def _slack(self, bound: float) -> float:
        """The margin at this bound."""
        if self.margin is not None:
            return self.margin
        return 0.01 * abs(bound) if bound or self.unit else 0.01

    @property
    def measured(self) -> str:
        """``5.96 s (5.90 to 6.02)``; what is known exactly has no bounds."""
        value, lower, upper = shown_with_bounds(self.estimate, self.spec)
        if self.estimate.lower == self.estimate.upper:
            return self._with_unit(value)
        return f"{self._with_unit(value)} ({lower} to {upper})"

    @property
    def claimed(self) -> str:
        """``5 to 7 s``, ``above 5 s`` or ``below 7 s``."""
        low, high = map(self._bound, (self.low, self.high))
        said = f"{low} to {high}"
        if self._one_sided:
            said = f"above {low}" if self.low > -math.inf else f"below {high}"
        return self._with_unit(said)

    def _bound(self, bound: float) -> str:
        """A bound in the fewest digits that say it: ``0%``, not ``+0.0%``.

        One with more than four was computed, and has three.
        """
        percent = self.spec.endswith("%")
        sign = "+" if "+" in self.spec and bound else ""
        value = 100.0 * bound if percent else bound
        typed = math.isclose(value, float(f"{value:.4g}"))
        text = shown(value, f"{sign}.6g") if typed else shown(value)
        return f"{text}%" if percent else text

    @property
    def spared(self) -> str:
        """How far beyond its bound a claim may lie and not be refuted: ``1%``."""
        bounds = [b for b in (self.low, self.high) if math.isfinite(b)]
        return self._with_unit(self._bound(max(map(self._slack, bounds))).lstrip("+"))

    @property
    def _one_sided(self) -> bool:
        return math.inf in (-self.low, self.high)

    def _with_unit(self, text: str) -> str:
        return f"{text} {self.unit}" if self.unit else text

    def __str__(self) -> str:
        return f"{self.outcome}: measured {self.measured}, claimed {self.claimed}"

    def __repr__(self) -> str:
        return f"{self.hypothesis}\n{self}"

    def _repr_html_(self) -> str:
        word, _, rest = html.escape(str(self)).partition(":")
        head = f'<b style="color:{COLORS[word]}">{word.capitalize()}</b>'
        return f"<p><i>{html.escape(self.hypothesis)}</i><br>{head}:{rest}</p>"


def _estimate(found: Estimate | Row) -> Estimate:
    return found if isinstance(found, Estimate) else Estimate.of(found)
