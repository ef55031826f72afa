"""Enough replications, and the warm-up to drop."""

import numpy as np
import pytest
import scipy.stats

from llminfer.base.errors import ConfigError
from llminfer.stats.intervals import skewed_mean
from llminfer.stats.run_length import averaged_series, mser5, replicate_until, welch


def relative_half_width(values):
    """Student's interval, longer by Johnson's shift to the side of the long tail."""
    n, sd = len(values), np.std(values, ddof=1)
    t = scipy.stats.t.ppf(0.975, n - 1)
    third = scipy.stats.skew(values, bias=False) * sd / n
    longer = abs((1.0 + 2.0 * t**2) / 6.0 * third)
    return (t * sd / np.sqrt(n) + longer) / abs(np.mean(values))


def noisy(mean, sd, seed=5):
    values = np.random.default_rng(seed).normal(mean, sd, 2000)
    return values.__getitem__


@pytest.mark.parametrize("mean", [4.0, -4.0])
def test_it_stops_half_as_many_again_after_the_first_number_that_would_do(mean):
    run, allowed = noisy(mean, 1.0), 0.05 / 1.05
    found = replicate_until(run, target=0.05)
    first = next(
        n
        for n in range(20, 2000)
        if relative_half_width([run(i) for i in range(n)]) <= allowed
    )
    assert found.reached
    assert found.n == np.ceil(1.5 * first) > 30
    assert relative_half_width(found.values) <= allowed


def test_what_no_longer_does_when_it_is_to_be_believed_is_gone_on_with():
    values = [10.0, 10.1] * 10 + [10.0] * 9 + [18.0] + [10.0, 10.1] * 200
    found = replicate_until(values.__getitem__, target=0.03)
    assert relative_half_width(values[:20]) < 0.03 < relative_half_width(values[:30])
    assert found.reached
    assert found.n > 30
    assert relative_half_width(values[: found.n - 1]) > 0.03 / 1.03


def test_its_interval_is_that_of_its_values():
    run = noisy(4.0, 1.0)
    found = replicate_until(run, target=0.05)
    assert found.values == tuple(run(i) for i in range(found.n))
    assert found.estimate == skewed_mean(found.values)


def test_twenty_replications_are_run_however_sure_the_first_ones_look():
    assert replicate_until(lambda i: 3.0, target=0.5).n == 30
    found = replicate_until(lambda i: 3.0, target=0.5, most=22)
    assert (found.n, found.reached) == (22, True)


def test_it_gives_up_and_says_so():
    found = replicate_until(noisy(0.0, 1.0), target=0.01, most=40)
    assert found.n == 40
    assert not found.reached


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 0.0}, "target=0.0"),
        ({"most": 19}, "most=19: must be a whole number of at least 20"),
        ({"run": lambda i: 1.0 if i < 3 else float("nan")}, r"run\(3\)=nan"),
    ],
)
def test_senseless_settings_and_values_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        replicate_until(**{"run": noisy(1.0, 1.0), "target": 0.1, **settings})


# Warm-up


def test_series_are_averaged_as_far_as_the_shortest_goes():
    assert averaged_series([[1.0, 2.0, 9.0], [3.0, 6.0]]).tolist() == [2.0, 4.0]
    with pytest.raises(ConfigError, match="at least one value"):
        averaged_series([[1.0], []])


def mser_by_definition(series):
    """MSER-5 as published: batches of five, and no algebra."""
    batches = [np.mean(series[i : i + 5]) for i in range(0, len(series) // 5 * 5, 5)]
    m = len(batches)
    marginal = [
        np.sum((batches[d:] - np.mean(batches[d:])) ** 2) / (m - d) ** 2
        for d in range(m - 4)
    ]
    return 5 * int(np.argmin(marginal))


@pytest.mark.parametrize("seed", range(5))
def test_mser_cuts_where_its_definition_does(seed):
    random = np.random.default_rng(seed)
    at = np.arange(1003)
    series = 1e8 + 10.0 * (1.0 - np.exp(-at / 60.0)) + random.normal(size=len(at))
    assert mser5(series) == mser_by_definition(series)
    assert 120 <= mser5(series) <= 300  # two to five times what it decays in


def test_a_series_level_from_the_start_loses_little():
    draws = (np.random.default_rng(seed) for seed in range(20))
    cuts = [mser5(rng.normal(size=2000)) for rng in draws]
    assert np.median(cuts) <= 5
    assert max(cuts) <= 100


def test_a_series_that_still_drifts_has_no_cut():
    series = np.arange(1000.0) + np.random.default_rng(8).normal(size=1000)
    assert mser5(series) is None


def test_a_short_series_is_refused():
    mser5(np.ones(50))
    with pytest.raises(ConfigError, match="49 values: must be at least 50"):
        mser5(np.ones(49))


def test_welch_averages_what_lies_on_both_sides():
    series = np.random.default_rng(2).normal(size=(4, 50))
    mean, found = series.mean(axis=0), welch(series, 7)
    assert len(found) == 43
    for i in range(43):
        reach = min(i, 7)
        expected = mean[i - reach : i + reach + 1].mean()
        assert found[i] == pytest.approx(expected, abs=1e-12)


def test_welch_needs_series_longer_than_its_window():
    welch(np.ones((2, 15)), 7)
    with pytest.raises(ConfigError, match="window=7: must be less than half the 14"):
        welch(np.ones((2, 14)), 7)
