"""What a sweep can measure of a run beyond the usual metrics."""

from __future__ import annotations

import numpy as np

from llminfer.config import SimulationConfig
from llminfer.experiment import Row, metrics_of
from llminfer.record import RunRecord


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
