"""Queue, batch, limit and memory of a run as series over time, from its record."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import fail, number
from llminfer.record import RunRecord


@dataclass(frozen=True, eq=False)
class StepSeries:
    """A quantity that stays as it is between jumps; 0 before the first.

    Call it for the values at an array of times, so that replications with jumps of
    their own meet on one grid.

    Attributes:
        times: When it jumps, seconds, ascending, shape (n,).
        values: What it is from then on, shape (n,).
    """

    times: FloatArray
    values: FloatArray

    def __call__(self, t: npt.ArrayLike) -> FloatArray:
        at = np.searchsorted(self.times, t, side="right")
        return np.concatenate(([0.0], self.values))[at]

    def means(self, edges: npt.ArrayLike) -> FloatArray:
        """Exact time averages between neighbouring ``edges``.

        Args:
            edges: Seconds, ascending, shape (k + 1,), at least two.

        Returns:
            Shape (k,).

        Raises:
            ConfigError: ``edges`` do not ascend.
        """
        lasts = np.diff(edges)
        if not (len(lasts) and np.all(lasts > 0.0)):
            raise fail("edges", edges, "ascending, at least two")
        return np.asarray(np.diff(self.integral(edges)) / lasts)

    def integral(self, t: npt.ArrayLike) -> FloatArray:
        """The area under the series from the first jump to each of ``t``, same shape.

        Times need not ascend; before the first jump the area is 0.
        """
        at = np.asarray(t, dtype=np.float64)
        if not len(self.times):
            return np.zeros_like(at)
        areas = np.append(0.0, np.cumsum(self.values[:-1] * np.diff(self.times)))
        last = np.maximum(at - self.times[-1], 0.0) * self.values[-1]
        return np.asarray(np.interp(at, self.times, areas) + last)


def queue_length(record: RunRecord) -> StepSeries:
    """Requests that wait, over time.

    >>> from llminfer import SimulationConfig, Workload, simulate
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> queue_length(record).means([0.0, 1.0, 4.0]).round(3).tolist()
    [0.5, 0.0]
    """
    return _between(*record.waits)


def running(record: RunRecord) -> StepSeries:
    """Requests in service, over time: the batch that runs.

    >>> from llminfer import SimulationConfig, Workload, simulate
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> running(record)([0.1, 0.6]).tolist()
    [0.0, 2.0]
    """
    waits, begin = record.waits
    preempted = waits[len(record.arrival_time) :]
    return _between(begin, np.append(record.processing_end_time, preempted))


def batch_limit(record: RunRecord) -> StepSeries:
    """The batch limit, over time."""
    return _last_of_each(record.limit_time, record.batch_limit)


def kv_occupancy(record: RunRecord) -> tuple[FloatArray, FloatArray]:
    """The share of the first server's KV blocks that is held, over time.

    Args:
        record: A finished run of a continuous server with ``kv_blocks``.

    Returns:
        Times, seconds, and shares, 0 to 1, to be joined by lines.

    Raises:
        ConfigError: The run had no limit of blocks.
    """
    log = record.steps
    if log is None or log.kv_blocks is None:
        raise fail("kv_blocks", None, "given, or nothing is occupied")
    rows = log.batch_replica == 0
    begin, end = record.batch_start[rows], record.batch_end[rows]
    first, last = log.first_blocks[rows], log.last_blocks[rows]
    nothing = np.zeros_like(first)
    idle = np.append(begin[1:] > end[:-1], True)
    after = np.append(begin[1:], end[-1:])
    points = np.column_stack((begin, end, end, after))
    held = np.column_stack((first, last, nothing, nothing))
    drawn = np.column_stack((idle | True, idle | True, idle, idle))
    return points[drawn], held[drawn] / log.kv_blocks


def latency_quantile(
    record: RunRecord, at: npt.ArrayLike, window: float, quantile: float = 0.99
) -> FloatArray:
    """Quantile of the latencies that were complete in the last ``window`` seconds.

    Args:
        record: A finished run.
        at: Times, seconds, shape (k,).
        window: The window is (t - window, t], seconds.
        quantile: From 0 to 1.

    Returns:
        Seconds, shape (k,); NaN where the window holds no completion.

    Raises:
        ConfigError: ``window`` is not above 0, or ``quantile`` not in [0, 1].
    """
    back = number("window", window, above=0.0)
    share = number("quantile", quantile, least=0.0, most=1.0)
    times = np.asarray(at, dtype=np.float64)
    order = np.argsort(record.processing_end_time, kind="stable")
    end = record.processing_end_time[order]
    latency = record.latency[order]
    first = np.searchsorted(end, times - back, side="right")
    last = np.searchsorted(end, times, side="right")
    found = np.full(len(times), np.nan)
    for i in np.flatnonzero(last > first):
        found[i] = np.quantile(latency[first[i] : last[i]], share)
    return found


def _between(begin: FloatArray, end: FloatArray) -> StepSeries:
    """How many requests are between their ``begin`` and their ``end``."""
    times = np.concatenate((begin, end))
    jumps = np.ones(len(times), dtype=np.int64)
    jumps[len(begin) :] = -1
    order = np.argsort(times, kind="stable")
    return _last_of_each(times[order], np.cumsum(jumps[order]))


def _last_of_each(times: FloatArray, values: IntArray) -> StepSeries:
    """The series of what is left when all that happens at one instant has happened."""
    last = np.append(times[1:] > times[:-1], np.ones(len(times[:1]), dtype=bool))
    return StepSeries(times[last], values[last].astype(np.float64))
