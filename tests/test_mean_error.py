"""The error of a simulated mean, and how sure that is: by hand, and often."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llminfer.calibrate import mean_error

HALF = 2.262157  # t, 9 degrees


class Made:
    """What ``mean_error`` reads of a log."""

    def __init__(self, latency, ends):
        self.latency = np.asarray(latency, dtype=float)
        self.last_token_time = np.asarray(ends, dtype=float)


def by_hand(real, ours):
    """Leaving out a group at a time, with loops and no algebra."""
    pairs = [(float(r), float(o)) for r, o in zip(real, ours, strict=True)]
    size, extra = divmod(len(pairs), 10)
    groups, at = [], 0
    for g in range(10):
        much = size + (g < extra)
        groups.append(pairs[at : at + much])
        at += much
    left_out = []
    for g in range(10):
        rest = [pair for i, group in enumerate(groups) if i != g for pair in group]
        left_out.append(sum(o for _, o in rest) / sum(r for r, _ in rest) - 1.0)
    mean = sum(left_out) / 10
    error = math.sqrt(9 / 10 * sum((x - mean) ** 2 for x in left_out))
    value = sum(o for _, o in pairs) / sum(r for r, _ in pairs) - 1.0
    return value, value - HALF * error, value + HALF * error


@pytest.mark.parametrize("n", [20, 23, 160])
def test_it_leaves_out_each_tenth_of_those_that_complete_together(n):
    rng = np.random.default_rng(n)
    real, ours = rng.exponential(1.0, n), rng.exponential(1.1, n)
    order = rng.permutation(n)  # completes last to first, in no order of arrival
    ends = np.empty(n)
    ends[order] = np.arange(n)
    found = mean_error(Made(real, ends), Made(ours, ends), np.ones(n, bool), "latency")
    expected = by_hand(real[order], ours[order])
    assert (found.value, found.lower, found.upper) == pytest.approx(expected, rel=1e-6)


def test_only_the_part_that_completed_counts():
    rng = np.random.default_rng(1)
    real, ours = rng.exponential(1.0, 60), rng.exponential(1.0, 60)
    ends = np.arange(60.0)
    part = np.arange(60) >= 30
    some = mean_error(Made(real, ends), Made(ours, ends), part, "latency")
    expected = by_hand(real[30:], ours[30:])
    assert (some.value, some.lower, some.upper) == pytest.approx(expected, rel=1e-6)
    given_up = real.copy()
    given_up[:30] = np.nan
    every = np.ones(60, bool)
    again = mean_error(Made(given_up, ends), Made(ours, ends), every, "latency")
    assert again == some


def test_the_interval_holds_the_truth_as_often_as_it_says_and_no_wider():
    """Ratio 1.2 of means; requests that complete together share their luck."""
    rng, held, widths = np.random.default_rng(5), 0, []
    n, tries, ends, every = 400, 400, np.arange(400.0), np.ones(400, bool)
    for _ in range(tries):
        luck = np.repeat(rng.normal(0.0, 0.1, 40), 10)
        real = rng.exponential(1.0, n)
        ours = 1.2 * real * (1.0 + luck + 0.05 * rng.normal(size=n))
        found = mean_error(Made(real, ends), Made(ours, ends), every, "latency")
        held += found.lower < 0.2 < found.upper
        widths.append(found.upper - found.lower)
    # of 40 stretches, each weighed by its share of the mean
    error = 1.2 * 0.1 * math.sqrt((1.0 + 1.0 / 10.0) / 40.0)
    error = math.hypot(error, 1.2 * 0.05 * math.sqrt(2.0 / n))
    assert 0.92 < held / tries < 0.98
    assert np.mean(widths) == pytest.approx(2 * HALF * error, rel=0.06)
