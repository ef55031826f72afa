"""Every run ends, in no more events than the batch has changes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import simpy
from continuous_cases import EXACT
from hypothesis import given, settings
from hypothesis import strategies as st

from llminfer import (
    ContinuousBatchingServer,
    OverloadWarning,
    SimulationConfig,
    SimulationRunner,
    Workload,
)


class Hung(Exception):
    """More events than the work can need."""


class BoundedEnvironment(simpy.Environment):
    """An environment that counts its events, and gives up after so many."""

    def __init__(self, most):
        super().__init__()
        self.events, self.most = 0, most

    def step(self):
        self.events += 1
        if self.events > self.most:
            raise Hung
        super().step()


ROUTERS = ["round_robin", "random", "least_loaded", "shortest_queue", "session"]


@settings(max_examples=250)
@given(EXACT, st.sampled_from([1, 1, 2, 3]), st.sampled_from(ROUTERS))
def test_no_setting_hangs(run, replicas, router):
    config, workload = run
    if replicas > 1:
        fields = {"batch_control": "static", "batch_control_params": {}}
        config = config.replace(replicas=replicas, router=router, **fields)
    # Whoever was admitted first computes a token in every step, and keeps it. Only
    # where prefill goes apart he waits, for steps that each admit somebody.
    tokens = int((workload.prompt_length + workload.output_length).sum())
    steps = tokens * (1 if config.chunked_prefill else config.largest_batch + 1)
    # An arrival at a router is an event, and may interrupt a server; a process begins
    # and ends, and all of them do.
    env = BoundedEnvironment(steps + 4 * len(workload) + 3 * replicas + 4)
    server = ContinuousBatchingServer(env, config, workload)
    env.process(server.run())
    env.run()
    assert server.record.steps.batch_steps.sum() <= steps
    assert len(server.record.processing_end_time) == len(workload)
    assert np.all(server.record.processing_end_time >= workload.arrival_time)


@pytest.mark.parametrize("replicas", [1, 2])
def test_only_more_requests_than_its_servers_carry_draw_a_warning(replicas):
    config = SimulationConfig(
        server="continuous", replicas=replicas, num_requests=20, warmup_requests=0
    )
    carried = config.max_stable_rate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimulationRunner(config.replace(arrival_rate=0.99 * carried)).run()
    with pytest.warns(OverloadWarning, match=r"overloaded: .* \(load 1.01\)"):
        SimulationRunner(config.replace(arrival_rate=1.01 * carried)).run()


def events(config, workload):
    """SimPy's events in a run, and its record."""
    env = BoundedEnvironment(10**6)
    server = ContinuousBatchingServer(env, config, workload)
    env.process(server.run())
    env.run()
    return env.events, server.record


@pytest.mark.parametrize("chunked", [True, False])
def test_one_event_a_change_and_none_a_token(chunked):
    config = SimulationConfig(
        server="continuous",
        batch_size=16,
        chunked_prefill=chunked,
        output_length_dist="uniform",
        output_dist_params={"min": 5_000, "max": 50_000},
        alpha=1e-4,
        kappa=1e-7,
        arrival_rate=0.05,
        num_requests=400,
        warmup_requests=0,
        random_seed=3,
    )
    count, record = events(config, Workload.generate(config))
    assert count <= len(record.batch_start) + 10
    # A change: somebody enters, one chunk after another, or is complete.
    assert len(record.batch_start) <= 4 * config.num_requests
    assert record.steps.batch_steps.sum() > 500 * len(record.batch_start)


def test_a_prompt_in_small_chunks_is_no_event_a_chunk():
    config = SimulationConfig(
        server="continuous", batch_size=2, max_batched_tokens=2, warmup_requests=0
    )
    workload = Workload.from_arrays([0.0, 0.0], [1, 200_000], [100_000, 1])
    count, record = events(config, workload)
    assert record.steps.batch_steps.sum() > 100_000
    assert count < 20


def test_memory_short_of_blocks_is_no_event_a_token():
    config = SimulationConfig(
        server="continuous",
        kv_blocks=2_000,
        prompt_length_dist="constant",
        prompt_dist_params={"value": 500},
        output_length_dist="uniform",
        output_dist_params={"min": 2_000, "max": 20_000},
        num_requests=300,
        warmup_requests=0,
        random_seed=4,
    )
    count, record = events(config, Workload.generate(config))
    preemptions = int(record.preemptions.sum())
    assert preemptions > 50
    assert count < 6 * (config.num_requests + preemptions)
    assert record.steps.batch_steps.sum() > 100 * count


def test_a_router_interrupts_no_step_that_ends_alone():
    config = SimulationConfig(
        server="continuous",
        replicas=2,
        router="least_loaded",
        batch_size=1,
        alpha=0.125,
        beta=0.0,
        warmup_requests=0,
    )
    # Prefills of 1 s, and somebody sent to either server during each of them.
    workload = Workload.from_arrays(0.375 * np.arange(100), [8] * 100, [1] * 100)
    count, record = events(config, workload)
    assert record.processing_end_time[-1] > record.arrival_time[-1] + 10.0
    a_request = 2  # its arrival and its step
    assert count <= a_request * len(workload) + 20


def test_a_run_in_progress_has_no_record():
    env = simpy.Environment()
    config = SimulationConfig(server="continuous", num_requests=10, warmup_requests=0)
    server = ContinuousBatchingServer(env, config, Workload.generate(config))
    env.process(server.run())
    env.run(until=1e-9)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = server.record


def test_statistics_are_those_of_the_record():
    config = SimulationConfig(server="continuous", num_requests=50, warmup_requests=0)
    env = simpy.Environment()
    server = ContinuousBatchingServer(env, config, Workload.generate(config))
    env.process(server.run())
    env.run()
    record, statistics = server.record, server.get_statistics()
    assert statistics["total_requests"] == 50
    assert statistics["total_batches"] == record.steps.batch_steps.sum()
    assert statistics["busy_time"] == np.sum(record.batch_end - record.batch_start)
    assert statistics["max_queue_length"] == record.max_queue_length
