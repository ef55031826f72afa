"""The faults of the course project this one grew from, each shown to be absent."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from llminfer import (
    MetricsCollector,
    OverloadWarning,
    Request,
    SimulationConfig,
    SimulationRunner,
    Workload,
)

STABLE = SimulationConfig(
    arrival_rate=3.0,
    num_requests=2_000,
    warmup_requests=200,
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    random_seed=42,
)


def run(**changes):
    runner = SimulationRunner(STABLE.replace(**changes))
    return runner.run(), runner


def test_policies_change_latencies():
    """It sorted only inside a batch already formed, so that all policies were one."""
    policies = ["FCFS", "SJF", "Predicted-SJF", "Priority"]
    metrics = {
        policy: run(scheduling_policy=policy, batch_size=2, arrival_rate=4.0)[0]
        for policy in policies
    }
    means = [metrics[policy]["avg_latency"] for policy in policies]
    assert len(set(means)) == len(policies)
    assert metrics["SJF"]["avg_latency"] < 0.7 * metrics["FCFS"]["avg_latency"]
    assert metrics["SJF"]["max_latency"] > metrics["FCFS"]["max_latency"]


def test_step_arrivals_run():
    """They crashed."""
    metrics, runner = run(
        arrival_pattern="step",
        arrival_pattern_params={"step_time": 300, "step_rate": 1.0},
    )
    assert metrics["total_requests"] == 1_800
    arrivals = runner.requests["arrival_time"].to_numpy()
    before = (arrivals < 300).sum()
    assert abs(before - 900) < 4 * math.sqrt(900)


@pytest.mark.parametrize("timeout", [None, 0, 1e-6, 0.01, 0.5, 7, 1e9])
@pytest.mark.parametrize("rate", [0.01, 3.0])  # idle nearly all the time, and busy
def test_a_batch_timeout_loses_nobody_and_comes_to_an_end(timeout, rate):
    """It lost 6-17% of the requests, and spun for ever at an idle moment."""
    metrics, runner = run(batch_timeout=timeout, arrival_rate=rate, warmup_requests=0)
    assert metrics["total_requests"] == 2_000
    table = runner.requests
    assert np.isfinite(table.to_numpy()).all()
    assert table["request_id"].is_unique


@pytest.mark.parametrize("batch_size", [7, 32, 1_999, 2_001, 10**9])
def test_the_last_partial_batch_is_served(batch_size):
    """It never was."""
    metrics, _ = run(batch_size=batch_size, warmup_requests=0)
    assert metrics["total_requests"] == 2_000
    assert metrics["total_batches"] == math.ceil(2_000 / batch_size)


def test_an_overloaded_run_lasts_until_everybody_is_served():
    """Runs were cut off at 2 n/lambda, so that only survivors counted."""
    with pytest.warns(OverloadWarning):
        metrics, runner = run(arrival_rate=50.0)
    assert metrics["total_requests"] == 1_800
    assert runner.requests["processing_end_time"].max() > 2 * 2_000 / 50.0
    assert runner.requests["processing_end_time"].notna().all()


def test_the_warmup_stays_out_of_the_reported_figures():
    """Whole-run figures overwrote the measured ones."""
    slow_start = Workload.from_arrays(
        [0.0] * 100 + [1e6 + 100 * i for i in range(100)],
        [8_000] * 100 + [10] * 100,
        [10] * 200,
    )
    config = STABLE.replace(batch_timeout=0, warmup_requests=100)
    metrics = SimulationRunner(config, slow_start).run()
    alone = 0.001 * 10 + 0.05 + 0.0005 * 10
    assert metrics["total_requests"] == 100
    assert metrics["max_latency"] == pytest.approx(alone)
    assert metrics["avg_prompt_length"] == 10
    assert metrics["max_queue_wait"] == 0.0
    assert metrics["throughput_req_per_sec"] == pytest.approx(100 / 9900, rel=1e-3)


def test_time_zero_is_a_time():
    """0.0 was taken for missing."""
    request = Request(0, 0.0, 1, 2)
    request.queue_entry_time = request.processing_start_time = 0.0
    request.first_token_time = 1.0
    request.processing_end_time, request.actual_output_length = 3.0, 2
    assert request.queue_wait_time == 0.0
    metrics = MetricsCollector.compute_metrics([request])
    assert metrics["total_requests"] == 1
    assert metrics["avg_queue_wait"] == 0.0
    assert metrics["avg_latency"] == 3.0


def test_a_varying_rate_brings_as_many_requests_as_it_should():
    """Gaps were drawn at the current rate: test_arrivals shows what that loses."""
    _, runner = run(
        arrival_rate=1.0,
        arrival_pattern="sinusoidal",
        arrival_pattern_params={"amplitude": 0.9, "period": 10.0},
    )
    arrivals = runner.requests["arrival_time"].to_numpy()
    assert abs((arrivals < 1_500).sum() - 1_500) < 4 * math.sqrt(1_500)


def test_an_overload_is_said_aloud():
    """The default was overloaded at every batch size, unsaid."""
    for batch_size in (1, 32, 1_024):
        with pytest.warns(OverloadWarning, match=r"at most \d"):
            run(arrival_rate=10.0, batch_size=batch_size, num_requests=1_100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()


def test_ttft_and_tpot_are_reported():
    """There was neither."""
    metrics, runner = run()
    table = runner.requests.iloc[200:]
    ttft = table["first_token_time"] - table["arrival_time"]
    assert metrics["avg_ttft"] == pytest.approx(ttft.mean())
    assert metrics["p99_ttft"] == pytest.approx(ttft.quantile(0.99))
    decode = table["processing_end_time"] - table["first_token_time"]
    tpot = (decode / (table["output_length"] - 1))[table["output_length"] > 1]
    assert metrics["avg_tpot"] == pytest.approx(tpot.mean())
    assert metrics["p99_tpot"] == pytest.approx(tpot.quantile(0.99))
