"""What a sweep can measure of a run beyond the usual metrics."""

from __future__ import annotations

import numpy as np

from llminfer.arrivals import SinusoidalRate
from llminfer.checks import fail
from llminfer.config import SimulationConfig
from llminfer.experiment import Row, metrics_of
from llminfer.record import RunRecord
from llminfer.series import batch_limit, latency_quantile, queue_length

_POINTS = 60  # a period has so many points on the grid of the series


def by_group(config: SimulationConfig, record: RunRecord) -> Row:
    """The metrics, and who has which latency: short and long requests, each class.

    A request is long if its prompt is longer than the mean of the prompts' law.

    Args:
        config: Of the run.
        record: Of the run; its warm-up is left out.

    Returns:
        All metrics, and for each group ``short``, ``long`` and every request class by
        its name: ``avg_latency_<group>`` and ``p99_latency_<group>``, seconds, and
        ``starved_<group>``, the percentage of the group over three times the median
        latency of all; NaN for a group of nobody.
    """
    skip = config.warmup_requests
    latency = (record.processing_end_time - record.arrival_time)[skip:]
    long = record.prompt_length[skip:] > config.prompts.expectation()
    groups = {"short": ~long, "long": long}
    for number, name in enumerate(config.request_classes):
        groups[name] = record.request_class[skip:] == number
    found = metrics_of(config, record)
    starved = latency > 3.0 * found["median_latency"]
    for name, members in groups.items():
        its = latency[members]
        some = bool(its.size)
        found[f"avg_latency_{name}"] = float(its.mean()) if some else np.nan
        found[f"p99_latency_{name}"] = float(np.quantile(its, 0.99)) if some else np.nan
        share = 100.0 * float(starved[members].mean()) if some else np.nan
        found[f"starved_{name}"] = share
    return found


def over_a_wave(config: SimulationConfig, record: RunRecord) -> Row:
    """Latency at the peak of a sinusoidal rate, and the run's path over time.

    Args:
        config: With ``arrival_pattern="sinusoidal"`` and no phase.
        record: Its run.

    Returns:
        ``p99_latency`` and ``avg_latency`` without the warm-up; ``p99_peak`` of those
        who arrive in the third of a period around its peak; and on a grid of 60
        points a period the lists ``time``, ``queue``, ``limit`` and ``p99`` (of
        requests completed in the tenth of a period before).

    Raises:
        ConfigError: The rate is no such wave.
    """
    wave = config.arrivals
    if not isinstance(wave, SinusoidalRate):
        raise fail("arrival_pattern", config.arrival_pattern, "sinusoidal")
    measured = slice(config.warmup_requests, None)
    arrival = record.arrival_time[measured]
    latency = record.processing_end_time[measured] - arrival
    turn = arrival / wave.period % 1.0
    at_peak = np.abs(turn - 0.25) <= 1.0 / 6.0
    periods = max(1, round(config.num_requests / wave.rate / wave.period))
    grid = np.linspace(0.0, periods * wave.period, periods * _POINTS + 1)[1:]
    return {
        "p99_latency": float(np.quantile(latency, 0.99)),
        "avg_latency": float(latency.mean()),
        "p99_peak": float(np.quantile(latency[at_peak], 0.99)),
        "time": grid.tolist(),
        "queue": queue_length(record)(grid).tolist(),
        "limit": batch_limit(record)(grid).tolist(),
        "p99": latency_quantile(record, grid, wave.period / 10.0).tolist(),
    }


def with_completion_rate(config: SimulationConfig, record: RunRecord) -> Row:
    """The usual metrics, and ``completion_rate``, requests a second of the whole run.

    In an overloaded run that is what the server carries. The usual throughput is less:
    the backlog of the warm-up is worked off in its time and not counted.
    """
    lasted = float(record.processing_end_time.max() - record.arrival_time[0])
    rate = len(record.arrival_time) / lasted
    return metrics_of(config, record) | {"completion_rate": rate}
