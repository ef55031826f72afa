"""What an alarm is worth: when it first rings, how early, and how often in vain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import number
from llminfer.study.signals import SIGNALS


def crossing_time(time: Sequence[float], load: Sequence[float]) -> float:
    """When the load first reaches 1, seconds; infinity if it never does.

    Args:
        time: Seconds, ascending, shape (n,).
        load: Offered load at each time; between them it is a straight line.
    """
    over = np.asarray(load) >= 1.0
    at = int(over.argmax())
    if not over[at]:
        return np.inf
    if at == 0:
        return float(time[0])
    return float(np.interp(1.0, load[at - 1 : at + 1], time[at - 1 : at + 1]))


def first_alarms(
    runs: pd.DataFrame, signal: str, thresholds: float | FloatArray
) -> FloatArray:
    """When each run's signal first exceeds each threshold, seconds; else infinity.

    Args:
        runs: A row a run, with the lists that ``warning_signals`` gives.
        signal: One of ``SIGNALS``.
        thresholds: In the signal's unit, one or several.

    Returns:
        Shape (runs, thresholds).
    """
    limits = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    alarms = []
    for time, values in zip(runs["time"], runs[signal], strict=True):
        highest = np.maximum.accumulate(known(values))
        reached = np.searchsorted(highest, limits, side="right")
        alarms.append(np.append(time, np.inf)[reached])
    return np.array(alarms)


def known(values: Sequence[float] | FloatArray) -> FloatArray:
    """A signal that says nothing raises no alarm."""
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)


def judge(runs: pd.DataFrame, signal: str, threshold: float) -> pd.DataFrame:
    """The table of runs with what one alarm made of each.

    Args:
        runs: A row a run, with the lists that ``warning_signals`` gives.
        signal: One of ``SIGNALS``.
        threshold: The alarm rings when the signal exceeds it.

    Returns:
        ``runs`` without the lists, and ``alarm``, seconds, infinity if it never
        rang; ``crossing``, when the load reached 1, infinity if it never did;
        ``lead``, from the alarm to the crossing, seconds, negative if it came after,
        and counted from the last look if it never rang; ``warned``, 1 if the alarm
        rang before the crossing and else 0: in a run that never crosses 1 is wrong.
    """
    series = [name for name in runs if isinstance(runs[name].iloc[0], list)]
    alarm = first_alarms(runs, signal, threshold)[:, 0]
    crossing = crossings(runs)
    end = np.array([time[-1] for time in runs["time"]])
    return runs.drop(columns=series).assign(
        signal=signal,
        threshold=threshold,
        alarm=alarm,
        crossing=crossing,
        lead=crossing - np.minimum(alarm, end),
        warned=(alarm < crossing).astype(np.float64),
    )


def crossings(runs: pd.DataFrame) -> FloatArray:
    """``crossing_time`` of each run, seconds, shape (runs,)."""
    pairs = zip(runs["time"], runs["load"], strict=True)
    return np.array([crossing_time(time, load) for time, load in pairs])


def quiet_threshold(runs: pd.DataFrame, signal: str, share: float) -> float:
    """The lowest threshold that rings in at most ``share`` of the runs.

    Args:
        runs: Runs that never cross, with the lists that ``warning_signals`` gives.
        signal: One of ``SIGNALS``.
        share: From 0 to 1.
    """
    rest = 1.0 - number("share", share, least=0.0, most=1.0)
    highest = [known(values).max() for values in runs[signal]]
    return float(np.quantile(highest, rest, method="higher"))


def trade_off(runs: pd.DataFrame, signal: str) -> pd.DataFrame:
    """How early against how often wrong, at every threshold.

    Args:
        runs: Runs that cross and runs that never do, of the same length.
        signal: One of ``SIGNALS``.

    Returns:
        A row a threshold: ``threshold``; ``false``, the share of the runs that never
        cross in which the alarm rings; ``lead``, its median in the others, seconds,
        minus infinity if most never ring.
    """
    crosses = np.isfinite(crossings(runs))
    calm, risky = runs[~crosses], runs[crosses]
    thresholds = np.unique([known(values).max() for values in calm[signal]])
    rings = np.isfinite(first_alarms(calm, signal, thresholds))
    lead = crossings(risky)[:, None] - first_alarms(risky, signal, thresholds)
    return pd.DataFrame(
        {
            "signal": signal,
            "threshold": thresholds,
            "false": rings.mean(axis=0),
            "lead": np.quantile(lead, 0.5, axis=0, method="lower"),
        }
    )


def quiet_alarms(runs: pd.DataFrame, share: float) -> pd.DataFrame:
    """What each signal makes of the runs that cross, at an equal price.

    Args:
        runs: Runs that cross and runs that never do.
        share: In so many of the runs that never cross may an alarm ring, from 0 to 1.

    Returns:
        ``judge``'s table of the runs that cross for each of ``SIGNALS``, at its
        ``quiet_threshold`` in the others.
    """
    crosses = np.isfinite(crossings(runs))
    risky, calm = runs[crosses], runs[~crosses]
    return pd.concat(
        judge(risky, signal, quiet_threshold(calm, signal, share)) for signal in SIGNALS
    )


def spread(runs: pd.DataFrame, signal: str) -> pd.DataFrame:
    """A signal over time: its median over the runs, and where 80% of them are.

    Args:
        runs: Runs of one configuration, with the lists of ``warning_signals``.
        signal: One of ``SIGNALS``.

    Returns:
        ``time``, seconds, ``median``, ``low`` (10%) and ``high`` (90%).
    """
    values = np.array(runs[signal].to_list(), dtype=np.float64)
    low, median, high = np.nanquantile(values, [0.1, 0.5, 0.9], axis=0)
    columns = {"time": runs["time"].iloc[0], "median": median, "low": low, "high": high}
    return pd.DataFrame(columns)
