"""Experiments by the thousand: the waits are the simulator's, the counts are honest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from llminfer import ConfigError, SimulationConfig, Workload, simulate, theory
from llminfer.study import coverage

CONFIG = SimulationConfig(
    batch_size=1,
    prompt_dist_params={"mu": 4, "sigma": 1, "max": 2048},
    num_requests=400,
    warmup_requests=0,
    random_seed=3,
)


@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
def test_waits_are_the_simulators_request_by_request(load):
    config = CONFIG.replace(arrival_rate=load * CONFIG.max_stable_rate, kappa=1e-6)
    workload = Workload.generate(config)
    record = simulate(config, workload)
    gaps = np.diff(workload.arrival_time, prepend=0.0)
    alone = config.step_time.alone(workload.prompt_length, workload.output_length)
    found = coverage.waits(gaps, alone)
    expected = record.processing_start_time - record.arrival_time
    np.testing.assert_allclose(found, expected, atol=1e-9)
    both = coverage.waits(np.stack([gaps, gaps]), np.stack([alone, 0.0 * alone]))
    np.testing.assert_array_equal(both, [found, np.zeros(400)])


def test_experiments_have_the_exact_mean_and_share_their_requests_across_loads():
    seen = []

    def measure(config, waits):
        seen.append(waits)
        return {"mean": waits[:, 200:].mean(), "rate": config.arrival_rate}

    table = coverage.experiments(CONFIG, measure, [0.3, 0.5], 60, 10)
    assert seen[0].shape == (10, 400)
    assert list(table.columns) == ["load", "experiment", "mean", "rate"]
    assert table["experiment"].tolist() == np.repeat(np.arange(60), 2).tolist()
    for load, rows in table.groupby("load"):
        config = CONFIG.replace(arrival_rate=load * CONFIG.max_stable_rate)
        assert rows["rate"].eq(config.arrival_rate).all()
        error = rows["mean"].std() / np.sqrt(len(rows))
        assert abs(rows["mean"].mean() - theory.mg1(config).mean) < 4.0 * error
    light, heavy = table["mean"][0::2].to_numpy(), table["mean"][1::2].to_numpy()
    assert (light < heavy).all()
    again = coverage.experiments(CONFIG, measure, [0.5], 2, 10)
    assert again["mean"].tolist() == heavy[:2].tolist()


@pytest.mark.parametrize("prompts", [{"max": 2048}, {"sigma": 1.5}])
def test_the_requests_of_experiments_have_the_lengths_of_their_laws(prompts):
    config = CONFIG.replace(prompt_dist_params={"mu": 4, "sigma": 1} | prompts)
    table = coverage.experiments(config, lambda _, its: {"its": its}, [0.5], 1, 200)
    random, shape = np.random.default_rng([42, 0]), (200, 400)
    gaps = random.standard_exponential(shape) / (0.5 * config.max_stable_rate)
    laws = config.prompts, config.outputs
    tokens = [law.tokens(random.random(shape)).astype(float) for law in laws]
    expected = coverage.waits(gaps, config.step_time.alone(*tokens))
    np.testing.assert_array_equal(table["its"][0], expected)


def test_experiments_are_of_one_request_at_a_time():
    for changes in ({"batch_size": 2}, {"scheduling_policy": "SJF"}):
        with pytest.raises(ConfigError):
            coverage.experiments(CONFIG.replace(**changes), lambda c, w: {}, [0.5])


def test_an_interval_covers_what_lies_in_it():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]  # 3 +- 1.963
    assert coverage.covers(values, 1.04)
    assert coverage.covers(values, 4.96)
    assert not coverage.covers(values, 1.03)
    assert not coverage.covers(values, 4.97)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 10), (943, 1000), (5, 5)])
def test_a_share_has_the_exact_binomial_interval(k, n):
    found = coverage.share([True] * k + [False] * (n - k))
    exact = binomtest(k, n).proportion_ci(method="exact")
    assert found["mean"] == k / n
    assert found["ci_lower"] == pytest.approx(exact.low)
    assert found["ci_upper"] == pytest.approx(exact.high)


def test_a_queues_memory_is_the_decay_of_its_autocorrelation_within_a_factor():
    """At load 0.9 waits one memory apart are correlated, ten apart hardly."""
    config = CONFIG.replace(
        arrival_rate=0.9 * CONFIG.max_stable_rate, num_requests=6_000
    )
    queue = theory.mg1(config)
    lag = round(theory.memory(config))

    def measure(config, waits):
        x = waits[:, 1_000:] - queue.mean
        pairs = {n: (x[:, : -n * lag] * x[:, n * lag :]).mean() for n in (1, 10)}
        return {f"lag {n}": value / queue.variance for n, value in pairs.items()}

    table = coverage.experiments(config, measure, [0.9], 40)
    assert 0.15 < table["lag 1"].mean() < 0.6
    assert abs(table["lag 10"].mean()) < 0.1


def test_the_mean_wait_of_a_run_leaves_out_its_warm_up():
    config = CONFIG.replace(arrival_rate=3.0, warmup_requests=100)
    record = simulate(config)
    wait = record.processing_start_time - record.arrival_time
    assert coverage.mean_wait(config, record) == {"mean_wait": wait[100:].mean()}


def test_means_behind_a_cut_leave_out_what_lies_before_it():
    late = np.where(np.arange(200) < [[30], [60]], 50.0, [[1.0], [3.0]])
    waits = late + np.random.default_rng(1).normal(size=late.shape)
    found = coverage.behind_cuts(waits, [0, 30, 150])
    for cut, means in zip([0, 30, 150], found["means"], strict=True):
        by_hand = [sum(row[cut:]) / (200 - cut) for row in waits.tolist()]
        assert means == pytest.approx(by_hand, rel=1e-12)
    assert found["series"] == pytest.approx((waits[0] + waits[1]) / 2.0)
    assert found["each"] == pytest.approx([1.0, 3.0], abs=0.5)
    assert found["common"] == pytest.approx([1.0, 3.0], abs=0.5)


def test_every_kind_of_interval_is_tried_and_holds_normal_means():
    means = np.random.default_rng(3).normal(2.0, 0.5, 20_000)
    found = coverage.trust(means, 2.0, 400).set_index("interval")
    assert list(found.index) == [
        "Student, 10 runs",
        "skewed, 10 runs",
        "Student, 30 runs",
        "skewed, 30 runs",
        "until ±10%",
        "best of 8 equals",
    ]
    np.testing.assert_allclose(found[["mean", "low", "high"]].sum(axis=1), 1.0)
    assert (found["ci_upper"] > 0.95).all()
    once, again = (coverage.trust(means, 2.0, 20) for _ in range(2))
    pd.testing.assert_frame_equal(once, again)


def test_what_an_interval_misses_is_counted_on_its_side():
    """Of skewed means Student's intervals lie too low; off by 1, all of them do."""
    skewed = 2.0 + np.random.default_rng(3).gamma(0.5, size=20_000)
    found = coverage.trust(skewed, 2.5, 300).set_index("interval")
    assert found.loc["Student, 10 runs", "low"] > 0.08
    assert found.loc["Student, 10 runs", "high"] < 0.025
    below = found["low"]
    assert below["skewed, 10 runs"] < 0.8 * below["Student, 10 runs"]
    wrong = coverage.trust(skewed / 100.0, 1.0, 20).set_index("interval")
    assert (wrong["low"].drop("best of 8 equals") == 1.0).all()
    assert wrong.loc["best of 8 equals", "mean"] > 0.8


def test_waits_that_never_settle_are_not_cut():
    waits = np.array([[1.0], [3.0]]) * np.linspace(2.0, 0.0, 200)
    found = coverage.behind_cuts(waits, [0])
    whole = waits.mean(axis=1)
    assert found["means"][0] == pytest.approx(whole, rel=1e-12)
    assert found["each"] == pytest.approx(whole, rel=1e-12)
    assert found["common"] == pytest.approx(whole, rel=1e-12)
