"""Several servers behind a router."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import simpy
from continuous_cases import FLOATS, runs, serve, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from step_twin import run_twins

from llminfer import SimulationConfig, Workload
from llminfer.servers.continuous import ContinuousBatchingServer

ROUTED = runs(
    st.floats(0.0, 3.0),
    FLOATS,
    replicas=st.integers(2, 4),
    router=st.sampled_from(["round_robin", "least_loaded", "shortest_queue"]),
    batch_size=st.integers(1, 4),
)
SERVER = SimulationConfig(
    server="continuous",
    batch_size=8,
    arrival_rate=12.0,
    output_length_dist="geometric",
    output_dist_params={"mean": 20},
    gamma=0.02,
    num_requests=2000,
    warmup_requests=0,
    random_seed=5,
)


def share(record, replicas):
    return np.bincount(record.steps.replica, minlength=replicas) / len(
        record.arrival_time
    )


POSITIVE = st.floats(1e-4, 0.1)  # no step ends as it begins
CACHED = shared(
    runs(
        st.floats(1e-3, 3.0),
        POSITIVE,
        replicas=st.integers(2, 4),
        router=st.sampled_from(["longest_prefix", "session"]),
        batch_size=st.integers(1, 4),
        prefix_caching=st.just(True),
    )
)


@settings(max_examples=250)
@given(ROUTED | CACHED)
def test_servers_behind_a_router_equal_as_many_twins(run):
    config, workload = run
    record = serve(config, workload)
    twins = run_twins(config, workload)
    served = [
        (s.request.id, place, s) for place, t in enumerate(twins) for s in t.everyone
    ]
    served.sort(key=lambda entry: entry[0])
    assert record.steps.replica.tolist() == [place for _, place, _ in served]
    if config.prefix_caching:
        assert record.steps.cached_tokens.tolist() == [s.cached for _, _, s in served]
    ends = [s.token_times[-1] for _, _, s in served]
    firsts = [s.token_times[0] for _, _, s in served]
    np.testing.assert_allclose(record.processing_end_time, ends, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(record.first_token_time, firsts, rtol=1e-9, atol=1e-9)
    assert record.preemptions.tolist() == [len(s.preempted_at) for _, _, s in served]


@pytest.mark.parametrize("router", ["least_loaded", "shortest_queue"])
def test_who_comes_as_a_step_ends_is_in_the_next_one_to_the_last_bit(router):
    """SimPy adds a delay to its clock: now + (time - now) need not be that time."""
    config = SERVER.replace(replicas=2, router=router, batch_size=2, beta=0.05)
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(60):
        arrivals = np.sort(rng.uniform(0.0, 0.05, 5))
        prompts = rng.integers(50, 900, 7)
        first = Workload.from_arrays(arrivals, prompts[:5], [1] * 5)
        tie = rng.choice(serve(config, first).batch_end[:3])
        missed += arrivals[-1] + (tie - arrivals[-1]) != tie
        times = np.append(arrivals, (tie, tie + 1.0))
        workload = Workload.from_arrays(times, prompts, [1] * 7)
        record = serve(config, workload)
        twins = enumerate(run_twins(config, workload))
        served = [(s.request.id, place, s) for place, t in twins for s in t.everyone]
        served.sort(key=lambda entry: entry[0])
        assert record.steps.replica.tolist() == [place for _, place, _ in served]
        starts = [s.start for _, _, s in served]
        assert record.processing_start_time.tolist() == starts
    assert missed  # a clock that adds delays is wrong here


@pytest.mark.parametrize(
    "router", ["round_robin", "random", "least_loaded", "shortest_queue"]
)
def test_each_server_serves_what_it_was_sent_as_if_it_were_alone(router):
    config = SERVER.replace(replicas=3, router=router, scheduling_policy="SJF")
    workload = Workload.generate(config)
    record = serve(config, workload)
    for place in range(3):
        mine = record.steps.replica == place
        alone = serve(
            config.replace(replicas=1),
            Workload.from_arrays(
                workload.arrival_time[mine],
                workload.prompt_length[mine],
                workload.output_length[mine],
            ),
        )
        np.testing.assert_allclose(
            record.processing_end_time[mine], alone.processing_end_time, rtol=1e-12
        )


def test_round_robin_takes_turns_and_random_draws_even_shares():
    workload = Workload.generate(SERVER)
    turns = serve(SERVER.replace(replicas=4), workload)
    assert turns.steps.replica[:9].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    drawn = serve(SERVER.replace(replicas=4, router="random"), workload)
    assert np.abs(share(drawn, 4) - 0.25).max() < 4.0 * (0.25 * 0.75 / 2000) ** 0.5
    again = serve(SERVER.replace(replicas=4, router="random", gamma=0.01), workload)
    assert drawn.steps.replica.tolist() == again.steps.replica.tolist()


def test_the_least_loaded_server_has_the_fewest_requests_at_that_moment():
    config = SERVER.replace(replicas=3, router="least_loaded")
    record = serve(config, Workload.generate(config))
    replica, end = record.steps.replica, record.processing_end_time
    for i, now in itertools.islice(enumerate(record.arrival_time), 300):
        there = replica[:i][end[:i] > now]
        counts = np.bincount(there, minlength=3)
        assert counts[replica[i]] == counts.min()


def test_a_router_that_looks_beats_one_that_draws():
    workload = Workload.generate(SERVER)
    waits = {}
    for router in ("random", "round_robin", "least_loaded", "shortest_queue"):
        record = serve(SERVER.replace(replicas=4, router=router), workload)
        waits[router] = np.mean(record.processing_start_time - record.arrival_time)
    assert max(waits["least_loaded"], waits["shortest_queue"]) < waits["round_robin"]
    assert waits["round_robin"] < waits["random"]


def test_capacity_and_load_count_every_server():
    one, four = SERVER, SERVER.replace(replicas=4)
    assert four.max_stable_rate == pytest.approx(4.0 * one.max_stable_rate)
    assert four.offered_load == pytest.approx(one.offered_load / 4.0)


@pytest.mark.parametrize("policy", ["SJF", "Priority", "Predicted-SJF", "WFQ", "FCFS"])
def test_queues_of_many_servers_take_no_more_memory_than_of_one(policy):
    peaks = []
    for replicas in (2, 64):
        config = SERVER.replace(
            replicas=replicas, scheduling_policy=policy, router="least_loaded"
        )
        workload = Workload.generate(config.replace(num_requests=20_000))
        tracemalloc.start()
        server = ContinuousBatchingServer(simpy.Environment(), config, workload)
        peaks.append(tracemalloc.get_traced_memory()[1] / 20_000)
        tracemalloc.stop()
        assert len(server._replicas) == replicas
    assert peaks[1] - peaks[0] < 17.0  # bytes a request; one rank more a replica: 1,054
