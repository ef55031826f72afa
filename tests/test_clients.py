"""Users, the gate, refusal and impatience: against the twins, and against theory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import warnings

import numpy as np
import pytest
from cases import exact, exact_runs, serve_columns, synthetic_runs
from client_twin import columns, run_closed, run_closed_static
from continuous_cases import EXACT, FREE, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from test_continuous_twin import assert_close

from llminfer import (
    ConfigError,
    MetricsCollector,
    SimulationConfig,
    Workload,
    goodput,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.calibrate import fit
from llminfer.data import read_steps
from llminfer.experiment import metrics_of, sweep
from llminfer.servers.clients import User
from llminfer.servers.prefixes import Paths
from llminfer.servers.token_gaps import token_gaps


@st.composite
def clients(draw, time, free):
    """Fields of the clients: any of them, alone or together.

    Args:
        time: Strategy of times, seconds.
        free: May laws draw times that are no binary fractions?
    """

    def law():
        constant = time.filter(bool)
        if not free:
            return constant
        laws = st.sampled_from(["exponential", "uniform"])
        if draw(laws) == "uniform":
            return st.builds(
                lambda a: {"dist": "uniform", "min": a, "max": 3 * a}, time
            )
        return st.builds(lambda a: {"dist": "exponential", "mean": a}, constant)

    maybe = st.sampled_from([False, False, True])
    fields = {}
    if draw(st.booleans()):
        fields["max_concurrency"] = draw(st.integers(1, 6))
    if draw(st.booleans()):
        fields["clients"] = draw(st.integers(1, 8))
        fields["think_time"] = draw(st.just(0.0) | law())
    if draw(maybe):
        fields["queue_limit"] = draw(st.integers(1, 5))
    if draw(maybe):
        fields["patience"] = draw(law())
    if draw(maybe):
        fields["request_timeout"] = draw(law())
    return fields or {"max_concurrency": 3}


def with_clients(runs, time, free):
    """Runs with clients, in which every step takes some time."""

    def made(run, fields):
        least = {name: getattr(run[0], name) + 1 / 64 for name in ("beta", "gamma")}
        return run[0].replace(**least, **fields), run[1]

    return st.builds(made, runs, clients(time, free))


def assert_same_columns(record, theirs):
    for name, column in theirs.items():
        assert_close(getattr(record, name), column, name)


def assert_same_run(record, servers, senders):
    assert_same_columns(record, columns(senders))
    log = record.steps
    rows = np.argsort(log.batch_replica, kind="stable")
    steps = [step for server in servers for step in server.steps]
    each = np.repeat(rows, log.batch_steps[rows])
    assert record.batch_size[each].tolist() == [step.size for step in steps]
    assert log.batch_decoding[each].tolist() == [step.decoding for step in steps]
    ends = np.cumsum(log.batch_steps[rows]) - 1
    assert_close(record.batch_end[rows], [steps[i].end for i in ends], "batch end")
    if log.kv_blocks is not None:
        assert log.last_blocks[rows].tolist() == [steps[i].blocks for i in ends]


def assert_same_gaps(record, servers, law):
    done = np.flatnonzero(record.outcome == 0)
    times = {s.request.id: s.token_times for server in servers for s in server.everyone}
    gaps = np.concatenate([[], *(np.diff(times[i]) for i in done)])
    ours = token_gaps(record, law)
    assert ours.number() == len(gaps)
    if len(gaps):
        assert_close(ours.mean(), gaps.mean(), "mean gap", 1e-7)
        shares = [0.0, 0.5, 0.99]
        assert_close(ours.quantiles(shares), np.quantile(gaps, shares), "gaps", 1e-7)


def check(config, workload):
    """The continuous server, one or several, against the twin."""
    record = serve(config, workload)
    servers, senders = run_closed(config, workload)
    assert_same_run(record, servers, senders)
    if config.step_time.decode(1, 1, 1) > 0.0:
        assert_same_gaps(record, servers, config.step_time)


def check_static(config, workload):
    record = serve_columns(config, workload)
    senders, batches = run_closed_static(config, workload)
    assert_same_columns(record, columns(senders))
    assert record.batch_size.tolist() == [size for _, _, size in batches]
    assert_close(record.batch_start, [start for start, _, _ in batches], "start")


DYADIC, REAL = (exact(64, 16), False), (st.floats(0.01, 2.0), True)
CASES = [with_clients(EXACT, *DYADIC), with_clients(FREE, *REAL)]
STATIC = with_clients(exact_runs(), *DYADIC) | with_clients(synthetic_runs(), *REAL)
ROUTERS = st.sampled_from(["round_robin", "random", "least_loaded", "shortest_queue"])


def behind_a_router(run, replicas, router):
    """Servers whose steps never end together: there the last bit would decide."""
    config, workload = run
    fields = {"step_law": "sum", "launch": 0.0, "alpha": 0.00411, "kappa": 0.00017}
    fields |= {"replicas": replicas, "router": router}
    fields |= {"batch_control": "static", "batch_control_params": {}}
    return config.replace(**fields), workload


MANY = st.builds(behind_a_router, CASES[1], st.integers(2, 3), ROUTERS)


@pytest.mark.parametrize(
    "runs", [*CASES, MANY], ids=["events coincide", "continuous times", "replicas"]
)
@settings(max_examples=100)
@given(data=st.data())
def test_continuous_server_with_clients_equals_the_twin(runs, data):
    check(*data.draw(runs))


@settings(max_examples=120)
@given(STATIC)
def test_static_server_with_clients_equals_the_twin(run):
    check_static(*run)


@settings(max_examples=40)
@given(CASES[1], st.integers(1, 6), st.sampled_from([None, 1, 3]))
def test_users_with_requests_of_their_own_equal_the_twin(run, users, turns):
    lengths = {"prompt_length_dist": "uniform", "output_length_dist": "geometric"}
    lengths |= {"prompt_dist_params": {"min": 1, "max": 12}}
    lengths |= {"output_dist_params": {"mean": 6, "max": 30}}
    config = run[0].replace(clients=users, turns=turns, num_requests=40, **lengths)
    check(config.replace(kv_blocks=None, prefix_caching=False), None)


def spelled_out(heard):
    """The paths of what users sent: a segment a turn, of those of its conversation.

    Args:
        heard: What ``Paths.say`` was told of each request.
    """
    turns, paths = {}, []
    for i, (request, start, conversation, said) in enumerate(heard):
        assert request == i
        path = turns.setdefault(conversation, list(start)) if said else list(start)
        if said:
            path.append((100 + i, said - sum(tokens for _, tokens in path)))
        paths.append(list(path))
    return paths


@settings(max_examples=60)
@given(
    CASES[0],
    st.integers(1, 6),
    st.sampled_from([1, 3, {"dist": "geometric", "mean": 4}]),
    st.sampled_from([None, 60, 100]),
    st.sampled_from([{}, {"count": 2, "tokens": 9}]),
)
def test_users_with_a_cache_are_served_as_what_they_sent_is(
    run, users, turns, blocks, shared
):
    """Who decides when a request comes is nothing to the server."""
    patient = dict.fromkeys(("queue_limit", "patience", "request_timeout"))
    config = run[0].replace(
        **patient,
        clients=users,
        turns=turns,
        num_requests=40,
        shared_prefixes=shared,
        prefix_caching=True,
        block_size=4,
        kv_blocks=blocks and 4 * blocks,
        prompt_length_dist="uniform",
        prompt_dist_params={"min": 1, "max": 12},
        output_dist_params={"value": 5},
        output_length_dist="constant",
        max_batched_tokens=max(run[0].max_batched_tokens, run[0].largest_batch),
    )
    heard, say = [], Paths.say
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Paths, "say", lambda s, *its: (heard.append(its), say(s, *its))[1]
        )
        try:
            record = serve(config, None)
        except ConfigError:  # a conversation became too long for the memory
            return
    alone = dict.fromkeys(("clients", "turns", "max_concurrency"), None)
    alone |= {"think_time": 0.0, "shared_prefixes": {}}
    names = ("sent_time", "prompt_length", "output_length", "request_class")
    columns_ = (getattr(record, name) for name in names)
    work = Workload.from_arrays(*columns_, spelled_out(heard))
    again = serve(config.replace(**alone), work)
    for name in ("first_token_time", "processing_end_time", "processing_start_time"):
        assert_close(getattr(record, name), getattr(again, name), name)
    cached = again.steps.cached_tokens
    assert record.steps.cached_tokens.tolist() == cached.tolist()


# Theory: one server that takes one request at a time, for an exponential time

SERVICE = 0.25  # s, mean
ONE_BY_ONE = SimulationConfig(
    batch_size=1,
    prompt_length_dist="constant",
    prompt_dist_params={"value": 1},
    output_length_dist="geometric",
    output_dist_params={"mean": 200},  # so many small steps are nearly exponential
    alpha=0.0,
    beta=0.0,
    gamma=SERVICE / 200,
    num_requests=20_000,
    warmup_requests=0,
    random_seed=5,
)
BOTH = pytest.mark.parametrize("server", ["static", "continuous"])


def birth_and_death(births, deaths):
    """How likely each state is, from the rates up and down from state to state."""
    chances = np.cumprod(
        [1.0, *(up / down for up, down in zip(births, deaths, strict=True))]
    )
    return chances / chances.sum()


@BOTH
def test_machine_repairman(server):
    users, think = 6, 1.0
    up = [(users - n) / think for n in range(users)]
    rate = (1.0 - birth_and_death(up, [1.0 / SERVICE] * users)[0]) / SERVICE
    law = {"dist": "exponential", "mean": think}
    config = ONE_BY_ONE.replace(server=server, clients=users, think_time=law)
    record = simulate(config)
    measured = config.num_requests / record.processing_end_time.max()
    assert measured == pytest.approx(rate, rel=0.015)
    assert record.latency.mean() == pytest.approx(users / rate - think, rel=0.03)


@BOTH
def test_users_who_think_long_are_a_poisson_process(server):
    users, load = 1_000, 0.5
    law = {"dist": "exponential", "mean": users * SERVICE / load}
    record = simulate(ONE_BY_ONE.replace(server=server, clients=users, think_time=law))
    gaps = np.diff(record.sent_time)
    assert gaps.mean() == pytest.approx(SERVICE / load, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert record.wait.mean() == pytest.approx(load * SERVICE / (1.0 - load), rel=0.08)


@BOTH
def test_patience_loses_as_many_as_the_queue_with_exponential_patience(server):
    rate, leave = 5.0, 1.0  # a second, where 4 can be served
    most = 200
    down = [1.0 / SERVICE + n * leave for n in range(most)]
    idle = birth_and_death([rate] * most, down)[0]
    law = {"dist": "exponential", "mean": 1.0 / leave}
    config = ONE_BY_ONE.replace(server=server, arrival_rate=rate, patience=law)
    with pytest.warns(UserWarning, match="latencies are those of the others"):
        record = simulate(config)
    lost = float(np.mean(record.outcome == 2))
    assert lost == pytest.approx(1.0 - (1.0 - idle) / SERVICE / rate, rel=0.03)
    assert record.wasted_tokens.sum() == 0  # the first token comes with the service


@BOTH
@pytest.mark.parametrize("room", [1, 4])
def test_a_full_queue_refuses_as_many_as_the_loss_system(server, room):
    rate = 3.5
    states = birth_and_death([rate] * (room + 1), [1.0 / SERVICE] * (room + 1))
    config = ONE_BY_ONE.replace(server=server, arrival_rate=rate, queue_limit=room)
    with pytest.warns(UserWarning, match="latencies are those of the others"):
        record = simulate(config)
    assert np.mean(record.outcome == 1) == pytest.approx(states[-1], rel=0.05)
    assert record.max_queue_length == room


def test_constant_service_and_one_place_to_wait_is_exact_too():
    law = {"output_length_dist": "constant", "output_dist_params": {"value": 200}}
    config = ONE_BY_ONE.replace(arrival_rate=3.0, queue_limit=1, **law)
    with pytest.warns(UserWarning, match="refused or given up"):
        record = simulate(config)
    load = 3.0 * SERVICE
    expected = 1.0 - 1.0 / (math.exp(-load) + load)  # M/D/1/2, embedded chain
    assert np.mean(record.outcome == 1) == pytest.approx(expected, rel=0.03)


# What every run keeps


@settings(max_examples=40)
@given(st.sampled_from(CASES).flatmap(lambda runs: runs))
def test_every_request_ends_in_one_way(run):
    record = serve(*run)
    assert set(record.outcome.tolist()) <= {0, 1, 2}
    assert not np.isnan(record.processing_end_time).any()
    done = record.measured()
    order = (record.arrival_time, record.sent_time, record.processing_start_time)
    order += (record.first_token_time, record.processing_end_time)
    for earlier, later in itertools.pairwise(order):
        assert (earlier[done] <= later[done]).all()
    most = run[0].max_concurrency
    if most is not None:
        ends = np.sort(record.processing_end_time)
        answered = np.searchsorted(ends, record.sent_time, side="right")
        assert (np.arange(1, len(ends) + 1) - answered <= most).all()


@settings(max_examples=40)
@given(st.integers(1, 8), st.floats(0.0, 2.0), st.integers(1, 4), st.booleans())
def test_interactive_law(users, think, batch, ahead):
    config = SimulationConfig(
        server="continuous",
        clients=users,
        think_time=think,
        batch_size=batch,
        async_scheduling=ahead,
        prompt_length_dist="uniform",
        prompt_dist_params={"min": 1, "max": 300},
        num_requests=400,
        warmup_requests=0,
        random_seed=1,
    )
    record = simulate(config)
    rate = 400 / record.processing_end_time.max()
    assert rate * (record.latency.mean() + think) == pytest.approx(users, rel=0.04)


def test_a_user_asks_the_same_of_every_server():
    fast = ONE_BY_ONE.replace(
        clients=3,
        turns=4,
        prompt_length_dist="geometric",
        prompt_dist_params={"mean": 40},
    )
    slow = fast.replace(gamma=0.1, batch_size=8, server="continuous")
    for number in range(3):
        one, other = User(fast, number), User(slow, number)
        for _ in range(200):
            one.go_on(), other.go_on()
            assert (one.think, one.prompt, one.output) == (
                other.think,
                other.prompt,
                other.output,
            )
    assert User(fast, 0).output != User(fast, 1).output


def test_prompts_of_a_conversation_repeat_what_was_said():
    laws = {"prompt_length_dist": "uniform", "prompt_dist_params": {"min": 5, "max": 9}}
    config = ONE_BY_ONE.replace(clients=1, turns=3, num_requests=30, **laws)
    record = simulate(config)
    prompts, outputs = (
        record.prompt_length.reshape(10, 3),
        record.output_length.reshape(10, 3),
    )
    questions = np.diff(prompts, axis=1) - outputs[:, :-1]
    for asked in (prompts[:, 0], questions):
        assert asked.min() >= 5
        assert asked.max() <= 9


def test_the_path_of_a_turn_goes_on_where_the_last_answer_ended():
    config = ONE_BY_ONE.replace(
        clients=2, turns=3, shared_prefixes={"count": 1, "tokens": 30}
    )
    users = [User(config, number) for number in (0, 1)]
    paths, named, n = Paths(block_size=4), [], itertools.count()
    for user in users:
        for turn in range(9):
            said = user.prompt + user.output
            paths.say(i := next(n), user.start, user.conversation, said)
            ends = [0, *(end for end, _ in paths.names[i])]
            pieces = zip(ends, paths.names[i], strict=False)
            blocks = [b + ahead for at, (end, ahead) in pieces for b in range(at, end)]
            assert len(blocks) == len(set(blocks)) == said // 4
            if turn % 3:
                assert blocks[: len(named[-1])] == named[-1]
            named.append(blocks)
            user.go_on()
    # All six conversations begin with the same 7 full blocks, and share no other.
    last = [set(blocks) for blocks in named[2::3]]
    for one, other in itertools.combinations(last, 2):
        assert sorted(one & other) == named[0][:7]


def test_metrics_say_how_requests_ended():
    """The second waits, is in a batch at 0.155 s, and gives up at 0.2 s."""
    work = Workload.from_arrays([0.0, 0.0, 0.0, 10.0], [10] * 4, [10] * 4)
    config = SimulationConfig(alpha=0.01, batch_size=1, warmup_requests=0)
    config = config.replace(queue_limit=2, patience=0.2)
    with pytest.warns(UserWarning, match=r"50\.0% of all requests"):
        record = simulate(config, work)
    assert record.outcome.tolist() == [0, 2, 1, 0]
    assert record.processing_end_time == pytest.approx([0.155, 0.2, 0.0, 10.155])
    found = metrics_of(config, record)
    assert found["total_requests"] == 2
    assert found["refused_requests"] == found["given_up_requests"] == 1
    assert found["refused_share"] == found["given_up_share"] == 0.25
    assert found["wasted_tokens"] == 20
    assert found["avg_latency"] == pytest.approx(0.155)
    assert found["throughput_req_per_sec"] == pytest.approx(2 / 10.155)
    assert goodput(record, 0.2, 1.0) == pytest.approx(2 / 10.155)
    again = MetricsCollector.compute_metrics(record.to_frame())
    assert again["total_requests"] == 2
    assert again["avg_latency"] == pytest.approx(0.155)


def test_the_wait_at_the_client_is_a_metric_of_its_own():
    work = Workload.from_arrays([0.0, 0.0], [10, 10], [10, 10])
    config = SimulationConfig(batch_size=1, warmup_requests=0, max_concurrency=1)
    record = simulate(config, work)
    found = metrics_of(config, record)
    assert record.client_wait == pytest.approx([0.0, 0.065])
    assert found["avg_client_wait"] == pytest.approx(0.0325)
    assert found["avg_latency"] == pytest.approx(0.065)
    assert found["avg_queue_wait"] == 0.0


def test_a_run_in_which_nobody_is_answered_has_no_metrics():
    work = Workload.from_arrays([0.0], [10], [10])
    config = SimulationConfig(warmup_requests=0, patience=0.01)
    with pytest.warns(UserWarning, match="given up"):
        record = simulate(config, work)
    with pytest.raises(ConfigError, match="no request was completed"):
        metrics_of(config, record)


def test_users_have_no_offered_load_and_nobody_warns_of_it():
    config = SimulationConfig(clients=50, batch_size=2, num_requests=600)
    assert math.isnan(config.offered_load)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(config)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"clients": 0}, "clients=0: must be a whole number of at least 1"),
        ({"turns": 2}, "clients=None: must be given beside think_time and turns"),
        ({"patience": -1}, "patience=-1: must be a finite number of at least 0"),
        ({"patience": {"dist": "gamma"}}, "patience.dist='gamma': must be one of"),
        ({"clients": 2, "think_time": {"dist": "uniform", "min": 1}}, "with max, min"),
        ({"clients": 2, "turns": {"dist": "geometric"}}, "turns.mean=None"),
    ],
)
def test_errors_name_the_field(fields, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        SimulationConfig(**fields)


def test_a_sweep_over_users_remembers_its_runs():
    config = ONE_BY_ONE.replace(num_requests=300, think_time=1.0, clients=1)
    law = {"dist": "exponential", "mean": 1.0}
    runs = sweep(config, {"clients": [1, 4], "think_time": [1.0, law]}, 2, n_jobs=1)
    again = sweep(config, {"clients": [1, 4], "think_time": [1.0, law]}, 2, n_jobs=1)
    rates = runs.groupby("clients")["throughput_req_per_sec"].mean()
    assert 2.0 * rates[1] < rates[4] <= 1.1 / SERVICE
    assert runs["avg_latency"].tolist() == again["avg_latency"].tolist()
    assert SimulationConfig.from_json(config.to_json()) == config


def test_turns_need_lengths_of_their_own():
    work = Workload.from_arrays([0.0], [10], [10])
    config = SimulationConfig(clients=1, turns=2, warmup_requests=0)
    with pytest.raises(ConfigError, match="turns=2: must be None beside a workload"):
        simulate(config, work)


# The measured engine

CLOSED = "256x2048-closed-16"


@pytest.fixture(scope="module")
def closed_loop(data):
    """The run of 16 users, and the engine fitted to another run's steps."""
    folder = data / "vllm-h200"
    open_loop = folder / "256x2048-conv-10"
    fitted = fit(
        read_vllm_log(open_loop), read_settings(open_loop), steps=read_steps(open_loop)
    )
    settings_ = read_settings(folder / CLOSED)
    return read_vllm_log(folder / CLOSED), fitted.config(**settings_)


@pytest.mark.parametrize(
    "clients_", [{"max_concurrency": 16}, {"clients": 16, "think_time": 0.003}]
)
def test_a_measured_closed_loop_is_predicted(closed_loop, clients_):
    log, engine = closed_loop
    work = log.workload
    at_once = dataclasses.replace(work, arrival_time=np.zeros(len(work)))
    record = simulate(engine.replace(**clients_), at_once)
    rate = len(work) / (log.last_token_time.max() - work.arrival_time[0])
    ours = len(work) / np.ptp(
        [record.sent_time.min(), record.processing_end_time.max()]
    )
    assert ours == pytest.approx(rate, rel=0.02)
    assert record.latency.mean() == pytest.approx(log.latency.mean(), rel=0.02)
    assert np.nanmean(record.tpot) == pytest.approx(np.nanmean(log.tpot), rel=0.02)
    if "clients" in clients_:  # after the start, without a millisecond on the way
        ttft = log.ttft[16:].mean() - 0.001
        assert record.ttft[16:].mean() == pytest.approx(ttft, rel=0.05)


def test_when_the_deadlines_of_the_answered_are_dropped_changes_nothing(monkeypatch):
    """None that still counts is among them, to the first token or to the last."""
    limits = {"dist": "exponential", "mean": 4.0}
    crowd = SimulationConfig(
        server="continuous",
        clients=40,
        think_time=0.5,
        max_concurrency=30,
        batch_size=8,
        patience=limits,
        request_timeout=limits,
        num_requests=1500,
        warmup_requests=0,
        random_seed=3,
    )
    found = []
    for few in (0, 10**9):
        monkeypatch.setattr("llminfer.servers.clients._FEW", few)
        with pytest.warns(UserWarning, match="given up"):
            record = simulate(crowd)
        found.append((record.outcome, record.sent_time, record.processing_end_time))
    begun = found[0][0][~np.isnan(record.first_token_time)]
    assert set(found[0][0]) == {0, 2}
    assert set(begun) == {0, 2}
    assert all(map(np.array_equal, *found))
