"""Who goes next, and what is known about it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from cases import differing, serve_by_hand, serve_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from llminfer import (
    ConfigError,
    FCFSPolicy,
    PriorityPolicy,
    RequestClass,
    SchedulingPolicy,
    SimulationConfig,
    TraceError,
    Workload,
    get_policy,
    register_policy,
    sweep,
)
from llminfer.experiment import metrics_of, run_key
from llminfer.policies import POLICIES, Waiting
from llminfer.servers.queues import waiting_queue

CLASSES = {
    "chat": {"share": 2, "weight": 2.0, "base_priority": 3.0},
    "batch": {"share": 1},
    "agent": {"share": 1, "weight": 0.5},
}
OURS = sorted(POLICIES)
CAPPED = {"mu": 4, "sigma": 1.5, "max": 8192}


def config(**changes):
    usual = {
        "num_requests": 600,
        "warmup_requests": 0,
        "random_seed": 11,
        "prompt_dist_params": CAPPED,
        "request_classes": CLASSES,
    }
    return SimulationConfig(**{**usual, **changes})


def waits(record):
    return record.processing_start_time - record.arrival_time


class Shuffled(SchedulingPolicy):
    """Another order at every question: the worst a user can bring."""

    name = "Shuffled"

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def sort_requests(self, requests, current_time):
        return [requests[i] for i in self.rng.permutation(len(requests))]


# One order, however the server is driven

requests = st.lists(
    st.tuples(
        st.integers(0, 12),  # gap, eighths of a second; often none
        st.integers(1, 900),
        st.integers(1, 300),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def workload_of(rows):
    gaps, prompts, outputs, classes = zip(*rows, strict=True)
    return Workload.from_arrays(np.cumsum(gaps) / 8.0, prompts, outputs, classes)


@pytest.mark.parametrize("policy", OURS)
@settings(max_examples=40)
@given(requests, st.integers(1, 6), st.sampled_from([None, 0.0, 0.5, 4.0]))
def test_the_fast_loop_and_sort_requests_agree_to_the_last_bit(
    policy, rows, batch_size, timeout
):
    workload = workload_of(rows)
    run = config(
        num_requests=len(rows),
        scheduling_policy=policy,
        batch_size=batch_size,
        batch_timeout=timeout,
    )
    assert not differing(serve_columns(run, workload), serve_by_hand(run, workload))


def lines_of(policy, workload):
    make = config(scheduling_policy=policy).policy
    usual = {"every": True, "live": False}
    return tuple(waiting_queue(make(), workload, **usual) for _ in range(2))


moves = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=10)


def visits(rows, moves):
    """Who joins and how many are then taken, until all have come and gone."""
    joined = waiting = 0
    for most_join, most_taken in [*moves, (len(rows), 0)]:
        joins = min(most_join, len(rows) - joined)
        takes = min(most_taken, waiting + joins)
        yield range(joined, joined + joins), takes
        joined += joins
        waiting += joins - takes
    while waiting > 0:
        yield range(0), min(3, waiting)
        waiting -= 3


@pytest.mark.parametrize("policy", [*OURS, Shuffled()], ids=[*OURS, "Shuffled"])
@settings(max_examples=40)
@given(requests, moves)
def test_taking_k_is_k_times_looking_and_taking_one(policy, rows, moves):
    at_once, one_by_one = lines_of(policy, workload_of(rows))
    for now, (joins, takes) in enumerate(visits(rows, moves)):
        for i in joins:
            at_once.add(i)
            one_by_one.add(i)
        if len(at_once):
            assert at_once.oldest() == one_by_one.oldest()
        taken = []
        for _ in range(takes):
            taken.append(one_by_one.peek(now))
            assert list(one_by_one.take(1, now)) == taken[-1:]
        if takes:
            assert list(at_once.take(takes, now)) == taken
        assert len(at_once) == len(one_by_one)
    assert len(at_once) == 0


class PlainTurns:
    """Class-RR and WFQ by the letter of their definitions, all looked up anew."""

    def __init__(self, policy, weights, workload):
        self.fair = policy == "WFQ"
        self.weights = weights
        self.classes = workload.request_class.tolist()
        service = workload.prompt_length + 2 * workload.output_length
        self.service = service.tolist()
        self.lines = {c: [] for c in range(4)}
        self.served = dict.fromkeys(range(4), 0.0)
        self.last = -1

    def add(self, i):
        c = self.classes[i]
        busy = [self.served[d] for d in self.lines if self.lines[d]]
        if not self.lines[c] and (busy or self.last >= 0):
            least = min(busy) if busy else self.served[self.last]
            self.served[c] = max(self.served[c], least)
        self.lines[c].append(i)

    def take(self):
        busy = [c for c in self.lines if self.lines[c]]
        if self.fair:
            c = min(busy, key=lambda c: (self.served[c], self.lines[c][0]))
        else:
            c = min(busy, key=lambda c: (c <= self.last, c))
        i = self.lines[c].pop(0)
        self.served[c] += self.service[i] / self.weights[c]
        self.last = c
        return i


@pytest.mark.parametrize("policy", ["Class-RR", "WFQ"])
@settings(max_examples=150)
@given(requests, moves)
def test_class_policies_do_what_their_definitions_say(policy, rows, moves):
    workload = workload_of(rows)
    line, _ = lines_of(policy, workload)
    plain = PlainTurns(policy, [2.0, 1.0, 0.5, 1.0], workload)
    for joins, takes in visits(rows, moves):
        for i in joins:
            line.add(i)
            plain.add(i)
        assert line.take(takes, 0.0) == [plain.take() for _ in range(takes)]


# Queueing theory at batch size 1

BRACKETS = np.array([20, 200, 1500])
SHARES = np.array([0.6, 0.3, 0.1])
REPLICATIONS = 15


def mean_waits(run, group):
    """Mean wait of each group in each replication, shape (replications, groups)."""
    rows = []
    for seed in range(REPLICATIONS):
        run = run.replace(random_seed=1000 + seed)
        record = serve_columns(run, Workload.generate(run))
        rows.append([waits(record)[1000:][g[1000:]].mean() for g in group(record)])
    return np.array(rows)


def z_scores(sample, exact):
    error = sample.std(axis=0, ddof=1) / math.sqrt(len(sample))
    return (sample.mean(axis=0) - exact) / error


def queue_at_one(service, load, **changes):
    """A configuration at batch size 1, its arrival rate, and Cobham's W0."""
    rate = load / float(SHARES @ service)
    run = config(
        batch_size=1,
        arrival_rate=rate,
        num_requests=12_000,
        request_classes={},
        **changes,
    )
    return run, rate, rate * float(SHARES @ service**2) / 2.0


def test_sjf_waits_by_prompt_length_are_cobhams():
    service = 0.001 * BRACKETS + 0.05 + 0.0005 * 100
    run, rate, w0 = queue_at_one(
        service,
        0.7,
        scheduling_policy="SJF",
        prompt_length_dist="empirical",
        prompt_dist_params={"values": BRACKETS, "weights": SHARES},
        output_length_dist="constant",
        output_dist_params={"value": 100},
    )
    sigma = np.concatenate(([0.0], rate * np.cumsum(SHARES * service)))
    exact = w0 / ((1.0 - sigma[:-1]) * (1.0 - sigma[1:]))
    sample = mean_waits(run, lambda r: [r.prompt_length == p for p in BRACKETS])
    assert np.abs(z_scores(sample, exact)).max() < 4.0


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_noisy_sjf_waits_are_phippss(noise):
    service = 0.001 * 10 + 0.05 + 0.0005 * BRACKETS
    run, rate, w0 = queue_at_one(
        service,
        0.7,
        scheduling_policy="Predicted-SJF",
        scheduling_policy_params={"prediction_sigma": noise},
        prompt_length_dist="constant",
        prompt_dist_params={"value": 10},
        output_length_dist="empirical",
        output_dist_params={"values": BRACKETS, "weights": SHARES},
    )
    z = np.linspace(-9.0, 9.0, 20_001)
    chance = np.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi) * (z[1] - z[0])
    key = np.log(BRACKETS)[:, None] + noise * z
    below = ndtr((key[:, :, None] - np.log(BRACKETS)) / noise)
    sigma = rate * below @ (SHARES * service)
    exact = (w0 / (1.0 - sigma) ** 2) @ chance
    sample = mean_waits(run, lambda r: [r.output_length == o for o in BRACKETS])
    assert np.abs(z_scores(sample, exact)).max() < 4.0


def test_class_priorities_without_ageing_are_cobhams():
    service = np.full(3, 0.001 * 100 + 0.05 + 0.0005 * 100)
    names = ("low", "middle", "high")
    run, rate, w0 = queue_at_one(
        service,
        0.8,
        scheduling_policy="Priority",
        scheduling_policy_params={"aging_rate": 0.0, "urgency_weight": 0.0},
        prompt_length_dist="constant",
        prompt_dist_params={"value": 100},
        output_length_dist="constant",
        output_dist_params={"value": 100},
    )
    classes = zip(names, SHARES, (0.0, 1.0, 2.0), strict=True)
    run = run.replace(
        request_classes={
            name: {"share": share, "base_priority": level}
            for name, share, level in classes
        }
    )
    sigma = np.concatenate((rate * np.cumsum((SHARES * service)[::-1])[::-1], [0.0]))
    exact = w0 / ((1.0 - sigma[:-1]) * (1.0 - sigma[1:]))
    sample = mean_waits(run, lambda r: [r.request_class == c for c in range(3)])
    assert np.abs(z_scores(sample, exact)).max() < 4.0


def test_work_is_conserved_at_batch_size_one_whatever_the_policy():
    run = config(batch_size=1, arrival_rate=3.2, num_requests=8000)
    workload = Workload.generate(run)
    works, busy_periods = [], []
    for policy in OURS:
        record = serve_columns(run.replace(scheduling_policy=policy), workload)
        service = record.processing_end_time - record.processing_start_time
        works.append(float(service @ waits(record)))
        idle = np.flatnonzero(record.batch_start[1:] > record.batch_end[:-1] + 1e-9)
        busy_periods.append((record.batch_end[idle], record.batch_start[idle + 1]))
    assert works == pytest.approx([works[0]] * len(works), rel=1e-9)
    assert len(busy_periods[0][0]) > 300
    for ends_and_starts in busy_periods[1:]:
        for one, other in zip(busy_periods[0], ends_and_starts, strict=True):
            assert one == pytest.approx(other, rel=1e-9)


def test_conserved_work_is_pollaczek_and_khinchines():
    service = 0.001 * BRACKETS + 0.05 + 0.0005 * 100
    run, rate, w0 = queue_at_one(
        service,
        0.6,
        scheduling_policy="SJF-Aging",
        prompt_length_dist="empirical",
        prompt_dist_params={"values": BRACKETS, "weights": SHARES},
        output_length_dist="constant",
        output_dist_params={"value": 100},
    )
    mean = float(SHARES @ service)
    sample = []
    for seed in range(REPLICATIONS):
        run = run.replace(random_seed=seed)
        record = serve_columns(run, Workload.generate(run))
        taken = record.processing_end_time - record.processing_start_time
        sample.append((taken * waits(record))[1000:].mean())
    exact = mean * w0 / (1.0 - rate * mean)
    assert abs(z_scores(np.array(sample), exact)) < 4.0


# Ageing

LEVELS = np.array([3.0, 0.0, 0.0])  # base priorities of CLASSES
AGEING = {"aging_rate": 0.5, "urgency_weight": 0.7}


def level(request):
    time = (
        0.001 * request.prompt_length + 0.05 + 0.0005 * request.expected_output_length
    )
    return LEVELS[request.request_class] + 0.7 / time


class PriorityAsDefined(SchedulingPolicy):
    name = "Priority as defined"

    def sort_requests(self, requests, current_time):
        def priority(r):
            return level(r) + 0.5 * (current_time - r.arrival_time)

        return sorted(requests, key=lambda r: (-priority(r), r.id))


class ShiftedArrivals(SchedulingPolicy):
    name = "Shifted FCFS"

    def sort_requests(self, requests, current_time):
        return sorted(requests, key=lambda r: (r.arrival_time - level(r) / 0.5, r.id))


@pytest.mark.parametrize(
    "plain", [PriorityAsDefined(), ShiftedArrivals()], ids=["defined", "shifted"]
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_ageing_is_fcfs_on_shifted_arrivals(plain, batch_size):
    run = config(batch_size=batch_size, arrival_rate=6.0, num_requests=1500)
    workload = Workload.generate(run)
    aged = run.replace(scheduling_policy="Priority", scheduling_policy_params=AGEING)
    expected = serve_columns(run.replace(scheduling_policy=plain), workload)
    assert not differing(serve_columns(aged, workload), expected)
    fcfs = serve_columns(run, workload)
    assert differing(expected, fcfs)


def test_sjf_aging_goes_from_shortest_first_to_first_come():
    run = config(batch_size=4, arrival_rate=6.0)
    workload = Workload.generate(run)

    def under(policy, **params):
        changes = {"scheduling_policy": policy, "scheduling_policy_params": params}
        return serve_columns(run.replace(**changes), workload)

    assert not differing(under("SJF-Aging", aging_rate=0.0), under("Predicted-SJF"))
    assert not differing(under("SJF-Aging", aging_rate=1e9), under("FCFS"))
    some = waits(under("SJF-Aging", aging_rate=0.05))
    assert waits(under("SJF-Aging", aging_rate=0.0)).mean() < some.mean()
    assert some.mean() < waits(under("FCFS")).mean()


def columns(arrivals, prompts, outputs, classes=None):
    """Waiting requests, numbered from 0."""
    n = len(arrivals)
    classes = np.zeros(n, dtype=int) if classes is None else np.array(classes)
    return Waiting(
        np.arange(n), np.array(arrivals), np.array(prompts), np.array(outputs), classes
    )


def test_by_default_ten_seconds_of_waiting_make_up_for_one():
    """One second of estimated time, or one level of priority."""
    apart = columns([0.0, 10.0], [1100, 100], [1, 1], [0, 1])
    earlier, later = get_policy("SJF-Aging").keys(apart)
    assert earlier == pytest.approx(later)
    levels = (RequestClass(), RequestClass(base_priority=1.0))
    priority = get_policy("Priority", urgency_weight=0.0, request_classes=levels)
    earlier, later = priority.keys(apart)
    assert earlier == pytest.approx(later)


# Policies by themselves


@pytest.mark.parametrize("policy", ["Predicted-SJF", "Priority", "SJF-Aging"])
def test_a_policy_by_itself_estimates_as_a_plain_configuration_does(policy):
    alone, plain = get_policy(policy), SimulationConfig()
    time = alone.estimated_time(np.array([200, 3]), np.array([70.0, 9.0]))
    prompt, output = np.array([200, 3]), np.array([70, 9])
    assert time == pytest.approx(plain.step_time.alone(prompt, output))


def test_each_request_keeps_its_prediction_whoever_waits_beside_it():
    noisy = {"prediction_sigma": 1.0, "random_seed": 4}
    among_many = get_policy("Predicted-SJF", **noisy).keys(
        columns(np.zeros(9), np.ones(9), np.full(9, 50))
    )
    policy = get_policy("Predicted-SJF", **noisy)
    for n in (1, 2, 3, 9):  # the first alone, then ever more
        few = policy.keys(columns(np.zeros(n), np.ones(n), np.full(n, 50)))
        assert few.tolist() == among_many[:n].tolist()
    assert len(set(among_many)) == 9


def test_predictions_without_a_seed_are_each_their_own():
    seeds = {get_policy("Predicted-SJF").random_seed for _ in range(100)}
    assert len(seeds) == 100


@pytest.mark.parametrize("policy", OURS)
def test_a_policy_is_itself_alone_and_shows_what_it_was_given(policy):
    one, other = get_policy(policy), get_policy(policy)
    assert len({one, other}) == 2
    assert "noise" not in repr(one)
    assert "queue" not in repr(one)


# Classes


def test_two_backlogged_clients_get_equal_service_under_wfq():
    run = config(
        arrival_rate=4.5,
        num_requests=9000,
        alpha=0.003,  # carries 1.9 requests/s, less than both clients' 1.5 a client
        batch_size=8,
        request_classes={"a": {"share": 1 / 3}, "b": {"share": 2 / 3}},
    )
    workload = Workload.generate(run)

    def service_while_backlogged(policy, **changes):
        run_now = run.replace(scheduling_policy=policy, **changes)
        record = serve_columns(run_now, workload)
        until = record.arrival_time[-1]
        tokens = record.prompt_length + 2 * record.output_length
        done = record.processing_end_time <= until
        for c in (0, 1):  # somebody of the class waits to the end
            late = (record.request_class == c) & (record.processing_start_time > until)
            assert late.sum() > 100
        return [tokens[done & (record.request_class == c)].sum() for c in (0, 1)]

    one, other = service_while_backlogged("WFQ")
    assert one == pytest.approx(other, rel=0.02)
    one, other = service_while_backlogged("FCFS")
    assert one / other == pytest.approx(0.5, rel=0.1)
    heavy = {"a": {"share": 1 / 3, "weight": 1}, "b": {"share": 2 / 3, "weight": 3}}
    one, other = service_while_backlogged("WFQ", request_classes=heavy)
    assert other == pytest.approx(3 * one, rel=0.02)


def test_class_round_robin_serves_the_waiting_classes_in_turn():
    classes = [0, 0, 0, 0, 2, 2, 1]
    workload = Workload.from_arrays([0.0] * 7, [100] * 7, [10] * 7, classes)
    run = config(scheduling_policy="Class-RR", batch_size=1, num_requests=7)
    served = np.argsort(serve_columns(run, workload).processing_start_time)
    assert [classes[i] for i in served] == [0, 1, 2, 0, 2, 0, 0]


def test_shares_are_relative_and_drawn_from_a_stream_of_their_own():
    run = config(num_requests=40_000)
    classes = Workload.generate(run).request_class
    counts = np.bincount(classes, minlength=3)
    expected = np.array([20_000, 10_000, 10_000])
    z = (counts - expected) / np.sqrt(expected * (1.0 - expected / 40_000))
    assert np.abs(z).max() < 4.0
    fewer = Workload.generate(run.replace(num_requests=100)).request_class
    assert np.array_equal(fewer, classes[:100])
    alone = Workload.generate(run.replace(request_classes={}))
    assert not alone.request_class.any()
    for column in ("arrival_time", "prompt_length", "output_length"):
        assert np.array_equal(
            getattr(alone, column), getattr(Workload.generate(run), column)
        )


def test_a_class_without_a_share_never_comes():
    none = {"a": {"share": 0}, "b": {}, "c": {"share": 0}}
    assert set(Workload.generate(config(request_classes=none)).request_class) == {1}


def test_classes_show_in_the_tables():
    workload = Workload.from_arrays([0, 1, 2], [5, 5, 5], [9, 9, 9], [2, 0, 1])
    assert workload.to_frame()["request_class"].tolist() == [2, 0, 1]
    run = config(num_requests=3)
    for record in (serve_columns(run, workload), serve_by_hand(run, workload)):
        assert record.to_frame()["request_class"].tolist() == [2, 0, 1]


def test_the_order_of_the_classes_numbers_them():
    run = config(request_classes={"a": {"share": 3}, "b": {"share": 1}})
    other = run.replace(request_classes={"b": {"share": 1}, "a": {"share": 3}})
    assert run != other
    assert run == run.replace(request_classes={"a": {"share": 3}, "b": {"share": 1}})
    assert list(SimulationConfig.from_json(other.to_json()).classes) == [
        RequestClass(share=1),
        RequestClass(share=3),
    ]
    assert run_key(run, metrics_of) != run_key(other, metrics_of)
    assert {run: 1, run.replace(): 2} == {run: 2}


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({"chat": {"share": -1}}, "request_classes.chat.share=-1: must be"),
        ({"chat": {"weight": 0}}, "request_classes.chat.weight=0: must be"),
        ({"chat": {"wieght": 1}}, "did you mean weight"),
        ({"chat": {"base_priority": "high"}}, "chat.base_priority='high': must be"),
        ({"chat": 1}, "request_classes={'chat': 1}: must be a dict such as"),
        (["chat"], "must be a dict such as"),
        ({"a": {"share": 0}}, "of shares with a sum above 0"),
    ],
)
def test_bad_classes_are_refused(classes, says):
    with pytest.raises(ConfigError, match=says):
        SimulationConfig(request_classes=classes)


@pytest.mark.parametrize("classes", [[0, -1], [0, 0.5], [0], [0, math.nan]])
def test_bad_class_columns_are_refused(classes):
    with pytest.raises(TraceError, match="request_class"):
        Workload.from_arrays([0, 1], [5, 5], [9, 9], classes)


# The same requests for all


def test_policies_face_the_same_requests():
    records = []
    for policy in OURS:
        run = config(scheduling_policy=policy, arrival_rate=5.0)
        records.append(serve_columns(run, Workload.generate(run)))
    facts = ("arrival_time", "prompt_length", "output_length", "request_class")
    for record in records[1:]:
        assert not set(facts) & set(differing(record, records[0]))


def test_pairing_takes_four_fifths_of_the_variance_away():
    run = config(request_classes={}, num_requests=10_500, batch_timeout=0)
    run = run.replace(arrival_rate=0.8 * run.max_stable_rate)
    assert (run.batch_size, run.alpha, run.beta, run.gamma) == (32, 0.001, 0.05, 0.0005)
    means = []
    for seed in range(30):
        run = run.replace(random_seed=seed)
        workload = Workload.generate(run)
        pair = [run.replace(scheduling_policy=policy) for policy in ("FCFS", "SJF")]
        records = [serve_columns(one, workload) for one in pair]
        means.append(
            [(r.processing_end_time - r.arrival_time)[500:].mean() for r in records]
        )
    fcfs, sjf = np.array(means).T
    unpaired = fcfs.var(ddof=1) + sjf.var(ddof=1)
    assert (fcfs - sjf).var(ddof=1) < unpaired / 5.0


# Policies of the user's own


@pytest.fixture
def registry():
    """Forgets what a test has registered."""
    yield
    for name in set(POLICIES) - set(OURS):
        del POLICIES[name]


class Counting(SchedulingPolicy):
    """Serves the other way round after every dispatch: state that could leak."""

    name = "Counting"

    def __init__(self):
        self.dispatches = 0

    def sort_requests(self, requests, current_time):
        self.dispatches += 1
        return requests[::-1] if self.dispatches % 2 else list(requests)


def test_an_instance_starts_afresh_in_every_run():
    mine = Counting()
    run = config(scheduling_policy=mine, batch_size=3, num_requests=200)
    workload = Workload.generate(run)
    first = serve_columns(run, workload)
    assert len(first.batch_size) % 2 == 1
    assert not differing(first, serve_columns(run, workload))
    assert not differing(first, serve_by_hand(run, workload))
    assert mine.dispatches == 0


def test_subclasses_of_ours_are_asked_for_their_own_order():
    class LastKey(FCFSPolicy):
        name = "LCFS by key"

        def keys(self, waiting):
            return -waiting.arrival_time

    class LastSorted(PriorityPolicy):
        name = "LCFS by sorting"

        def sort_requests(self, requests, current_time):
            return sorted(requests, key=lambda r: -r.arrival_time)

    run = config(batch_size=3, arrival_rate=6.0, num_requests=300)
    workload = Workload.generate(run)
    records = [
        serve_columns(run.replace(scheduling_policy=policy()), workload)
        for policy in (LastKey, LastSorted)
    ]
    assert not differing(*records)
    assert differing(records[0], serve_columns(run, workload))


@pytest.mark.usefixtures("registry")
def test_a_policy_of_ones_own_works_in_a_parallel_sweep():
    @register_policy
    @dataclass
    class LongestFirst(SchedulingPolicy):
        name: ClassVar[str] = "Longest"
        by_output: bool = False

        def sort_requests(self, requests, current_time):
            length = "expected_output_length" if self.by_output else "prompt_length"
            return sorted(requests, key=lambda r: -getattr(r, length))

    run = config(arrival_rate=4.0, batch_size=8, num_requests=300)
    policies = {"name": "Longest", "instance": LongestFirst(), "other": "FCFS"}
    over = {"by": {by: {"scheduling_policy": p} for by, p in policies.items()}}
    serial = sweep(run, over, replications=2, n_jobs=1)
    assert serial.equals(sweep(run, over, replications=2, n_jobs=2))
    latency = serial.pivot(index="seed", columns="by", values="avg_latency")
    assert (latency["name"] == latency["instance"]).all()
    assert (latency["name"] > latency["other"]).all()
    params = {"by_output": True}
    named = run.replace(scheduling_policy="Longest", scheduling_policy_params=params)
    assert named.policy().by_output


@pytest.mark.usefixtures("registry")
def test_registering_says_what_is_wrong():
    with pytest.raises(ConfigError, match="did you mean WFQ"):
        get_policy("WFK")
    with pytest.raises(ConfigError, match="must be a subclass of SchedulingPolicy"):
        register_policy(Counting())

    class Ours(Counting):
        name = "FCFS"

    with pytest.raises(ConfigError, match=r"Ours\.name='FCFS': must be a name of"):
        register_policy(Ours)
    register_policy(Counting)
    register_policy(Counting)  # a cell run twice
    with pytest.raises(ConfigError, match="unexpected keyword argument 'slope'"):
        SimulationConfig(
            scheduling_policy="Counting", scheduling_policy_params={"slope": 1}
        )
