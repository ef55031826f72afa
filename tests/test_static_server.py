"""The server's own interface, and the instants where its rules meet."""

from __future__ import annotations

import contextlib
from dataclasses import fields

import numpy as np
import pytest
import simpy
from cases import LongestFirst, differing, serve_by_hand, serve_columns

from llminfer import (
    ConfigError,
    LLMInferenceServer,
    Request,
    SchedulingPolicy,
    ServerByHand,
    SimulationConfig,
    SimulationRunner,
    Workload,
    simulate,
)

# Prefill takes 1 s, a decode step 1 s: a batch of one-token requests takes 2 s.
CLOCKWORK = SimulationConfig(
    alpha=0.0, beta=1.0, gamma=1.0, warmup_requests=0, batch_size=2, random_seed=0
)


def starts(config, arrivals, prompts=None, outputs=None):
    ones = [1] * len(arrivals)
    workload = Workload.from_arrays(arrivals, prompts or ones, outputs or ones)
    return serve_columns(config, workload).processing_start_time.tolist()


def test_a_batch_waits_until_it_is_full():
    assert starts(CLOCKWORK, [0, 5, 6, 9]) == [5, 5, 9, 9]


def test_a_greedy_server_goes_with_what_is_there():
    greedy = CLOCKWORK.replace(batch_timeout=0)
    assert starts(greedy, [0, 1, 1.5, 9]) == [0, 2, 2, 9]


def test_the_oldest_waits_no_longer_than_the_timeout():
    patient = CLOCKWORK.replace(batch_timeout=3, batch_size=3)
    assert starts(patient, [0, 1, 10, 11, 12, 20]) == [3, 3, 12, 12, 12, 20]


def test_who_is_passed_over_keeps_the_time_of_its_arrival():
    """The policy leaves request 2 behind; it is overdue when the server is free."""
    shortest = CLOCKWORK.replace(batch_timeout=3, scheduling_policy="SJF")
    order = starts(shortest, [0, 0, 0.5, 0.5, 0.5, 10], prompts=[1, 1, 9, 1, 1, 1])
    assert order == [0, 0, 4, 2, 2, 10]


def test_the_oldest_of_several_passed_over_decides():
    """Requests 3 and 4 are left behind at 2, and a batch of longer ones runs to 8."""
    longest = CLOCKWORK.replace(
        batch_size=3, batch_timeout=10, scheduling_policy=LongestFirst()
    )
    arrivals = [0, 0, 0, 0.5, 1, 1.5, 1.5, 1.5, 50]
    order = starts(longest, arrivals, outputs=[1, 1, 1, 1, 1, 5, 5, 5, 1])
    assert order == [0, 0, 0, 10.5, 10.5, 2, 2, 2, 50]


def test_the_last_requests_do_not_wait_for_others():
    assert starts(CLOCKWORK, [0, 1, 4]) == [1, 1, 4]
    assert starts(CLOCKWORK.replace(batch_size=64), [0, 1, 4]) == [4, 4, 4]


def test_who_arrives_at_the_instant_of_a_dispatch_is_in_it():
    greedy = CLOCKWORK.replace(batch_timeout=0, batch_size=8)
    assert starts(greedy, [0, 0, 2, 2, 2]) == [0, 0, 2, 2, 2]
    patient = CLOCKWORK.replace(batch_timeout=3, batch_size=8)
    assert starts(patient, [0, 3, 3, 50]) == [3, 3, 3, 50]
    # Even the shortest of them, before those that came first:
    shortest = CLOCKWORK.replace(batch_timeout=0, scheduling_policy="SJF")
    assert starts(shortest, [0, 1, 1, 2], prompts=[5, 9, 7, 3]) == [0, 4, 2, 2]


def test_the_policy_picks_out_of_the_whole_queue():
    """Not out of the first ``batch_size`` to arrive."""
    shortest = CLOCKWORK.replace(scheduling_policy="SJF", batch_size=1)
    prompts = [50, 40, 30, 20, 10]
    assert starts(shortest, [0, 1, 1, 1, 1], prompts) == [0, 8, 6, 4, 2]


def test_ties_go_to_the_earlier_arrival():
    shortest = CLOCKWORK.replace(scheduling_policy="SJF", batch_size=1)
    assert starts(shortest, [0, 1, 1, 1.5], [5, 5, 5, 5]) == [0, 2, 4, 6]


def test_priority_trades_urgency_against_waiting():
    urgent = CLOCKWORK.replace(
        scheduling_policy="Priority", batch_size=1, beta=0.5, gamma=0.5
    )
    arrivals, outputs = [0, 0.5, 0.75], [8, 6, 1]  # the last is the shortest
    weigh = {"aging_rate": 0.0, "urgency_weight": 1.0}
    by_urgency = urgent.replace(scheduling_policy_params=weigh)
    assert starts(by_urgency, arrivals, outputs=outputs) == [0, 5.5, 4.5]
    wait = {"aging_rate": 100.0, "urgency_weight": 1.0}
    by_wait = urgent.replace(scheduling_policy_params=wait)
    assert starts(by_wait, arrivals, outputs=outputs) == [0, 4.5, 8.0]


def test_prediction_looks_at_outputs_and_noise_spoils_it():
    config = SimulationConfig(
        arrival_rate=3, batch_size=1, num_requests=3000, random_seed=8
    )
    waits = {}
    for sigma in (0.0, 3.0):
        params = {"prediction_sigma": sigma}
        runner = SimulationRunner(
            config.replace(
                gamma=0.002,
                alpha=0.0,
                scheduling_policy="Predicted-SJF",
                scheduling_policy_params=params,
            )
        )
        waits[sigma] = runner.run()["avg_queue_wait"]
    assert waits[0.0] < waits[3.0]


def test_a_policy_of_ones_own_is_obeyed():
    longest = CLOCKWORK.replace(scheduling_policy=LongestFirst(), batch_size=1)
    order = starts(longest, [0, 0.1, 0.2, 0.3], outputs=[2, 3, 4, 5])
    assert order == [0, 14, 9, 3]


class Broken(SchedulingPolicy):
    name = "Broken"

    def __init__(self, order):
        self.order = order

    def sort_requests(self, requests, current_time):
        return self.order(requests)


@pytest.mark.parametrize(
    "order",
    [
        lambda requests: [],
        lambda requests: requests[:1],
        lambda requests: [requests[0], requests[0]],
        lambda requests: [Request(1, 0.0, 1, 1), *requests],
        lambda requests: requests.sort(),
    ],
    ids=["loses all", "loses some", "repeats", "makes up", "returns None"],
)
@pytest.mark.parametrize(
    "serve",
    [serve_columns, serve_by_hand],
    ids=["columns", "by hand"],
)
def test_a_policy_that_loses_or_repeats_requests_is_told(order, serve):
    config = CLOCKWORK.replace(scheduling_policy=Broken(order))
    workload = Workload.from_arrays([0, 0, 0], [1, 1, 1], [1, 1, 1])
    with pytest.raises(ConfigError, match=r"^scheduling_policy='Broken': must be"):
        serve(config, workload)


def by_hand(config=CLOCKWORK):
    env = simpy.Environment()
    server = ServerByHand(env, config)
    env.process(server.run())
    return env, server


def test_a_reader_drives_the_server_from_a_process_of_their_own():
    env, server = by_hand()
    request = Request(0, 0.0, 5, 3)

    def client():
        server.enqueue_request(request)
        yield env.timeout(1.0)
        server.enqueue_request(Request(1, 1.0, 5, 2))
        server.close()

    env.process(client())
    env.run()
    assert request.queue_entry_time == 0.0
    assert request.processing_start_time == 1.0
    assert request.first_token_time == 2.0
    assert request.processing_end_time == 5.0
    assert request.actual_output_length == 3
    assert [r.id for r in server.completed] == [0, 1]
    assert server.get_statistics() == {
        "total_batches": 1,
        "total_requests": 2,
        "avg_batch_size": 2.0,
        "busy_time": 4.0,
        "waiting_requests": 0,
        "max_queue_length": 2,
    }


def test_a_server_by_hand_waits_for_more_until_it_is_closed():
    env, server = by_hand()

    def client():
        server.enqueue_request(Request(0, 0.0, 1, 1))
        yield env.timeout(50.0)
        server.close()

    env.process(client())
    env.run(until=49.0)
    assert len(server.queue) == 1
    env.run()
    assert server.completed[0].processing_start_time == 50.0


def test_close_sends_off_who_waits_and_refuses_who_follows():
    env, server = by_hand()

    def client():
        server.enqueue_request(Request(0, 0.0, 1, 1))
        yield env.timeout(3.0)
        server.close()
        yield env.timeout(50.0)
        with pytest.raises(RuntimeError, match=r"request 9 refused: .*closed"):
            server.enqueue_request(Request(9, 53.0, 1, 1))

    env.process(client())
    env.run()
    assert [r.processing_start_time for r in server.completed] == [3.0]


def test_requests_that_wait_for_more_are_told_of_where_no_more_can_come():
    env, server = by_hand(CLOCKWORK.replace(batch_timeout=None, batch_size=4))
    for i in range(3):
        server.enqueue_request(Request(i, 0.0, 1, 1))
    env.run()
    with pytest.warns(UserWarning, match=r"^3 requests wait for a full batch: call"):
        assert len(server.record.arrival_time) == 0
    server.close()
    env.run()
    assert len(server.record.arrival_time) == 3


# A value of each field unlike its default, and what a server by hand does about it

REFUSED = {
    "max_concurrency": 3,
    "clients": 2,
    "queue_limit": 1,
    "patience": 0.25,
    "request_timeout": 0.25,
    "server": "continuous",
    "think_time": {"clients": 2, "think_time": 1.0},
    "turns": {"clients": 2, "turns": 2},
    **{
        name: {"server": "continuous", name: value}
        for name, value in {
            "max_batched_tokens": 64,
            "kv_blocks": 9,
            "block_size": 8,
            "chunked_prefill": False,
            "reserve_full_prompt": False,
            "prefix_caching": True,
            "async_scheduling": True,
            "replicas": 2,
            "router": "random",
        }.items()
    },
}
HONOURED = {
    "batch_size": 2,
    "batch_timeout": 0.0,
    "batch_control": {
        "batch_control": "queue",
        "batch_control_params": {"interval": 0, "k": 0.5},
    },
    "batch_control_params": {
        "batch_control": "queue",
        "batch_control_params": {"interval": 0, "k": 2.0},
    },
    "scheduling_policy": "SJF",
    "scheduling_policy_params": {
        "scheduling_policy": "Predicted-SJF",
        "scheduling_policy_params": {"prediction_sigma": 3.0},
    },
    "request_classes": {
        "scheduling_policy": "Priority",
        "request_classes": {"a": {}, "b": {"base_priority": 9.0}},
    },
    "random_seed": {
        "scheduling_policy": "Predicted-SJF",
        "scheduling_policy_params": {"prediction_sigma": 3.0},
        "random_seed": 2,
    },
    "alpha": 0.002,
    "beta": 0.5,
    "gamma": 0.1,
    "delta": 0.1,
    "kappa": 0.1,
    "epsilon": 0.1,
    "step_law": "roofline",
    "launch": {"step_law": "roofline", "launch": 3.0, "graph_tokens": 1},
    "graph_tokens": {"step_law": "roofline", "launch": 3.0, "graph_tokens": 1},
}
OF_THE_WORKLOAD = {  # which the reader sends
    "arrival_rate",
    "arrival_pattern",
    "arrival_pattern_params",
    "arrival_cv",
    "arrival_gaps",
    "prompt_length_dist",
    "prompt_dist_params",
    "shared_prefixes",
    "output_length_dist",
    "output_dist_params",
    "num_requests",
    "warmup_requests",
}
BY_HAND = SimulationConfig(batch_size=3, random_seed=1)


def changed(name, value):
    """A configuration with a field unlike its default, and one without."""
    its = value if isinstance(value, dict) else {name: value}
    one = BY_HAND.replace(**its)
    assert getattr(one, name) != getattr(SimulationConfig(), name)
    rest = {k: v for k, v in its.items() if k != name}
    if name == "batch_control":
        rest = {}
    return one, BY_HAND.replace(**rest)


def test_every_field_is_refused_honoured_or_of_the_workload():
    names = {f.name for f in fields(SimulationConfig)}
    assert names == {*REFUSED, *HONOURED, *OF_THE_WORKLOAD}


@pytest.mark.parametrize("name", REFUSED)
def test_a_server_by_hand_refuses_what_it_does_not_do(name):
    config, _ = changed(name, REFUSED[name])
    with pytest.raises(ConfigError, match=f"(?m)^({'|'.join(REFUSED)})=.*by hand"):
        ServerByHand(simpy.Environment(), config)


@pytest.mark.parametrize("name", HONOURED)
def test_a_server_by_hand_honours_all_other_fields(name):
    config, without = changed(name, HONOURED[name])
    workload = Workload.from_arrays(
        [0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 1.0, 9.0],
        [300, 200, 9, 120, 60, 40, 20, 10, 20],
        [9, 60, 20, 70, 10, 30, 90, 9, 9],
        [0, 0, 0, 0, 1, 0, 1, 1, 0],
    )
    run = serve_by_hand(config, workload)
    assert differing(run, serve_by_hand(without, workload))
    assert not differing(run, serve_columns(config, workload))


@pytest.mark.parametrize("at", [0.0, 3.0])
def test_all_who_come_at_one_moment_are_in_the_queue_before_a_batch_leaves(at):
    """However many processes send them, one after another."""
    env, server = by_hand(CLOCKWORK.replace(batch_size=6, batch_timeout=0.0))

    def client(number):
        yield env.timeout(at)
        for more in range(3):
            server.enqueue_request(Request(number + more, at, 1, 1))
            yield env.timeout(0.0)
            yield env.timeout(0.0)

    for number in (0, 3):
        env.process(client(number))
    env.run()
    assert len(server.completed) == 6
    assert {r.processing_start_time for r in server.completed} == {at}


def test_the_static_server_refuses_the_settings_of_another():
    config = SimulationConfig(server="continuous", kv_blocks=9)
    with pytest.raises(ConfigError, match="server='continuous': must be 'static'"):
        serve_columns(config, Workload.from_arrays([0.0], [9], [9]))


def test_collect_batch_takes_the_first_in_the_policys_order():
    env = simpy.Environment()
    server = ServerByHand(env, CLOCKWORK.replace(scheduling_policy="SJF"))
    for i, prompt in enumerate([30, 10, 20]):
        server.enqueue_request(Request(i, 0.0, prompt, 1))
    assert [r.id for r in server.collect_batch()] == [1, 2]
    assert [r.id for r in server.queue] == [0]
    assert [r.id for r in server.collect_batch()] == [0]
    assert server.collect_batch() == []
    server.enqueue_request(Request(3, 0.0, 1, 1))
    assert server.get_statistics()["max_queue_length"] == 3


def test_statistics_agree_between_columns_and_hand():
    config = SimulationConfig(
        arrival_rate=4, num_requests=400, warmup_requests=0, random_seed=2
    )
    workload = Workload.generate(config)
    env = simpy.Environment()
    server = LLMInferenceServer(env, config, workload)
    env.process(server.run())
    with pytest.raises(RuntimeError, match="not ended"):
        _ = server.record
    env.run()
    record = serve_by_hand(config, workload)
    statistics = server.get_statistics()
    assert statistics["total_batches"] == len(record.batch_size)
    assert statistics["total_requests"] == 400
    busy = (record.batch_end - record.batch_start).sum()
    assert statistics["busy_time"] == pytest.approx(busy, rel=1e-9)
    assert statistics["max_queue_length"] == record.max_queue_length


def test_the_table_of_a_run_has_a_row_a_request():
    runner = SimulationRunner(
        SimulationConfig(arrival_rate=2, num_requests=700, random_seed=6)
    )
    with pytest.raises(RuntimeError, match="call run"):
        _ = runner.requests
    runner.run()
    assert list(runner.requests) == [
        "request_id",
        "arrival_time",
        "prompt_length",
        "output_length",
        "queue_entry_time",
        "processing_start_time",
        "first_token_time",
        "processing_end_time",
        "request_class",
    ]
    assert len(runner.requests) == 700
    assert not runner.requests.isna().any().any()
    work = Workload.generate(runner.config)
    np.testing.assert_array_equal(runner.requests["arrival_time"], work.arrival_time)


@pytest.mark.parametrize("server", ["static", "continuous"])
@pytest.mark.parametrize("more", [{}, {"max_concurrency": 2, "patience": 9.0}], ids=str)
def test_nobody_writes_into_a_finished_run(server, more):
    config = SimulationConfig(server=server, num_requests=20, warmup_requests=0, **more)
    workload = Workload.generate(config.replace(random_seed=1))
    record = simulate(config, workload)
    columns = list(vars(record).values())
    columns += [] if record.steps is None else list(vars(record.steps).values())
    columns = [its for its in columns if isinstance(its, np.ndarray) and len(its)]
    assert len(columns) > 12
    for column in columns:
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0
    before = record.to_frame()
    for column in workload.columns.values():  # shared ones are closed, too
        with contextlib.suppress(ValueError):
            column[:] = column[::-1].copy()
    assert record.to_frame().equals(before)


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_a_workload_that_was_served_may_be_served_again(server):
    config = SimulationConfig(server=server, num_requests=20, warmup_requests=0)
    workload = Workload.generate(config.replace(random_seed=1))
    record, again = simulate(config, workload), simulate(config, workload)
    assert np.array_equal(again.latency, record.latency)


def test_starts_are_seconds_where_all_begin_at_once():
    workload = Workload.from_arrays([0.0, 0.0], [9, 9], [9, 9])
    record = serve_columns(CLOCKWORK, workload)
    assert record.batch_start.dtype == np.float64
