"""Batch-size control: the four laws, and when they act."""

import math

import numpy as np
import pytest
import simpy
from cases import differing, serve_by_hand, serve_columns
from continuous_cases import serve as serve_continuous
from hypothesis import given, settings
from hypothesis import strategies as st

from llminfer import (
    ConfigError,
    Request,
    ServerByHand,
    SimulationConfig,
    Workload,
    simulate,
)
from llminfer.servers.batch_control import LatencyController, Observed, RateController
from llminfer.timeseries import batch_limit

OUTPUT = 40  # tokens, all alike, so that lambda*(B) is a line of arithmetic


def config(control="static", **changes):
    usual = {
        "num_requests": 600,
        "warmup_requests": 0,
        "random_seed": 23,
        "prompt_length_dist": "uniform",
        "prompt_dist_params": {"min": 100, "max": 900},
        "output_length_dist": "constant",
        "output_dist_params": {"value": OUTPUT},
        "batch_timeout": 0,
        "batch_control": control,
    }
    return SimulationConfig(**{**usual, **changes})


# A plain server that walks through time, one thing that happens after another, and the
# laws of DESIGN section 6 by the letter.


def plain_queue(now, seen, size, p):
    return p["min_size"] + p["k"] * len(seen["waiting"])


def plain_rate(now, seen, size, p):
    if now < p["window"]:
        return size
    recent = [a for a in seen["arrived"] if now - p["window"] < a]
    wanted = p["headroom"] * len(recent) / p["window"]
    for b in range(p["min_size"], p["max_size"] + 1):
        if b / (0.001 * b * 499.5 + 0.05 + 0.0005 * OUTPUT) >= wanted:
            return b
    return p["max_size"]


def plain_latency(now, seen, size, p):
    recent = [late for end, late in seen["done"] if now - p["window"] < end]
    if not recent:
        return size
    meets = np.percentile(recent, 99) <= p["target"]
    return size + p["step"] if meets else size * p["backoff"]


LAWS = {"queue": plain_queue, "rate": plain_rate, "latency": plain_latency}


def plain_run(run, workload):
    """Starts of all requests, and the path of the limit."""
    law, p = LAWS[run.batch_control], run.batch_control_params
    arrivals = workload.arrival_time.tolist()
    prompts, outputs = workload.prompt_length, workload.output_length
    seen = {"waiting": [], "arrived": [], "done": []}
    size = min(max(run.batch_size, p["min_size"]), p["max_size"])
    path, starts, busy_until, batch = [(0.0, int(size))], {}, None, []
    timeout = math.inf if run.batch_timeout is None else run.batch_timeout
    ticks = 1

    def adjust(now):
        wanted = law(now, seen, size, p)
        now_size = min(max(wanted, p["min_size"]), p["max_size"])
        if int(now_size) != path[-1][1]:
            path.append((now, int(now_size)))
        return now_size

    while len(seen["done"]) < len(arrivals):
        happens = [busy_until] if busy_until is not None else []
        if len(seen["arrived"]) < len(arrivals):
            happens.append(arrivals[len(seen["arrived"])])
        if p["interval"]:
            happens.append(ticks * p["interval"])
        if busy_until is None and seen["waiting"]:
            happens.append(arrivals[seen["waiting"][0]] + timeout)
        now = min(happens)
        if now == busy_until:
            seen["done"] += [(now, now - arrivals[i]) for i in batch]
            busy_until = None
        while arrivals[len(seen["arrived"]) :][:1] == [now]:
            seen["waiting"].append(len(seen["arrived"]))
            seen["arrived"].append(now)
        if p["interval"] and now == ticks * p["interval"]:
            size, ticks = adjust(now), ticks + 1
        if busy_until is not None or not seen["waiting"]:
            continue
        full = len(seen["waiting"]) >= int(size)
        late = now >= arrivals[seen["waiting"][0]] + timeout
        if full or late or len(seen["arrived"]) == len(arrivals):
            if not p["interval"]:
                size = adjust(now)
            batch = seen["waiting"][: int(size)]
            del seen["waiting"][: int(size)]
            starts |= dict.fromkeys(batch, now)
            work = run.alpha * int(prompts[batch].sum()) + run.beta
            busy_until = now + work + int(outputs[batch].max()) * run.gamma
    return [starts[i] for i in range(len(arrivals))], path


sizes = {"min_size": st.integers(1, 3), "max_size": st.integers(3, 12)}
interval = {"interval": st.sampled_from([0, 0.125, 0.5, 3.0])}
window = {"window": st.sampled_from([0.25, 1.0, 4.0])}
parameters = {
    "queue": {"k": st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])},
    "rate": {"headroom": st.sampled_from([0.5, 1.25, 3.0]), **window},
    "latency": {
        "target": st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]),
        "step": st.sampled_from([0.5, 1.0, 2.0]),
        "backoff": st.sampled_from([0.5, 0.9]),
        **window,
    },
}
rows = st.lists(
    st.tuples(st.integers(0, 10), st.integers(1, 900)), min_size=1, max_size=30
)


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=100)
@given(rows, st.integers(1, 8), st.sampled_from([None, 0.0, 0.5, 4.0]), st.data())
def test_a_controlled_run_is_what_the_law_says(law, rows, batch_size, timeout, data):
    params = st.fixed_dictionaries({**sizes, **interval, **parameters[law]})
    gaps, prompts = zip(*rows, strict=True)
    workload = Workload.from_arrays(
        np.cumsum(gaps) / 8.0, prompts, [OUTPUT] * len(rows)
    )
    run = config(
        law,
        batch_control_params=data.draw(params),
        num_requests=len(rows),
        batch_size=batch_size,
        batch_timeout=timeout,
    )
    starts, path = plain_run(run, workload)
    record = serve_columns(run, workload)
    assert record.processing_start_time.tolist() == starts
    times, limits = record.limit_time.tolist(), record.batch_limit.tolist()
    assert list(zip(times, limits, strict=True)) == path
    assert not differing(record, serve_by_hand(run, workload))


# What is known (THEORY 13)


@pytest.mark.parametrize("k", [1.0, 2.5])
@pytest.mark.parametrize("least", [1, 4])
def test_a_limit_above_the_queue_is_no_limit(k, least):
    uncapped = config(batch_size=10**6, arrival_rate=1.9, num_requests=3000)
    params = {"interval": 0, "k": k, "min_size": least, "max_size": 10**6}
    run = uncapped.replace(batch_control="queue", batch_control_params=params)
    workload = Workload.generate(run)
    one, other = serve_columns(run, workload), serve_columns(uncapped, workload)
    assert set(differing(one, other)) == {"limit_time", "batch_limit"}
    assert one.batch_size.max() > 10
    params["k"] = 0.3
    capped = serve_columns(run.replace(batch_control_params=params), workload)
    assert "processing_end_time" in differing(capped, other)


def test_rate_control_finds_the_least_batch_that_carries_the_load():
    run = config(
        "rate",
        batch_control_params={"max_size": 12, "interval": 0, "window": 1e4},
        arrival_rate=1.1,
        beta=1.0,
        num_requests=40_000,
        batch_size=12,
    )
    limit = int(simulate(run).batch_limit[-1])
    assert run.stable_rate(limit - 1) < 1.25 * 1.1 <= run.stable_rate(limit)


def test_a_rate_that_no_batch_carries_gets_the_one_that_carries_most():
    run = config(
        "rate",
        batch_control_params={"interval": 50},
        arrival_rate=50.0,
        num_requests=5000,
        kappa=5e-8,
        output_length_dist="geometric",
        output_dist_params={"mean": 500},
    )
    carries = [run.stable_rate(b) for b in range(1, 129)]
    best = 1 + int(np.argmax(carries))
    assert 1 < best < 128
    assert batch_limit(simulate(run))(60.0) == best


def test_latency_control_climbs_by_steps_and_falls_by_halves():
    arrivals = np.arange(0.0, 60.0, 2.0)
    prompts = np.where(arrivals < 30.0, 100, 1500)
    workload = Workload.from_arrays(arrivals, prompts, [OUTPUT] * 30)
    params = {"target": 1.0, "interval": 5.0, "backoff": 0.5, "max_size": 9}
    run = config("latency", batch_control_params=params, batch_size=4, num_requests=30)
    record = serve_columns(run, workload)
    path = list(zip(record.limit_time, record.batch_limit, strict=True))
    climb = [(0.0, 4), (5.0, 5), (10.0, 6), (15.0, 7), (20.0, 8), (25.0, 9)]
    assert path == [*climb, (35.0, 4), (40.0, 2), (45.0, 1)]


def test_a_p99_is_a_p99():
    """Of 101 latencies it is the 100th: 99 s, and not what 98 or 99.5 % would give."""
    seen = Observed([], float)
    seen.finish(1.0, [float(i) for i in range(101)])
    for target, wanted in ((99.0, 9.0), (98.99, 4.0)):
        law = LatencyController(target=target, step=1.0, backoff=0.5)
        assert law.wanted(2.0, seen, 8.0) == wanted


# When it acts


GAP = 50 * 365 * 86_400.0  # s: fifty years
IDLE = {
    "queue": {"interval": 0.5, "k": 0.5},
    "rate": {"interval": 1.0, "window": 7.5, "max_size": 12},
    "latency": {"interval": 0.5, "window": 7.0, "target": 2.0},
}
HOW = [
    {"batch_timeout": 0.0},
    {"batch_timeout": 30.0, "batch_size": 9},
    {"batch_timeout": None},
    {"max_concurrency": 9, "patience": 4.0},
    {"server": "continuous"},
    {"server": "continuous", "max_concurrency": 9, "patience": 4.0},
]


def gapped(gap):
    """Three bursts of requests, so far from each other, seconds."""
    rng = np.random.default_rng(3)
    burst = np.cumsum(rng.exponential(0.3, 30))
    arrivals = np.concatenate([burst, burst + gap, burst + 2.0 * gap + 17.0])
    return Workload.from_arrays(arrivals, rng.integers(50, 900, 90), [OUTPUT] * 90)


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("law", IDLE)
def test_ticks_at_which_there_is_nothing_new_are_left_out(law, how, monkeypatch):
    run = config(law, batch_control_params=IDLE[law], num_requests=90, **how)
    serve = {"static": serve_columns, "continuous": serve_continuous}[run.server]
    serves = [serve]
    if run.max_concurrency is None and run.server == "static":
        serves.append(serve_by_hand)
    acts = []
    wanted = type(run.controller()).wanted
    monkeypatch.setattr(
        type(run.controller()), "wanted", lambda *a: (acts.append(a[1]), wanted(*a))[1]
    )
    quick = [serve(run, gapped(500.0)) for serve in serves]
    few = len(acts)
    for serve in serves:
        serve(run, gapped(GAP))
    assert len(acts) < 3 * few + 300  # not 3 * 10^9
    with monkeypatch.context() as patch:
        patch.setattr(Observed, "rests_until", lambda self, now, window: now)
        acts.clear()
        for serve, record in zip(serves, quick, strict=True):
            slow = serve(run, gapped(500.0))
            names = "processing_end_time", "limit_time", "batch_limit", "batch_start"
            for name in names:
                ours, theirs = getattr(record, name), getattr(slow, name)
                assert np.array_equal(ours, theirs, equal_nan=True), name
        assert len(acts) > few  # one by one


def test_a_lower_limit_makes_a_waiting_batch_due_at_the_tick():
    workload = Workload.from_arrays([1.0, 2.0, 9.0], [100] * 3, [OUTPUT] * 3)
    params = {"k": 0.0, "min_size": 2, "interval": 3.5}
    run = config(
        "queue",
        batch_control_params=params,
        batch_size=3,
        batch_timeout=None,
        num_requests=3,
    )
    for serve in (serve_columns, serve_by_hand):
        record = serve(run, workload)
        assert record.processing_start_time.tolist() == [3.5, 3.5, 9.0]
        assert record.limit_time.tolist() == [0.0, 3.5]
        assert record.batch_limit.tolist() == [3, 2]


def test_a_tick_during_a_batch_sees_the_queue_of_its_moment():
    # The first batch runs from 0 to 10.07 s; who comes at 4 and 8 s waits meanwhile.
    arrivals = [0.0, 4.0, 4.0, 8.0]
    workload = Workload.from_arrays(arrivals, [10_000, 9, 9, 9], [OUTPUT] * 4)
    params = {"k": 1.0, "interval": 3.0}
    run = config("queue", batch_control_params=params, batch_size=1, num_requests=4)
    for serve in (serve_columns, serve_by_hand):
        record = serve(run, workload)
        path = list(zip(record.limit_time, record.batch_limit, strict=True))
        assert path == [(0.0, 1), (6.0, 3), (9.0, 4)]


def test_a_tick_during_a_batch_sees_no_completion_to_come():
    arrivals = [0.0, 0.0, 20.0, 20.0, 30.0]
    prompts = [9, 10_000, 9, 9, 9]
    workload = Workload.from_arrays(arrivals, prompts, [OUTPUT] * 5)
    params = {"target": 5.0, "interval": 4.0, "window": 40.0, "backoff": 0.5}
    run = config("latency", batch_control_params=params, batch_size=1, num_requests=5)
    # Complete at 0.1 s and, the second time late, at 10.2 s: the ticks at 4 and 8 s
    # see the first alone.
    for serve in (serve_columns, serve_by_hand):
        record = serve(run, workload)
        path = list(zip(record.limit_time, record.batch_limit, strict=True))
        assert path == [(0.0, 1), (4.0, 2), (8.0, 3), (12.0, 1)]


def test_two_waiting_servers_do_not_keep_each_other_ticking_for_ever():
    params = {"k": 0.0, "min_size": 4, "interval": 1.0}
    run = config("queue", batch_control_params=params, batch_timeout=None)
    env = simpy.Environment()
    servers = [ServerByHand(env, run), ServerByHand(env, run)]
    for number, server in enumerate(servers):
        server.enqueue_request(Request(number, 0.0, 9, OUTPUT))
        env.process(server.run())
        server.close()
    for _ in range(500):
        if env.peek() < math.inf:
            env.step()
    assert env.peek() == math.inf
    assert [len(server.completed) for server in servers] == [1, 1]


def test_the_path_of_a_static_limit_is_one_number():
    run = config(batch_size=7, num_requests=50)
    workload = Workload.generate(run)
    for record in (
        serve_columns(run, workload),
        serve_by_hand(run, workload),
    ):
        assert record.limit_time.tolist() == [0.0]
        assert record.batch_limit.tolist() == [7]


def test_a_controller_starts_afresh_in_every_run():
    params = {"target": 1.0, "interval": 5.0}
    run = config("latency", batch_control_params=params)
    workload = Workload.generate(run)
    assert not differing(serve_columns(run, workload), serve_columns(run, workload))


def test_the_offered_load_is_that_of_the_largest_limit():
    params = {"max_size": 64}
    run = config("queue", batch_control_params=params, batch_size=1)
    assert run.max_stable_rate == config(batch_size=64).max_stable_rate


@pytest.mark.parametrize(
    ("control", "params", "says"),
    [
        ("aimd", {}, "batch_control='aimd': must be one of latency, queue, rate, st"),
        ("static", {"interval": 1}, "control static takes no parameters"),
        ("queue", {"K": 1}, "did you mean k"),
        ("queue", {"k": -1}, r"batch_control_params\.k=-1: must be a finite number"),
        *(
            (law, {**needs, name: value}, f"{name}={value}: must be a {kind}")
            for law, needs in (("queue", {}), ("rate", {}), ("latency", {"target": 1}))
            for name, value, kind in (
                ("min_size", 0, "whole"),
                ("max_size", 0, "whole"),
                ("interval", -1, "finite"),
            )
        ),
        ("latency", {"target": 0}, "target=0: must be a finite number above 0"),
        ("latency", {"target": 1, "backoff": 0}, "backoff=0: must be a finite number"),
        ("rate", {"window": 0}, "window=0: must be a finite number above 0"),
        ("queue", {"min_size": 9, "max_size": 8}, "max_size=8: must be at least min"),
        ("queue", {"interval": 1e-6}, r"interval=1e-06: must be 0 \(at every dis"),
        ("rate", {"interval": 0}, "window=None: must be given where interval is 0"),
        ("rate", {"headroom": 0}, "headroom=0: must be a finite number above 0"),
        ("rate", {"max_size": 5000}, "max_size=5000: must be at most 4096"),
        ("latency", {}, r"batch_control_params\.target=None: must be given"),
        ("latency", {"target": 1, "backoff": 1.5}, "backoff=1.5: must be a finite"),
        ("latency", {"target": 1, "step": -1}, "step=-1: must be a finite number"),
    ],
)
def test_bad_control_is_refused(control, params, says):
    with pytest.raises(ConfigError, match=says):
        SimulationConfig(batch_control=control, batch_control_params=params)


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_a_tick_during_a_batch_sees_those_who_give_up_later_in_it(server):
    # As above, but who came at 4 s gives up at 8.5 s.
    arrivals = [0.0, 4.0, 4.0, 8.0]
    workload = Workload.from_arrays(arrivals, [10_000, 9, 9, 9], [OUTPUT] * 4)
    own = {"server": server, "batch_size": 1, "num_requests": 4, "patience": 4.5}
    if server == "continuous":
        own["chunked_prefill"] = False
    run = config("queue", batch_control_params={"k": 1.0, "interval": 3.0}, **own)
    record = simulate(run, workload)
    path = list(zip(record.limit_time, record.batch_limit, strict=True))
    assert path == [(0.0, 1), (6.0, 3), (9.0, 2)]


@pytest.mark.parametrize(
    "how",
    [
        {"patience": 1.5},
        {"patience": 1.5, "queue_limit": 8},
        {"request_timeout": 3.0, "max_concurrency": 20},
        {"server": "continuous", "patience": 0.5},
        {"server": "continuous", "patience": 0.5, "queue_limit": 8},
        {"server": "continuous", "request_timeout": 2.0, "max_concurrency": 20},
    ],
    ids=str,
)
def test_the_law_of_the_queue_sees_those_who_wait_and_nobody_else(how):
    """Not who has given up, was refused, is not let in yet, or is served."""
    params = {"k": 0.3, "interval": 0.37, "max_size": 40}
    run = config(
        "queue", batch_control_params=params, num_requests=150, arrival_rate=9.0, **how
    )
    record = simulate(run)
    begin, end = record.waits
    ticks = np.arange(1.0, record.limit_time[-1] / 0.37 + 1e-6) * 0.37
    waiting = [np.sum((begin <= t) & (end > t)) for t in ticks]
    wanted = np.clip(1.0 + 0.3 * np.array(waiting), 1.0, 40.0)
    place = np.searchsorted(record.limit_time, ticks + 1e-9, side="right") - 1
    seen = record.batch_limit[place]
    np.testing.assert_array_equal(seen, np.floor(wanted + 1e-9))
    assert len(set(seen)) >= 3


@pytest.mark.filterwarnings("ignore:.*given up")
def test_who_gives_up_after_he_was_sent_back_waits_no_more():
    # Memory for one: the other is sent back, and both give up before the first ends.
    workload = Workload.from_arrays([0.0, 0.0, 99.0], [100] * 3, [20_000] * 3)
    run = config(
        "queue",
        batch_control_params={"interval": 0.5, "k": 1.0, "min_size": 2},
        server="continuous",
        kv_blocks=1300,
        request_timeout=8.0,
        num_requests=3,
    )
    record = simulate(run, workload)
    assert record.preemptions.tolist() == [0, 1, 0]
    assert batch_limit(record)(50.0) == 2


@pytest.mark.parametrize(("least", "most"), [(1, 6), (2, 3), (4, 4)])
def test_the_rate_controller_may_choose_any_limit_from_the_least_to_the_most(
    least, most
):
    # A limit of B carries B requests/s; so many have come in the last 10 seconds.
    for rate in range(1, 9):
        law = RateController(min_size=least, max_size=most, interval=10.0, headroom=1.0)
        arrivals = np.arange(10 * rate) / rate + 0.05
        seen = Observed(arrivals.tolist(), float)
        assert law.wanted(10.0, seen, 1.0) == min(max(rate, least), most)


@pytest.mark.filterwarnings("ignore:.*were refused or given up")
@pytest.mark.parametrize("server", ["static", "continuous"])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_that_comes_too_late_is_seen_by_no_controller(server, seed):
    """All answers are within the target, which is where patience ends: none is late."""
    limits = {"target": 2.0, "interval": 1.0, "max_size": 8}
    patient = {"request_timeout": 2.0, "server": server, "random_seed": seed}
    steps = {"alpha": 1e-4, "beta": 0.01, "gamma": 0.1, "arrival_rate": 6.0}
    lengths = {"output_length_dist": "geometric", "output_dist_params": {"mean": 8}}
    its = config("latency", **patient, **steps, **lengths, batch_control_params=limits)
    record = simulate(its.replace(batch_size=8, num_requests=400))
    assert np.mean(record.outcome > 0) > 0.05
    assert set(record.batch_limit.tolist()) == {8}
