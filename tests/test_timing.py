"""The law of step times, against sums over the steps themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
