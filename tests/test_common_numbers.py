"""One seed gives alternatives the same requests, and its streams are independent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from llminfer import SimulationConfig, SimulationRunner, Workload
from llminfer.base.streams import stream

BASE = SimulationConfig(num_requests=2_000, random_seed=9)
COLUMNS = ("arrival_time", "prompt_length", "output_length", "request_class")


def unlike(config, other):
    """The columns in which two configurations' requests differ."""
    one, two = Workload.generate(config), Workload.generate(other)
    return {
        name
        for name in COLUMNS
        if not np.array_equal(getattr(one, name), getattr(two, name))
    }


def test_one_seed_gives_the_same_requests_again():
    assert unlike(BASE, BASE) == set()
    assert unlike(BASE, BASE.replace(random_seed=10)) == set(COLUMNS[:3])


def test_no_seed_gives_other_requests_each_time():
    free = BASE.replace(random_seed=None)
    assert unlike(free, free) == set(COLUMNS[:3])


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        (
            {"output_length_dist": "geometric", "output_dist_params": {"mean": 80}},
            "output_length",
        ),
        ({"output_dist_params.sigma": 50}, "output_length"),
        ({"prompt_dist_params.sigma": 0.5}, "prompt_length"),
        ({"arrival_rate": 3.0}, "arrival_time"),
        ({"arrival_cv": 2.0}, "arrival_time"),
        (
            {
                "arrival_pattern": "step",
                "arrival_pattern_params": {"step_time": 9, "step_rate": 20},
            },
            "arrival_time",
        ),
    ],
)
def test_a_change_of_one_thing_leaves_the_others_as_they_were(changes, column):
    assert unlike(BASE, BASE.replace(**changes)) == {column}


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"batch_timeout": 1.0},
        {"alpha": 0.0005},
        {"warmup_requests": 0},
        {"scheduling_policy": "Priority"},
        {
            "scheduling_policy": "Predicted-SJF",
            "scheduling_policy_params": {"prediction_sigma": 1.0},
        },
    ],
)
def test_servers_and_policies_face_the_same_requests(changes):
    served = [
        SimulationRunner(config, workload=None)
        for config in (
            BASE.replace(arrival_rate=3),
            BASE.replace(arrival_rate=3, **changes),
        )
    ]
    for runner in served:
        runner.run()
    one, two = (
        r.requests[["arrival_time", "prompt_length", "output_length"]] for r in served
    )
    assert one.equals(two)


def test_arrivals_stretch_as_the_rate_falls():
    fast = Workload.generate(BASE.replace(arrival_rate=8.0)).arrival_time
    slow = Workload.generate(BASE.replace(arrival_rate=2.0)).arrival_time
    np.testing.assert_allclose(slow, 4.0 * fast, rtol=1e-14)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_more_requests_begin_with_the_same_ones(cv):
    few = Workload.generate(BASE.replace(arrival_cv=cv))
    more = Workload.generate(BASE.replace(arrival_cv=cv, num_requests=5_000))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(more, name)[:2_000], getattr(few, name))


def test_a_prediction_is_off_by_the_same_factor_however_many_wait():
    """The noise belongs to the request, so it stays when the run grows."""
    config = BASE.replace(
        arrival_rate=3,
        scheduling_policy="Predicted-SJF",
        scheduling_policy_params={"prediction_sigma": 1.0},
        batch_timeout=0.0,
    )
    short, long = (
        SimulationRunner(config),
        SimulationRunner(config.replace(num_requests=3_000)),
    )
    short.run(), long.run()
    starts = [
        r.requests["processing_start_time"].to_numpy()[:1_900] for r in (short, long)
    ]
    np.testing.assert_array_equal(*starts)


PURPOSES = ("arrivals", "prompts", "outputs", "prediction", "classes", "routing")


def test_streams_of_one_seed_and_of_its_neighbours_are_uncorrelated():
    n = 50_000
    draws = {
        (seed, purpose): stream(seed, purpose).random(n) - 0.5
        for seed in (0, 1)
        for purpose in PURPOSES
    }
    for (one, x), (two, y) in itertools.combinations(draws.items(), 2):
        z = 12.0 * (x * y).mean() * np.sqrt(n)  # E[x^2 y^2] = 1/144
        assert abs(z) < 4.0, (one, two)


def test_columns_of_a_workload_are_uncorrelated():
    work = Workload.generate(BASE.replace(num_requests=50_000, arrival_cv=2.0))
    gaps = np.diff(work.arrival_time, prepend=0.0)
    columns = [gaps, np.log(work.prompt_length), work.output_length]
    for x, y in itertools.combinations(columns, 2):
        for shift in (0, 1):
            r = np.corrcoef(x[shift:], y[: len(y) - shift])[0, 1]
            assert abs(r) * np.sqrt(len(x)) < 4.0
