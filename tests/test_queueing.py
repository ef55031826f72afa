"""The static server against what is known exactly.

Seeds were fixed before looking, and |z| < 4 is asked for.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import ImpatientFirst, LongestFirst

from llminfer import ExperimentConfig, ExperimentRunner, SimulationConfig, simulate

REPLICATIONS = 20


def z_score(values, expected):
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert 4.0 * error < 0.07 * expected  # or it could not fail
    return (values.mean() - expected) / error


def service_moments(config):
    """E[S] and E[S^2] of a request alone, from the tables of its two laws."""
    prompts, outputs = config.prompts.pmf(), config.outputs.pmf()
    p, m = np.arange(len(prompts))[:, None], np.arange(len(outputs))[None, :]
    seconds = config.alpha * p + config.beta
    seconds = seconds + m * (config.gamma + config.delta + config.kappa * p)
    seconds = seconds + config.kappa * m * (m - 1) / 2
    chance = prompts[:, None] * outputs[None, :]
    return (chance * seconds).sum(), (chance * seconds**2).sum()


SERVICES = {
    "truncated normals": {
        "prompt_length_dist": "truncated_normal",
        "prompt_dist_params": {"mu": 100, "sigma": 60, "min": 1, "max": 300},
    },
    "constant prompts, geometric outputs": {
        "prompt_length_dist": "constant",
        "prompt_dist_params": {"value": 20},
        "output_length_dist": "geometric",
        "output_dist_params": {"mean": 60, "max": 600},
        "gamma": 0.004,
    },
    "two kinds of prompts": {
        "prompt_length_dist": "bimodal",
        "prompt_dist_params": {
            "short_min": 10,
            "short_max": 50,
            "long_min": 400,
            "long_max": 900,
            "short_prob": 0.7,
        },
        "output_length_dist": "constant",
        "output_dist_params": {"value": 10},
    },
    "log-normal prompts, a cache that costs": {
        "prompt_dist_params": {"mu": 4, "sigma": 0.8, "max": 1000},
        "output_length_dist": "uniform",
        "output_dist_params": {"min": 1, "max": 200},
        "delta": 2e-4,
        "kappa": 2e-5,
    },
}


@pytest.mark.parametrize("case", SERVICES)
def test_the_mean_wait_at_batch_size_one_is_pollaczek_and_khinchines(case):
    config = SimulationConfig(
        batch_size=1, num_requests=12_000, warmup_requests=2_000, **SERVICES[case]
    )
    mean, square = service_moments(config)
    config = config.replace(arrival_rate=0.65 / mean)
    expected = config.arrival_rate * square / (2 * (1 - 0.65))
    plan = ExperimentConfig(case, "", config, REPLICATIONS, random_seed_start=1_000)
    results = ExperimentRunner(plan, n_jobs=1).run_all()
    waits = [metrics["avg_queue_wait"] for metrics in results]
    assert abs(z_score(waits, expected)) < 4.0
    assert config.offered_load == pytest.approx(0.65, rel=1e-8)


def test_the_wait_for_a_full_batch_is_the_assembly_bound():
    """With service that takes no time, E[W] = (B - 1)/(2 lambda)."""
    config = SimulationConfig(
        arrival_rate=4.0,
        alpha=0,
        beta=0,
        gamma=0,
        batch_size=6,
        num_requests=6_000,
        warmup_requests=0,
    )
    waits = []
    for seed in range(REPLICATIONS):
        record = simulate(config.replace(random_seed=seed))
        waits.append((record.processing_start_time - record.arrival_time).mean())
    assert abs(z_score(waits, 5 / (2 * 4.0))) < 4.0


@pytest.mark.parametrize(
    "config",
    [
        SimulationConfig(batch_size=8),
        SimulationConfig.from_preset(
            "llama-3.1-8b-rtx4090", server="static", batch_size=16
        ),
        SimulationConfig.from_preset(
            "llama-2-70b-dgx-h100",
            server="static",
            batch_size=3,
            output_length_dist="geometric",
            output_dist_params={"mean": 200},
        ),
        SimulationConfig(batch_size=5, kappa=1e-4, delta=0.01),
    ],
)
def test_a_saturated_server_carries_its_greatest_rate(config):
    config = config.replace(
        arrival_rate=1e6,
        num_requests=250 * config.batch_size,
        warmup_requests=0,
        prompt_dist_params={"mu": 4, "sigma": 1, "max": 8192},
    )
    rates = []
    for seed in range(REPLICATIONS):
        record = simulate(config.replace(random_seed=seed))
        assert (record.batch_size == config.batch_size).all()
        rates.append(
            config.num_requests / (record.batch_end[-1] - record.batch_start[0])
        )
    assert abs(z_score(rates, config.max_stable_rate)) < 4.0


def test_the_work_that_waits_is_the_same_under_every_policy():
    """At batch size 1, and on the path itself: the sum of service x wait."""
    config = SimulationConfig(
        arrival_rate=3.2, batch_size=1, num_requests=2_000, warmup_requests=0
    )
    policies = ["FCFS", "SJF", "Predicted-SJF", "Priority"]
    waiting_work, mean_waits = [], []
    for policy in [*policies, LongestFirst(), ImpatientFirst()]:
        record = simulate(config.replace(random_seed=77, scheduling_policy=policy))
        service = record.processing_end_time - record.processing_start_time
        wait = record.processing_start_time - record.arrival_time
        waiting_work.append((service * wait).sum())
        mean_waits.append(wait.mean())
    np.testing.assert_allclose(waiting_work, waiting_work[0], rtol=1e-9)
    for one, other in itertools.combinations(mean_waits, 2):
        assert one != pytest.approx(other, rel=1e-3)
