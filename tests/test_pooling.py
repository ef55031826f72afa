"""Quantiles of several runs together, and how long a run must be for them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llminfer import ConfigError, SimulationConfig, simulate, stats, sweep, theory
from llminfer.servers.token_gaps import Gaps, token_gaps
from llminfer.stats.intervals import Estimate
from llminfer.stats.pooling import by_replication, kept, level_of, pseudo_values

REPORT = SimulationConfig(prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192})


def samples(seed, runs=20, size=10_000):
    """Runs that differ as runs near saturation do: a few hold most of the tail."""
    random = np.random.default_rng(seed)
    scales = random.lognormal(0.0, 0.7, runs)
    return [scale * random.lognormal(0.0, 1.0, size) for scale in scales]


def left(runs):
    return pd.Series([kept("x", np.sort(run))["quantiles_x"] for run in runs])


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), q=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_pooled_quantile_is_that_of_all_requests(seed, q):
    runs = samples(seed)
    found = pseudo_values(left(runs), q).mean()
    assert found == pytest.approx(np.quantile(np.concatenate(runs), q), rel=0.006)


def test_pseudo_values_have_the_jackknifes_interval():
    runs = samples(1)
    direct = stats.pooled_quantile(runs, 0.99)
    found = Estimate.of_mean(pseudo_values(left(runs), 0.99))
    assert found.value == pytest.approx(direct.value, rel=0.005)
    width = direct.upper - direct.lower
    assert found.upper - found.lower == pytest.approx(width, rel=0.05)


def test_the_mean_of_p99s_is_another_number():
    runs = samples(2)
    mean = np.mean([np.quantile(run, 0.99) for run in runs])
    assert pseudo_values(left(runs), 0.99).mean() > 1.15 * mean


def test_runs_of_unlike_length_count_by_their_requests():
    long, short = np.full(9_000, 1.0), np.full(1_000, 5.0)
    found = pseudo_values(left([long, short]), 0.85).mean()
    assert found == pytest.approx(np.quantile(np.concatenate([long, short]), 0.85))


def test_a_run_without_values_is_left_out():
    runs = left([np.arange(2_000.0), np.empty(0), np.arange(2_000.0)])
    found = pseudo_values(runs, 0.5)
    assert np.isnan(found[1])
    assert np.nanmean(found) == pytest.approx(999.5, abs=1.0)


@pytest.mark.parametrize(
    ("metric", "level"),
    [("p99_latency", 0.99), ("p999_latency", 0.999), ("median_latency", 0.5),
     ("p50_e2e", 0.5), ("avg_latency", None), ("p99_ttft", None)],
)  # fmt: skip
def test_quantiles_are_known_by_their_names(metric, level):
    found = level_of(metric, pd.Index(["quantiles_latency"]))
    assert (found and found[0]) == level


def test_a_sweep_shows_the_p99_of_all_its_requests():
    config = REPORT.replace(batch_size=8, batch_timeout=0.0, num_requests=10_500)
    config = config.replace(arrival_rate=0.9 * config.max_stable_rate)
    table = sweep(config, {}, replications=5, n_jobs=1)
    latencies = [
        simulate(config.replace(random_seed=seed)).latency[500:] for seed in table.seed
    ]
    direct = stats.pooled_quantile(latencies, 0.99)
    row = stats.summarize(table.assign(one=1), "one", "p99_latency").iloc[0]
    assert row["mean"] == pytest.approx(direct.value, rel=0.005)
    assert row["mean"] > 1.05 * table["p99_latency"].mean()
    assert row["memories"] == pytest.approx(10_000 / theory.memory(config))
    assert not row["sound"]
    assert stats.summarize(table.assign(one=1), "one", "avg_ttft")["n"][0] == 5


def test_tables_put_together_may_repeat_their_labels():
    one, two = (
        pd.DataFrame({"x": [v, v + 2.0], "replication": [0, 1]}) for v in (1, 5)
    )
    table = pd.concat([one.assign(kind="a"), two.assign(kind="b")])
    assert stats.summarize(table, "kind", "x")["mean"].tolist() == [2.0, 6.0]


def test_pairs_are_pooled_alternative_by_alternative():
    config = REPORT.replace(num_requests=3_000, arrival_rate=4.0, batch_timeout=0.0)
    table = sweep(config, {"batch_size": [8, 32]}, replications=4, n_jobs=1)
    pooled = by_replication(table, "p99_latency", ["batch_size"])
    by_size = pd.Series(pooled).groupby(table["batch_size"]).mean()
    pair = stats.paired_differences(table, "p99_latency", "batch_size").iloc[0]
    assert pair["difference"] == pytest.approx(by_size[32] - by_size[8])


def test_memory_is_that_of_the_single_server_and_grows_with_the_load():
    single = REPORT.replace(batch_size=1, arrival_rate=3.0)
    queue = theory.mg1(single)
    square = queue.service.moment(2) / queue.service.moment(1) ** 2
    relaxation = 2.0 * queue.load**2 * square / (1.0 - queue.load) ** 2
    assert theory.memory(single) == pytest.approx(relaxation)
    loads = [theory.memory(single.replace(arrival_rate=rate)) for rate in (1, 2, 3.5)]
    assert loads[0] < loads[1] < loads[2]
    assert theory.memory(single.replace(arrival_rate=9.0)) == np.inf
    both = single.replace(server="continuous", batch_size=16)
    twice = both.replace(replicas=2, arrival_rate=2 * both.arrival_rate)
    assert theory.memory(twice) == pytest.approx(2 * theory.memory(both))


def test_a_run_is_made_long_enough_and_a_longer_one_stays():
    busy = REPORT.replace(batch_size=8, num_requests=1_000)
    busy = busy.replace(arrival_rate=0.9 * busy.max_stable_rate)
    longer = theory.long_enough(busy)
    assert theory.measured_memories(longer) >= 300.0
    assert longer.warmup_requests >= 10.0 * theory.memory(busy)
    assert theory.long_enough(longer) == longer
    over = busy.replace(arrival_rate=50.0)
    assert theory.long_enough(over) == over


def test_gaps_between_tokens_are_pooled_too():
    """From a sample of each run's, and beside the gaps of all runs together."""
    config = SimulationConfig.from_preset("llama-3.1-8b-rtx4090", server="continuous")
    config = config.replace(arrival_rate=5.0, num_requests=3_000, batch_size=16)
    table = sweep(config, {"arrival_rate": [5.0]}, replications=3, n_jobs=1)
    gaps = [
        token_gaps(simulate(config.replace(random_seed=seed)), config.step_time, 500)
        for seed in table["seed"]
    ]
    together = Gaps(*(np.concatenate(column) for column in zip(*gaps, strict=True)))
    assert together.number() == sum(row[0] for row in table["quantiles_itl"])
    for name, q in {"p50_itl": 0.5, "p95_itl": 0.95, "p99_itl": 0.99}.items():
        row = stats.summarize(table, "arrival_rate", name).iloc[0]
        assert row["mean"] == pytest.approx(together.quantiles([q])[0], rel=0.01)


def test_a_quantile_that_cannot_be_pooled_is_refused():
    config = REPORT.replace(num_requests=600, arrival_rate=2.0)
    table = sweep(config, {"batch_size": [8]}, replications=2, n_jobs=1)
    with pytest.raises(ConfigError, match=r"p99_slowdown.*of latency, queue_wait"):
        stats.summarize(table, "batch_size", "p99_slowdown")
    assert len(stats.summarize(table, "batch_size", "avg_slowdown")) == 1
