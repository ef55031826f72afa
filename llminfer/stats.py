"""Intervals one can trust."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from llminfer.checks import number


def compute_confidence_interval(
    values: Sequence[float] | npt.NDArray[np.float64], confidence: float = 0.95
) -> dict[str, float]:
    """Student's t interval for the mean of independent values.

    Args:
        values: One number an independent replication, shape (n,).
        confidence: Coverage wanted, between 0 and 1.

    Returns:
        ``{"mean", "ci_lower", "ci_upper"}``; one value has no interval, and its
        bounds are NaN.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
        ValueError: There are no values.

    Source: Student (1908).
    """
    if number("confidence", confidence, above=0.0) >= 1.0:
        raise ValueError(f"confidence={confidence!r}: must be below 1")
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size:
        raise ValueError("values: must be a list of at least one number")
    mean = float(sample.mean())
    half = math.nan
    if sample.size > 1:
        t = float(stdtrit(sample.size - 1, 0.5 + confidence / 2.0))
        half = t * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return {"mean": mean, "ci_lower": mean - half, "ci_upper": mean + half}
