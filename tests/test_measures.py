"""What sweeps measure beyond the metrics."""

import numpy as np
import pytest

from llminfer import ConfigError, RunRecord, SimulationConfig, simulate, stats, sweep
from llminfer.experiment import metrics_of
from llminfer.study.measures import (
    beside_long_runs,
    by_group,
    latency_parts,
    observed_memories,
    over_a_wave,
    tails,
)
from llminfer.theory import long_enough, measured_memories

CONFIG = SimulationConfig(
    prompt_length_dist="bimodal",
    prompt_dist_params={
        "short_min": 10,
        "short_max": 10,
        "long_min": 100,
        "long_max": 100,
        "short_prob": 0.5,
    },
    request_classes={"light": {}, "heavy": {}},
    num_requests=6,
    warmup_requests=1,
)


def record(prompts: list[int], latencies: list[float]) -> RunRecord:
    """Six requests that begin at once, classes in turn."""
    arrival = np.arange(6.0)
    end = arrival + np.array(latencies)
    return RunRecord(
        arrival_time=arrival,
        prompt_length=np.array(prompts),
        output_length=np.full(6, 5),
        request_class=np.arange(6) % 2,
        queue_entry_time=arrival,
        processing_start_time=arrival,
        first_token_time=end,
        processing_end_time=end,
        batch_start=arrival,
        batch_end=end,
        batch_size=np.ones(6, dtype=np.int64),
    )


def test_each_group_has_its_own_requests_without_the_warm_up() -> None:
    found = by_group(CONFIG, record([100, 10, 10, 10, 100, 100], [99, 1, 2, 3, 4, 10]))
    assert found["avg_latency_short"] == pytest.approx(2.0)
    assert found["avg_latency_long"] == pytest.approx(7.0)
    assert found["p99_latency_long"] == pytest.approx(4.0 + 0.99 * 6.0)
    assert found["avg_latency_light"] == pytest.approx(3.0)
    assert found["avg_latency_heavy"] == pytest.approx(14.0 / 3.0)


def test_starved_is_over_three_medians_of_all() -> None:
    found = by_group(CONFIG, record([100, 10, 10, 10, 100, 100], [99, 1, 2, 3, 4, 10]))
    assert found["p50_latency"] == 3.0
    assert found["starved_short"] == 0.0
    assert found["starved_long"] == 50.0
    assert found["starved_light"] == 0.0
    assert found["starved_heavy"] == pytest.approx(100.0 / 3.0)


def test_a_group_of_nobody_has_no_numbers() -> None:
    found = by_group(CONFIG, record([10] * 6, [1.0] * 6))
    assert np.isnan(found["avg_latency_long"])
    assert np.isnan(found["p99_latency_long"])
    assert np.isnan(found["starved_long"])


def test_a_wave_is_measured_at_its_peak_and_on_a_grid():
    config = SimulationConfig(
        arrival_pattern="sinusoidal",
        arrival_rate=2.0,
        arrival_pattern_params={"amplitude": 1.0, "period": 100.0},
        batch_timeout=0.0,
        num_requests=400,
        warmup_requests=20,
        random_seed=1,
    )
    record = simulate(config)
    found = over_a_wave(config, record)
    latency = record.processing_end_time - record.arrival_time
    turn = record.arrival_time % 100.0
    peak = (turn >= 25.0 - 100.0 / 6.0) & (turn <= 25.0 + 100.0 / 6.0)
    peak[:20] = False
    p99 = np.quantile(latency[peak], 0.99)
    assert found["p99_peak"] == pytest.approx(p99, rel=1e-12)
    assert found["avg_latency"] == pytest.approx(latency[20:].mean())
    assert len(found["time"]) == len(found["queue"]) == len(found["p99"]) == 120
    at = found["time"][30]
    waiting = (record.arrival_time <= at) & (record.processing_start_time > at)
    assert found["queue"][30] == waiting.sum()
    with pytest.raises(ConfigError, match="arrival_pattern='constant': must be sinus"):
        over_a_wave(SimulationConfig(), record)


SERVER = SimulationConfig(
    prompt_length_dist="constant",
    prompt_dist_params={"value": 100},
    batch_size=8,
    batch_timeout=0.0,
    num_requests=4000,
    warmup_requests=500,
    random_seed=5,
)


@pytest.mark.parametrize("load", [0.5, 4.0])
def test_the_busy_rate_is_what_arrives_or_what_is_carried(load):
    config = SERVER.replace(arrival_rate=load * SERVER.max_stable_rate)
    found = tails(config, simulate(config))
    expected = min(load, 1.0) * SERVER.max_stable_rate
    assert found["busy_rate"] == pytest.approx(expected, rel=0.05)


def test_tails_are_those_of_the_metrics():
    config = SimulationConfig(
        batch_timeout=0.0, num_requests=1000, warmup_requests=100, random_seed=1
    )
    config = config.replace(arrival_rate=0.7 * config.max_stable_rate)
    record = simulate(config)
    found, metrics = tails(config, record), metrics_of(config, record)
    for name in ("latency", "ttft", "tpot"):
        for kind in ("avg", "p50", "p95", "p99"):
            key = f"{kind}_{name}"
            assert found[key] == pytest.approx(metrics[key], rel=1e-12), key
    assert found["utilization"] == pytest.approx(metrics["utilization"])


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_the_busy_rate_of_an_overloaded_run_is_what_is_carried(server):
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        server=server,
        batch_size=16,
        batch_timeout=0.0,
        arrival_rate=40.0,
        prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
        num_requests=6000,
        random_seed=1,
    )
    rate = tails(config, simulate(config))["busy_rate"]
    assert rate == pytest.approx(config.max_stable_rate, rel=0.03)


@pytest.mark.parametrize("measure", [tails, latency_parts, by_group])
def test_every_measure_says_how_long_its_runs_are(measure):
    config = SERVER.replace(arrival_rate=0.8 * SERVER.max_stable_rate)
    found = measure(config, simulate(config))
    assert found["memories"] == measured_memories(config)


def test_memories_seen_in_the_runs_are_those_of_theory():
    """The variance of a mean falls as that of so many independent values."""
    loads = {0.5: {}, 0.8: {}}
    for load in loads:
        at = SERVER.replace(batch_size=1, num_requests=12_000)
        loads[load] = at.replace(arrival_rate=load * at.max_stable_rate)
    runs = sweep(loads[0.5], {"load": loads}, 20, 1, measure=tails)
    ratio = observed_memories(runs, ["load"], "ttft") / runs["memories"]
    assert ratio.between(0.4, 2.5).all()
    assert ratio.groupby(runs["load"]).nunique().tolist() == [1, 1]


def test_an_interval_that_long_runs_miss_is_found():
    busy = SERVER.replace(batch_timeout=None, arrival_rate=0.8 * SERVER.max_stable_rate)
    right, short = long_enough(busy, 100.0), busy.replace(num_requests=600)
    rows = {}
    for name, config in {"right": right, "short": short}.items():
        runs = sweep(config, {"batch_size": [8]}, 5, 1, measure=tails)
        rows[name] = stats.summarize(runs, "batch_size", "p99_latency").iloc[0]
    wrong = {**rows["right"], "mean": 1.0, "ci_lower": 0.9, "ci_upper": 1.1}
    table = beside_long_runs(
        {"right": (right, rows["right"]), "wrong": (right, wrong)}, "p99_latency"
    )
    assert table["covered"].tolist() == ["yes", "no"]
    assert table["published"].tolist() == [rows["right"]["mean"], 1.0]
    measured = right.num_requests - right.warmup_requests
    assert (table["requests"] == right.warmup_requests + 3 * measured).all()
    # Five runs beside three of triple length: Student's t beyond 2.776 / 1.247.
    assert table["by chance"].tolist() == pytest.approx([0.0898] * 2, abs=0.001)
