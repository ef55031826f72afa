"""What a sweep can measure of a run beyond the usual metrics."""

from __future__ import annotations

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.experiment import Row, poolable_metrics
from llminfer.laws.arrivals import SinusoidalRate
from llminfer.record import RunRecord
from llminfer.stats.pooling import kept
from llminfer.timeseries import batch_limit, latency_quantile, queue_length

_POINTS = 60  # a period has so many points on the grid of the series


def _avg_and_p99(name: str, values: FloatArray) -> Row:
    """``avg_<name>``, ``p99_<name>``, and what pools it; NaN where there is none."""
    some = bool(values.size)
    mean = float(values.mean()) if some else np.nan
    p99 = float(np.quantile(values, 0.99)) if some else np.nan
    return {f"avg_{name}": mean, f"p99_{name}": p99, **kept(name, values)}


def by_group(config: SimulationConfig, record: RunRecord) -> Row:
    """The metrics, and latency by group: short and long requests, each class.

    A request is long if its prompt is longer than the mean of the prompts' law.

    Args:
        config: Of the run.
        record: Of the run; its warm-up is left out.

    Returns:
        All metrics, and for each group ``short``, ``long`` and every request class by
        its name: ``avg_latency_<group>`` and ``p99_latency_<group>``, seconds, and
        ``starved_<group>``, the percentage of the group over three times the median
        latency of all; NaN for a group without requests.
    """
    skip = config.warmup_requests
    latency = record.latency[skip:]
    long = record.prompt_length[skip:] > config.prompts.expectation()
    groups = {"short": ~long, "long": long}
    for number, name in enumerate(config.request_classes):
        groups[name] = record.request_class[skip:] == number
    found = poolable_metrics(config, record)
    starved = latency > 3.0 * found["median_latency"]
    for name, members in groups.items():
        found |= _avg_and_p99(f"latency_{name}", latency[members])
        share = 100.0 * float(starved[members].mean()) if members.any() else np.nan
        found[f"starved_{name}"] = share
    return found


def over_a_wave(config: SimulationConfig, record: RunRecord) -> Row:
    """Latency at the peak of a sinusoidal rate, and the run's path over time.

    Args:
        config: With ``arrival_pattern="sinusoidal"`` and no phase.
        record: Its run.

    Returns:
        ``p99_latency`` and ``avg_latency`` without the warm-up; ``p99_peak`` of
        requests that arrive in the third of a period around its peak; and on a grid of
        60 points a period the lists ``time``, ``queue``, ``limit`` and ``p99`` (of
        requests completed in the tenth of a period before).

    Raises:
        ConfigError: The rate is no such wave.
    """
    wave = config.arrivals
    if not isinstance(wave, SinusoidalRate):
        raise fail("arrival_pattern", config.arrival_pattern, "sinusoidal")
    measured = slice(config.warmup_requests, None)
    latency = record.latency[measured]
    turn = record.arrival_time[measured] / wave.period % 1.0
    at_peak = np.abs(turn - 0.25) <= 1.0 / 6.0
    periods = max(1, round(config.num_requests / wave.rate / wave.period))
    grid = np.linspace(0.0, periods * wave.period, periods * _POINTS + 1)[1:]
    return {
        **_avg_and_p99("latency", latency),
        **_avg_and_p99("peak", latency[at_peak]),
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
    return poolable_metrics(config, record) | {"completion_rate": rate}


def tails(config: SimulationConfig, record: RunRecord) -> Row:
    """What a sweep over rates needs, without what is slow to compute.

    Returns:
        ``avg_`` and ``p99_`` of ``latency``, ``ttft`` and ``tpot``, seconds, without
        the warm-up; ``busy_rate``, requests completed a second between the first and
        the last fifth of all completions: in an overloaded run what the server
        carries, filling up and emptying left out.
    """
    found: Row = {}
    for name in ("latency", "ttft", "tpot"):
        values = getattr(record, name)[config.warmup_requests :]
        found |= _avg_and_p99(name, values[~np.isnan(values)])
    done = np.sort(record.processing_end_time)
    fifth = len(done) // 5
    middle = done[fifth : len(done) - fifth]
    lasted = float(middle[-1] - middle[0])
    found["busy_rate"] = (len(middle) - 1) / lasted if lasted > 0.0 else np.nan
    return found


def latency_parts(config: SimulationConfig, record: RunRecord) -> Row:
    """Mean and p99 of latency, and what the mean is made of, seconds.

    Returns:
        ``avg_latency`` and ``p99_latency``, and five means whose sum is the first:
        ``queue``, the wait while the server serves others; ``company``, the wait of an
        idle server for a full batch; ``own_prompt`` and ``other_prompts``, the prefill
        of one's own prompt and of the others in the batch; ``shared``, which a batch
        pays once: beta and decode. All without the warm-up.

    >>> from llminfer import Workload, simulate
    >>> config = SimulationConfig(batch_size=2, warmup_requests=0)
    >>> work = Workload.from_arrays([0.0, 0.5, 4.0], [100, 50, 200], [20, 10, 30])
    >>> parts = latency_parts(config, simulate(config, work))
    >>> round(parts["company"], 3)  # the first waits 0.5 s for the second
    0.167
    """
    measured = slice(config.warmup_requests, None)
    wait, latency = record.wait[measured], record.latency[measured]
    start = record.processing_start_time[measured]
    queue = _busy_time(record, start)
    queue -= _busy_time(record, record.arrival_time[measured])
    own = config.alpha * record.prompt_length[measured]
    prompts = record.first_token_time[measured] - start - config.beta
    parts = {
        "queue": queue,
        "company": wait - queue,
        "own_prompt": own,
        "other_prompts": prompts - own,
        "shared": latency - wait - prompts,
    }
    means = {name: float(part.mean()) for name, part in parts.items()}
    return _avg_and_p99("latency", latency) | means


def _busy_time(record: RunRecord, t: FloatArray) -> FloatArray:
    """Seconds that the server has been busy by each time ``t``, same shape."""
    ends = np.stack([record.batch_start, record.batch_end], axis=1)
    lasting = np.stack([np.zeros(len(ends)), ends[:, 1] - ends[:, 0]], axis=1)
    busy = np.interp(t, ends.ravel(), lasting.ravel().cumsum())
    return np.asarray(busy)
