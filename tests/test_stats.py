"""Intervals cover as often as they say, and refuse where they could not."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from llminfer import SimulationConfig, Workload, simulate
from llminfer.base.errors import ConfigError
from llminfer.stats.intervals import (
    Estimate,
    compute_confidence_interval,
    pooled_quantile,
    skewed_mean,
    summarize,
    summarize_series,
)
from llminfer.study import coverage


def rng(seed):
    return np.random.default_rng(seed)


# Means


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_interval_of_a_mean_is_students(confidence):
    sample = rng(1).normal(3.0, 2.0, 12)
    low, high = reference.t.interval(
        confidence, 11, sample.mean(), reference.sem(sample)
    )
    found = compute_confidence_interval(sample, confidence)
    assert found["mean"] == pytest.approx(sample.mean(), rel=1e-14)
    assert (found["ci_lower"], found["ci_upper"]) == pytest.approx((low, high), 1e-12)


def test_one_value_has_no_interval():
    found = compute_confidence_interval([3.0])
    assert found["mean"] == 3.0
    assert math.isnan(found["ci_lower"])
    assert math.isnan(found["ci_upper"])


@pytest.mark.parametrize("bad", [0.0, 1.0, 95, math.nan, "0.95"])
def test_confidence_must_be_a_probability(bad):
    with pytest.raises(ConfigError, match=r"^confidence="):
        compute_confidence_interval([1.0, 2.0], bad)


def test_no_values_are_an_error():
    with pytest.raises(ConfigError, match="at least one number"):
        compute_confidence_interval([])


# The interval of replications, against queueing theory

EXPERIMENTS, REPLICATIONS, REQUESTS, WARMUP = 200, 10, 2000, 100
MEAN_OUTPUT, GAMMA, LOAD = 20, 0.01, 0.5


@pytest.fixture(scope="module")
def waits():
    """Seconds in the queue, shape (experiments, replications, measured requests)."""
    config = SimulationConfig(
        arrival_rate=LOAD / (GAMMA * MEAN_OUTPUT),
        prompt_length_dist="constant",
        prompt_dist_params={"value": 1},
        output_length_dist="geometric",
        output_dist_params={"mean": MEAN_OUTPUT},
        batch_size=1,
        alpha=0.0,
        beta=0.0,
        gamma=GAMMA,
        num_requests=REQUESTS,
        warmup_requests=WARMUP,
    )
    found = np.empty((EXPERIMENTS * REPLICATIONS, REQUESTS - WARMUP))
    for seed, row in enumerate(found):
        own = config.replace(random_seed=seed)
        work = Workload.generate(own)
        gaps = np.diff(work.arrival_time, prepend=0.0)
        row[:] = coverage.waits(gaps, GAMMA * work.output_length)[WARMUP:]
        if seed < 20:  # the simulator's, and a hundred times as fast
            np.testing.assert_allclose(row, simulate(own).wait[WARMUP:], atol=1e-9)
    return found.reshape(EXPERIMENTS, REPLICATIONS, -1)


def pollaczek_khinchine():
    """E[W], seconds: service is GAMMA times a geometric number of steps."""
    p = 1.0 / MEAN_OUTPUT
    second_moment = GAMMA**2 * (2.0 - p) / p**2
    rate = LOAD / (GAMMA * MEAN_OUTPUT)
    return rate * second_moment / (2.0 * (1.0 - LOAD))


def covered(samples):
    """How often the interval of a sample holds the true mean wait."""
    hits = 0
    for sample in samples:
        found = compute_confidence_interval(sample)
        hits += found["ci_lower"] <= pollaczek_khinchine() <= found["ci_upper"]
    return hits / len(samples)


def test_interval_over_replications_covers_as_often_as_it_says(waits):
    assert 0.91 <= covered(waits.mean(axis=2)) <= 0.99


def test_interval_that_takes_requests_for_independent_is_caught(waits):
    assert not 0.91 <= covered(waits[:, 0, :]) <= 0.99


# Tables


def table():
    return pd.DataFrame(
        {
            "batch_size": [4, 4, 1, 1],
            "batch_timeout": [None, None, None, None],
            "replication": [0, 1, 0, 1],
            "wait": [1.0, 3.0, 10.0, 10.0],
            "load": [0.5, 0.7, 0.1, 0.1],
        }
    )


def test_summary_has_a_row_for_each_group_and_metric_in_order():
    found = summarize(table(), "batch_size", ["wait", "load"])
    assert list(found["batch_size"]) == [4, 1, 4, 1]
    assert list(found["metric"]) == ["wait", "wait", "load", "load"]
    assert list(found["mean"]) == pytest.approx([2.0, 10.0, 0.6, 0.1])
    assert list(found["n"]) == [2] * 4
    half = 12.706204736432095 * 1.0  # t quantile with 1 degree, times sd/sqrt(n)
    assert found.loc[0, "ci_lower"] == pytest.approx(2.0 - half)
    assert found.loc[0, "ci_upper"] == pytest.approx(2.0 + half)


def test_summary_keeps_groups_whose_label_is_none():
    found = summarize(table(), ["batch_size", "batch_timeout"], "wait")
    assert list(found["mean"]) == [2.0, 10.0]


def test_summary_refuses_to_pool_runs_that_share_their_requests():
    with pytest.raises(ConfigError, match="all swept fields"):
        summarize(table(), "batch_timeout", "wait")


def test_summary_names_an_unknown_column():
    with pytest.raises(ConfigError, match=r"wiat: no such column.*mean wait"):
        summarize(table(), "batch_size", "wiat")


def test_estimate_is_read_off_a_row():
    one = summarize(table(), "batch_size", "load").query("batch_size == 1")
    assert Estimate.of(one) == Estimate(0.1, 0.1, 0.1)
    row = {"relative": -0.2, "relative_lower": -0.3, "relative_upper": -0.1}
    assert Estimate.of(row, "relative") == Estimate(-0.2, -0.3, -0.1)


def test_estimate_refuses_several_rows_and_numbers_without_bounds():
    several = summarize(table(), "batch_size", "wait")
    with pytest.raises(ConfigError, match="2 rows"):
        Estimate.of(several)
    with pytest.raises(ConfigError, match="quantity='n'"):
        Estimate.of(several.iloc[0], "n")


# Quantiles


def test_pooled_quantile_is_that_of_all_values():
    samples = [rng(seed).exponential(size=1000 + seed) for seed in range(5)]
    found = pooled_quantile(samples, 0.9)
    assert found.value == pytest.approx(np.quantile(np.concatenate(samples), 0.9))


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_its_interval_is_the_jackknife_over_replications(q):
    samples = [rng(seed).gamma(2.0, size=900 + 7 * seed) for seed in range(6)]
    n = len(samples)
    pooled = np.quantile(np.concatenate(samples), q)
    without = [np.concatenate(samples[:i] + samples[i + 1 :]) for i in range(n)]
    pseudo = n * pooled - (n - 1) * np.array([np.quantile(w, q) for w in without])
    half = reference.t.ppf(0.975, n - 1) * reference.sem(pseudo)
    found = pooled_quantile(samples, q)
    assert found.upper - found.value == pytest.approx(half, rel=1e-9)
    assert found.value - found.lower == pytest.approx(half, rel=1e-9)


def test_its_interval_covers_as_often_as_it_says():
    truth = -math.log(0.1)
    random = rng(20)
    hits = 0
    for _ in range(400):
        found = pooled_quantile(random.exponential(size=(10, 900)), 0.9)
        hits += found.lower <= truth <= found.upper
    assert abs(hits - 380) < 4.0 * math.sqrt(400 * 0.95 * 0.05)


def test_ninety_values_beyond_the_quantile_are_enough_and_eighty_nine_are_not():
    long = rng(0).exponential(size=(3, 9000))
    pooled_quantile(long, 0.99)
    pooled_quantile(long[:, :900], 0.1)
    short = [long[0], long[1], long[2, :8999]]
    with pytest.raises(ConfigError, match="899 values"):
        pooled_quantile(long[:, :899], 0.1)
    with pytest.raises(
        ConfigError, match=r"samples\[2\]: 8999 values: must be at least 9000.*q=0.99"
    ):
        pooled_quantile(short, 0.99)


@pytest.mark.parametrize("q", [0.0, 1.0, 99])
def test_quantile_must_be_a_probability(q):
    with pytest.raises(ConfigError, match=r"^q="):
        pooled_quantile(np.ones((3, 1000)), q)


@pytest.mark.parametrize("where", [0, 2])
def test_what_is_not_known_has_no_rank(where):
    """It counted as the largest."""
    samples = np.arange(3000.0).reshape(3, 1000)
    samples[where, 17] = np.nan
    with pytest.raises(ConfigError, match=rf"^samples\[{where}\]: .*NaN"):
        pooled_quantile(samples, 0.5)


def test_one_replication_has_no_jackknife():
    with pytest.raises(ConfigError, match="1 replications: must be at least 2"):
        pooled_quantile(np.ones((1, 1000)), 0.5)


def test_series_over_replications_get_an_interval_at_each_point():
    runs = pd.DataFrame(
        {"by": ["a", "a", "a"], "q": [[1.0, 5.0], [2.0, 5.0], [6.0, np.nan]]}
    )
    table = summarize_series(runs, "by", ["q"])
    first = compute_confidence_interval([1.0, 2.0, 6.0])
    assert table.loc[0, ["mean", "ci_lower", "ci_upper"]].to_dict() == pytest.approx(
        first
    )
    assert table.loc[1, ["mean", "ci_lower", "ci_upper"]].tolist() == [5.0, 5.0, 5.0]
    assert table["point"].tolist() == [0, 1]


# Skewed means


def test_a_skewed_interval_is_students_with_johnsons_shift_on_the_long_side():
    sample = rng(4).gamma(1.0, size=15)
    student, found = Estimate.of_mean(sample), skewed_mean(sample)
    skew = reference.skew(sample, bias=False) * sample.std(ddof=1)
    shift = skew * (1.0 + 2.0 * reference.t.ppf(0.975, 14) ** 2) / (6.0 * 15)
    assert (found.value, found.lower) == (student.value, student.lower)
    assert found.upper == pytest.approx(student.upper + shift)
    mirrored = skewed_mean(-sample)
    assert (mirrored.lower, mirrored.upper) == pytest.approx(
        (-found.upper, -found.lower)
    )


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [3.0, 3.0, 3.0]])
def test_what_shows_no_skewness_keeps_students_interval(values):
    student, found = Estimate.of_mean(values), skewed_mean(values)
    np.testing.assert_array_equal(
        [found.lower, found.upper], [student.lower, student.upper]
    )


@pytest.mark.parametrize("n", [10, 30])
def test_of_skewed_values_it_misses_less_and_of_normal_ones_it_gives_little_away(n):
    held = {"student": 0, "skewed": 0, "normal": 0}
    for row in rng(6).gamma(0.5, size=(2000, n)):
        held["student"] += Estimate.of_mean(row).upper >= 0.5
        held["skewed"] += skewed_mean(row).upper >= 0.5
    for row in rng(6).normal(size=(2000, n)):
        found = skewed_mean(row)
        held["normal"] += found.lower <= 0.0 <= found.upper
    missed = {name: 1.0 - count / 2000 for name, count in held.items()}
    assert missed["skewed"] < 0.75 * missed["student"]
    assert 0.03 < missed["normal"] < 0.06


def test_numbers_are_sound_from_300_memories_of_the_shortest_run_on():
    rows = {"B": [1, 1, 2, 2], "avg_wait": [1.0, 2.0, 3.0, 4.0]}
    runs = pd.DataFrame({**rows, "memories": [300.0, 900.0, 299.9, 9000.0]})
    found = summarize(runs, "B", "avg_wait")
    assert found["sound"].tolist() == [True, False]
    assert found["memories"].tolist() == [300.0, 299.9]
