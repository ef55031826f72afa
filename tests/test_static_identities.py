"""What holds on every run of the static server, whatever its configuration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from bench import CountingEnvironment
from cases import RUNS, serve_columns
from hypothesis import given, settings
from twin import step_seconds

from llminfer import LLMInferenceServer, MetricsCollector


def area_between(ups, downs):
    """The area under the path that rises at ``ups`` and falls at ``downs``."""
    times = np.concatenate([ups, downs])
    steps = np.concatenate([np.ones(len(ups)), -np.ones(len(downs))])
    order = np.argsort(times, kind="stable")
    level = np.cumsum(steps[order])[:-1]
    return float((level * np.diff(times[order])).sum())


def every_request_is_served_once_and_in_order_of_time(config, workload, record):
    n = len(workload)
    times = [
        workload.arrival_time,
        record.queue_entry_time,
        record.processing_start_time,
        record.first_token_time,
        record.processing_end_time,
    ]
    assert all(len(column) == n and np.isfinite(column).all() for column in times)
    for earlier, later in itertools.pairwise(times):
        assert (earlier <= later).all()
    assert record.batch_size.sum() == n
    each = np.sort(np.repeat(record.batch_start, record.batch_size))
    np.testing.assert_array_equal(each, np.sort(record.processing_start_time))
    each = np.sort(np.repeat(record.batch_end, record.batch_size))
    np.testing.assert_array_equal(each, np.sort(record.processing_end_time))


def littles_law_holds_on_the_path(config, workload, record):
    """The path is of the batches, the sojourns are of the requests."""
    entered, served = workload.arrival_time, record.batch_size
    sojourns = (record.processing_end_time - record.arrival_time).sum()
    in_system = area_between(entered, np.repeat(record.batch_end, served))
    assert in_system == pytest.approx(sojourns, rel=1e-9, abs=1e-12)
    waits = (record.processing_start_time - record.queue_entry_time).sum()
    in_queue = area_between(entered, np.repeat(record.batch_start, served))
    assert in_queue == pytest.approx(waits, rel=1e-9, abs=1e-12)


def busy_time_is_the_sum_of_the_times_of_the_batches(config, workload, record):
    assert (record.batch_start[1:] >= record.batch_end[:-1]).all()
    needed = 0.0
    for start in np.unique(record.processing_start_time):
        members = record.processing_start_time == start
        b, steps = members.sum(), record.output_length[members].max()
        kv_tokens = record.prompt_length[members].sum() + b * np.arange(steps)
        prompts = record.prompt_length[members]
        needed += step_seconds(config, prompts.sum(), (prompts**2 / 2).sum(), 0, 0)
        needed += sum(step_seconds(config, 0, 0, b, k) for k in kv_tokens)
    busy = (record.batch_end - record.batch_start).sum()
    assert busy == pytest.approx(needed, rel=1e-9)


def a_batch_leaves_when_full_or_overdue_or_when_no_more_will_come(
    config, workload, record
):
    timeout = np.inf if config.batch_timeout is None else config.batch_timeout
    assert record.batch_size.max() <= config.batch_size
    free, last_arrival = -np.inf, workload.arrival_time[-1]
    for start, end, size in zip(
        record.batch_start, record.batch_end, record.batch_size, strict=True
    ):
        oldest = record.arrival_time[record.processing_start_time >= start].min()
        due = min(oldest + timeout, last_arrival)
        if size < config.batch_size:
            assert start >= due
        assert start <= max(free, due)
        free = end


def the_longest_queue_is_the_longest_there_was(config, workload, record):
    left = np.repeat(record.batch_start, record.batch_size)
    most = max(
        (workload.arrival_time <= t).sum() - (left < t).sum()
        for t in np.concatenate([workload.arrival_time, record.batch_start])
    )
    measured = MetricsCollector.compute_metrics(record)["max_queue_length"]
    assert measured == most


IDENTITIES = [
    every_request_is_served_once_and_in_order_of_time,
    littles_law_holds_on_the_path,
    busy_time_is_the_sum_of_the_times_of_the_batches,
    a_batch_leaves_when_full_or_overdue_or_when_no_more_will_come,
    the_longest_queue_is_the_longest_there_was,
]


@settings(max_examples=200)
@given(RUNS)
def test_every_run_keeps_the_identities(run):
    config, workload = run
    config = config.replace(beta=config.beta or 0.0625)  # so that starts differ
    record = serve_columns(config, workload)
    for identity in IDENTITIES:
        identity(config, workload, record)


@given(RUNS)
def test_batches_that_take_no_time_keep_those_that_hold_for_them(run):
    config, workload = run
    record = serve_columns(config, workload)
    for identity in (IDENTITIES[0], IDENTITIES[1], IDENTITIES[3]):
        identity(config, workload, record)


@given(RUNS)
def test_a_run_is_one_event_a_batch_and_none_an_arrival(run):
    config, workload = run
    env = CountingEnvironment()
    server = LLMInferenceServer(env, config, workload)
    env.process(server.run())
    env.run()
    start_and_end_of_the_process = 2
    assert env.events == len(server.record.batch_size) + start_and_end_of_the_process
