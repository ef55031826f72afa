"""What users are promised: limits on times, of all requests or of each of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llminfer.base.errors import ConfigError, choice, fail, number
from llminfer.base.settings import Named

Bound = float | Mapping[str, float] | None

TIMES = ("ttft", "tpot", "latency")  # of each request; itl is of each token
_STATISTICS = ("mean", "p50", "p75", "p90", "p95", "p99", "p999")


class Limit(NamedTuple):
    """One limit of an SLO.

    Attributes:
        time: ttft, tpot, itl or latency; within for a goodput.
        statistic: p50, p99 and so on, or mean; nothing for a goodput.
        bound: Seconds; of a goodput the share.
        of: The class of requests it is of; nothing for all.
    """

    time: str
    statistic: str
    bound: float
    of: str = ""

    @property
    def metric(self) -> str:
        """Its name among the metrics.

        >>> Limit("ttft", "p50", 0.3, of="chat").metric
        'p50_ttft[chat]'
        """
        first = {"mean": "avg_", "": ""}.get(self.statistic, f"{self.statistic}_")
        return first + self.time + f"[{self.of}]" * bool(self.of)

    def excess(self, value: float) -> float:
        """By how much ``value`` breaks it, in logs, or as a share; 0 or less if not."""
        if math.isnan(value):  # of no request
            return -math.inf
        if self.time == "within":
            return self.bound - value
        return math.log(max(value, 1e-9) / self.bound)

    def __str__(self) -> str:
        time = self.time if self.time == "latency" else self.time.upper()
        words = f"{self.statistic} {time} ≤ {self.bound:g} s"
        words = words if self.statistic else f"goodput ≥ {self.bound:g}"
        return words + f" of {self.of}" * bool(self.of)


@dataclass(frozen=True)
class SLO(Named):
    """What users are promised: at least one limit, in seconds.

    A plain number is a limit on the p99 of its time; a dict limits any quantile, or
    the mean. With ``goodput`` the limits are on each request instead, and that share
    of the requests must be within all of them at once; a request of one token has no
    TPOT to miss.

    Args:
        ttft: Of the time to the first token.
        tpot: Of the time an output token after the first.
        latency: Of the time to the last token.
        goodput: Share of requests, such as 0.9.
        itl: Of the gap between two tokens, all gaps of all requests together.
        classes: More limits for the requests of a class, an SLO by its name among
            the configuration's ``request_classes`` or by its number.

    Raises:
        ConfigError: No limit, one that is not above 0, or no share.

    Warns:
        UserWarning: A limit so long that it looks like milliseconds.

    >>> for limit in SLO(ttft={"p50": 0.3, "p99": 1.0}, tpot=0.05).limits:
    ...     print(limit)
    p50 TTFT ≤ 0.3 s
    p99 TTFT ≤ 1 s
    p99 TPOT ≤ 0.05 s
    """

    ttft: Bound = None
    tpot: Bound = None
    latency: Bound = None
    goodput: float | None = None
    itl: Bound = field(default=None, kw_only=True)
    classes: Mapping[str | int, "SLO"] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.classes, Mapping):
            raise fail("classes", self.classes, "a dict of SLOs by class")
        for name, its in self.classes.items():
            if not isinstance(its, SLO) or its.classes or its.itl is not None:
                must = "an SLO of ttft, tpot, latency or goodput"
                raise fail(f"classes[{name!r}]", its, must)
        if not self.bounds and (self.goodput is not None or not self.classes):
            must = "must be of ttft, tpot, itl or latency"
            raise ConfigError(f"slo: no limit given: {must}")
        for time, statistic, bound, _ in self.bounds:
            choice(time, statistic, _STATISTICS)
            number(time, bound, above=0.0)
        if self.goodput is not None:
            number("goodput", self.goodput, above=0.0, most=1.0)
            if self.itl or any(its.statistic != "p99" for its in self.bounds):
                must = "None beside itl or limits that are no plain numbers: it is of"
                raise fail("goodput", self.goodput, f"{must} requests within all")

    @property
    def bounds(self) -> list[Limit]:
        """The limits on the times of all requests."""
        found = []
        for name in (*TIMES, "itl"):
            if (its := getattr(self, name)) is not None:
                each = its if isinstance(its, Mapping) else {"p99": its}
                found += [Limit(name, *one) for one in each.items()]
        return found

    @property
    def limits(self) -> list[Limit]:
        """All limits, those of classes last."""
        share = self.goodput
        own = self.bounds if share is None else [Limit("within", "", share)]
        return own + [
            limit._replace(of=str(name))
            for name, its in self.classes.items()
            for limit in its.limits
        ]
