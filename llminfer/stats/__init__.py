"""Intervals one can trust: of one configuration, of pairs, of long enough runs."""

from llminfer.stats.intervals import (
    Estimate,
    bounds_of,
    compute_confidence_interval,
    jackknife,
    pooled_quantile,
    summarize,
    summarize_series,
)
from llminfer.stats.paired import (
    best_against_rest,
    blocked_anova,
    cost_of_choice,
    paired_differences,
)
from llminfer.stats.run_length import (
    averaged_series,
    mser5,
    replicate_until,
    welch,
)

__all__ = [
    "Estimate",
    "averaged_series",
    "best_against_rest",
    "blocked_anova",
    "bounds_of",
    "compute_confidence_interval",
    "cost_of_choice",
    "jackknife",
    "mser5",
    "paired_differences",
    "pooled_quantile",
    "replicate_until",
    "summarize",
    "summarize_series",
    "welch",
]
