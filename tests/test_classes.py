"""Classes with a load of their own: what is drawn, what is known, what is measured."""

from __future__ import annotations

import itertools
import json
from functools import partial

import numpy as np
import pytest
from cases import LENGTHS, classes, copies, synthetic_runs
from client_twin import run_closed
from continuous_cases import EXACT, FREE, of_classes, serve
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import expon, kstest
from step_twin import run_twins
from test_clients import CASES, assert_same_run
from test_continuous_twin import assert_close, assert_same_requests, assert_same_steps

from llminfer import (
    SLO,
    ConfigError,
    MetricsCollector,
    OverloadWarning,
    SimulationConfig,
    Workload,
    capacity,
    goodput,
    simulate,
    stats,
    sweep,
    theory,
)
from llminfer.experiment import metrics_of, run_key
from llminfer.laws.lengths import (
    ByClass,
    Constant,
    Empirical,
    LogNormal,
    Paired,
    Uniform,
    by_class,
    length_law,
)
from llminfer.servers.clients import User
from llminfer.servers.overload import may_carry_more
from llminfer.stats.pooling import kept
from llminfer.study import measures
from llminfer.theory.service_time import BatchTime


def law(which, name, **params):
    return {f"{which}_length_dist": name, f"{which}_dist_params": params}


CHAT = law("prompt", "lognormal", mu=3, sigma=0.5, max=200)
CHAT |= law("output", "geometric", mean=20, max=200)
CODE = law("prompt", "uniform", min=200, max=500)
CODE |= law("output", "uniform", min=60, max=140)
TWO = {"chat": {"share": 3, **CHAT}, "code": {"share": 1, **CODE}}
BASE = SimulationConfig(
    arrival_rate=3.0,
    batch_size=4,
    batch_timeout=0.0,
    request_classes=TWO,
    num_requests=3_000,
    warmup_requests=300,
    random_seed=11,
)


def alone(config, name):
    """The configuration of one class by itself, at its part of the rate."""
    its = dict(config.request_classes[name])
    part = its.pop("share") / sum(c["share"] for c in config.request_classes.values())
    laws = {k: v for k, v in its.items() if k.endswith(("_dist", "_params"))}
    rate = part * config.arrival_rate
    return config.replace(request_classes={}, arrival_rate=rate, **laws)


# The laws of several classes together


def mixed(draw, count):
    """A law by class, its parts and their shares, as they should be."""
    laws = [length_law("output", *draw(LENGTHS)) for _ in range(count)]
    shares = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    assume(sum(shares))
    return laws, np.array(shares) / sum(shares)


@settings(max_examples=25)
@given(st.data(), st.integers(1, 3), st.sampled_from([1, 2, 5]))
def test_the_law_of_all_is_the_parts_by_their_shares(data, count, copies):
    laws, shares = mixed(data.draw, count)
    own = by_class(laws, shares.tolist())
    pmf = np.zeros(max(len(part.pmf()) for part in laws))
    for part, share in zip(laws, shares, strict=True):
        pmf[: len(part.pmf())] += share * part.pmf()
    found = own.pmf()
    np.testing.assert_allclose(found, pmf[: len(found)], atol=1e-12)
    assert pmf[len(found) :].sum() < 1e-12
    k = np.arange(len(pmf))
    greatest = np.diff(np.cumsum(pmf) ** copies, prepend=0.0)
    assert own.expectation(copies) == pytest.approx(k @ greatest, rel=1e-8)
    assert own.pairs(copies) == pytest.approx(k * (k - 1) / 2 @ greatest, rel=1e-6)
    u = np.array([0.0, 0.1, 0.5, 0.77, 0.99])
    below = np.cumsum(pmf)
    least = np.searchsorted(below, u + 1e-11, side="right")
    most = np.searchsorted(below, np.maximum(u - 1e-11, 0.0), side="right")
    tokens = own.tokens(u)
    assert ((most <= tokens) & (tokens <= least)).all()


@pytest.mark.parametrize("long", [Uniform(50_000, 100_000), Constant(900_000)])
def test_an_endless_law_beside_long_texts_is_summed_to_their_end(long):
    endless = LogNormal(4.0, 1.5)
    both = ByClass((endless, long), (3.0, 1.0))
    for moment in ("expectation", "pairs"):
        one, other = (getattr(its, moment)() for its in (endless, long))
        value = getattr(both, moment)()
        assert value == pytest.approx(0.75 * one + 0.25 * other, rel=1e-9)
    # the greatest of two, by their kinds
    greatest = 0.75**2 * endless.expectation(2) + 0.25**2 * long.expectation(2)
    k = np.arange(1_000_000.0)
    neither = (1.0 - endless.survival(k)) * (1.0 - long.survival(k))
    beyond = endless.expectation() - endless.survival(k).sum()
    greatest += 2 * 0.75 * 0.25 * ((1.0 - neither).sum() + beyond)
    assert both.expectation(2) == pytest.approx(greatest, rel=1e-6)


def test_a_quantile_at_a_jump_is_the_one_above_as_of_every_law():
    both = ByClass((Constant(4), Constant(10)), (3.0, 1.0))
    table = Empirical((4, 10), (3, 1))
    u = np.arange(8) / 8.0
    assert both.tokens(u).tolist() == table.tokens(u).tolist() == [4] * 6 + [10] * 2


def test_one_table_of_outputs_goes_with_the_prompts_of_each_class():
    """Paired outputs of all, and prompts of a class's own in the same rows."""
    config = SimulationConfig(
        **law("prompt", "empirical", values=[10, 20]),
        **law("output", "paired", values=[3, 9]),
        request_classes={"a": {}, "b": {"prompt_dist_params": {"values": [400, 100]}}},
    )
    mean = (10 * 3 + 20 * 9 + 400 * 3 + 100 * 9) / 4.0
    assert config.outputs.joint(config.prompts) == pytest.approx(mean)
    assert config.stable_rate(4) > 0.0
    work = Workload.generate(config)
    assert set(work.output_length[work.prompt_length == 400]) == {3}
    assert set(work.output_length[work.prompt_length == 20]) == {9}


PAIR = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.lists(PAIR, min_size=1, max_size=3, unique=True),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 3),
)
def test_prompt_times_longest_output_counts_what_a_class_has_in_common(kinds, b):
    """Against all batches of b requests, whose outputs may go with prompts too."""
    prompts, outputs, shares, cells = [], [], [], []
    for share, pairs, together in kinds:
        prompt, output = zip(*pairs, strict=True)
        prompts.append(Empirical(prompt))
        outputs.append((Paired if together else Empirical)(output))
        shares.append(share)
        some = pairs if together else list(itertools.product(prompt, output))
        cells += [(share / len(some), *pair) for pair in some]
    chance, prompt, output = np.array(cells).T
    chance /= chance.sum()
    exact = 0.0
    for batch in itertools.product(range(len(chance)), repeat=b):
        rows = list(batch)
        exact += chance[rows].prod() * prompt[rows[0]] * output[rows].max()
    found = ByClass(tuple(outputs), tuple(shares))
    joint = found.joint(ByClass(tuple(prompts), tuple(shares)), b)
    assert joint == pytest.approx(exact, rel=1e-9)


# What is drawn


@pytest.mark.parametrize("kind", [0, 1])
def test_a_class_has_the_requests_it_would_have_alone(kind):
    """The very same lengths: each request keeps its draws, whatever its class."""
    name = list(TWO)[kind]
    together = Workload.generate(BASE)
    single = Workload.generate(alone(BASE, name))
    its = together.request_class == kind
    assert 0.6 < its.sum() / (len(its) * (0.75, 0.25)[kind]) < 1.4
    for column in ("prompt_length", "output_length"):
        one, other = (getattr(w, column)[its] for w in (together, single))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", [0, 1])
def test_two_classes_are_two_streams_of_requests_one_upon_the_other(kind):
    """Poisson at its part of the rate, with its lengths, whatever the other sends."""
    config = BASE.replace(num_requests=20_000)
    work = Workload.generate(config)
    own = alone(config, list(TWO)[kind])
    its = work.request_class == kind
    gaps = np.diff(work.arrival_time[its])
    assert kstest(gaps, expon(scale=1.0 / own.arrival_rate).cdf).pvalue > 1e-3
    for name in ("prompt", "output"):
        lengths = getattr(work, f"{name}_length")[its]
        theirs = getattr(own, f"{name}s")
        error = np.sqrt(theirs.variance() / its.sum())
        assert abs(lengths.mean() - theirs.expectation()) < 4.0 * error
        assert lengths.var() == pytest.approx(theirs.variance(), rel=0.1)
    gaps = np.corrcoef(work.prompt_length[its], work.output_length[its])
    assert abs(gaps[0, 1]) < 4.0 / np.sqrt(its.sum())


def test_a_queue_of_two_classes_is_that_of_two_streams_merged():
    """The mean wait of the merged single-class workloads, in the same interval."""
    config = BASE.replace(num_requests=6_000, arrival_rate=2.0)
    waits = np.empty((16, 2))
    for i in range(len(waits)):
        run = config.replace(random_seed=100 + i)
        apart = []
        for k, name in enumerate(TWO):
            single = alone(run, name).replace(random_seed=500 + 2 * i + k)
            n = round(config.num_requests * TWO[name]["share"] / 4 * 1.2)
            apart.append(Workload.generate(single.replace(num_requests=n)).columns)
        both = {c: np.concatenate([w[c] for w in apart]) for c in apart[0]}
        order = np.argsort(both["arrival_time"])[: config.num_requests]
        merged = Workload.from_arrays(*(both[c][order] for c in both))
        waits[i] = [simulate(run, w).wait[300:].mean() for w in (None, merged)]
    one, other = waits.T
    error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(waits))
    assert abs(one.mean() - other.mean()) < 4.0 * error
    assert error < 0.06 * one.mean()


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        (law("prompt", "constant", value=700), {"prompt_length"}),
        (law("output", "constant", value=9), {"output_length"}),
        (CODE | law("output", "powerlaw", alpha=2, min=1, max=99), {"output_length"}),
    ],
)
def test_the_law_of_a_class_changes_nothing_else(changes, columns):
    before = Workload.generate(BASE)
    other = {"share": 1, **CODE, **changes}
    after = Workload.generate(BASE.replace(request_classes=TWO | {"code": other}))
    code = before.request_class == 1
    for name, column in before.columns.items():
        new = after.columns[name]
        np.testing.assert_array_equal(column[~code], new[~code], err_msg=name)
        assert np.array_equal(column, new) == (name not in columns), name


def test_fields_that_a_class_leaves_out_are_those_of_all():
    narrow = {"prompt_dist_params": {"mu": 2, "sigma": 0.1}}
    config = SimulationConfig(request_classes={"usual": {}, "narrow": narrow})
    usual = SimulationConfig()
    assert config.prompts.of_class(0) == usual.prompts
    assert config.prompts.of_class(1) == LogNormal(2, 0.1)
    assert config.outputs == usual.outputs


def test_classes_with_laws_that_are_alike_are_one_law():
    each = {"a": CHAT, "b": {"share": 7, **CHAT}}
    config = BASE.replace(request_classes=each)
    assert config.prompts == alone(BASE, "chat").prompts
    assert config.stable_rate(4) == alone(BASE, "chat").stable_rate(4)


def test_shared_prefixes_come_before_the_prompts_of_every_class():
    shared = {"count": 3, "tokens": 50}
    before = Workload.generate(BASE)
    config = BASE.replace(shared_prefixes=shared)
    work = Workload.generate(config)
    np.testing.assert_array_equal(work.prompt_length, before.prompt_length + 50)
    mean = BASE.prompts.expectation() + 50.0
    assert config.prompts.expectation() == pytest.approx(mean)
    cached = config.replace(server="continuous", prefix_caching=True)
    bare = BASE.replace(server="continuous")
    assert cached.stable_rate(4) == pytest.approx(bare.stable_rate(4))


# What servers make of it


@pytest.mark.parametrize("runs", [EXACT, FREE], ids=["events coincide", "free times"])
@settings(max_examples=50)
@given(data=st.data())
def test_a_server_of_classes_equals_the_step_by_step_twin(runs, data):
    config, workload = data.draw(of_classes(runs))
    record = serve(config, workload)
    (twin,) = run_twins(config, workload)
    assert_same_requests(record, twin.everyone)
    assert_same_steps(record, twin.steps)
    if config.step_time.decode(1, 1, 1) == 0.0:
        return  # no clock tells tokens apart
    tokens = [s.token_times for s in twin.everyone]
    for kind in np.unique(workload.request_class):
        gaps = [
            np.diff(t)
            for t in itertools.compress(tokens, workload.request_class == kind)
        ]
        found = MetricsCollector.compute_metrics(
            record.of_class(kind), 0, config.step_time
        )
        if len(all_of_them := np.concatenate(gaps)):
            assert_close(found["avg_itl"], all_of_them.mean(), "mean gap", 1e-7)
            p99 = np.quantile(all_of_them, 0.99)
            assert_close(found["p99_itl"], p99, "p99 gap", 1e-7)


@settings(max_examples=25)
@given(CASES[1], st.integers(1, 6), classes(), st.floats(0.01, 2.0))
def test_users_of_classes_equal_the_twin(run, users, kinds, think):
    for name in list(kinds)[:2]:
        kinds[name] = kinds[name] | {
            "think_time": {"dist": "uniform", "min": 0.1, "max": 0.1 + think}
        }
    config = run[0].replace(clients=users, num_requests=40, request_classes=kinds)
    config = config.replace(kv_blocks=None, prefix_caching=False)
    record = serve(config, None)
    assert_same_run(record, *run_closed(config, None))


@pytest.mark.parametrize(
    ("server", "size"),
    [("static", 1), ("static", 4), ("continuous", 4), ("continuous", 16)],
)
def test_the_rate_carried_is_exact_for_lengths_by_class(server, size):
    """In a flood, which counts that long prompts and long outputs go together."""
    config = BASE.replace(server=server, batch_size=size, kappa=5e-5, delta=1e-4)
    if server == "continuous":
        config = config.replace(max_batched_tokens=10**6)
    n = 60_000
    drawn = Workload.generate(config.replace(num_requests=n, random_seed=2)).columns
    flood = Workload.from_arrays(*(drawn | {"arrival_time": np.zeros(n)}).values())
    carried = n / simulate(config, flood).processing_end_time.max()
    assert carried == pytest.approx(config.max_stable_rate, rel=0.01)
    law, each = config.step_time, (config.prompts, config.outputs)
    blind = (
        Empirical((each[0].expectation(),)),
        each[1],
    )  # lengths that do not go together
    if server == "static":
        apart = size / law.mean_batch_time(*blind, size)
    else:
        apart = law.saturation_rate(*blind, size)
    assert abs(carried / apart - 1.0) > 0.02


@pytest.mark.parametrize(("other", "more"), [(200, True), (331, False)])
def test_outputs_of_multiples_in_all_classes_may_carry_more(other, more):
    """In lockstep they end together, and a flood of them carries twice as much."""
    kinds = {
        name: law("output", "constant", value=value)
        for name, value in (("short", 100), ("long", other))
    }
    config = BASE.replace(server="continuous", request_classes=kinds, batch_size=16)
    config = config.replace(**law("prompt", "constant", value=20), num_requests=4_000)
    assert may_carry_more(config) == more
    if more:
        flood = config.replace(arrival_rate=1e6, max_batched_tokens=10**6)
        with pytest.warns(OverloadWarning, match="may be overloaded: .* at least"):
            record = simulate(flood)
        carried = len(record.latency) / record.processing_end_time.max()
        assert carried > 1.5 * config.max_stable_rate


# Theory


def same_laws(one, other, size=4):
    """Two configurations of the same requests: everything theory says of either."""
    for server, kappa in itertools.product(("static", "continuous"), (0.0, 1e-5)):
        a, b = (c.replace(server=server, kappa=kappa) for c in (one, other))
        for limit in (1, size):
            assert a.stable_rate(limit) == pytest.approx(b.stable_rate(limit), rel=1e-9)
        assert theory.memory(a) == pytest.approx(theory.memory(b), rel=1e-8)
    roofline = {"step_law": "roofline", "alpha": 1e-4, "gamma": 0.01}
    a, b = (c.replace(**roofline) for c in (one, other))
    assert a.stable_rate(size) == pytest.approx(b.stable_rate(size), rel=1e-9)


MODES = {"short_min": 10, "short_max": 60, "long_min": 200, "long_max": 500}
POLICIES = [
    ("FCFS", {}),
    ("SJF", {}),
    ("Predicted-SJF", {"prediction_sigma": 0.5}),
    ("Priority", {"aging_rate": 0.0}),
]


def test_prompts_in_two_classes_are_the_bimodal_law_to_every_theory():
    """Two ways to say one thing, so that theory must say one thing of them."""
    one = SimulationConfig(
        arrival_rate=1.5,
        batch_size=1,
        batch_timeout=0.0,
        **law("prompt", "bimodal", **MODES, short_prob=0.7),
        **law("output", "geometric", mean=30),
    )
    kinds = {
        "short": {"share": 7, **law("prompt", "uniform", min=10, max=60)},
        "long": {"share": 3, **law("prompt", "uniform", min=200, max=500)},
    }
    other = one.replace(request_classes=kinds, **law("prompt", "constant", value=9))
    same_laws(one, other)
    for policy, params in POLICIES:
        fields = {"scheduling_policy": policy, "scheduling_policy_params": params}
        a, b = (theory.priority(c.replace(**fields)) for c in (one, other))
        assert a.mean == pytest.approx(b.mean, rel=1e-9)
        assert a.mean_latency == pytest.approx(b.mean_latency, rel=1e-9)
    a, b = theory.mg1(one), theory.mg1(other)
    assert a.variance == pytest.approx(b.variance, rel=1e-9)
    assert a.quantile(0.99) == pytest.approx(b.quantile(0.99), rel=1e-6)
    a, b = (theory.bulk_queue(c.replace(batch_size=3)) for c in (one, other))
    assert a.mean_latency == pytest.approx(b.mean_latency, rel=1e-9)
    steps = {"server": "continuous", "batch_size": 3, "max_batched_tokens": 9000}
    a, b = (theory.continuous(c.replace(**steps)) for c in (one, other))
    assert a.mean_latency == pytest.approx(b.mean_latency, rel=1e-9)


def test_a_class_a_row_is_the_law_of_paired_rows():
    rows = [(10, 50, 1), (40, 200, 3), (300, 10, 2), (500, 90, 1)]
    prompt, output, weight = zip(*rows, strict=True)
    one = SimulationConfig(
        arrival_rate=1.0,
        **law("prompt", "empirical", values=prompt, weights=weight),
        **law("output", "paired", values=output, weights=weight),
    )
    kinds = {
        str(k): {
            "share": share,
            **law("prompt", "constant", value=p),
            **law("output", "constant", value=o),
        }
        for k, (p, o, share) in enumerate(rows)
    }
    same_laws(one, SimulationConfig(arrival_rate=1.0, request_classes=kinds))


@pytest.mark.parametrize(("policy", "params"), POLICIES)
def test_classes_that_are_alike_wait_as_without_classes(policy, params):
    fields = {"scheduling_policy": policy, "scheduling_policy_params": params}
    config = alone(BASE, "chat").replace(batch_size=1, **fields)
    kinds = {"a": {"share": 2}, "b": {}, "nobody": {"share": 0}}
    one, other = (
        theory.priority(c) for c in (config, config.replace(request_classes=kinds))
    )
    np.testing.assert_allclose(other.key, one.key)
    np.testing.assert_allclose(other.wait, one.wait, rtol=1e-9)
    assert other.share.sum() == pytest.approx(1.0)


ONE_BY_ONE = BASE.replace(
    batch_size=1,
    arrival_rate=2.2,
    num_requests=6_000,
    warmup_requests=1_000,
    kappa=1e-5,
    request_classes={
        "chat": {"share": 3, "base_priority": 1, **CHAT},
        "code": {"share": 1, "base_priority": 5, **CODE},
    },
    scheduling_policy="Priority",
    scheduling_policy_params={"aging_rate": 0.0, "urgency_weight": 0.0},
)


def test_classes_of_unlike_service_wait_as_cobham_says():
    """By the formula from each class's own moments, and in the simulation."""
    rates = [alone(ONE_BY_ONE, name).arrival_rate for name in TWO]
    singles = [alone(ONE_BY_ONE, name) for name in TWO]
    times = [BatchTime(c.step_time, c.prompts, c.outputs) for c in singles]
    load = [r * t.moment(1) for r, t in zip(rates, times, strict=True)]
    left = sum(r * t.moment(2) for r, t in zip(rates, times, strict=True)) / 2.0
    code = left / (1.0 - load[1])
    chat = left / ((1.0 - load[1]) * (1.0 - sum(load)))
    exact = theory.priority(ONE_BY_ONE)
    assert exact.key.tolist() == [-5.0, -1.0]
    np.testing.assert_allclose(exact.wait, [code, chat], rtol=1e-9)
    np.testing.assert_allclose(exact.service[::-1], [t.moment(1) for t in times])
    waits = np.empty((20, 2))
    for i in range(len(waits)):
        record = simulate(ONE_BY_ONE.replace(random_seed=7_000 + i))
        some = (record.of_class(kind).measured(1_000) for kind in (1, 0))
        waits[i] = [record.wait[rows].mean() for rows in some]
    error = waits.std(axis=0, ddof=1) / np.sqrt(len(waits))
    assert (np.abs(waits.mean(axis=0) - exact.wait) < 4.0 * error).all()
    assert (error < 0.04 * exact.wait).all()


def test_shortest_first_among_unlike_classes_is_enumerated():
    """E[W | prompt] from a plain sum over classes and prompts."""
    config = ONE_BY_ONE.replace(scheduling_policy="SJF", scheduling_policy_params={})
    law, rate = config.step_time, config.arrival_rate
    work, square = np.zeros(600), 0.0
    shares = np.zeros(600)
    for name, part in (("chat", 0.75), ("code", 0.25)):
        single = alone(config, name)
        pmf, output = single.prompts.pmf(), single.outputs.expectation()
        p = np.arange(len(pmf))
        mean = law.prefill(p) + output * (law.gamma + law.kappa * p)
        mean += law.kappa * single.outputs.pairs()
        work[p] += part * pmf * mean
        shares[p] += part * pmf
        time = BatchTime(law, single.prompts, single.outputs)
        square += part * time.moment(2)
    upto = np.cumsum(rate * work)
    before = upto - rate * work
    wait = rate * square / 2.0 / ((1.0 - before) * (1.0 - upto))
    assert theory.priority(config).mean == pytest.approx(shares @ wait, rel=1e-9)


@pytest.mark.parametrize(
    ("ask", "changes", "said"),
    [
        (theory.bulk_queue, {"batch_size": 4}, "request_classes=.*must be alike in"),
        (
            theory.continuous,
            {"server": "continuous"},
            "output_length_dist=.*must be geometric, alike for all classes",
        ),
        (
            lambda c: theory.inoue_latency(c, 2.0),
            {"kappa": 0.0},
            "output_length_dist=.*must be constant, alike for all classes",
        ),
        (
            theory.priority,
            {
                "batch_size": 1,
                "request_classes": TWO
                | {"code": law("prompt", "lognormal", mu=3, sigma=2)},
            },
            r"request_classes\.code\.prompt_dist_params\.max=None: must be given",
        ),
        (
            theory.mg1,
            {
                "batch_size": 1,
                "request_classes": TWO
                | {
                    "code": law("prompt", "empirical", values=[1, 2])
                    | law("output", "paired", values=[1, 2])
                },
            },
            "output_length_dist='paired': must be independent of prompts",
        ),
    ],
)
def test_theory_refuses_in_one_line_what_it_does_not_know(ask, changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        ask(BASE.replace(arrival_rate=0.5, **changes))
    assert "\n" not in str(error.value)
    assert theory.mean_latency(BASE) is None  # and where curves are asked for, none


# Users


def test_a_class_of_users_thinks_asks_and_says_as_it_does():
    config = BASE.replace(
        clients=40,
        think_time=1.0,
        request_classes={
            "chat": {**CHAT, "think_time": {"dist": "exponential", "mean": 4.0}},
            "code": CODE,
        },
    )
    told = {0: [], 1: []}
    for number in range(40):
        user = User(config, number)
        for _ in range(100):
            told[user.request_class].append((user.think, user.prompt, user.output))
            user.go_on()
    for kind, name in enumerate(config.request_classes):
        single = BASE.replace(request_classes={}, **(CHAT, CODE)[kind])
        think, prompt, output = np.array(told[kind]).T
        assert prompt.mean() == pytest.approx(single.prompts.expectation(), rel=0.05)
        assert output.mean() == pytest.approx(single.outputs.expectation(), rel=0.05)
        if name == "chat":
            assert think.mean() == pytest.approx(4.0, rel=0.06)
            assert think.std() == pytest.approx(4.0, rel=0.1)
        else:
            assert (think == 1.0).all()


def test_a_user_asks_the_same_whatever_the_other_class_is_like():
    kinds = {"chat": CHAT, "code": CODE}
    config = BASE.replace(clients=12, request_classes=kinds)
    slow = CODE | {"think_time": 9.0} | law("output", "constant", value=5)
    other = config.replace(request_classes=kinds | {"code": slow})
    seen = set()
    for number in range(12):
        one, two = User(config, number), User(other, number)
        assert one.request_class == two.request_class
        seen.add(one.request_class)
        for _ in range(20):
            same = (one.think, one.output) == (two.think, two.output)
            assert one.prompt == two.prompt
            assert same == (one.request_class == 0)
            one.go_on(), two.go_on()
    assert seen == {0, 1}


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_the_interactive_law_holds_for_each_class(server):
    """N = X (R + Z): users of a class, its rate, its latency, and its think time."""
    thinks = {"chat": 0.5, "code": 6.0}
    kinds = {
        name: TWO[name] | {"think_time": {"dist": "exponential", "mean": mean}}
        for name, mean in thinks.items()
    }
    config = BASE.replace(
        server=server, clients=24, request_classes=kinds, num_requests=12_000
    )
    record = simulate(config)
    of = np.array([User(config, i).request_class for i in range(24)])
    lasted = record.processing_end_time.max()
    for kind, mean in enumerate(thinks.values()):
        some = record.request_class == kind
        users = some.sum() / lasted * (record.latency[some].mean() + mean)
        assert users == pytest.approx((of == kind).sum(), rel=0.03)


# Metrics


def counted(config, record, kind):
    """Metrics of a class from the table of requests, one after the other."""
    table = record.to_frame()
    n = config.warmup_requests
    whole = table[n:]
    span = whole["processing_end_time"].max() - table["queue_entry_time"][n]
    sent = whole[whole["request_class"] == kind]
    rows = sent[sent["outcome"] == 0] if "outcome" in sent else sent
    latency = rows["processing_end_time"] - rows["queue_entry_time"]
    ttft = rows["first_token_time"] - rows["queue_entry_time"]
    after = (rows["processing_end_time"] - rows["first_token_time"])[
        rows["output_length"] > 1
    ]
    tpot = after / (rows["output_length"] - 1)
    good = (ttft <= 1.0) & ~(tpot.reindex(ttft.index) > 0.02)
    found = {
        "total_requests": len(rows),
        "throughput_req_per_sec": len(rows) / span,
        "throughput_tokens_per_sec": rows["output_length"].sum() / span,
        "avg_prompt_length": rows["prompt_length"].mean(),
        "avg_latency": latency.mean(),
        "p99_latency": latency.quantile(0.99),
        "p50_ttft": ttft.quantile(0.5),
        "p95_tpot": tpot.quantile(0.95),
        "max_queue_wait": (
            rows["processing_start_time"] - rows["queue_entry_time"]
        ).max(),
        "starvation_rate": 100.0 * (latency > 3.0 * latency.median()).mean(),
        "goodput": good.sum() / span,
        "within": good.sum() / len(sent),
    }
    if "outcome" in sent:
        found["refused_requests"] = (sent["outcome"] == 1).sum()
        found["given_up_share"] = (sent["outcome"] == 2).mean()
        waited = sent["queue_entry_time"] - sent["arrival_time"]
        found["avg_client_wait"] = waited.mean()
        found["wasted_tokens"] = record.wasted_tokens[sent.index].sum()
    if "preemptions" in sent:
        found["preemptions"] = sent["preemptions"].sum()
    if "cached_tokens" in sent:
        found["kv_hit_rate"] = sent["cached_tokens"].sum() / sent["prompt_length"].sum()
    return found


CONTINUOUS = {"server": "continuous", "batch_size": 16, "arrival_rate": 3.5}
LIMITS = SLO(ttft=1.0, tpot=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"queue_limit": 4, "patience": 2.0},
        CONTINUOUS | {"kv_blocks": 100},
        CONTINUOUS | {"max_concurrency": 6, "request_timeout": 9.0},
        CONTINUOUS
        | {"prefix_caching": True, "shared_prefixes": {"count": 2, "tokens": 64}},
    ],
    ids=["static", "sheds", "short of memory", "gate", "cache"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_metrics_of_a_class_are_counted_from_the_record(changes):
    config = BASE.replace(**changes)
    record = simulate(config)
    found = measures.by_class(config, record, LIMITS)
    whole = metrics_of(config, record)
    for kind, name in enumerate(TWO):
        wanted = counted(config, record, kind)
        own = {key: found[f"{key}[{name}]"] for key in wanted}
        assert own == pytest.approx(wanted, rel=1e-9), name
        its = record.of_class(kind)
        rate = goodput(its, 1.0, 0.02, config.warmup_requests)
        assert rate == pytest.approx(wanted["goodput"])
        assert f"utilization[{name}]" not in found
    for name in ("total_requests", "throughput_tokens_per_sec", "total_tokens"):
        parts = sum(found[f"{name}[{of}]"] for of in TWO)
        assert parts == pytest.approx(whole[name])
    parts = [found[f"{name}[{of}]"] for name in ("avg_itl",) for of in TWO]
    assert min(parts) <= whole["avg_itl"] <= max(parts)
    missing = {"max_queue_length", "total_batches", "avg_batch_size", "utilization"}
    missing |= {"avg_kv_occupancy", "max_kv_occupancy"}
    assert {f"{key}[chat]" for key in whole.keys() - missing} <= found.keys()


def test_a_class_that_is_everybody_has_the_metrics_of_all():
    config = BASE.replace(request_classes={"all": {"share": 2, **CHAT}})
    record = simulate(config)
    found, whole = measures.by_class(config, record), metrics_of(config, record)
    shared = {key: whole[key] for key in whole if f"{key}[all]" in found}
    assert len(shared) > 50
    assert shared == {key: found[f"{key}[all]"] for key in shared}


def test_a_sweep_pools_the_quantiles_of_each_class():
    config = BASE.replace(num_requests=1_500, arrival_rate=2.0)
    slo = SLO(latency=60.0, classes={"chat": LIMITS, 1: SLO(latency=1.0)})
    measure = partial(measures.by_class, slo=slo)
    runs = sweep(config, {"batch_size": [2, 4]}, 3, 1, measure=measure)
    for (size, seed), row in runs.set_index(["batch_size", "seed"]).iterrows():
        record = simulate(config.replace(batch_size=size, random_seed=seed)).of_class(1)
        rows = record.measured(config.warmup_requests)
        left = kept("ttft", np.sort(record.ttft[rows]))["quantiles_ttft"]
        assert row["quantiles_ttft[code]"] == left
        good = np.mean(record.latency[rows] <= 1.0)
        assert row["within[code]"] == pytest.approx(good)
        assert 0.05 < good < 0.98
        assert row["memories"] > 0.0

    def shown(metric):
        return stats.summarize(runs, "batch_size", metric)["mean"].tolist()

    by_run = runs.groupby("batch_size")["p90_ttft[code]"].mean()
    assert shown("p90_ttft[code]") != pytest.approx(by_run.tolist(), rel=1e-4)
    assert shown("p95_e2e[code]") == shown("p95_latency[code]")


def test_a_class_without_requests_has_no_metrics_and_spoils_nothing():
    kinds = TWO | {"nobody": {"share": 0}}
    config = BASE.replace(request_classes=kinds, num_requests=600)
    runs = sweep(config, {"batch_size": [4]}, 2, 1, measure=measures.by_class)
    assert "avg_ttft[nobody]" not in runs
    assert runs["quantiles_ttft[nobody]"].tolist() == [[0.0]] * 2
    with pytest.raises(ConfigError, match="nothing to measure"):
        MetricsCollector.compute_metrics(simulate(config).of_class(2))


def test_the_capacity_under_a_limit_of_one_class_is_counted_from_runs():
    config = BASE.replace(
        num_requests=2_500, scheduling_policy="SJF", batch_size=2, arrival_rate=1.0
    )
    slo = SLO(classes={"code": SLO(ttft={"mean": 1.5})})
    one = {"replications": 2, "n_jobs": 1, "tolerance": 0.1}
    found = capacity(config, slo, **one)
    runs = sweep(
        config, {"arrival_rate": [*found.bracket]}, 2, 1, measure=measures.by_class
    )
    kept, broken = runs.groupby("arrival_rate")["avg_ttft[code]"].mean()
    assert kept <= 1.5 < broken
    other = capacity(config, SLO(classes={"chat": SLO(ttft={"mean": 1.5})}), **one)
    assert other.rate > 1.1 * found.rate  # the long ones wait behind the short


# The configuration


@st.composite
def configured(draw):
    kinds = draw(classes())
    for name in kinds:
        if draw(st.booleans()):
            mean = draw(st.floats(0.1, 9.0))
            law = {"dist": "exponential", "mean": mean}
            kinds[name]["think_time"] = draw(st.sampled_from([mean, law]))
    return SimulationConfig(
        request_classes=kinds, clients=3, prompt_dist_params={"mu": 3, "sigma": 1}
    )


@settings(max_examples=30)
@given(configured())
def test_classes_with_laws_survive_json_repr_and_pickle(config):
    for back in copies(config):
        assert back == config
        assert hash(back) == hash(config)
        assert repr(back) == repr(config)
        assert (back.prompts, back.outputs) == (config.prompts, config.outputs)
    plain = config.to_dict()["request_classes"]
    assert (
        json.loads(json.dumps(plain)) == json.loads(config.to_json())["request_classes"]
    )
    assert all(type(v) is not type(config.request_classes) for v in plain.values())


def test_the_laws_of_a_class_can_no_more_be_changed_than_the_rest():
    values = [10, 20]
    given = {"a": law("prompt", "empirical", values=values)}
    config = SimulationConfig(request_classes=given)
    values.append(30)
    given["a"]["prompt_dist_params"]["values"] = [5]
    params = config.request_classes["a"]["prompt_dist_params"]
    assert params == {"values": (10, 20)}
    with pytest.raises(TypeError, match="a configuration is frozen"):
        params["values"] = [1]


@pytest.mark.parametrize(
    "own",
    [
        {"think_time": 2.0},
        law("prompt", "constant", value=7),
        law("output", "uniform", min=60, max=141),
        {"output_dist_params": {"min": 60, "max": 139}},
    ],
)
def test_the_store_knows_the_laws_of_a_class(own):
    config = BASE.replace(clients=3)
    kinds = TWO | {"code": {"share": 1, **CODE, **own}}
    other = config.replace(request_classes=kinds)
    assert other != config
    assert run_key(config, metrics_of) != run_key(other, metrics_of)
    assert run_key(other, metrics_of) == run_key(other.replace(), metrics_of)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            law("prompt", "lognormal", mu="x", sigma=1),
            r"request_classes\.code\.prompt_dist_params\.mu='x': must be a finite",
        ),
        (
            law("output", "uniform", min=9, max=5),
            r"request_classes\.code\.output_dist_params\.max=5: must be at least min=9",
        ),
        (
            {"output_length_dist": "geometrical"},
            r"request_classes\.code\.output_length_dist='geometrical': must be one "
            r"of .*did you mean geometric",
        ),
        (
            {"output_length_dist": "constant"},
            r"request_classes\.code\.output_dist_params\.mu=100: constant takes value",
        ),
        (
            {"prompt_dist_params": 5},
            r"request_classes\.code\.prompt_dist_params=5: must be a dict",
        ),
        (
            law("output", "paired", values=[1, 2]),
            r"request_classes\.code\.prompt_length_dist=.*: must be empirical, of 2",
        ),
        (
            {"think_time": -1.0},
            r"request_classes\.code\.think_time=-1\.0: must be a finite number of at",
        ),
        (
            {"think_time": {"dist": "normal"}},
            r"request_classes\.code\.think_time\.dist='normal': must be one of",
        ),
        (
            {"prompt_dist_parms": {}},
            r"request_classes\.code\.prompt_dist_parms=.*did you mean prompt_dist_para",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_named(own, said):
    with pytest.raises(ConfigError, match=said):
        SimulationConfig(clients=2, request_classes={"chat": {}, "code": own})


def test_who_thinks_must_be_a_user():
    with pytest.raises(ConfigError, match="clients=None: must be given beside think"):
        SimulationConfig(request_classes={"chat": {"think_time": 1.0}})


@settings(max_examples=30)
@given(synthetic_runs())
def test_the_moments_of_any_classes_are_those_of_what_is_drawn(run):
    config = run[0].replace(num_requests=20_000)
    work = Workload.generate(config)
    for name in ("prompt", "output"):
        lengths, law = getattr(work, f"{name}_length"), getattr(config, f"{name}s")
        error = np.sqrt(law.variance() / len(work))
        assert abs(lengths.mean() - law.expectation()) < 5.0 * error + 1e-9
