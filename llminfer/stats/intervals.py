"""Intervals one can trust: of means and of quantiles, over replications."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail, kind, nearest, number
from llminfer.stats import pooling

Values = Sequence[float] | FloatArray
Row = Mapping[str, Any] | pd.Series | pd.DataFrame

FEWEST_MEMORIES = 300.0  # of the queue, in a run whose interval is sound: notebook 07


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval, in the number's own unit.

    >>> Estimate(2.0, 1.5, 2.5).upper
    2.5
    """

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, row: Row, quantity: str = "mean") -> Self:
        """The estimate in a row of a table that this package made.

        Args:
            row: A row, a table of one row, or a dict. The bounds of ``mean`` are
                ``ci_lower`` and ``ci_upper``, those of ``relative``, say,
                ``relative_lower`` and ``relative_upper``.
            quantity: Which number of the row.

        Raises:
            ConfigError: Not exactly one row, or no such number with bounds there.
        """
        if isinstance(row, pd.DataFrame):
            if len(row) != 1:
                raise ConfigError(f"row: a table of {len(row)} rows: must be one row")
            row = row.iloc[0]
        names = (quantity, *bounds_of(quantity))
        for name in names:
            if name not in row:
                must = "a column with bounds, one of " + ", ".join(map(str, row.keys()))
                raise fail("quantity", quantity, must)
        return cls(*(float(row[name]) for name in names))

    @classmethod
    def of_mean(cls, values: Values, confidence: float = 0.95) -> Self:
        """The mean of independent values, with Student's t interval.

        Args:
            values: One number an independent replication, shape (n,); one value has
                no interval, and its bounds are NaN.
            confidence: Coverage wanted, between 0 and 1.

        Raises:
            ConfigError: ``confidence`` is not between 0 and 1, or there are no values.

        Source: Student (1908).

        >>> Estimate.of_mean([1.0, 2.0, 3.0]).value
        2.0
        """
        confidence_level(confidence)
        sample = np.asarray(values, dtype=np.float64)
        if sample.ndim != 1 or not sample.size:
            raise ConfigError("values: must be a list of at least one number")
        mean = float(sample.mean())
        half = math.nan
        if sample.size > 1:
            error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
            half = t_quantile(confidence, sample.size - 1) * error
        return cls(mean, mean - half, mean + half)

    def row(self, quantity: str = "mean") -> dict[str, float]:
        """The estimate as columns of a table, the inverse of ``of``.

        >>> Estimate(2.0, 1.0, 3.0).row("relative")
        {'relative': 2.0, 'relative_lower': 1.0, 'relative_upper': 3.0}
        """
        names = (quantity, *bounds_of(quantity))
        return dict(zip(names, (self.value, self.lower, self.upper), strict=True))


def bounds_of(quantity: str) -> tuple[str, str]:
    """The columns that hold the bounds of a column of estimates.

    >>> bounds_of("relative")
    ('relative_lower', 'relative_upper')
    """
    prefix = "ci" if quantity == "mean" else quantity
    return f"{prefix}_lower", f"{prefix}_upper"


def confidence_level(value: object) -> float:
    """``value`` if it is a probability strictly between 0 and 1.

    Raises:
        ConfigError: It is not.
    """
    level = number("confidence", value, above=0.0)
    if level >= 1.0:
        raise fail("confidence", value, "a probability between 0 and 1, such as 0.95")
    return level


def t_quantile(confidence: float, degrees: int) -> float:
    """Half-width, in standard errors, of a two-sided Student t interval."""
    return float(stdtrit(degrees, 0.5 + confidence_level(confidence) / 2.0))


def compute_confidence_interval(
    values: Values, confidence: float = 0.95
) -> dict[str, float]:
    """Student's t interval for the mean of independent values.

    Args:
        values: One number an independent replication, shape (n,).
        confidence: Coverage wanted, between 0 and 1.

    Returns:
        ``{"mean", "ci_lower", "ci_upper"}``; one value has no interval, and its
        bounds are NaN.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1, or there are no values.

    Source: Student (1908).

    >>> found = compute_confidence_interval([1.0, 2.0, 3.0])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'mean': 2.0, 'ci_lower': -0.484, 'ci_upper': 4.484}
    """
    return Estimate.of_mean(values, confidence).row()


def jackknife(value: float, left_out: Values) -> Estimate:
    """A statistic with a 95% interval from leaving out one group of values at a time.

    Args:
        value: The statistic of all values.
        left_out: The statistic without the first, second, ... group, shape (groups,).

    Source: the delete-a-group jackknife, Miller (1974).

    The mean of 1, 2, 3 with each left out in turn; of a mean it is Student's interval:

    >>> found = jackknife(2.0, [2.5, 2.0, 1.5])
    >>> round(found.lower, 3), round(found.upper, 3)
    (-0.484, 4.484)
    """
    without = np.asarray(left_out, dtype=np.float64)
    n = len(without)
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    half = t_quantile(0.95, n - 1) * error
    return Estimate(value, value - half, value + half)


def summarize(
    frame: pd.DataFrame, by: str | Sequence[str], metrics: str | Sequence[str]
) -> pd.DataFrame:
    """Metrics of each group of replications, with 95% Student t intervals.

    A mean is the mean of the runs' means. A quantile is that of all runs' requests
    together, with the jackknife's interval, wherever the table can pool it.

    Args:
        frame: A sweep's table, a row a run.
        by: The swept field or fields; each of their combinations is a group.
        metrics: One metric or several.

    Returns:
        A row for each metric and group: ``by``, ``metric``, ``mean``, ``ci_lower``,
        ``ci_upper``, ``n``; groups in the order they first appear. Of a sweep's metrics
        also ``memories``, the length of the shortest run in memories of the queue, and
        ``sound``: at least 300 of them, and 90 requests beyond a quantile.

    Raises:
        ConfigError: A column is unknown, or a group holds a replication twice: its
            runs share their requests and are not independent.

    >>> waits = [1.0, 0.8, 1.4, 1.0, 1.1, 0.9]
    >>> runs = pd.DataFrame({"policy": ["FCFS", "SJF"] * 3, "wait": waits})
    >>> runs["replication"] = [0, 0, 1, 1, 2, 2]
    >>> summarize(runs, "policy", "wait").round(2)
      policy metric  mean  ci_lower  ci_upper  n
    0   FCFS   wait  1.17      0.65      1.68  3
    1    SJF   wait  0.90      0.65      1.15  3
    """
    groups = [by] if isinstance(by, str) else list(by)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    require_columns(frame, groups + names)
    if "replication" in frame and frame.duplicated([*groups, "replication"]).any():
        must = "all swept fields, or a group holds one replication several times"
        raise fail("by", groups, must)
    frame = frame.reset_index(drop=True)  # tables put together repeat their labels
    rows: list[dict[str, Any]] = []
    for name in names:
        numbers = pd.Series(pooling.by_replication(frame, name, groups), frame.index)
        for label, group in frame.groupby(groups, sort=False, dropna=False):
            values = np.asarray(numbers[group.index], np.float64)
            row = {**dict(zip(groups, label, strict=True)), "metric": name}
            row |= {**Estimate.of_mean(values).row(), "n": len(values)}
            rows.append(row | _rests_on(group, name))
    return pd.DataFrame(rows)


def beside(
    summary: pd.DataFrame, by: Sequence[str], names: Mapping[str, str]
) -> pd.DataFrame:
    """A summary's estimates side by side, a row a group: a table to be read.

    Args:
        summary: As ``summarize`` gives it.
        by: Its groups.
        names: What each metric is to be called.

    Returns:
        Indexed by ``by``; for each name ``name``, ``name_lower`` and ``name_upper``.

    >>> runs = pd.DataFrame({"B": [1, 1, 2, 2], "avg_wait": [3.0, 5.0, 1.0, 2.0]})
    >>> beside(summarize(runs, "B", "avg_wait"), ["B"], {"avg_wait": "wait, s"}).loc[1]
    wait, s           4.000000
    wait, s_lower    -8.706205
    wait, s_upper    16.706205
    Name: 1, dtype: float64
    """
    parts = []
    for metric, name in names.items():
        rows = summary[summary["metric"] == metric].set_index(list(by))
        estimate = rows[["mean", "ci_lower", "ci_upper"]]
        parts.append(estimate.set_axis([name, *bounds_of(name)], axis=1))
    return pd.concat(parts, axis=1)


def _rests_on(group: pd.DataFrame, metric: str) -> dict[str, Any]:
    """What a number of a group of runs rests on, where the table says how long."""
    if "memories" not in group:
        return {}
    memories = float(group["memories"].min())
    enough = pooling.enough_beyond(group, metric)
    return {"memories": memories, "sound": memories >= FEWEST_MEMORIES and enough}


def require_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Check that ``frame`` has all these columns.

    Raises:
        ConfigError: It lacks one; names it, and the nearest that is there. Or it is no
            table.
    """
    kind("table", frame, pd.DataFrame, "a table, as sweep gives")
    for name in names:
        if name not in frame:
            hint = nearest(name, [str(known) for known in frame.columns])
            raise ConfigError(f"{name}: no such column in the table{hint}")


def pooled_quantile(samples: Sequence[Values], q: float) -> Estimate:
    """A quantile of all replications' values together, with a 95% jackknife interval.

    The mean of each replication's own p99 is biased; the quantile of the pooled
    values is not. Its error comes from leaving out one replication at a time, so
    that the correlation of requests within a replication does no harm.

    Args:
        samples: One array a replication, such as its latencies in seconds.
        q: Which quantile, between 0 and 1: 0.99 is the p99.

    Raises:
        ConfigError: Fewer than two replications, or a replication too short to have
            90 values beyond the quantile; the message says how long would do.

    Source: the delete-a-group jackknife, Miller (1974).

    >>> found = pooled_quantile([np.arange(1000.0), np.arange(1000.0) + 10.0], 0.9)
    >>> round(found.value, 1), round(found.lower, 1), round(found.upper, 1)
    (904.1, 840.6, 967.6)
    """
    if number("q", q, above=0.0) >= 1.0:
        raise fail("q", q, "a probability between 0 and 1, such as 0.99")
    groups = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if (n := len(groups)) < 2:
        raise ConfigError(f"samples: {n} replications: must be at least 2")
    needed = math.ceil(round(pooling.FEWEST_BEYOND / min(q, 1.0 - q), 6))
    for i, group in enumerate(groups):
        if np.isnan(group).any():
            raise ConfigError(f"samples[{i}]: must be without NaN, which has no rank")
        if len(group) < needed:
            must = f"at least {needed}, or too few lie beyond the quantile q={q:g}"
            raise ConfigError(f"samples[{i}]: {len(group)} values: must be {must}")
    left_out = [float(np.quantile(rest, q)) for rest in without_one(groups)]
    return jackknife(float(np.quantile(np.concatenate(groups), q)), left_out)


def without_one(groups: Sequence[FloatArray]) -> Iterator[FloatArray]:
    """The values of all groups but the first, but the second, ...

    >>> [rest.tolist() for rest in without_one([np.zeros(1), np.ones(1)])]
    [[1.0], [0.0]]
    """
    for i in range(len(groups)):
        yield np.concatenate([*groups[:i], *groups[i + 1 :]])


def summarize_series(
    frame: pd.DataFrame, by: str, series: Sequence[str]
) -> pd.DataFrame:
    """Mean and 95% Student t interval of series over replications, point by point.

    Args:
        frame: A sweep's table, a row a run, whose columns ``series`` hold lists on a
            common grid.
        by: The swept field; each of its values is a group.
        series: Names of the columns.

    Returns:
        A row for each series, group and point: ``by``, ``metric``, ``point``,
        ``mean``, ``ci_lower``, ``ci_upper``. A point where a replication has no
        value is left to the others.

    >>> queues = [[1.0, 2.0], [3.0, 2.0]]
    >>> runs = pd.DataFrame({"rule": ["a", "a"], "queue": queues})
    >>> summarize_series(runs, "rule", ["queue"])[["point", "mean"]]
       point  mean
    0      0   2.0
    1      1   2.0
    """
    require_columns(frame, [by, *series])
    paths = frame.melt([by], [*series], "metric", "value")
    paths["point"] = [range(len(path)) for path in paths["value"]]
    points = paths.explode(["value", "point"]).astype({"value": float, "point": int})
    groups = points.groupby([by, "metric", "point"], sort=False)["value"]
    found = groups.agg(["mean", "sem", "count"]).reset_index()
    half = found.pop("sem") * stdtrit(found.pop("count") - 1, 0.975)
    return found.assign(ci_lower=found["mean"] - half, ci_upper=found["mean"] + half)


def skewed_mean(values: Values) -> Estimate:
    """The mean of independent values that may be skewed, with a 95% interval.

    Student's interval, made longer on the side of the long tail by Johnson's
    correction. Few values that saw no jam are both low and alike, so that Student's
    upper bound lies below the truth up to four times as often as it says.

    Args:
        values: One number an independent replication, shape (n,).

    Source: Johnson (1978), who moves both bounds; the one on the short side stays
    here, for the skewness of few values is not known well enough to gain by it.

    >>> found = skewed_mean([1.0, 1.0, 1.0, 1.0, 6.0])
    >>> round(found.lower, 2), round(found.upper, 2)
    (-0.78, 7.51)
    """
    found = Estimate.of_mean(values)
    deviations = np.asarray(values, dtype=np.float64) - found.value
    n, squares = len(deviations), float((deviations**2).sum())
    if n < 3 or squares == 0.0:
        return found
    third = float((deviations**3).sum()) / squares / (n - 2)
    shift = (1.0 + 2.0 * t_quantile(0.95, n - 1) ** 2) / 6.0 * third
    lower, upper = found.lower + min(shift, 0.0), found.upper + max(shift, 0.0)
    return Estimate(found.value, lower, upper)
