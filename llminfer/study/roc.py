"""How well a signal tells what is coming, over all thresholds: ROC and its area."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray
from llminfer.study.alarms import crossings, known
from llminfer.study.signals import SIGNALS

Samples = Sequence[FloatArray]


def right_and_wrong(
    runs: pd.DataFrame, signal: str, horizon: float
) -> tuple[list[FloatArray], list[FloatArray]]:
    """The signal where an alarm would be right, and where it would be wrong.

    Right is the ``horizon`` before the load reaches 1; wrong is any time before that,
    and all the time of runs that never cross. What comes after the crossing is in
    neither: that is no warning any more.

    Args:
        runs: A row a run, with the lists that ``warning_signals`` gives.
        signal: One of ``SIGNALS``.
        horizon: Seconds.

    Returns:
        Two lists, one array a replication.
    """
    right: list[FloatArray] = []
    wrong: list[FloatArray] = []
    for _, rows in runs.groupby("replication"):
        lengths = [len(time) for time in rows["time"]]
        time = np.concatenate(rows["time"].to_list())
        values = known(np.concatenate(rows[signal].to_list()))
        ahead = np.repeat(crossings(rows), lengths) - time
        right.append(values[(ahead > 0.0) & (ahead <= horizon)])
        wrong.append(values[ahead > horizon])
    return right, wrong


def curve(right: Samples, wrong: Samples, points: int = 201) -> pd.DataFrame:
    """The receiver operating characteristic of a signal, all replications together.

    Args:
        right: The signal where an alarm would be right, one array a replication.
        wrong: The same where it would be wrong.
        points: Thresholds to take from each.

    Returns:
        ``false``, the share of wrong times with an alarm, and ``true``, that of right
        times under the same threshold; both rise from 0 to 1.
    """
    calm = np.sort(np.concatenate(wrong))
    risky = np.sort(np.concatenate(right))
    ranks = np.linspace(0.0, 1.0, points)
    levels = [np.quantile(part, ranks, method="higher") for part in (calm, risky)]
    thresholds = np.unique(levels)[::-1]
    shares = []
    for sample in (calm, risky):
        quiet = np.searchsorted(sample, thresholds, side="right") / len(sample)
        shares.append(np.concatenate(([0.0], 1.0 - quiet, [1.0])))
    return pd.DataFrame({"false": shares[0], "true": shares[1]})


def auc(right: Samples, wrong: Samples) -> FloatArray:
    """Area under the ROC curve as one jackknife value a replication.

    The area is the chance that the signal is higher at a right time than at a wrong
    one, ties by half, over all pairs of times. The mean of the values is that area,
    and they can be treated as independent: a t interval, or a paired one of two
    signals, allows for the correlation of times within a replication.

    Args:
        right: The signal where an alarm would be right, one array a replication.
        wrong: The same where it would be wrong.

    Returns:
        Shape (replications,).

    Source: Obuchowski (1997) for areas of clustered data; Miller (1974) for the
    jackknife.
    """
    n = len(right)
    sizes = np.array([len(sample) for sample in right])
    heads = np.cumsum(sizes) - sizes
    risky = np.concatenate(right)
    wins = np.array([_beaten(np.sort(calm), risky) for calm in wrong])
    won = np.array([np.add.reduceat(row, heads) for row in wins]).T  # right by wrong
    pairs = np.outer(sizes, [float(len(sample)) for sample in wrong])
    without = [_left_out(won, i) / _left_out(pairs, i) for i in range(n)]
    area = float(won.sum()) / float(pairs.sum())
    return n * area - (n - 1) * np.array(without)


def _beaten(calm: FloatArray, risky: FloatArray) -> FloatArray:
    """How many of ``calm``, sorted, each of ``risky`` exceeds, ties by half."""
    below = np.searchsorted(calm, risky, side="left")
    return (below + np.searchsorted(calm, risky, side="right")) / 2.0


def _left_out(table: FloatArray, i: int) -> float:
    """The sum of a square table without row and column ``i``."""
    return float(table.sum() - table[i].sum() - table[:, i].sum() + table[i, i])


def auc_by_signal(
    runs: pd.DataFrame, horizon: float, signals: Sequence[str] = tuple(SIGNALS)
) -> pd.DataFrame:
    """Area under the ROC curve of each signal: a row a replication and signal.

    Args:
        runs: Runs that cross and runs that never do.
        horizon: How long before the crossing an alarm is right, seconds.
        signals: Of ``SIGNALS``.

    Returns:
        ``signal``, ``replication``, ``auc`` (its jackknife value), ``misordered``
        (1 - ``auc``, the share of pairs of times in the wrong order).
    """
    parts = []
    for signal in signals:
        values = auc(*right_and_wrong(runs, signal, horizon))
        parts.append(pd.DataFrame({"signal": signal, "auc": values}))
    table = pd.concat(parts).rename_axis("replication").reset_index()
    return table.assign(misordered=1.0 - table["auc"])
