"""Quantiles of several runs together, from a few numbers that each run leaves behind.

The mean of the runs' p99s is not the p99 of their requests: near saturation a few runs
hold most of the slow ones. A run therefore leaves its quantiles at 128 fixed levels,
dense in the tail, from which the distribution of all runs' requests is put together,
within 0.5% of the quantile of all values.
"""

import re

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail

LEVELS = np.concatenate(
    (np.linspace(0.0, 0.5, 32), 1.0 - np.geomspace(0.5, 1e-5, 96)[1:], [1.0])
)
_LOG_BEYOND = np.log(np.maximum(1.0 - LEVELS, 5e-6))
FEWEST_BEYOND = 90  # requests beyond a quantile that each replication must have
_QUANTILE = re.compile(r"(median|p(\d\d)(\d?))_(.+?)((?:\[.+\])?)")
_ALIKE = {"e2e": "latency"}  # two names of one metric


def quantiles(ordered: FloatArray, levels: FloatArray) -> FloatArray:
    """Quantiles of ascending values, linear between two of them; none of no values.

    >>> quantiles(np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.75]))
    array([2., 3.])
    """
    if not (n := len(ordered)):
        return ordered
    return np.interp(levels * (n - 1), np.arange(n), ordered)


def kept(
    name: str, ordered: FloatArray, count: int | None = None
) -> dict[str, list[float]]:
    """What a run leaves of a metric so that its quantiles can be pooled.

    Args:
        name: The metric, such as ``latency``.
        ordered: One a request, ascending, shape (n,).
        count: How many values these are a sample of; None takes n.

    Returns:
        ``quantiles_<name>``: the count, and the values' quantiles at ``LEVELS``, none
        where there are no values.

    >>> left = kept("latency", np.arange(1001.0))["quantiles_latency"]
    >>> left[0], left[1], left[32], left[-1]  # count, least, median, greatest
    (1001.0, 0.0, 500.0, 1000.0)
    """
    found = quantiles(ordered, LEVELS)
    digits = [float(f"{value:.8g}") for value in found]  # half the room on disk
    return {f"quantiles_{name}": [float(count or len(ordered)), *digits]}


def level_of(metric: str, columns: pd.Index) -> tuple[float, str] | None:
    """The level of a quantile such as ``p99_latency``, and the column to pool.

    None where the metric is no quantile, or the table has nothing to pool it from.

    >>> level_of("p999_ttft", pd.Index(["quantiles_ttft"]))
    (0.999, 'quantiles_ttft')
    """
    if not (match := _QUANTILE.fullmatch(metric)):
        return None
    word, digits, tenth, name, of_class = match.groups()
    column = f"quantiles_{_ALIKE.get(name, name)}{of_class}"
    if column not in columns:
        return None
    return 0.5 if word == "median" else float(f"0.{digits}{tenth}"), column


def pseudo_values(quantiles: pd.Series, q: float) -> FloatArray:
    """A number a run, shape (runs,), whose mean is the pooled quantile.

    They are the jackknife's pseudo-values: what each run adds to the quantile of all,
    so that their Student t interval is the jackknife's, and paired runs stay paired.

    Args:
        quantiles: What ``kept`` left of each run.
        q: Which quantile, between 0 and 1.

    Source: Tukey (1958), Miller (1974).

    >>> runs = [kept("x", np.arange(1001.0) + 9.0 * i) for i in range(2)]
    >>> pseudo_values(pd.DataFrame(runs)["quantiles_x"], 0.5).round(1)
    array([499.9, 508.9])
    """
    found = np.full(len(quantiles), np.nan)
    some = np.array([row[0] > 0 for row in quantiles])
    table = np.array([row for row in quantiles if row[0] > 0])
    if (n := len(table)) < 2:
        found[some] = [np.interp(q, LEVELS, row[1:]) for row in table]
        return found
    counts, values = table[:, 0], table[:, 1:]
    grid = np.unique(values)
    below = counts[:, None] * np.array([_share(row, grid) for row in values])
    everyone, total = counts.sum(), below.sum(axis=0)
    pooled = float(np.interp(q, total / everyone, grid))
    left = (total - below) / (everyone - counts)[:, None]
    without = np.array([np.interp(q, shares, grid) for shares in left])
    found[some] = pooled + (n - 1) * (without.mean() - without)
    return found


def _share(values: FloatArray, grid: FloatArray) -> FloatArray:
    """The share of a run's values up to each of ``grid``.

    In logs of the share beyond, since between two levels a tail is near exponential.
    """
    beyond = np.exp(np.interp(grid, values, _LOG_BEYOND))
    beyond[grid < values[0]], beyond[grid >= values[-1]] = 1.0, 0.0
    return np.asarray(1.0 - beyond)


def by_replication(frame: pd.DataFrame, metric: str, groups: list[str]) -> FloatArray:
    """One number a row of a sweep's table, whose means over groups are the metric's.

    For a quantile these are its pseudo-values, else the column as it stands.

    Args:
        frame: A row a run.
        metric: A column, such as ``p99_latency``.
        groups: The swept fields: runs alike in them are pooled.

    Raises:
        ConfigError: A quantile that the runs of a sweep left nothing to pool from.
    """
    found = level_of(metric, frame.columns)
    if found is None:
        left = [name[10:] for name in map(str, frame) if name[:10] == "quantiles_"]
        if left and _QUANTILE.fullmatch(metric):
            must = f"a quantile of {', '.join(left)}, which the runs left to be pooled"
            raise fail("metric", metric, must)
        return frame[metric].to_numpy(dtype=np.float64)
    q, column = found
    alike = frame.reset_index(drop=True).groupby(groups, sort=False, dropna=False)
    numbers = alike[column].transform(lambda its: pseudo_values(its, q))
    return numbers.to_numpy(dtype=np.float64)


def enough_beyond(frame: pd.DataFrame, metric: str) -> bool:
    """Whether each run has enough values beyond a quantile; True of no quantile."""
    if (found := level_of(metric, frame.columns)) is None:
        return True
    q, column = found
    fewest = min(row[0] for row in frame[column]) * min(q, 1.0 - q)
    return bool(round(fewest, 6) >= FEWEST_BEYOND)


def left_out_means(numbers: FloatArray) -> FloatArray:
    """The mean of pseudo-values, then without each in turn, shape (1 + n, ...).

    >>> left_out_means(np.array([[1.0], [3.0]])).tolist()
    [[2.0], [3.0], [1.0]]
    """
    pooled = pd.DataFrame(numbers).mean().to_numpy()
    off = np.nan_to_num(numbers - pooled) / max(len(numbers) - 1, 1)
    return np.concatenate((pooled[None], pooled - off))


def crossing_logs(excess: FloatArray, rates: FloatArray) -> FloatArray:
    """The log rate at which limits begin to break, a pseudo-value a replication.

    Args:
        excess: Of all, and without each replication, shape (1 + n, rates).
        rates: Ascending.

    >>> crossing_logs(np.array([[-1.0, 1.0]] * 3), np.array([1.0, 4.0])).round(3)
    array([0.693, 0.693])
    """
    logs = np.log(rates)
    found, *without = (
        np.interp(0.0, np.maximum.accumulate(row), logs) for row in excess
    )
    return found + (len(without) - 1) * (np.mean(without) - np.array(without))
