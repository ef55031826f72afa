"""Laws between runs: what a change of the question must do to the answer."""

from __future__ import annotations

import numpy as np
import pytest
from cases import RUNS, ImpatientFirst, exact_runs
from hypothesis import assume, given
from hypothesis import strategies as st

from llminfer import SimulationConfig, Workload, simulate
from llminfer.laws.engines import COEFFICIENTS

TIMES = (
    "processing_start_time",
    "first_token_time",
    "processing_end_time",
    "batch_start",
    "batch_end",
)


@given(RUNS)
def test_time_has_no_unit_of_its_own(run):
    """All coefficients times 4 and arrivals 4 times as rare: all times are 4 times."""
    config, workload = run
    assume(not isinstance(config.scheduling_policy, ImpatientFirst))  # knows seconds
    changes = {name: 4 * getattr(config, name) for name in COEFFICIENTS}
    if config.batch_timeout is not None:
        changes["batch_timeout"] = 4 * config.batch_timeout
    if config.scheduling_policy == "Priority":
        policy = config.policy()
        changes["scheduling_policy_params"] = {
            **config.scheduling_policy_params,
            "aging_rate": policy.aging_rate / 4,
            "urgency_weight": policy.urgency_weight * 4,
        }
    fast = simulate(config, workload)
    slow = simulate(config.replace(**changes), workload.scaled(1 / 4))
    for name in TIMES:
        np.testing.assert_array_equal(getattr(slow, name), 4 * getattr(fast, name))
    np.testing.assert_array_equal(slow.batch_size, fast.batch_size)


@given(RUNS, st.integers(1, 20))
def test_a_batch_limit_above_the_most_that_ever_waits_changes_nothing(run, more):
    config, workload = run
    assume(config.batch_timeout is not None)  # else the limit is what is waited for
    free = simulate(config.replace(batch_size=10**6), workload)
    limit = free.max_queue_length + more
    limited = simulate(config.replace(batch_size=limit), workload)
    for name in TIMES:
        np.testing.assert_array_equal(getattr(limited, name), getattr(free, name))


def with_one_more(workload, at, arrival, prompt, output):
    """The workload with a request more at place ``at``."""
    return Workload.from_arrays(
        np.insert(workload.arrival_time, at, arrival),
        np.insert(workload.prompt_length, at, prompt),
        np.insert(workload.output_length, at, output),
    )


@given(exact_runs(), st.data())
def test_a_request_more_never_helps_an_earlier_one(run, data):
    """In a greedy server under FCFS who came before starts as before.

    Nor does it end sooner, unless the new request takes the place of a longer one.
    """
    config, workload = run
    config = config.replace(
        batch_timeout=0, scheduling_policy="FCFS", scheduling_policy_params={}
    )
    at = data.draw(st.integers(0, len(workload)), label="place of the new request")
    before = workload.arrival_time[at - 1] if at else 0.0
    after = workload.arrival_time[at] if at < len(workload) else before + 1.0
    arrival = data.draw(st.sampled_from([before, (before + after) / 2, after]))
    short = data.draw(st.booleans())
    length = 1 if short else 12  # no request is longer than 12
    longer = with_one_more(workload, at, arrival, length, length)
    alone, joined = simulate(config, workload), simulate(config, longer)
    np.testing.assert_array_equal(
        joined.processing_start_time[:at], alone.processing_start_time[:at]
    )
    if not short:
        for name in ("first_token_time", "processing_end_time"):
            assert (getattr(joined, name)[:at] >= getattr(alone, name)[:at]).all()


def test_a_short_request_may_help_an_earlier_one_by_taking_a_long_ones_place():
    config = SimulationConfig(
        batch_size=2, batch_timeout=0, alpha=1, beta=0, gamma=0, warmup_requests=0
    )
    workload = Workload.from_arrays([0.0, 1.0, 2.0], [4, 1, 9], [1, 1, 1])
    ends = simulate(config, workload).processing_end_time
    assert ends.tolist() == [4.0, 14.0, 14.0]
    joined = simulate(config, with_one_more(workload, 2, 1.5, 1, 1))
    assert joined.processing_end_time.tolist() == [4.0, 6.0, 6.0, 15.0]


@pytest.mark.parametrize("aging_rate", [0.0, 0.3])
def test_classes_that_are_alike_are_one_class(aging_rate):
    config = SimulationConfig(
        arrival_rate=9.0,
        batch_size=3,
        num_requests=3_000,
        scheduling_policy="Priority",
        scheduling_policy_params={"aging_rate": aging_rate, "urgency_weight": 0.0},
        random_seed=8,
        prompt_dist_params={"mu": 3, "sigma": 1},
        request_classes={
            "first": {"share": 1, "base_priority": 2},
            "like the first": {"share": 2, "base_priority": 2},
            "other": {"share": 3, "base_priority": 1},
        },
    )
    workload = Workload.generate(config)
    split = simulate(config, workload)
    merged = config.replace(
        request_classes={
            "both": {"share": 3, "base_priority": 2},
            "other": {"share": 3, "base_priority": 1},
        }
    )
    kinds = np.maximum(workload.request_class - 1, 0)
    joined = simulate(
        merged, type(workload)(**{**vars(workload), "request_class": kinds})
    )
    np.testing.assert_array_equal(split.processing_end_time, joined.processing_end_time)
    waits = split.processing_start_time - split.arrival_time
    assert waits[kinds == 0].mean() < waits[kinds == 1].mean()


CONTINUOUS = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    arrival_rate=4.0,
    prompt_dist_params={"mu": 5, "sigma": 1, "max": 2048},
    output_length_dist="lognormal",
    output_dist_params={"mu": 4, "sigma": 0.8, "max": 512},
    batch_size=16,
    num_requests=400,
    warmup_requests=0,
    random_seed=42,
)
SETTINGS = {
    "no memory limit": {},
    "preemptions": {"kv_blocks": 170, "batch_size": 64, "arrival_rate": 12.0},
    "whole prompts": {"chunked_prefill": False, "max_batched_tokens": 512},
    "shortest first": {"scheduling_policy": "SJF", "arrival_rate": 12.0},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_continuous_server_has_no_unit_of_time_either(changes):
    config = CONTINUOUS.replace(**changes)
    workload = Workload.generate(config)
    slower = {name: 4 * getattr(config, name) for name in COEFFICIENTS}
    fast = simulate(config, workload)
    slow = simulate(config.replace(**slower), workload.scaled(1 / 4))
    for name in TIMES:
        np.testing.assert_array_equal(getattr(slow, name), 4 * getattr(fast, name))
    assert (slow.preemptions == fast.preemptions).all()
    assert fast.preemptions.any() == ("kv_blocks" in changes)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_continuous_server_never_misses_room_that_nobody_takes(changes):
    config = CONTINUOUS.replace(**changes).replace(batch_size=400)
    workload = Workload.generate(config)
    free = simulate(config, workload)
    most = int(free.batch_size.max())
    assert most < 400
    limited = simulate(config.replace(batch_size=most), workload)
    for name in TIMES:
        np.testing.assert_array_equal(getattr(limited, name), getattr(free, name))


def test_identical_classes_are_one():
    config = CONTINUOUS.replace(kv_blocks=170, arrival_rate=12.0, batch_size=64)
    classes = {name: {"share": 1.0, "weight": 2.0} for name in ("a", "b", "c")}
    for policy in ("FCFS", "SJF"):
        one = config.replace(scheduling_policy=policy)
        apart = simulate(one.replace(request_classes=classes))
        together = simulate(one)
        for name in TIMES:
            np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
