"""A request's latency, split into what it waits for."""

import pytest

from llminfer import PRESETS, SimulationConfig, Workload, simulate
from llminfer.metrics import MetricsCollector
from llminfer.study.measures import latency_parts

PARTS = ["queue", "company", "own_prompt", "other_prompts", "shared"]
REAL = PRESETS["llama-3.1-8b-rtx4090"].coefficients


def test_parts_of_four_requests_by_hand():
    config = SimulationConfig(
        batch_size=2, alpha=1, beta=0.5, gamma=1, num_requests=4, warmup_requests=0
    )
    # Batches from 1 to 5.5 and from 5.5 to 14; the second was full at 3.
    requests = Workload.from_arrays([0, 1, 2, 3], [1, 2, 3, 4], [1] * 4)
    parts = latency_parts(config, simulate(config, requests))
    assert parts["avg_latency"] == (5.5 + 4.5 + 12 + 11) / 4
    assert parts["queue"] == (3.5 + 2.5) / 4
    assert parts["company"] == 1 / 4
    assert parts["own_prompt"] == (1 + 2 + 3 + 4) / 4
    assert parts["other_prompts"] == (2 + 1 + 4 + 3) / 4
    assert parts["shared"] == 0.5 + 1


@pytest.mark.parametrize("timeout", [None, 0.0, 2.0])
@pytest.mark.parametrize("coefficients", [{}, REAL], ids=["report", "rtx4090"])
def test_parts_are_the_whole_latency_of_what_is_measured(timeout, coefficients):
    config = SimulationConfig(
        batch_size=16, batch_timeout=timeout, num_requests=800, random_seed=5
    ).replace(**coefficients)
    config = config.replace(
        arrival_rate=0.7 * config.max_stable_rate, warmup_requests=300
    )
    record = simulate(config)
    parts = latency_parts(config, record)
    usual = MetricsCollector.compute_metrics(record, 300)
    assert sum(parts[name] for name in PARTS) == pytest.approx(usual["avg_latency"])
    assert min(parts[name] for name in PARTS) > -1e-9
    assert parts["p99_latency"] == pytest.approx(usual["p99_latency"])
    waits = parts["queue"] + parts["company"]
    assert waits == pytest.approx(usual["avg_queue_wait"])


def test_a_server_that_goes_at_once_waits_for_nobody():
    config = SimulationConfig(batch_timeout=0.0, num_requests=800, random_seed=5)
    config = config.replace(arrival_rate=0.7 * config.max_stable_rate)
    at_once = latency_parts(config, simulate(config))
    full = config.replace(batch_timeout=None)
    until_full = latency_parts(full, simulate(full))
    assert at_once["company"] == pytest.approx(0.0, abs=1e-9)
    assert until_full["company"] > 0.1 * until_full["avg_latency"]
    assert at_once["own_prompt"] == until_full["own_prompt"]
