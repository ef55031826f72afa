"""Every run ends, in no more events than the batch has changes."""

from __future__ import annotations

import numpy as np
import pytest
import simpy
from continuous_cases import EXACT
from hypothesis import given, settings

from llminfer import ContinuousBatchingServer, SimulationConfig, Workload


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


@settings(max_examples=300)
@given(EXACT)
def test_no_setting_hangs(run):
    config, workload = run
    # Whoever was admitted first makes a token in every decode step, and every prefill
    # step between two of them admits somebody. The clock of a controller comes on top.
    tokens = int((workload.prompt_length + workload.output_length).sum())
    env = BoundedEnvironment(100 + (config.largest_batch + 2) * tokens)
    config = config.replace(batch_control="static", batch_control_params={})
    server = ContinuousBatchingServer(env, config, workload)
    env.process(server.run())
    env.run()
    assert len(server.record.processing_end_time) == len(workload)
    assert np.all(server.record.processing_end_time >= workload.arrival_time)


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
