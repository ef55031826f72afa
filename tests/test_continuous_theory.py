"""The continuous server against what is known exactly (THEORY 9)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from continuous_cases import serve

from llminfer import PRESETS, SimulationConfig, Workload, simulate
from llminfer.laws.engines import STEP_LAWS
from llminfer.theory.continuous_chain import ContinuousChain

CHAIN = SimulationConfig(
    server="continuous",
    batch_size=8,
    max_batched_tokens=10**9,
    prompt_length_dist="uniform",
    prompt_dist_params={"min": 20, "max": 120},
    output_length_dist="geometric",
    output_dist_params={"mean": 25},
    alpha=2e-4,
    beta=0.01,
    gamma=0.02,
    delta=5e-4,
    num_requests=12_000,
    warmup_requests=2_000,
)
FULL = SimulationConfig(
    server="continuous",
    batch_size=64,
    prompt_length_dist="lognormal",
    prompt_dist_params={"mu": 5.0, "sigma": 0.8, "max": 2000},
    output_length_dist="geometric",
    output_dist_params={"mean": 120},
    num_requests=8_000,
    warmup_requests=0,
    random_seed=11,
)


def test_waits_and_latencies_are_those_of_the_exact_chain():
    config = CHAIN.replace(arrival_rate=0.5 * CHAIN.max_stable_rate)
    exact = ContinuousChain(
        config.arrival_rate,
        config.step_time,
        config.prompts,
        config.outputs,
        config.batch_size,
    )
    expected = np.array([exact.mean, exact.mean_ttft, exact.mean_latency])
    runs = []
    for seed in range(700, 724):
        record = simulate(config.replace(random_seed=seed))
        arrival = record.arrival_time[2_000:]
        whens = (
            record.processing_start_time,
            record.first_token_time,
            record.processing_end_time,
        )
        runs.append([np.mean(when[2_000:] - arrival) for when in whens])
    error = np.std(runs, axis=0, ddof=1) / math.sqrt(len(runs))
    assert (4.0 * error < 0.07 * expected).all()
    assert (np.abs(np.mean(runs, axis=0) - expected) / error).max() < 4.0


def capacity(config):
    """Requests a second while everybody waits from the first moment on."""
    drawn = Workload.generate(config)
    burst = Workload.from_arrays(
        np.zeros(len(drawn)), drawn.prompt_length, drawn.output_length
    )
    end = np.sort(simulate(config, burst).processing_end_time)
    middle = slice(len(end) // 10, 8 * len(end) // 10)
    return (len(end[middle]) - 1) / (end[middle][-1] - end[middle][0])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_saturated_server_carries_what_theory_says(preset):
    config = FULL.replace(**PRESETS[preset].coefficients)
    assert capacity(config) == pytest.approx(config.max_stable_rate, rel=0.02)


@pytest.mark.parametrize("batch_size", [1, 2, 24])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("step_law", STEP_LAWS)
def test_it_does_so_under_each_law_and_scheduled_ahead(step_law, ahead, batch_size):
    config = FULL.replace(
        alpha=6e-5,
        beta=0.004,
        gamma=0.009,
        delta=2e-5,
        kappa=1e-7,
        epsilon=2e-8,
        step_law=step_law,
        async_scheduling=ahead,
        batch_size=batch_size,
        max_batched_tokens=10**6,
        output_dist_params={"mean": 8},
        num_requests=40_000,
    )
    assert capacity(config) == pytest.approx(config.max_stable_rate, rel=0.015)


def test_scheduled_ahead_a_token_comes_a_step_later_under_load_but_not_when_idle():
    """THEORY 16: decode steps of 1 s; one request all the time, others now and then."""
    lonely = Workload.from_arrays([0.3, 50.9], [4, 4], [3, 3])
    base = SimulationConfig(
        server="continuous",
        alpha=0.0,
        beta=0.0,
        gamma=1.0,
        step_law="roofline",
        batch_size=9,
        warmup_requests=0,
    )
    times = np.arange(200) * 7.13
    busy = Workload.from_arrays(
        np.r_[0.0, times[1:] + 0.003],
        np.full(200, 4),
        np.r_[3_000, np.ones(199, dtype=int)],
    )
    for ahead in (False, True):
        config = base.replace(async_scheduling=ahead)
        assert simulate(config, lonely).ttft == pytest.approx([1.0, 1.0])
        delay = simulate(config, busy).ttft[1:] - 1.0  # beside the step of its own
        assert (delay.min() > ahead) & (delay.max() < ahead + 1)
        assert delay.mean() == pytest.approx(ahead + 0.5, abs=0.01)


def test_continuous_over_static_capacity_is_the_ratio_predicted():
    fast = FULL.replace(**PRESETS["llama-3.1-8b-rtx4090"].coefficients)
    slow = fast.replace(server="static", batch_timeout=0.0)
    predicted = fast.max_stable_rate / slow.max_stable_rate
    assert predicted > 2.0
    assert capacity(fast) / capacity(slow) == pytest.approx(predicted, rel=0.03)


def test_short_memory_carries_less_than_the_bound_and_most_of_it():
    config = FULL.replace(**PRESETS["llama-3.1-8b-rtx4090"].coefficients, kv_blocks=600)
    assert config.max_stable_rate < 0.8 * config.replace(kv_blocks=None).max_stable_rate
    share = capacity(config) / config.max_stable_rate
    assert share == pytest.approx(0.915, abs=0.025)  # as measured once


def test_a_short_budget_carries_less_than_the_bound_and_most_of_it():
    config = FULL.replace(
        **PRESETS["llama-3.1-8b-rtx4090"].coefficients,
        batch_size=48,
        max_batched_tokens=64,
    )
    assert (
        config.max_stable_rate < config.replace(max_batched_tokens=2048).max_stable_rate
    )
    share = capacity(config) / config.max_stable_rate
    assert share == pytest.approx(0.875, abs=0.025)  # as measured once


def test_with_one_sequence_it_is_a_single_server_queue():
    config = FULL.replace(
        batch_size=1,
        max_batched_tokens=10**9,
        output_dist_params={"mean": 10},
        num_requests=2_000,
        alpha=1e-4,
        gamma=0.01,
    )
    config = config.replace(arrival_rate=0.7 * config.max_stable_rate)
    workload = Workload.generate(config)
    record = serve(config, workload)
    law = config.step_time
    free = 0.0
    for i, arrival in enumerate(workload.arrival_time):
        prompt, output = workload.prompt_length[i], workload.output_length[i]
        free = max(free, arrival) + law.alone_stepwise(prompt, output, math.inf)
        assert record.processing_end_time[i] == pytest.approx(free, rel=1e-9)
