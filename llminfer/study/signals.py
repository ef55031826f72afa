"""What an operator could watch: warning signals of a run, sampled as it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.config import SimulationConfig
from llminfer.record import RunRecord
from llminfer.timeseries import StepSeries, latency_quantile, queue_length, running

STEP = 10.0  # seconds between two looks
WINDOW = 60.0  # seconds that a mean, a rate or a quantile looks back

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
    """
    most = config.max_stable_rate
    climb = config.replace(
        arrival_rate=start * most,
        arrival_pattern="ramp",
        arrival_pattern_params={"end_rate": end * most, "duration": duration},
    )
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
    waited = waiting.integral(at - WINDOW)
    queued = waiting.integral(at) - waited
    earlier = waited - waiting.integral(at - 2.0 * WINDOW)
    active = busy.integral(at) - busy.integral(at - WINDOW)
    found = {
        "time": at,
        "load": config.arrivals(at) / most,
        "queue": waiting(at),
        "mean_queue": queued / WINDOW,
        "queue_growth": (queued - earlier) / WINDOW**2,
        "rate_ratio": _in_window(record.arrival_time, at) / WINDOW / most,
        "utilization": np.round(active / WINDOW, 9),  # always busy is 1, to the bit
        "batch_fill": _batch_fill(config, record, at),
        "p99_latency": latency_quantile(record, at, WINDOW),
    }
    return {name: values.tolist() for name, values in found.items()}


def _in_window(times: FloatArray, at: FloatArray) -> FloatArray:
    """How many of ``times``, ascending, lie in each window."""
    until = np.searchsorted(times, at, side="right")
    before = np.searchsorted(times, at - WINDOW, side="right")
    return (until - before).astype(np.float64)


def _batch_fill(
    config: SimulationConfig, record: RunRecord, at: FloatArray
) -> FloatArray:
    """Mean size of the batches that began in each window, over B."""
    taken = np.concatenate(([0], np.cumsum(record.batch_size)))
    until = np.searchsorted(record.batch_start, at, side="right")
    before = np.searchsorted(record.batch_start, at - WINDOW, side="right")
    mean = (taken[until] - taken[before]) / np.maximum(until - before, 1)
    return np.asarray(mean / config.largest_batch)
