"""Early warning of overload: signals, the alarms they raise, and their ROC curves.

An operator samples ``SIGNALS`` while a run goes on (``warning_signals``). An alarm is
raised when a signal first exceeds a threshold; it is right if the load then reaches 1,
and a false alarm if it never does (``judge``, ``trade_off``). The ROC curve and its
area tell how well a signal separates the two, over all thresholds (``roc_curve``,
``auc``).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from llminfer import RunRecord, SimulationConfig
from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import number
from llminfer.stats.intervals import without_one
from llminfer.timeseries import StepSeries, latency_quantile, queue_length, running

Samples = list[FloatArray]

STEP = 10.0  # seconds between two looks
WINDOW = 60.0  # seconds that a mean, a rate or a quantile looks back
_RANKS = np.linspace(0.0, 1.0, 201)  # of the thresholds on a ROC curve

SIGNALS: Mapping[str, str] = {
    "queue": "queue",
    "mean_queue": "mean queue",
    "queue_growth": "queue growth",
    "rate_ratio": "arrival rate / λ*",
    "utilization": "utilisation",
    "batch_fill": "batch fill",
    "p99_latency": "p99 latency",
}


def load_ramp(
    config: SimulationConfig, start: float, end: float, duration: float, lasts: float
) -> SimulationConfig:
    """The configuration under a load that climbs in a straight line, then stays.

    Args:
        config: The server; its lambda*(B) is load 1.
        start: Load at time 0.
        end: Load from ``duration`` on.
        duration: Length of the climb, seconds.
        lasts: For so many seconds requests are expected to arrive.

    Raises:
        ConfigError: A load or duration that is not above 0.

    >>> climb = load_ramp(SimulationConfig(batch_size=4), 0.5, 1.2, 600.0, lasts=900.0)
    >>> round(climb.arrival_rate, 2), climb.num_requests
    (2.54, 4428)
    """
    most = config.max_stable_rate
    ramp = {"end_rate": end * most, "duration": duration}
    law = {"arrival_pattern": "ramp", "arrival_pattern_params": ramp}
    climb = config.replace(arrival_rate=start * most, **law)
    expected = float(climb.arrivals.cumulative(np.array([lasts]))[0])
    return climb.replace(num_requests=math.ceil(expected))


def sample_times(config: SimulationConfig) -> FloatArray:
    """When an operator looks, seconds: every ``STEP``, after the warm-up.

    The same for all seeds, and over before the last arrival of practically any run:
    when no requests are left, the signals say nothing of the load.
    """
    n = config.num_requests
    least = max(n - 5.0 * config.arrival_cv * math.sqrt(n), 1.0)
    counts = np.array([float(config.warmup_requests), least])
    begin, end = config.arrivals.inverse(counts) / STEP
    return STEP * np.arange(math.floor(begin) + 1, math.floor(end) + 1)


def warning_signals(
    config: SimulationConfig, record: RunRecord
) -> dict[str, list[float]]:
    """What the signals say at each look, and the truth: the load.

    Args:
        config: What was run.
        record: The run.

    Returns:
        Lists of one length: ``time``, seconds; ``load``, lambda(t)/lambda*(B), the
        truth; ``queue``, requests waiting; and over the ``WINDOW`` before
        ``mean_queue``; ``queue_growth``, the mean queue less that of the window
        before it, requests a second; ``rate_ratio``, the measured arrival rate over
        lambda*(B); ``utilization``, the busy share; ``batch_fill``, the mean batch
        over B, 0 if none began; ``p99_latency`` of the completed, seconds, NaN if
        none was. Before time 0 everything was 0.
    """
    at = sample_times(config)
    most = config.max_stable_rate
    waiting, serving = queue_length(record), running(record)
    busy = StepSeries(serving.times, np.minimum(serving.values, 1.0))
    arrived = _so_far(record.arrival_time, np.ones_like(record.arrival_time))
    begun = _so_far(record.batch_start, np.ones_like(record.batch_size))
    taken = _so_far(record.batch_start, record.batch_size)
    queued = _over_window(waiting.integral, at)
    earlier = _over_window(waiting.integral, at - WINDOW)
    mean_batch = _over_window(taken, at) / np.maximum(_over_window(begun, at), 1)
    active = _over_window(busy.integral, at)
    found = {
        "time": at,
        "load": config.arrivals(at) / most,
        "queue": waiting(at),
        "mean_queue": queued / WINDOW,
        "queue_growth": (queued - earlier) / WINDOW**2,
        "rate_ratio": _over_window(arrived, at) / WINDOW / most,
        "utilization": np.round(active / WINDOW, 9),  # always busy is 1, to the bit
        "batch_fill": mean_batch / config.largest_batch,
        "p99_latency": latency_quantile(record, at, WINDOW),
    }
    return {name: values.tolist() for name, values in found.items()}


def _so_far(times: FloatArray, amount: FloatArray | IntArray) -> StepSeries:
    """The sum of what came at ``times``, over time."""
    return StepSeries(times, np.cumsum(amount, dtype=np.float64))


def _over_window(
    total: Callable[[FloatArray], FloatArray], at: FloatArray
) -> FloatArray:
    """What is added in the window before each look."""
    return total(at) - total(at - WINDOW)


def crossing_time(time: Sequence[float], load: Sequence[float]) -> float:
    """When the load first reaches 1, seconds; infinity if it never does.

    Args:
        time: Seconds, ascending, shape (n,).
        load: Offered load at each time; between them it is a straight line.

    >>> crossing_time([0.0, 10.0, 20.0], [0.7, 0.95, 1.2])
    12.000000000000002
    """
    over = np.flatnonzero(np.asarray(load) >= 1.0)
    if not len(over):
        return np.inf
    around = slice(max(over[0] - 1, 0), over[0] + 1)
    return float(np.interp(1.0, load[around], time[around]))


def first_alarms(runs: pd.DataFrame, signal: str, thresholds: FloatArray) -> FloatArray:
    """When each run's signal first exceeds each threshold, seconds; else infinity.

    Args:
        runs: A row a run, with the lists that ``warning_signals`` gives.
        signal: One of ``SIGNALS``.
        thresholds: In the signal's unit.

    Returns:
        Shape (runs, thresholds).
    """
    alarms = []
    for time, values in zip(runs["time"], runs[signal], strict=True):
        highest = np.maximum.accumulate(known(values))
        reached = np.searchsorted(highest, thresholds, side="right")
        alarms.append(np.append(time, np.inf)[reached])
    return np.array(alarms)


def known(values: Sequence[float] | FloatArray) -> FloatArray:
    """The signal with minus infinity where it has no value, so no alarm is raised."""
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)


def judge(runs: pd.DataFrame, signal: str, threshold: float) -> pd.DataFrame:
    """The table of runs, each with its alarm, its lead and if it warned in time.

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

    >>> load = [[0.6, 0.9, 1.2], [0.5, 0.5, 0.5]]
    >>> runs = pd.DataFrame({"time": [[10.0, 20.0, 30.0]] * 2, "load": load})
    >>> runs["queue"] = [[1.0, 5.0, 40.0], [2.0, 3.0, 2.0]]
    >>> judge(runs, "queue", threshold=4.0)[["alarm", "crossing", "warned"]].round(1)
       alarm  crossing  warned
    0   20.0      23.3     1.0
    1    inf       inf     0.0
    """
    series = [name for name in runs if isinstance(runs[name].iloc[0], list)]
    end = np.array([max(time, default=0.0) for time in runs["time"]])
    table = runs.drop(columns=series).assign(signal=signal, threshold=threshold)
    alarm = first_alarms(runs, signal, np.array([threshold]))[:, 0]
    table["alarm"], table["crossing"] = alarm, crossings(runs)
    table["lead"] = table["crossing"] - np.minimum(alarm, end)
    table["warned"] = (alarm < table["crossing"]).astype(np.float64)
    return table


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

    >>> runs = pd.DataFrame({"queue": [[1.0, 5.0], [2.0, 3.0], [7.0, 1.0]]})
    >>> quiet_threshold(runs, "queue", share=0.5)
    5.0
    """
    rest = 1.0 - number("share", share, least=0.0, most=1.0)
    highest = [known(values).max() for values in runs[signal]]
    return float(np.quantile(highest, rest, method="higher"))


def trade_off(runs: pd.DataFrame, signal: str) -> pd.DataFrame:
    """Median lead against the share of false alarms, at every threshold.

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
    table = pd.DataFrame({"signal": signal, "threshold": thresholds})
    table["false"] = rings.mean(axis=0)
    table["lead"] = np.quantile(lead, 0.5, axis=0, method="lower")
    return table


def quiet_alarms(runs: pd.DataFrame, share: float) -> pd.DataFrame:
    """The runs that cross as each signal warns of them, at equal false alarms.

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


def right_and_wrong(
    runs: pd.DataFrame, signal: str, horizon: float
) -> tuple[Samples, Samples]:
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
    looks = runs[["replication", "time", signal]].assign(crossing=crossings(runs))
    looks = looks.explode(["time", signal]).astype(np.float64).fillna(-np.inf)
    ahead = looks["crossing"] - looks["time"]

    def samples(chosen: pd.Series) -> Samples:
        groups = looks.assign(chosen=chosen).groupby("replication")
        return [rows.loc[rows["chosen"], signal].to_numpy() for _, rows in groups]

    return samples(ahead.between(0.0, horizon, "right")), samples(ahead > horizon)


def roc_curve(right: Samples, wrong: Samples) -> pd.DataFrame:
    """The receiver operating characteristic of a signal, all replications together.

    Args:
        right: The signal where an alarm would be right, one array a replication.
        wrong: The same where it would be wrong.

    Returns:
        ``false``, the share of wrong times with an alarm, and ``true``, that of right
        times under the same threshold; both rise from 0 to 1.

    >>> roc_curve([np.array([2.0])], [np.array([1.0])])
       false  true
    0    0.0   0.0
    1    0.0   0.0
    2    0.0   1.0
    3    1.0   1.0
    """
    calm = np.sort(np.concatenate(wrong))
    risky = np.sort(np.concatenate(right))
    levels = [np.quantile(part, _RANKS, method="higher") for part in (calm, risky)]
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

    >>> before = [np.array([3.0, 4.0]), np.array([2.0])]
    >>> calm = [np.array([1.0, 2.0]), np.array([0.0])]
    >>> round(float(auc(before, calm).mean()), 2)
    0.89
    """
    n = len(right)
    area = _area(np.concatenate(right), np.concatenate(wrong))
    rest = zip(without_one(right), without_one(wrong), strict=True)
    return n * area - (n - 1) * np.array([_area(*samples) for samples in rest])


def _area(right: FloatArray, wrong: FloatArray) -> float:
    """The chance to be higher when right (Mann, Whitney 1947)."""
    ranks = rankdata(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks - 1 - np.arange(len(ranks))).sum()) / (len(ranks) * len(wrong))


def auc_by_signal(runs: pd.DataFrame, horizon: float) -> pd.DataFrame:
    """Area under the ROC curve of each signal: a row a replication and signal.

    Args:
        runs: Runs that cross and runs that never do.
        horizon: How long before the crossing an alarm is right, seconds.

    Returns:
        ``signal``, ``replication``, ``auc`` (its jackknife value), ``misordered``
        (1 - ``auc``, the share of pairs of times in the wrong order).
    """
    areas = {name: auc(*right_and_wrong(runs, name, horizon)) for name in SIGNALS}
    table = pd.DataFrame(areas).rename_axis("replication").reset_index()
    table = table.melt("replication", var_name="signal", value_name="auc")
    return table.assign(misordered=1.0 - table["auc"])
