"""Theory behind sliders: quick, near enough, and silent where it knows nothing."""

from __future__ import annotations

import numpy as np
import pytest

from llminfer import ConfigError, SimulationConfig, theory
from llminfer.theory.bulk import GammaQueue

CAPPED = {"mu": 4, "sigma": 1.5, "max": 8192}
REPORT = SimulationConfig(prompt_dist_params=CAPPED)
REAL = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090", server="static", prompt_dist_params=CAPPED
)
LOADS = (0.1, 0.5, 0.9, 0.97)
CONTINUOUS = SimulationConfig(
    server="continuous",
    batch_size=6,
    max_batched_tokens=10**6,
    prompt_length_dist="uniform",
    prompt_dist_params={"min": 10, "max": 100},
    output_length_dist="geometric",
    output_dist_params={"mean": 20},
)


def at_load(config, load):
    return config.replace(arrival_rate=load * config.max_stable_rate)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("size", [2, 8, 32])
@pytest.mark.parametrize("timeout", [0, None])
@pytest.mark.parametrize(("base", "error"), [(REPORT, 0.02), (REAL, 0.001)])
def test_the_quick_latency_is_near_the_exact_one(base, error, timeout, size, load):
    config = at_load(base.replace(batch_size=size, batch_timeout=timeout), load)
    exact = theory.bulk_queue(config).mean_latency
    assert theory.mean_latency(config) == pytest.approx(exact, rel=error)


@pytest.mark.parametrize("load", LOADS)
def test_gamma_batches_of_one_have_the_exact_mean(load):
    config = at_load(REPORT.replace(batch_size=1), load)
    parts = config.step_time, config.prompts, config.outputs
    gamma = GammaQueue(config.arrival_rate, *parts, 1, 1)
    assert gamma.mean_latency == pytest.approx(theory.mg1(config).mean_latency)
    assert theory.mean_latency(config) == theory.mg1(config).mean_latency


@pytest.mark.parametrize("timeout", [0, None])
def test_gamma_batches_that_do_not_vary_are_exact(timeout):
    config = REPORT.replace(
        arrival_rate=6.0,
        batch_size=4,
        batch_timeout=timeout,
        prompt_length_dist="constant",
        prompt_dist_params={"value": 90},
        output_length_dist="constant",
        output_dist_params={"value": 60},
    )
    exact = theory.bulk_queue(config).mean_latency
    assert theory.mean_latency(config) == pytest.approx(exact, rel=1e-6)


def test_batches_that_take_no_time_wait_to_fill_here_too():
    config = REPORT.replace(alpha=0, beta=0, gamma=0, batch_size=6)
    bound = theory.assembly_bound(config)
    assert theory.mean_latency(config) == pytest.approx(bound)


def test_prompts_without_a_cap_have_a_curve():
    config = at_load(SimulationConfig(batch_timeout=0), 0.6)
    capped = config.replace(prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 10**6})
    latency = theory.mean_latency(config)
    assert latency == pytest.approx(theory.mean_latency(capped), rel=0.01)


def test_single_servers_and_continuous_ones_are_exact():
    sjf = at_load(REPORT.replace(batch_size=1, scheduling_policy="SJF"), 0.8)
    assert theory.mean_latency(sjf) == theory.priority(sjf).mean_latency
    chain = at_load(CONTINUOUS, 0.8)
    assert theory.mean_latency(chain) == theory.continuous(chain).mean_latency


@pytest.mark.parametrize(
    "changes",
    [
        {"arrival_rate": 20.0},
        {"arrival_cv": 2.0},
        {"batch_timeout": 0.5},
        {"batch_size": 1, "scheduling_policy": "Predicted-SJF", "arrival_rate": 1.0},
        {"scheduling_policy": "SJF"},
        {"batch_control": "queue"},
        {"server": "continuous"},
        {
            "arrival_pattern": "sinusoidal",
            "arrival_pattern_params": {"amplitude": 4.0, "period": 60.0},
        },
    ],
)
def test_where_no_theory_applies_there_is_no_number(changes):
    config = REPORT.replace(**{"arrival_rate": 4.0, **changes})
    assert theory.mean_latency(config) is None
    if "arrival_rate" not in changes or changes["arrival_rate"] == 1.0:
        assert np.isnan(theory.latency_curve(config, LOADS)).all()


def test_the_curve_is_the_latency_at_each_load_whatever_the_rate_and_seed():
    config = REPORT.replace(batch_size=8, batch_timeout=0, random_seed=5)
    curve = theory.latency_curve(config, LOADS)
    expected = [theory.mean_latency(at_load(config, load)) for load in LOADS]
    np.testing.assert_allclose(curve, expected, rtol=1e-12)
    other = config.replace(arrival_rate=0.3, random_seed=6, num_requests=9_999)
    assert theory.latency_curve(other, LOADS) is curve
    with_an_overload = theory.latency_curve(config, (0.5, 1.0))
    assert np.isnan(with_an_overload).tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": "static"}, r"server='static': must be continuous for this law"),
        ({"kv_blocks": 500}, r"kv_blocks=500: must be None for this law"),
        ({"chunked_prefill": False}, r"chunked_prefill=False: must be True"),
        ({"replicas": 2}, r"replicas=2: must be 1 for this law"),
        ({"max_batched_tokens": 599}, r"max_batched_tokens=599: must be at least 600"),
    ],
)
def test_a_chain_has_no_limits_but_its_seats(changes, message):
    config = at_load(CONTINUOUS, 0.5).replace(**changes)
    with pytest.raises(ConfigError, match=message):
        theory.continuous(config)


def test_a_budget_that_no_step_can_feel_is_none():
    config = at_load(CONTINUOUS, 0.5)
    enough = config.replace(max_batched_tokens=600)
    assert theory.continuous(enough).mean == theory.continuous(config).mean


@pytest.mark.parametrize(
    "law", [theory.mg1, theory.priority, theory.conserved_work, theory.bulk_queue]
)
def test_a_law_of_static_batches_refuses_the_continuous_server(law):
    config = REPORT.replace(server="continuous", batch_size=1, arrival_rate=1.0)
    with pytest.raises(ConfigError, match="server='continuous': must be static"):
        law(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("step_law", "roofline"), ("epsilon", 1e-7), ("async_scheduling", True)],
)
def test_theory_is_of_the_reports_steps_alone_and_says_so(field, value):
    """What is known of any law of steps, lambda*, is in ``test_continuous_theory``."""
    must = {"step_law": "sum", "epsilon": 0.0, "async_scheduling": False}[field]
    static = [theory.mg1, theory.priority, theory.conserved_work, theory.bulk_queue]
    laws = [theory.continuous, theory.product_form_latency]
    for law in laws if field == "async_scheduling" else static + laws:
        server = "static" if law in static else "continuous"
        config = REPORT.replace(server=server, batch_size=1, arrival_rate=1.0)
        with pytest.raises(ConfigError, match=rf"{field}=\S+: must be {must} for this"):
            law(config.replace(**{field: value}))
        assert theory.mean_latency(config.replace(**{field: value})) is None
