"""The law of step times, against sums over the steps themselves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twin import step_seconds

from llminfer import ConfigError, SimulationConfig, Workload, simulate
from llminfer.laws.engines import STEP_LAWS
from llminfer.laws.lengths import length_law
from llminfer.servers.overload import may_carry_more
from llminfer.timing import StepTime

LAWS = st.builds(StepTime, *[st.floats(0.0, 1.0)] * 6, st.sampled_from(STEP_LAWS))
LAUNCHED = st.builds(
    StepTime,
    *[st.floats(0.0, 1.0)] * 6,
    st.just("roofline"),
    st.floats(0.0, 9.0),
    st.integers(0, 60),
)
TOKENS = st.integers(1, 40)


def test_what_is_not_told_is_as_in_a_configuration():
    usual = {its.name: its.default for its in dataclasses.fields(SimulationConfig)}
    for its in dataclasses.fields(StepTime):
        if its.default is not dataclasses.MISSING:
            assert its.default == usual[its.name], its.name


def test_sequences_contexts_and_pairs_cost_nothing_unless_told():
    assert StepTime(0.3, 0.2, 0.1) == StepTime(0.3, 0.2, 0.1, 0.0, 0.0, 0.0, "sum")


@given(LAWS, TOKENS, st.integers(0, 200), st.integers(0, 30))
def test_decode_steps_add_up_as_every_sequence_grows_by_a_token(law, b, cached, steps):
    each = (step_seconds(law, 0, 0, b, cached + b * i) for i in range(steps))
    assert law.decode(b, cached, steps) == pytest.approx(sum(each), rel=1e-9)


COUNTS = st.integers(0, 60)
STEPS = st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), min_size=1)


@given(LAWS | LAUNCHED, STEPS)
def test_many_steps_at_once_take_what_each_takes(law, steps):
    steps = [row for row in steps if row[0] + row[1] > 0] or [(1, 0, 0, 1)]
    p, b, k, q = np.array(steps, dtype=float).T
    each = [step_seconds(law, p, q, b, k) for p, b, k, q in steps]
    np.testing.assert_allclose(law.step(p, b, k, q), each, rtol=1e-12)


def test_a_launch_that_no_step_would_feel_is_refused():
    words = r"^launch=0.1: must be 0 unless step_law=\"roofline\""
    for made in (
        lambda: StepTime(1.0, 1.0, 1.0, launch=0.1),
        lambda: SimulationConfig(launch=0.1),
    ):
        with pytest.raises(ConfigError, match=words):
            made()


@given(LAWS, TOKENS, TOKENS)
def test_alone_in_a_static_batch_every_token_is_a_decode_step(law, prompt, output):
    expected = law.prefill(prompt, prompt**2 / 2) + law.decode(1, prompt, output)
    assert law.alone(prompt, output) == pytest.approx(expected, rel=1e-9)


@given(LAWS, TOKENS, TOKENS, st.integers(1, 50) | st.just(math.inf))
def test_alone_in_steps_a_prompt_is_prefilled_in_chunks(law, prompt, output, budget):
    seconds, before = 0.0, 0
    while before < prompt:
        n = min(prompt - before, budget)
        seconds += step_seconds(law, n, n * (before + n / 2), 0, 0)
        before += n
    seconds += sum(step_seconds(law, 0, 0, 1, prompt + i) for i in range(output - 1))
    found = law.alone_stepwise(prompt, output, budget)
    assert found == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.003, 0.02, 0.5, 1e5])
@pytest.mark.parametrize("launch", [0.0, 0.004, 0.06])
@pytest.mark.parametrize("b", [1, 3, 50])
def test_the_mean_time_of_a_static_batch_is_that_of_all_its_sums(gamma, b, launch):
    law = StepTime(1e-4, 0.01, gamma, 2e-4, 0.0, 3e-7, "roofline", launch, 40)
    prompts = length_law("prompt", "lognormal", {"mu": 3, "sigma": 1, "max": 400})
    outputs = length_law("output", "uniform", {"min": 1, "max": 9})
    pmf = prompts.pmf()
    sums = np.eye(1, 1)[0]
    for _ in range(b):
        sums = np.convolve(sums, pmf)
    square = (np.arange(len(pmf)) ** 2) @ pmf
    pairs = b * square / 2.0
    each = [step_seconds(law, s, pairs, 0, 0) for s in range(1, len(sums))]
    prefill = float(sums[1:] @ each)
    decode = outputs.expectation(b) * step_seconds(law, 0, 0, b, 0)
    found = law.mean_batch_time(prompts, outputs, b)
    assert found == pytest.approx(prefill + decode, rel=1e-9)


@pytest.mark.parametrize("preset", ["report", "llama-3.1-8b-rtx4090"])
@pytest.mark.parametrize(
    ("values", "span"), [([100], 100), ([20, 100], 20), ([20, 90, 155], 5)]
)
def test_a_flood_of_outputs_that_stay_in_step_carries_its_own_rate(
    preset, values, span
):
    n, b = 12_000, 8
    config = SimulationConfig.from_preset(
        preset,
        server="continuous",
        batch_size=b,
        max_batched_tokens=10**6,
        prompt_length_dist="uniform",
        prompt_dist_params={"min": 20, "max": 400},
        output_length_dist="empirical",
        output_dist_params={"values": values},
        num_requests=n,
        warmup_requests=0,
        random_seed=3,
    )
    drawn = Workload.generate(config)
    flood = Workload.from_arrays(np.zeros(n), drawn.prompt_length, drawn.output_length)
    carried = n / simulate(config, flood).processing_end_time.max()
    assert carried == pytest.approx(in_lockstep(config, span), rel=0.012)
    assert may_carry_more(config)
    if span >= 20 and preset == "report":  # beta is dear there
        assert carried > 1.1 * config.max_stable_rate


def in_lockstep(config, span):
    """Requests a second where one step of ``span`` admits all who will ever come in."""
    b, law, output = config.batch_size, config.step_time, config.outputs.expectation()
    ends = span / output  # a sequence's chance in such a step
    beta = law.beta * (1.0 - (1.0 - ends) ** b) / span
    gamma = law.gamma * (1.0 - ends**b / span)
    contexts = (config.prompts.expectation() - 1.0) * (output - 1.0)
    contexts += config.outputs.pairs()
    own = law.alpha * config.prompts.expectation() + law.delta * (output - 1.0)
    freed = b / output
    return freed / (beta + gamma + freed * (own + law.kappa * contexts))
