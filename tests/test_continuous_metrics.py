"""What a continuous run is measured by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from continuous_cases import EXACT, serve
from hypothesis import given, settings

from llminfer import (
    ConfigError,
    MetricsCollector,
    OverloadWarning,
    SimulationConfig,
    SimulationRunner,
    Workload,
    goodput,
)
from llminfer.timeseries import kv_occupancy, queue_length, running

SHORT = SimulationConfig(
    server="continuous",
    batch_size=16,
    kv_blocks=60,
    arrival_rate=30.0,
    prompt_length_dist="uniform",
    prompt_dist_params={"min": 1, "max": 90},
    output_length_dist="uniform",
    output_dist_params={"min": 1, "max": 120},
    alpha=1e-4,
    beta=0.002,
    gamma=0.01,
    kappa=1e-6,
    num_requests=400,
    warmup_requests=50,
    random_seed=9,
)


@pytest.fixture(scope="module")
def runner():
    runner = SimulationRunner(SHORT)
    with pytest.warns(OverloadWarning, match="overloaded: 30 requests/s arrive where"):
        runner.metrics = runner.run()
    return runner


def test_each_time_is_given_as_the_field_gives_it(runner):
    record, metrics = runner.record, runner.metrics
    arrival = record.arrival_time[50:]
    first, end = record.first_token_time[50:], record.processing_end_time[50:]
    outputs = record.output_length[50:]
    times = {
        "ttft": first - arrival,
        "e2e": end - arrival,
        "normalized_latency": (end - arrival) / outputs,
        "tpot": ((end - first)[outputs > 1]) / (outputs - 1)[outputs > 1],
    }
    for name, values in times.items():
        assert metrics[f"avg_{name}"] == pytest.approx(values.mean())
        for rank in (50, 90, 95, 99):
            quantile = np.percentile(values, rank)
            assert metrics[f"p{rank}_{name}"] == pytest.approx(quantile)


def test_itl_averages_to_tpot_weighted_by_tokens(runner):
    record = runner.record
    time = (record.processing_end_time - record.first_token_time)[50:].sum()
    gaps = (record.output_length[50:] - 1).sum()
    assert runner.metrics["avg_itl"] == pytest.approx(time / gaps)
    ranks = [runner.metrics[f"p{rank}_itl"] for rank in (50, 90, 95, 99)]
    assert (np.diff(ranks) > 0.0).all()


def test_goodput_counts_who_met_both_limits(runner):
    record = runner.record
    ttft = (record.first_token_time - record.arrival_time)[50:]
    decode = (record.processing_end_time - record.first_token_time)[50:]
    tpot = decode / np.maximum(record.output_length[50:] - 1, 1)
    limits = np.median(ttft), np.median(tpot)
    good = np.sum((ttft <= limits[0]) & (tpot <= limits[1]))
    assert 0 < good < len(ttft) // 2
    span = runner.metrics["simulation_time"]
    assert goodput(record, *limits, warmup_requests=50) == pytest.approx(good / span)
    everyone = goodput(record, 1e9, 1e9, 50)
    assert everyone == pytest.approx(runner.metrics["throughput_req_per_sec"])


def test_goodput_refuses_what_is_no_limit(runner):
    with pytest.raises(ConfigError, match="tpot_limit=nan: must be a finite number"):
        goodput(runner.record, 1.0, math.nan)


def test_a_request_alone_is_not_slowed_down():
    config = SHORT.replace(max_batched_tokens=32, num_requests=40, warmup_requests=0)
    drawn = Workload.generate(config)
    apart = Workload.from_arrays(
        1e3 * np.arange(40), drawn.prompt_length, drawn.output_length
    )
    metrics = SimulationRunner(config, apart).run()
    assert metrics["avg_slowdown"] == pytest.approx(1.0)
    assert metrics["p99_slowdown"] == pytest.approx(1.0)


def test_preemptions_and_memory_are_reported(runner):
    record, metrics = runner.record, runner.metrics
    assert metrics["preemptions"] == record.preemptions[50:].sum() > 0
    assert record.preemptions[:50].sum() > 0
    assert metrics["max_kv_occupancy"] == 1.0
    times, shares = kv_occupancy(record)
    assert np.all(np.diff(times) >= 0.0)
    assert shares.min() >= 0.0
    assert shares.max() == 1.0
    whole = times[-1] - record.arrival_time[0]
    area = np.trapezoid(shares, times)
    assert metrics["avg_kv_occupancy"] == pytest.approx(area / whole)


def test_without_a_limit_there_is_no_occupancy():
    config = SHORT.replace(kv_blocks=None, arrival_rate=5.0)
    runner = SimulationRunner(config)
    metrics = runner.run()
    assert "max_kv_occupancy" not in metrics
    assert metrics["preemptions"] == 0
    with pytest.raises(ConfigError, match="kv_blocks=None: must be given"):
        kv_occupancy(runner.record)


@settings(max_examples=120)
@given(EXACT)
def test_whoever_is_there_waits_or_runs(run):
    record = serve(*run)
    waiting, inside = queue_length(record), running(record)
    times = np.union1d(waiting.times, inside.times)
    arrived = np.searchsorted(record.arrival_time, times, side="right")
    gone = np.searchsorted(np.sort(record.processing_end_time), times, side="right")
    assert (waiting(times) + inside(times)).tolist() == (arrived - gone).tolist()
    assert waiting.values.min(initial=0.0) >= 0.0
    assert inside.values.max() <= run[0].largest_batch


@settings(max_examples=120)
@given(EXACT)
def test_the_longest_queue_is_found_before_somebody_leaves_it(run):
    record = serve(*run)
    begin, end = record.waits
    # Who arrives just as another is admitted is in the queue first.
    longest = max(np.sum((begin <= t) & (end >= t)) for t in end)
    assert record.max_queue_length == longest


def test_a_table_of_requests_gives_the_same_measures_of_requests(runner):
    table = runner.requests
    assert table["preemptions"].sum() == runner.record.preemptions.sum()
    assert (table["replica"] == 0).all()
    again = MetricsCollector.compute_metrics(table, 50)
    for name in ("avg_latency", "p99_ttft", "avg_tpot", "throughput_req_per_sec"):
        assert again[name] == pytest.approx(runner.metrics[name])
    assert math.isnan(again["avg_batch_size"])


def test_a_batch_is_a_step(runner):
    record, metrics = runner.record, runner.metrics
    steps = record.steps.batch_steps
    assert metrics["total_batches"] == steps.sum() > len(steps)
    mean = np.sum(steps * record.batch_size) / steps.sum()
    assert metrics["avg_batch_size"] == pytest.approx(mean)


def test_servers_side_by_side_share_their_utilization():
    config = SHORT.replace(kv_blocks=None, replicas=3, arrival_rate=6.0)
    runner = SimulationRunner(config)
    metrics = runner.run()
    record = runner.record
    busy = np.sum(record.batch_end - record.batch_start)
    lasted = record.batch_end.max() - record.arrival_time[0]
    assert metrics["utilization"] == pytest.approx(busy / lasted / 3.0)
    assert metrics["utilization"] < 1.0
