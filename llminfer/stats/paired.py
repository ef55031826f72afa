"""Which alternative is better: comparisons of runs that shared their requests.

Alternatives under one seed face the same requests, so their results rise and fall
together. What differs is measured inside each replication; tests that take the runs
for independent lose most of their power here.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtr

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail
from llminfer.stats import intervals
from llminfer.stats.pooling import by_replication

BLOCK = "replication"  # what the alternatives share: one replication's requests


def paired_differences(
    frame: pd.DataFrame, metric: str, over: str, baseline: Any = None
) -> pd.DataFrame:
    """Each alternative less its baseline, replication by replication.

    Args:
        frame: A sweep's table, a row a run, every alternative once a replication.
        metric: What to compare.
        over: The swept field whose values are the alternatives.
        baseline: Compare with this one only; None compares all pairs.

    Returns:
        A row a pair: ``baseline``, ``alternative``, ``n`` blocks; ``difference``
        of the means with a 95% Student t interval (``difference_lower``,
        ``difference_upper``), in the metric's unit; ``relative``, the difference
        over the baseline's mean, with Fieller's interval, NaN where that is
        unbounded; ``t``, ``p``, ``p_holm``, ``significant`` where Holm's
        correction holds the chance of any false difference at 5%.

    Raises:
        ConfigError: Alternatives that do not all have the same blocks, once each;
            names them.

    Source: Fieller (1954), Holm (1979).

    >>> waits = [1.0, 0.8, 1.4, 1.0, 1.1, 0.9]
    >>> runs = pd.DataFrame({"policy": ["FCFS", "SJF"] * 3, "wait": waits})
    >>> runs["replication"] = [0, 0, 1, 1, 2, 2]
    >>> found = paired_differences(runs, "wait", "policy")
    >>> found[["baseline", "alternative", "difference", "p"]].round(3)
      baseline alternative  difference      p
    0     FCFS         SJF      -0.267  0.057
    """
    labels, results = _by_block(frame, metric, over)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    if baseline is not None:
        first = _position("baseline", baseline, labels)
        pairs = [(first, other) for other in range(len(labels)) if other != first]
    found = pd.DataFrame(_compared(results[:, i], results[:, j]) for i, j in pairs)
    named = [(labels[i], labels[j], len(results)) for i, j in pairs]
    table = pd.DataFrame(named, columns=["baseline", "alternative", "n"]).join(found)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=np.float64))
    table["significant"] = table["p_holm"] <= 0.05
    return table


def _position(name: str, label: Any, labels: Sequence[Any]) -> int:
    """Where ``label`` stands among the alternatives, or an error naming ``name``."""
    if label not in labels:
        raise fail(name, label, f"one of {', '.join(map(repr, labels))}")
    return labels.index(label)


def _compared(
    base: FloatArray, other: FloatArray, confidence: float = 0.95
) -> dict[str, Any]:
    """A row of ``paired_differences`` without labels: difference, ratio and t test."""
    difference = other - base
    found = intervals.Estimate.of_mean(difference, confidence)
    error = float(difference.std(ddof=1)) / math.sqrt(len(base))
    t = _over(found.value, error)
    level = float(base.mean())
    ratio = found.value / level if level else math.nan
    relative = intervals.Estimate(ratio, *_fieller(base, difference, confidence))
    return {
        **found.row("difference"),
        **relative.row("relative"),
        "t": t,
        "p": 2.0 * float(stdtr(len(base) - 1, -abs(t))),
    }


def _over(signal: float, noise: float) -> float:
    """``signal / noise``; no signal is none, however small the noise."""
    if noise == 0.0:
        return math.copysign(math.inf, signal) if signal else 0.0
    return signal / noise


def _fieller(
    base: FloatArray, difference: FloatArray, confidence: float
) -> tuple[float, float]:
    """Bounds of mean(difference) / mean(base): the ratios a paired t test accepts.

    It accepts r if mean(difference - r base)^2 <= t^2 Var[mean(difference - r base)],
    which is quadratic in r. Where the baseline's mean may be 0 there are no bounds.
    """
    n = len(base)
    squared = intervals.t_quantile(confidence, n - 1) ** 2 / n
    (xx, xy), (_, yy) = squared * np.cov(base, difference)
    x, y = base.mean(), difference.mean()
    a, half_b, c = x * x - xx, x * y - xy, y * y - yy
    if a <= 0.0:
        return math.nan, math.nan
    root = math.sqrt(max(half_b * half_b - a * c, 0.0))
    return float((half_b - root) / a), float((half_b + root) / a)


def holm(p: FloatArray) -> FloatArray:
    """p-values corrected for their number by Holm's step-down rule, same order.

    Source: Holm (1979).

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2)
    array([0.03, 0.06, 0.06])
    """
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1) * p[order]
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def blocked_anova(frame: pd.DataFrame, metric: str, over: str) -> pd.DataFrame:
    """Do the alternatives differ at all? Analysis of variance with blocks.

    Args:
        frame: A sweep's table, a row a run, every alternative once a replication.
        metric: What to compare.
        over: The swept field whose values are the alternatives.

    Returns:
        Two rows, ``design`` "blocked" and "one-way", with ``F``, its degrees of
        freedom ``df`` and ``df_error``, and ``p``. The one-way test takes all runs
        for independent, which they are not; it is there to be seen beside.

    Raises:
        ConfigError: Alternatives that do not all have the same blocks, once each;
            names them.

    Source: Fisher (1925).

    >>> waits = [1.0, 0.8, 1.4, 1.0, 1.1, 0.9]
    >>> runs = pd.DataFrame({"policy": ["FCFS", "SJF"] * 3, "wait": waits})
    >>> runs["replication"] = [0, 0, 1, 1, 2, 2]
    >>> blocked_anova(runs, "wait", "policy").round(3)
        design     F  df  df_error      p
    0  blocked  16.0   1         2  0.057
    1  one-way   4.0   1         4  0.116
    """
    _, y = _by_block(frame, metric, over)
    n, k = y.shape
    effect = y.mean(axis=0) - y.mean()
    within = y - y.mean(axis=0)
    residual = within - within.mean(axis=1, keepdims=True)
    signal = n * float((effect**2).sum()) / (k - 1)
    noise = [float((rest**2).sum()) for rest in (residual, within)]
    table = pd.DataFrame({"design": ["blocked", "one-way"]})
    df_error = np.array([(k - 1) * (n - 1), k * (n - 1)])
    f = [_over(signal, level) for level in noise / df_error]
    p = fdtrc(k - 1, df_error, f)
    return table.assign(F=f, df=k - 1, df_error=df_error, p=p)


def cost_of_choice(
    frame: pd.DataFrame, metric: str, over: str, choice: Any, confidence: float = 0.95
) -> dict[str, Any]:
    """What an alternative costs against the best one, which it may be itself.

    Nobody knows which is the best, and the least mean of noisy ones is too low. So
    the choice is compared with every other, and the greatest bounds among them are
    the bounds of its cost, as in ``best_against_rest``.

    Args:
        frame: A sweep's table, a row a run, every alternative once a replication.
        metric: What it costs in; less is better.
        over: The swept field whose values are the alternatives.
        choice: One of them.
        confidence: Coverage of the interval.

    Returns:
        ``choice``, ``best``, the alternative of the least mean, and ``cost`` with
        ``cost_lower`` and ``cost_upper``: how far the choice lies above the best, over
        the best; 0.1 is 10% more, and nothing costs less than 0.

    Raises:
        ConfigError: No such alternative, or alternatives that do not all have the same
            blocks, once each.

    Source: the multiple comparisons with the best of Hsu (1981), by Bonferroni.

    >>> waits = [1.0, 0.8, 1.4, 1.0, 1.1, 0.9]
    >>> runs = pd.DataFrame({"policy": ["FCFS", "SJF"] * 3, "wait": waits})
    >>> runs["replication"] = [0, 0, 1, 1, 2, 2]
    >>> found = cost_of_choice(runs, "wait", "policy", "FCFS")
    >>> found["best"], round(found["cost"], 2)
    ('SJF', 0.3)
    """
    labels, results = _by_block(frame, metric, over)
    at = _position("choice", choice, labels)
    others = labels[:at] + labels[at + 1 :]
    found = best_against_rest(frame, metric, over, others, confidence=confidence)
    unbounded = {"": math.nan, "_lower": 0.0, "_upper": math.inf}  # by Fieller
    costs = {
        "cost" + end: max(0.0, float(np.nan_to_num(found["relative" + end], nan=none)))
        for end, none in unbounded.items()
    }
    best = labels[int(results.mean(axis=0).argmin())]
    return {"choice": choice, "best": best, **costs}


def _by_block(
    frame: pd.DataFrame, metric: str, over: str
) -> tuple[list[Any], FloatArray]:
    """The alternatives in order, and the metric, shape (blocks, alternatives).

    Raises:
        ConfigError: A column is unknown, there are fewer than two alternatives or
            blocks, or an alternative lacks a block or has one twice.
    """
    intervals.require_columns(frame, [metric, over, BLOCK])
    codes, uniques = pd.factorize(frame[over], use_na_sentinel=False)
    labels = uniques.tolist()
    rows, blocks = pd.factorize(frame[BLOCK], use_na_sentinel=False)
    counts = np.zeros((len(blocks), len(labels)), dtype=np.int64)
    values = by_replication(frame, metric, [over])
    np.add.at(counts, (rows, codes), np.isfinite(values))
    for at, row in np.argwhere(counts.T != 1)[:1]:
        fault = f"{'repeats' if counts[row, at] else 'lacks'} {BLOCK} {blocks[row]}"
        must = f"must have each {BLOCK} exactly once"
        raise ConfigError(f"{over}={labels[at]!r} {fault}: {must}")
    for name, found in ((over, labels), (BLOCK, blocks.tolist())):
        if len(found) < 2:
            raise fail(name, found, "at least two different values in the table")
    results = np.empty(counts.shape)
    results[rows, codes] = values
    return labels, results


def best_against_rest(
    frame: pd.DataFrame,
    metric: str,
    over: str,
    claimed: Sequence[Any],
    *,
    confidence: float = 0.95,
) -> pd.Series:
    """The best of the rest less the best of ``claimed``, and how sure that is.

    Nobody knows which ones are the best, and an interval of the two that look it is
    too narrow and in the wrong place. The difference is the least, over the rest, of
    the greatest difference to one of ``claimed``; taken over the bounds of all those
    pairs it gives bounds of its own. The lower one can only be too high if a pair of
    the truly best of the rest fails, the upper one too low if one of the truly best
    of ``claimed`` does: each is corrected for the number of these pairs.

    Args:
        frame: A sweep's table, a row a run, every alternative once a replication.
        metric: What to compare; less is better, and none of the means is below 0.
        over: The swept field whose values are the alternatives.
        claimed: The alternatives said to hold the best one.
        confidence: Coverage of the interval.

    Returns:
        ``baseline``, the best of ``claimed``, and ``alternative``, the best of the
        rest, by their means; ``n`` blocks; ``difference`` and ``relative``, which is
        over the baseline's mean, with bounds that hold with all the
        picking. A ``difference`` above 0 speaks for the claim.

    Raises:
        ConfigError: ``claimed`` holds none, or all, of the alternatives, or they do
            not all have the same blocks, once each.

    Source: after the multiple comparisons with the best of Hsu (1981), by Bonferroni.

    >>> waits = [1.0, 0.8, 1.4, 1.0, 1.1, 0.9]
    >>> runs = pd.DataFrame({"policy": ["FCFS", "SJF"] * 3, "wait": waits})
    >>> runs["replication"] = [0, 0, 1, 1, 2, 2]
    >>> found = best_against_rest(runs, "wait", "policy", claimed=["SJF"])
    >>> round(float(found["difference"]), 3)
    0.267
    """
    labels, results = _by_block(frame, metric, over)
    inside = np.array([label in list(claimed) for label in labels])
    if inside.all() or not inside.any():
        must = f"some, but not all, of {', '.join(map(repr, labels))}"
        raise fail("claimed", list(claimed), must)
    mine, rest = np.flatnonzero(inside), np.flatnonzero(~inside)
    means = results.mean(axis=0)
    best = [labels[some[means[some].argmin()]] for some in (mine, rest)]
    found: dict[str, Any] = {"baseline": best[0], "alternative": best[1]}
    found["n"] = len(results)
    missed = 1.0 - intervals.confidence_level(confidence)
    for ends, many in ((("", "_lower"), len(mine)), (("_upper",), len(rest))):
        pairs = [
            [_compared(results[:, i], results[:, j], 1.0 - missed / many) for i in mine]
            for j in rest
        ]
        for name in (name + end for name in ("difference", "relative") for end in ends):
            each = [[pair[name] for pair in row] for row in pairs]
            found[name] = float(np.max(each, axis=1).min())
    return pd.Series(found)
