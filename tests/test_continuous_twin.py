"""The compressed server against the twin that takes every step and counts every block.

Whatever the settings, both must give the same times to 1e-9, the same preemptions, the
same gaps between tokens, and hold the same memory.
"""

from __future__ import annotations

import numpy as np
import pytest
from continuous_cases import EXACT, FREE, serve, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from step_twin import run_twins

from llminfer.servers.token_gaps import token_gaps

SHARES = [0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]


def assert_close(ours, theirs, what, rtol=1e-9):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol, err_msg=what)


def assert_same_requests(record, sequences):
    """The same times and preemptions, request by request."""
    tokens = [s.token_times for s in sequences]
    assert [len(times) for times in tokens] == record.output_length.tolist()
    assert_close(record.processing_start_time, [s.start for s in sequences], "start")
    assert_close(record.first_token_time, [t[0] for t in tokens], "first token")
    assert_close(record.processing_end_time, [t[-1] for t in tokens], "end")
    often = [len(s.preempted_at) for s in sequences]
    assert record.preemptions.tolist() == often
    order = np.lexsort((record.steps.preempted_time, record.steps.preempted_request))
    for name, column in (("preempted", "preempted_at"), ("resumed", "resumed_at")):
        theirs = [time for s in sequences for time in getattr(s, column)]
        assert_close(getattr(record.steps, f"{name}_time")[order], theirs, name)


def assert_same_steps(record, steps):
    """As many steps, as long, with as many sequences, in as many blocks."""
    log = record.steps
    assert log.batch_steps.sum() == len(steps)
    each = np.repeat(np.arange(len(log.batch_steps)), log.batch_steps)
    assert record.batch_size[each].tolist() == [step.size for step in steps]
    assert log.batch_decoding[each].tolist() == [step.decoding for step in steps]
    first = np.cumsum(log.batch_steps) - log.batch_steps
    last = first + log.batch_steps - 1
    assert_close(record.batch_start, [steps[i].start for i in first], "batch start")
    assert_close(record.batch_end, [steps[i].end for i in last], "batch end")
    if log.kv_blocks is not None:
        assert log.first_blocks.tolist() == [steps[i].blocks for i in first]
        assert log.last_blocks.tolist() == [steps[i].blocks for i in last]


def assert_same_gaps(record, sequences, law, skip):
    gaps = np.concatenate([np.diff(s.token_times) for s in sequences[skip:]])
    ours = token_gaps(record, law, skip)
    assert ours.number() == len(gaps)
    if len(gaps):
        assert_close(ours.mean(), gaps.mean(), "mean gap", 1e-7)
        quantiles = ours.quantiles(SHARES)
        assert_close(quantiles, np.quantile(gaps, SHARES), "gaps", 1e-7)


@pytest.mark.parametrize(
    "runs", [EXACT, FREE], ids=["events coincide", "continuous times"]
)
@settings(max_examples=450)
@given(data=st.data())
def test_server_equals_the_step_by_step_twin(runs, data):
    config, workload = data.draw(runs)
    record = serve(config, workload)
    (twin,) = run_twins(config, workload)
    assert_same_requests(record, twin.everyone)
    assert_same_steps(record, twin.steps)
    skip = data.draw(st.integers(0, len(workload) - 1))
    if config.step_time.decode(1, 1, 1) > 0.0:  # else no clock tells tokens apart
        assert_same_gaps(record, twin.everyone, config.step_time, skip)
    assert record.batch_limit.tolist() == twin.control.path()["batch_limit"].tolist()
    assert_close(record.limit_time, twin.control.path()["limit_time"], "limit")


@pytest.mark.parametrize(
    "runs", [EXACT, FREE], ids=["events coincide", "continuous times"]
)
@settings(max_examples=250)
@given(data=st.data())
def test_shared_prefixes_are_found_as_in_the_twin_of_named_blocks(runs, data):
    config, workload = data.draw(shared(runs))
    config = config.replace(prefix_caching=True)
    record = serve(config, workload)
    (twin,) = run_twins(config, workload)
    assert record.steps.cached_tokens.tolist() == [s.cached for s in twin.everyone]
    assert_same_requests(record, twin.everyone)
    assert_same_steps(record, twin.steps)
