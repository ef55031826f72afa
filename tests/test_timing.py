"""The law of step times, against sums over the steps themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llminfer import SimulationConfig, Workload, simulate
from llminfer.servers.overload import may_carry_more
from llminfer.timing import StepTime

COEFFICIENTS = st.builds(StepTime, *[st.floats(0.0, 1.0)] * 5)
TOKENS = st.integers(1, 40)


def test_sequences_and_contexts_cost_nothing_unless_told():
    assert StepTime(0.3, 0.2, 0.1) == StepTime(0.3, 0.2, 0.1, 0.0, 0.0)


@given(COEFFICIENTS, TOKENS, st.integers(0, 200), st.integers(0, 30))
def test_decode_steps_add_up_as_every_sequence_grows_by_a_token(law, b, cached, steps):
    each = (
        law.gamma + law.delta * b + law.kappa * (cached + b * i) for i in range(steps)
    )
    assert law.decode(b, cached, steps) == pytest.approx(sum(each), rel=1e-9)


@given(COEFFICIENTS, TOKENS, TOKENS)
def test_alone_in_a_static_batch_every_token_is_a_decode_step(law, prompt, output):
    expected = law.prefill(prompt) + law.decode(1, prompt, output)
    assert law.alone(prompt, output) == pytest.approx(expected, rel=1e-9)


@given(COEFFICIENTS, TOKENS, TOKENS, st.integers(1, 50))
def test_alone_in_steps_a_prompt_is_prefilled_in_chunks(law, prompt, output, budget):
    chunks, left = [], prompt
    while left:
        chunks.append(min(left, budget))
        left -= chunks[-1]
    seconds = sum(law.prefill(chunk) for chunk in chunks)
    seconds += sum(law.decode(1, prompt + made, 1) for made in range(output - 1))
    found = law.alone_stepwise(prompt, output, budget)
    assert found == pytest.approx(seconds, rel=1e-9)
    whole = law.prefill(prompt) + seconds - sum(law.prefill(c) for c in chunks)
    assert law.alone_stepwise(prompt, output, math.inf) == pytest.approx(whole)


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
    own = config.prompts, config.outputs, b
    assert carried == pytest.approx(
        config.step_time.saturation_rate(*own, span), rel=0.012
    )
    assert may_carry_more(config)
    if span >= 20 and preset == "report":  # beta is dear there
        assert carried > 1.1 * config.step_time.saturation_rate(*own)
