"""The KV occupancy of a run, over busy and idle time, against every step's blocks."""

from __future__ import annotations

import numpy as np
import pytest
from continuous_cases import EXACT, FREE, serve
from hypothesis import assume, given, settings
from step_twin import run_twins

from llminfer import SimulationConfig, Workload
from llminfer.experiment import metrics_of
from llminfer.timeseries import kv_occupancy


def mean_of_all_steps(config, workload):
    """Blocks times seconds, step by step, over all blocks and all the time."""
    (twin,) = run_twins(config, workload)
    held = sum(step.blocks * (step.end - step.start) for step in twin.steps)
    lasted = max(step.end for step in twin.steps) - workload.arrival_time[0]
    return held / lasted / config.kv_blocks, lasted


def held(run, **fields):
    config, workload = run[0].replace(**fields), run[1]
    assume(config.kv_blocks is not None)
    record = serve(config, workload)
    assume(record.batch_end.max() > workload.arrival_time[0])
    return config, workload, record


@settings(max_examples=150)
@given(EXACT | FREE)
def test_it_is_exact_where_every_step_takes_as_many_blocks(run):
    """A block a token, and no step longer than the one before: a line is exact."""
    most = int((run[1].prompt_length + run[1].output_length).max())
    fields = {"block_size": 1, "kv_blocks": 2 * most, "kappa": 0.0, "epsilon": 0.0}
    config, workload, record = held(run, **fields)
    ours = metrics_of(config, record)["avg_kv_occupancy"]
    assert ours == pytest.approx(mean_of_all_steps(config, workload)[0], rel=1e-9)


@settings(max_examples=150)
@given(EXACT | FREE)
def test_it_is_right_to_a_block_a_sequence(run):
    config, workload, record = held(run)
    ours = metrics_of(config, record)["avg_kv_occupancy"]
    theirs, lasted = mean_of_all_steps(config, workload)
    many = record.steps.batch_steps > 1
    decoding = record.steps.batch_decoding + 1  # and a prompt in parts
    longest = np.where(many, decoding, 0) * (record.batch_end - record.batch_start)
    assert abs(ours - theirs) * lasted * config.kv_blocks <= longest.sum() + 1e-9
    times, shares = kv_occupancy(record)
    assert np.trapezoid(shares, times) == pytest.approx(ours * lasted, abs=1e-9)


# A request of 4 tokens and 4 more holds one block of the four for 3.5 s.
FOUR_BLOCKS = SimulationConfig(
    server="continuous",
    kv_blocks=4,
    block_size=16,
    alpha=0.125,
    beta=0.0,
    gamma=1.0,
    warmup_requests=0,
)


def test_idle_time_counts_as_empty():
    """Each of 3 requests holds 1 of 4 blocks for 3.5 s; 100 s lie between two."""
    work = Workload.from_arrays([5.0, 105.0, 205.0], [4] * 3, [4] * 3)
    record = serve(FOUR_BLOCKS, work)
    found = metrics_of(FOUR_BLOCKS, record)
    assert found["avg_kv_occupancy"] == pytest.approx(3 * 3.5 / 4 / 203.5)
    assert found["max_kv_occupancy"] == 0.25
    times, shares = kv_occupancy(record)
    assert shares[(times > 8.5) & (times < 105.0)].tolist() == []
    assert np.interp([50.0, 150.0], times, shares).tolist() == [0.0, 0.0]
    assert np.interp([6.0, 107.0, 208.0], times, shares).tolist() == [0.25] * 3


def test_it_is_empty_between_steps_only_where_the_server_rests():
    """Two requests one after another without a rest, a third after one."""
    work = Workload.from_arrays([0.0, 0.0, 50.0], [4] * 3, [4] * 3)
    record = serve(FOUR_BLOCKS.replace(batch_size=1), work)
    times, shares = kv_occupancy(record)
    rests = record.batch_start[1:] > record.batch_end[:-1]
    assert 0 < rests.sum() < len(rests)
    empty = [7.0, 50.0, 53.5, 53.5]  # from, to; and the end
    assert times[shares == 0.0].tolist() == empty
    assert shares[shares > 0.0].tolist() == [0.25] * (len(times) - len(empty))
