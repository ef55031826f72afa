"""Every metric against a run small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llminfer import (
    ConfigError,
    ExperimentRunner,
    MetricsCollector,
    Request,
    RunRecord,
    SimulationConfig,
    SimulationRunner,
    compute_confidence_interval,
)
from llminfer.experiment import metrics_of, simulate

compute_metrics = MetricsCollector.compute_metrics

# Three batches: request 0; then 1 and 2 together; then 3.
ROWS = [  # arrival, prompt, output, start, first token, end
    (0.0, 10, 1, 0.0, 1.0, 4.0),
    (1.0, 20, 2, 4.0, 6.0, 10.0),
    (2.0, 30, 4, 4.0, 6.0, 10.0),
    (6.0, 40, 5, 11.0, 12.0, 14.0),
]


STEP_TIME = SimulationConfig(alpha=0.1, beta=1.0, gamma=0.5).step_time
# Latencies 4, 9, 8, 8; waits 0, 3, 2, 5; processing 4, 6, 6, 3; TTFT 1, 5, 4, 6.
# TPOT of the last three 4/1, 4/3, 2/4. Alone they would take 2.5, 4, 6 and 7.5 s,
# so the slowdowns are 1.6, 2.25, 4/3, 16/15.
BY_HAND = {  # every key there has to be
    "avg_latency": 29 / 4,
    "median_latency": 8.0,
    "std_latency": math.sqrt((3.25**2 + 1.75**2 + 2 * 0.75**2) / 4),
    "min_latency": 4.0,
    "max_latency": 9.0,
    "p50_latency": 8.0,
    "p95_latency": 8.85,
    "p99_latency": 8.97,
    "avg_queue_wait": 2.5,
    "median_queue_wait": 2.5,
    "max_queue_wait": 5.0,
    "p95_queue_wait": 4.7,
    "p99_queue_wait": 4.94,
    "avg_processing_time": 19 / 4,
    "median_processing_time": 5.0,
    "max_processing_time": 6.0,
    "throughput_req_per_sec": 4 / 14,
    "throughput_tokens_per_sec": 12 / 14,
    "total_requests": 4,
    "simulation_time": 14.0,
    "fairness_index": 29**2 / (4 * (16 + 81 + 64 + 64)),
    "starvation_rate": 0.0,
    "avg_prompt_length": 25.0,
    "avg_output_length": 3.0,
    "total_tokens": 112,
    "max_queue_length": 2,
    "total_batches": 3,
    "avg_batch_size": 4 / 3,
    "avg_ttft": 4.0,
    "p50_ttft": 4.5,
    "p90_ttft": 5.7,
    "p95_ttft": 5.85,
    "p99_ttft": 5.97,
    "avg_tpot": (4 + 4 / 3 + 0.5) / 3,
    "p50_tpot": 4 / 3,
    "p90_tpot": 4 / 3 + 0.8 * (4 - 4 / 3),
    "p95_tpot": 4 / 3 + 0.9 * (4 - 4 / 3),
    "p99_tpot": 4 / 3 + 0.98 * (4 - 4 / 3),
    "utilization": 13 / 14,
    "avg_slowdown": (1.6 + 2.25 + 4 / 3 + 16 / 15) / 4,
    "p50_slowdown": (1.6 + 4 / 3) / 2,
    "p99_slowdown": 1.6 + 0.97 * 0.65,
}


def served_requests(rows=ROWS):
    made = []
    for i, (arrival, prompt, output, start, first, end) in enumerate(rows):
        request = Request(i, arrival, prompt, output)
        request.queue_entry_time = arrival
        request.processing_start_time = start
        request.first_token_time = first
        request.processing_end_time = end
        request.actual_output_length = output
        made.append(request)
    return made


def test_every_metric_by_hand():
    record = RunRecord.from_requests(served_requests())
    found = compute_metrics(record, step_time=STEP_TIME)
    assert {name: found[name] for name in BY_HAND} == pytest.approx(BY_HAND)


def test_warmup_is_dropped_by_arrival_and_the_whole_run_is_not():
    whole = compute_metrics(served_requests())
    measured = compute_metrics(served_requests(), warmup_requests=2)
    assert measured["total_requests"] == 2
    assert measured["avg_latency"] == 8.0
    assert measured["avg_ttft"] == 5.0
    assert measured["simulation_time"] == 14.0 - 2.0
    assert measured["throughput_req_per_sec"] == pytest.approx(2 / 12)
    assert measured["total_tokens"] == 79
    for name in ("max_queue_length", "total_batches", "avg_batch_size", "utilization"):
        assert measured[name] == whole[name]


def test_warmup_is_by_arrival_even_if_others_are_served_first():
    shuffled = [ROWS[0], (1.0, 20, 2, 11.0, 12.0, 14.0), (2.0, 9, 9, 4.0, 6.0, 10.0)]
    assert compute_metrics(served_requests(shuffled), 2)["avg_latency"] == 8.0


def test_starving_is_waiting_three_times_the_median():
    rows = [(0.0, 1, 1, 0.0, 1.0, latency) for latency in (2.0, 2.0, 2.0, 6.0, 6.1)]
    assert compute_metrics(served_requests(rows))["starvation_rate"] == 20.0


def test_fairness_is_one_when_all_are_alike_and_falls_to_a_share():
    alike = [(0.0, 1, 1, 0.0, 1.0, 2.0)] * 4
    assert compute_metrics(served_requests(alike))["fairness_index"] == 1.0
    favoured = [(0.0, 1, 1, 0.0, 0.0, 0.0)] * 3 + [(0.0, 1, 1, 0.0, 1.0, 2.0)]
    index = compute_metrics(served_requests(favoured))["fairness_index"]
    assert index == pytest.approx(0.25)


def test_requests_of_one_token_have_no_tpot():
    rows = [(0.0, 1, 1, 0.0, 1.0, 2.0), (0.0, 1, 1, 2.0, 3.0, 4.0)]
    metrics = compute_metrics(served_requests(rows))
    assert math.isnan(metrics["avg_tpot"])
    assert metrics["avg_ttft"] == 2.0


def test_times_of_zero_count_as_times():
    rows = [(0.0, 1, 2, 0.0, 0.0, 0.0), (0.0, 1, 2, 0.0, 0.0, 4.0)]
    metrics = compute_metrics(served_requests(rows))
    assert metrics["total_requests"] == 2
    assert metrics["avg_latency"] == 2.0
    assert metrics["min_latency"] == 0.0


def test_a_rate_is_given_for_any_time_but_none():
    half = compute_metrics(served_requests([(0.0, 1, 2, 0.0, 0.25, 0.5)]))
    assert half["throughput_req_per_sec"] == 2.0
    assert half["utilization"] == 1.0
    none = compute_metrics(served_requests([(3.0, 1, 2, 3.0, 3.0, 3.0)]))
    assert math.isnan(none["throughput_req_per_sec"])
    assert math.isnan(none["utilization"])


BASE = SimulationConfig(
    arrival_rate=3, num_requests=800, warmup_requests=80, random_seed=1
)


def test_a_run_reports_every_key_and_all_are_numbers():
    metrics = SimulationRunner(BASE).run()
    assert set(BY_HAND) <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["total_requests"] == 720


@pytest.mark.parametrize("warmup", [0, 80])
def test_record_table_and_requests_measure_alike(warmup):
    runner = SimulationRunner(BASE.replace(scheduling_policy="SJF", batch_size=5))
    runner.run()
    table = runner.requests
    rows = table[
        [
            "arrival_time",
            "prompt_length",
            "output_length",
            "processing_start_time",
            "first_token_time",
            "processing_end_time",
        ]
    ].itertuples(index=False)
    step_time = BASE.step_time
    from_record = compute_metrics(runner.record, warmup, step_time)
    assert compute_metrics(table, warmup, step_time) == from_record
    assert compute_metrics(table.sample(frac=1, random_state=1), warmup, step_time) == (
        from_record
    )
    assert compute_metrics(served_requests(rows), warmup, step_time) == from_record


def test_requests_not_yet_done_are_not_measured():
    requests = served_requests()
    requests[3].processing_end_time = None
    assert compute_metrics(requests)["total_requests"] == 3


@pytest.mark.parametrize("warmup", [4, 100, -1, 1.5, True])
def test_a_warmup_that_leaves_nothing_is_refused(warmup):
    with pytest.raises(ConfigError, match=r"^warmup_requests="):
        compute_metrics(served_requests(), warmup)


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40).filter(
        lambda values: np.std(values) > 1e-3
    ),
    st.floats(0.01, 0.999),
)
def test_the_interval_is_students(values, confidence):
    interval = compute_confidence_interval(values, confidence)
    low, high = stats.t.interval(
        confidence, len(values) - 1, np.mean(values), stats.sem(values)
    )
    assert list(interval) == ["mean", "ci_lower", "ci_upper"]
    assert interval["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert interval["ci_lower"] == pytest.approx(low, rel=1e-9, abs=1e-9)
    assert interval["ci_upper"] == pytest.approx(high, rel=1e-9, abs=1e-9)


def test_one_value_has_a_mean_and_no_interval():
    interval = compute_confidence_interval([3.0])
    assert interval["mean"] == 3.0
    assert math.isnan(interval["ci_lower"])
    assert math.isnan(interval["ci_upper"])
    with pytest.raises(ValueError, match="at least one"):
        compute_confidence_interval([])


def test_replications_are_aggregated_metric_by_metric():
    results = [
        {"avg_latency": 1.0, "total_requests": 5},
        {"avg_latency": 4.0, "total_requests": 5},
    ]
    aggregated = ExperimentRunner.aggregate_results(results)
    assert aggregated["avg_latency"] == compute_confidence_interval([1.0, 4.0])
    assert aggregated["total_requests"] == {"mean": 5, "ci_lower": 5, "ci_upper": 5}


@pytest.mark.filterwarnings("error")
def test_a_server_that_takes_no_time_has_no_slowdown_and_warns_of_nothing():
    free = dict.fromkeys(("alpha", "beta", "gamma"), 0.0)
    config = SimulationConfig(batch_timeout=0.0, num_requests=900, **free)
    found = metrics_of(config, simulate(config))
    assert math.isnan(found["avg_slowdown"])
