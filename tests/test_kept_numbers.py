"""Numbers of laws, theory, statistics and runs are what was found right.

Other tests say why they are right; here is what they are, to seven digits.
``python tests/test_kept_numbers.py`` keeps what there is now: where a change is meant.
"""

from __future__ import annotations

import inspect
import itertools
import random
import warnings
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import numpy as np
import pandas as pd
import pytest
import simpy
from cases import serve_by_hand
from kept_text import Kept, text_of

from llminfer import (
    SLO,
    ConfigError,
    LLMInferenceServer,
    MetricsCollector,
    Request,
    RunRecord,
    ServerByHand,
    SimulationConfig,
    TraceError,
    Workload,
    goodput,
    simulate,
    stats,
    theory,
)
from llminfer.laws import arrivals, engines, lengths, people
from llminfer.laws.prefixes import SharedPrefixes
from llminfer.policies import POLICIES, Waiting, get_policy, ranked
from llminfer.report import latex
from llminfer.report.verdict import Verdict
from llminfer.request import RequestClass
from llminfer.servers import overload
from llminfer.servers.batch_control import CONTROLLERS
from llminfer.servers.token_gaps import token_gaps
from llminfer.stats import least_squares, paired, pooling
from llminfer.stats.intervals import Estimate, beside, jackknife, skewed_mean
from llminfer.stats.run_length import averaged_series
from llminfer.study import against_theory, coverage, early_warning, measures, traffic
from llminfer.theory.service_time import BatchTime, longest_output, time_alone
from llminfer.timeseries import (
    batch_limit,
    kv_occupancy,
    latency_quantile,
    queue_length,
    running,
)
from llminfer.timing import StepTime

KEPT = Kept("numbers")
REPORT = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 1024},
    num_requests=150,
    warmup_requests=10,
    random_seed=3,
)
RTX = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    arrival_rate=3.0,
    batch_size=12,
    kv_blocks=500,
    prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 1024},
    num_requests=150,
    warmup_requests=10,
    random_seed=3,
)
U = np.concatenate([[0.0], np.linspace(0.003, 0.997, 60), [1.0 - 1e-12]])
NORMALS = np.random.default_rng(5).standard_normal((6, 60))


def at_load(config, load, **changes):
    config = config.replace(**changes)
    return config.replace(arrival_rate=load * config.max_stable_rate)


LAWS = {
    "lognormal": lengths.LogNormal(3.0, 1.2, 2, 400),
    "lognormal, no end": lengths.LogNormal(2.0, 0.7),
    "uniform": lengths.Uniform(3, 77),
    "uniform, parts": lengths.Uniform(2.5, 9.25),
    "normal": lengths.TruncatedNormal(40.0, 15.0, 7, 90),
    "normal, far": lengths.TruncatedNormal(-30.0, 15.0, 7, 90),
    "power": lengths.PowerLaw(1.7, 2, 900),
    "power, one": lengths.PowerLaw(1.0, 2, 900),
    "bimodal": lengths.Bimodal(1, 20, 50, 90, 0.3),
    "bimodal, over": lengths.Bimodal(10, 60, 5, 90, 0.6),
    "geometric": lengths.Geometric(12.5),
    "geometric, end": lengths.Geometric(12.5, 30),
    "geometric, one": lengths.Geometric(1.0),
    "constant": lengths.Constant(9),
    "empirical": lengths.Empirical((9, 2, 2, 40, 5.7)),
    "weights": lengths.Empirical((9, 2, 40), (1, 3, 0.5)),
    "paired": lengths.Paired((9, 2, 40), (1, 3, 0.5)),
    "classes": lengths.by_class(
        [lengths.Constant(9), lengths.Uniform(3, 77)], [0.25, 0.75]
    ),
}
PROMPTS = lengths.Empirical((100, 30, 7), (1, 3, 0.5))


@KEPT.part
def laws() -> Iterator[str]:
    k = np.arange(0.0, 100.0, 0.5)
    for name, law in LAWS.items():
        yield f"{name} tokens = {text_of(law.tokens(U))}"
        yield f"{name} quantile = {text_of(law.quantile(U))}"
        yield f"{name} survival = {text_of(law.survival(k))}"
        copies = [law.expectation(), law.expectation(3), law.pairs(), law.pairs(2)]
        yield f"{name} = {text_of([*law.support, *copies, law.variance(), law.listed])}"
        yield f"{name} pmf = {text_of(law.pmf())}"
        prompts = PROMPTS if isinstance(law, lengths.Paired) else lengths.Uniform(4, 9)
        joint = [law.joint(prompts), law.joint(prompts, 3)]
        yield f"{name} joint = {text_of(joint)}"
        drawn = law.beside(prompts, U, U[::-1])
        yield f"{name} beside = {text_of(drawn)}"
        weighted = law.weighted(prompts)
        told = [weighted.expectation(), *weighted.support]
        yield f"{name} weighted = {text_of(told)}"
        for places, room, ways in ((3, 40.0, ()), (7, 300.0, (0.2, 0.1))):
            short = lengths.mean_shortfall(law, places, room, *ways)
            yield f"{name} shortfall {places} = {text_of(short)}"


@KEPT.part
def rates() -> Iterator[str]:
    t = np.concatenate([[0.0], np.geomspace(0.01, 500.0, 40)])
    kinds = {
        "constant": arrivals.ConstantRate(3.0),
        "step": arrivals.StepRate(3.0, 7.0, 9.0),
        "step, at once": arrivals.StepRate(3.0, 0.0, 0.5),
        "wave": arrivals.SinusoidalRate(3.0, 2.5, 11.0),
        "wave, phase": arrivals.SinusoidalRate(3.0, 3.0, 11.0, 1.2),
        "ramp": arrivals.RampRate(3.0, 9.0, 60.0),
        "ramp, down": arrivals.RampRate(9.0, 0.1, 60.0),
    }
    for name, rate in kinds.items():
        whole = rate.cumulative(t)
        ends = [rate(t), whole, rate.inverse(whole), rate.inverse(t)]
        yield f"{name} = {text_of(ends)}"
        means = [rate.peak(17), rate.peak(400), rate.mean(17), rate.mean(400)]
        yield f"{name} means = {text_of(means)}"
    for cv, gaps in ((0.0, None), (0.4, None), (1.0, None), (2.5, None), (1.0, [1, 2])):
        drawn = arrivals.unit_arrivals(50, cv, np.random.default_rng(1), gaps)
        yield f"gaps {cv} {gaps} = {text_of(drawn)}"


@KEPT.part
def users() -> Iterator[str]:
    for law in (
        {"dist": "constant", "value": 3.0},
        {"dist": "exponential", "mean": 2.0},
        {"dist": "lognormal", "mu": 1.0, "sigma": 0.5},
        {"dist": "uniform", "min": 1.0, "max": 4.0},
        2.5,
    ):
        drawn = people.seconds_law("think_time", law)
        yield f"{law} = {text_of(drawn(U))}"
    for count, tokens, zipf in ((3, 40, 0.0), (5, 9, 1.3), (1, 2, 0.0)):
        its = SharedPrefixes(count, tokens, zipf)
        names = np.array([path[0][0] for path in its.segments(U)])
        yield f"prefixes {count} {tokens} {zipf} = {text_of(names)}"


@KEPT.part
def steps() -> Iterator[str]:
    p, b, k, q = np.array(
        [[0, 300, 700, 9], [4, 0, 9, 2], [90, 0, 5e4, 7], [0, 9, 4e4, 3]]
    )
    prompts, outputs = LAWS["lognormal"], LAWS["normal"]
    for law, launch, graph in itertools.product(
        ("sum", "roofline"), (0.0, 0.03), (8, 512)
    ):
        if law == "sum" and launch:
            continue
        its = StepTime(2e-4, 8e-3, 0.012, 1e-4, 4e-7, 2e-8, law, launch, graph)
        name = f"{law} {launch} {graph}"
        yield f"{name} step = {text_of(its.step(p, b, k, q))}"
        yield f"{name} prefill = {text_of(its.prefill(p, q))}"
        yield f"{name} decode = {text_of(its.decode(b + 1.0, k, np.arange(2.0, 6.0)))}"
        yield f"{name} growth = {text_of(its.growth(b + 1.0, p))}"
        alone = its.alone(p + 1.0, b + 1.0), its.mean_batch_time(prompts, outputs, 7)
        yield f"{name} alone = {text_of(alone)}"
        rates = [its.saturation_rate(prompts, outputs, n) for n in (1, 8, 64)]
        yield f"{name} rates = {text_of(rates)}"
        moments = [BatchTime(its, prompts, outputs, 3).moment(n) for n in (1, 2)]
        yield f"{name} moments = {text_of(moments)}"
        one = time_alone(its, prompts, outputs)
        s = np.array([0.0, 0.4, 3j, 2.0 - 9j])
        yield f"{name} alone moments = {text_of([one.moment(n) for n in (1, 2, 3)])}"
        yield f"{name} transform = {text_of(one.transform(s))}"
        batch = BatchTime(its, prompts, outputs, 5).transform(s)
        yield f"{name} batch transform = {text_of(batch)}"


def of_queue(its) -> dict[str, object]:
    """The means and the waits of a queue that theory has."""
    names = "mean mean_ttft mean_latency mean_batch utilization load variance chance"
    found = {n: getattr(its, n) for n in names.split() if hasattr(its, n)}
    if hasattr(its, "quantile"):
        found["quantiles"] = [its.quantile(q) for q in (0.5, 0.9, 0.99)]
        found["survival"] = its.survival([0.0, 0.1, 1.0, 9.0])
    for name in ("left", "state", "key", "share", "wait"):
        if hasattr(its, name):
            found[name] = np.asarray(getattr(its, name))
    return found


@KEPT.part
def queues() -> Iterator[str]:
    for base, name in ((REPORT, "report"), (RTX.replace(server="static"), "RTX")):
        for load in (0.05, 0.6, 0.95):
            one = at_load(base, load, batch_size=1)
            yield f"one {name} {load} = {text_of(of_queue(theory.mg1(one)))}"
        for size, load, timeout in ((2, 0.3, 0), (8, 0.7, None), (20, 0.9, 0)):
            its = at_load(base, load, batch_size=size, batch_timeout=timeout)
            found = of_queue(theory.bulk_queue(its))
            yield f"bulk {name} {size} {load} = {text_of(found)}"
            told = [theory.mean_latency(its), theory.memory(its)]
            told.append(theory.measured_memories(its))
            told.append(theory.latency_curve(its, (0.1, 0.5, 0.9, 1.1)))
            yield f"told {name} {size} {load} = {text_of(told)}"
            long = theory.long_enough(its, 20.0)
            said = long.num_requests, long.warmup_requests
            yield f"long {name} {size} {load} = {text_of(said)}"
    at = at_load(REPORT, 0.75, batch_size=1)
    for policy, params in (
        ("SJF", {}),
        ("Predicted-SJF", {"prediction_sigma": 0.7}),
        ("Predicted-SJF", {}),
        ("Priority", {"aging_rate": 0.0}),
    ):
        its = at.replace(scheduling_policy=policy, scheduling_policy_params=params)
        yield f"{policy} {params} = {text_of(of_queue(theory.priority(its)))}"
    yield f"work = {text_of(theory.conserved_work(at))}"
    full = at_load(REPORT, 0.5, batch_size=6)
    free = full.replace(alpha=0.0, beta=0.0, gamma=0.0)
    yield f"assembly = {text_of([theory.assembly_bound(free)])}"


@KEPT.part
def chains() -> Iterator[str]:
    geometric = {"output_length_dist": "geometric", "output_dist_params": {"mean": 20}}
    steps = {**geometric, "server": "continuous", "max_batched_tokens": 10**6}
    for base, name in ((REPORT, "report"), (RTX.replace(kv_blocks=None), "RTX")):
        for size, load in ((1, 0.5), (3, 0.2), (5, 0.9)):
            its = at_load(base, load, batch_size=size, kappa=0.0, **steps)
            found = of_queue(theory.continuous(its))
            yield f"{name} {size} {load} = {text_of(found)}"
            yield f"told {name} {size} {load} = {text_of(theory.mean_latency(its))}"
    decode = {"alpha": 0.0, "beta": 0.0, "gamma": 0.02, "delta": 0.0005}
    its = REPORT.replace(arrival_rate=2.5, batch_size=512, **steps, **decode)
    yield f"product form = {text_of(theory.product_form_latency(its))}"
    alike = {"output_length_dist": "constant", "output_dist_params": {"value": 100}}
    its = at_load(REPORT, 0.4, batch_size=64, batch_timeout=0, **alike)
    yield f"Inoue = {text_of([theory.inoue_latency(its, b) for b in (1.0, 3.5)])}"
    for name, law in LAWS.items():
        if np.isfinite(law.support[1]) and name not in ("paired", "classes"):
            longest = longest_output(PROMPTS, law, [1, 4])
            yield f"longest of 4, {name} = {text_of(longest)}"


@KEPT.part
def comparisons() -> Iterator[str]:
    record = simulate(REPORT.replace(arrival_rate=9.0, num_requests=1500))
    for its in against_theory.comparisons():
        usual = SimulationConfig()
        changed = {
            f.name: getattr(its.config, f.name)
            for f in fields(usual)
            if getattr(its.config, f.name) != getattr(usual, f.name)
        }
        name = f"{its.name}, {its.metric}".replace(" = ", " is ")
        yield f"{name} = {text_of([its.source, its.exact, changed])}"
        yield f"{name}, measured = {text_of(its.measure(record, 12))}"
    found = against_theory.estimates(against_theory.comparisons()[0].config, record)
    yield f"estimates = {text_of(found)}"


def table(cells=(3, 4)) -> pd.DataFrame:
    """Runs of some alternatives in two settings, with what they have in common."""
    rows = []
    values = np.abs(NORMALS.ravel()) + 0.5
    for i, (load, policy, n) in enumerate(
        itertools.product((0.5, 0.9), "abc"[: cells[0]], range(cells[1]))
    ):
        wait = values[i] + 0.4 * "abc".index(policy) + values[200 + n]
        rows.append({"load": load, "policy": policy, "replication": n, "wait": wait})
    return pd.DataFrame(rows)


@KEPT.part
def intervals() -> Iterator[str]:
    sample = np.exp(NORMALS[0])
    for n in (2, 3, 10, 40):
        for name, its in (("mean", Estimate.of_mean), ("skewed", skewed_mean)):
            yield f"{name} {n} = {text_of(its(sample[:n]))}"
    confident = stats.intervals.compute_confidence_interval
    for level in (0.5, 0.9, 0.99):
        yield f"confidence {level} = {text_of(confident(sample, level))}"
    yield f"one = {text_of(confident([3.0]))}"
    yield f"jackknife = {text_of(jackknife(2.0, sample[:9]))}"
    for q in (0.1, 0.5, 0.9):
        found = stats.pooled_quantile(list(np.exp(np.tile(NORMALS, 20))), q)
        yield f"pooled {q} = {text_of(found)}"
    runs = table().assign(p99_wait=table()["wait"] * 3.0, memories=[50.0, 900.0] * 12)
    by = stats.summarize(runs, ["load", "policy"], ["wait", "p99_wait"])
    yield f"summary = {text_of(by)}"
    yield f"summary of one = {text_of(stats.summarize(runs.head(1), 'load', 'wait'))}"
    names = {"wait": "a wait", "p99_wait": "its p99"}
    beside_it = beside(by, ["load", "policy"], names)
    yield f"beside = {text_of(beside_it)}"
    series = table().assign(path=[list(np.exp(row)) for row in NORMALS.reshape(24, 15)])
    found = stats.summarize_series(series, "policy", ["path"])
    yield f"series = {text_of(found)}"


@KEPT.part
def pairs() -> Iterator[str]:
    runs = table((3, 4))
    half, one = (runs[runs["load"] == load] for load in (0.5, 0.9))
    for name, its in (("half", half), ("one", one)):
        for first in ("a", None):
            apart = stats.paired_differences(its, "wait", "policy", first)
            yield f"{name} from {first} = {text_of(apart)}"
        yield f"{name} anova = {text_of(stats.blocked_anova(its, 'wait', 'policy'))}"
        cost = stats.cost_of_choice(its, "wait", "policy", "b")
        yield f"{name} cost = {text_of(cost)}"
        best = stats.best_against_rest(its, "wait", "policy", ["a"])
        yield f"{name} best = {text_of(dict(best))}"
        best = stats.best_against_rest(
            its, "wait", "policy", ["a", "b"], confidence=0.8
        )
        yield f"{name} best two = {text_of(dict(best))}"
    p = np.array([0.001, 0.2, 0.04, 0.03, 0.9, np.nan])
    yield f"Holm = {text_of(paired.holm(p))}"


@KEPT.part
def lengths_of_runs() -> Iterator[str]:
    walk = NORMALS.cumsum(axis=1)
    noise = np.concatenate([np.linspace(9.0, 0.0, 30)[None], NORMALS[:1]], axis=1)
    for name, its in (("walk", walk[0]), ("noise", noise[0]), ("short", walk[0, :50])):
        yield f"mser {name} = {text_of(stats.mser5(its))}"
    yield f"averaged = {text_of(averaged_series(list(walk)))}"
    for window in (1, 3, 9):
        yield f"welch {window} = {text_of(stats.welch(list(walk), window))}"
    sample = np.exp(np.random.default_rng(2).standard_normal(900))
    for target, most in ((0.5, 900), (0.1, 900), (0.1, 60)):
        found = stats.replicate_until(sample.__getitem__, target, most)
        told = [found.n, found.estimate, found.reached]
        yield f"until {target} {most} = {text_of(told)}"
    even = 3.0 + 2.0 * np.random.default_rng(4).standard_normal(900)
    for target in (0.2, 0.1, 0.07, 0.06, 0.05):
        found = stats.replicate_until(even.__getitem__, target, 900)
        yield f"until {target} of even ones = {text_of([found.n, found.estimate])}"
    yield f"robust = {text_of(least_squares.robust(NORMALS[0]))}"
    ordered = np.sort(np.exp(NORMALS[1]))
    yield f"quantiles = {text_of(pooling.quantiles(ordered, U))}"
    yield f"kept = {text_of(pooling.kept('wait', ordered))}"
    yield f"kept, few = {text_of(pooling.kept('wait', ordered, 9))}"


@KEPT.part
def trust() -> Iterator[str]:
    means = np.exp(0.3 * np.random.default_rng(2).standard_normal(400))
    yield f"trust = {text_of(coverage.trust(means, 1.04, 40))}"
    yield f"stopped = {text_of(coverage.stopped(means, 1.04, [0.2, 0.05]))}"
    one = at_load(REPORT, 0.5, batch_size=1, num_requests=60)
    found = coverage.experiments(
        one, lambda at, w: {"mean": w.mean(), "p": w.max()}, [0.5, 0.9], 3, 4
    )
    yield f"experiments = {text_of(found)}"
    waits = np.abs(NORMALS).cumsum(axis=1)
    yield f"cuts = {text_of(coverage.behind_cuts(waits, [0, 3, 11]))}"
    noise = np.concatenate(
        [np.linspace(9.0, 0.0, 30) + np.zeros((6, 1)), NORMALS], axis=1
    )
    yield f"cuts in noise = {text_of(coverage.behind_cuts(noise, [0, 3, 11]))}"
    yield f"p99s = {text_of(coverage.p99s(waits, 40.0, [9, 40]))}"
    yield f"share = {text_of(coverage.share([True] * 9 + [False] * 2))}"
    record = simulate(one)
    yield f"mean wait = {text_of(coverage.mean_wait(one, record))}"


@KEPT.part
def warnings_of_load() -> Iterator[str]:
    few = REPORT.replace(batch_size=8, batch_timeout=0.0)
    runs = []
    for end, seed in ((1.3, 1), (1.25, 2), (1.2, 3), (0.85, 4), (0.9, 5), (0.8, 6)):
        ramp = early_warning.load_ramp(few, 0.4, end, 200.0, 300.0)
        ramp = ramp.replace(random_seed=seed)
        seen = early_warning.warning_signals(ramp, simulate(ramp))
        runs.append({"replication": seed % 3, "end": end, **seen})
        if seed == 1:
            yield f"times = {text_of(early_warning.sample_times(ramp))}"
            ends = ramp.num_requests, ramp.warmup_requests, ramp.arrival_pattern_params
            yield f"ramp = {text_of(ends)}"
    for name in runs[0]:
        if name not in ("replication", "end"):
            yield f"{name} = {text_of([np.array(its[name]) for its in runs])}"
    frame = pd.DataFrame(runs)
    for signal in early_warning.SIGNALS:
        level = early_warning.quiet_threshold(frame[3:], signal, 0.4)
        yield f"{signal} quiet = {text_of(level)}"
        told = early_warning.judge(frame, signal, level)
        yield f"{signal} judged = {text_of(told)}"
        yield f"{signal} spread = {text_of(early_warning.spread(frame[:1], signal))}"
        yield f"{signal} traded = {text_of(early_warning.trade_off(frame, signal))}"
    yield f"quiet = {text_of(early_warning.quiet_alarms(frame, 0.3))}"
    yield f"auc = {text_of(early_warning.auc_by_signal(frame, 60.0))}"
    parts = early_warning.right_and_wrong(frame, "queue", 60.0)
    yield f"roc = {text_of(early_warning.roc_curve(*parts))}"


SHORT = REPORT.replace(
    num_requests=120, prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 256}
)
CHOICES: dict[str, list[dict[str, object]]] = {
    "server": [
        {"batch_timeout": None},
        {"batch_timeout": 0.0},
        {"batch_timeout": 0.4},
        {"server": "continuous"},
        {"server": "continuous", "kv_blocks": 90},
        {"server": "continuous", "kv_blocks": 90, "reserve_full_prompt": False},
        {"server": "continuous", "chunked_prefill": False, "kv_blocks": 200},
        {"server": "continuous", "max_batched_tokens": 64, "kv_blocks": 120},
        {"server": "continuous", "prefix_caching": True, "kv_blocks": 150},
        {"server": "continuous", "prefix_caching": True, "kv_blocks": 60},
        {"server": "continuous", "prefix_caching": True, "async_scheduling": True},
        {"server": "continuous", "replicas": 3, "router": "round_robin"},
        {"server": "continuous", "replicas": 3, "router": "random"},
        {"server": "continuous", "replicas": 3, "router": "least_loaded"},
        {"server": "continuous", "replicas": 2, "router": "shortest_queue"},
        {
            "server": "continuous",
            "replicas": 3,
            "router": "session",
            "prefix_caching": True,
            "kv_blocks": 200,
        },
        {
            "server": "continuous",
            "replicas": 3,
            "router": "longest_prefix",
            "prefix_caching": True,
            "kv_blocks": 200,
        },
    ],
    "policy": [
        *({"scheduling_policy": name} for name in POLICIES),
        {
            "scheduling_policy": "Predicted-SJF",
            "scheduling_policy_params": {"prediction_sigma": 0.8},
        },
    ],
    "people": [
        *[{}] * 3,
        {"arrival_cv": 2.0},
        {"arrival_gaps": [0.1, 0.4, 2.0]},
        {"max_concurrency": 7},
        {"clients": 9, "think_time": 1.0},
        {"clients": 9, "think_time": {"dist": "exponential", "mean": 2.0}},
        {"clients": 5, "turns": {"dist": "geometric", "mean": 3}, "queue_limit": 3},
        {"patience": {"dist": "exponential", "mean": 2.0}},
        {"queue_limit": 4},
        {"request_timeout": {"dist": "uniform", "min": 1.0, "max": 9.0}},
    ],
    "control": [
        *[{}] * 4,
        {"batch_control": "queue", "batch_control_params": {"interval": 3.0}},
        {"batch_control": "rate", "batch_control_params": {"interval": 3.0}},
        {
            "batch_control": "latency",
            "batch_control_params": {"interval": 2.0, "target": 3.0},
        },
    ],
    "requests": [
        *[{}] * 3,
        {"shared_prefixes": {"count": 3, "tokens": 64, "zipf": 1.0}},
        {
            "request_classes": {
                "chat": {"share": 2},
                "code": {"share": 1, "weight": 3.0},
            }
        },
        {
            "arrival_pattern": "ramp",
            "arrival_pattern_params": {"end_rate": 9, "duration": 30},
        },
    ],
    "law": [
        {},
        {"delta": 1e-3, "kappa": 1e-6, "epsilon": 1e-7},
        {"step_law": "roofline", "launch": 0.01, "graph_tokens": 64, "delta": 1e-3},
    ],
}


def drawn_runs(number: int, seed: int) -> Iterator[tuple[SimulationConfig, RunRecord]]:
    """Some of all that can be combined, and run."""
    draw = random.Random(seed)
    while number:
        changes: dict[str, object] = {}
        for its in CHOICES.values():
            changes |= draw.choice(its)
        size, rate = draw.choice([1, 3, 8]), draw.choice([2.0, 5.0, 12.0])
        try:
            its = SHORT.replace(batch_size=size, arrival_rate=rate, **changes)
            record = simulate(its)
            MetricsCollector.compute_metrics(record, 10)
        except ConfigError:  # some cannot, or nobody is served
            continue
        yield its, record
        number -= 1


def of_run(config: SimulationConfig, record: RunRecord) -> Iterator[str]:
    columns = {f.name: getattr(record, f.name) for f in fields(record)}
    log = columns.pop("steps")
    if log is not None:
        columns |= {f"log {f.name}": getattr(log, f.name) for f in fields(log)}
    yield f"record = {text_of(columns)}"
    found = MetricsCollector.compute_metrics(record, 10)
    good = goodput(record, 1.0, 0.05, 10), goodput(record, 0.3, 1.0)
    yield f"metrics = {text_of([overload.waiting_in(record), good, found])}"
    at = np.linspace(0.0, float(np.nanmax(record.processing_end_time)), 30)
    series = {"queue": queue_length(record), "running": running(record)}
    if config.replicas == 1:
        series["limit"] = batch_limit(record)
    told = {n: [its(at), its.means(at), its.integral(at)] for n, its in series.items()}
    told["late"] = [latency_quantile(record, at, 5.0, 0.9)]
    if config.replicas == 1 and log is not None and log.kv_blocks is not None:
        told["held"] = list(kv_occupancy(record))
    yield f"over time = {text_of(told)}"
    gaps = token_gaps(record, config.step_time, 10)
    sample = gaps.sample(50)
    parts = [gaps.number, gaps.mean, gaps.quantiles([0.0, 0.5, 0.99, 1.0]), sample]
    yield f"gaps = {text_of([*parts, gaps.up_to(0.05)])}"


def of_runs(first: int) -> Iterator[str]:
    for i, its in enumerate(drawn_runs(20, seed=first)):
        yield from (f"{first} {i} {line}" for line in of_run(*its))


RUNS = "runs", "other_runs", "more_runs", "still_more_runs", "the_last_runs"
KEPT.parts |= {name: partial(of_runs, i) for i, name in enumerate(RUNS, 1)}


HOSTILE = [-1, 0, 1, 2, 1.5, 1e9, 1e16, 10**400, -0.0, np.nan, np.inf, True, None]
HOSTILE += ["x", "fcfs", "SJFF", "static", [], [1, 2], (3.0,), {}, {"mean": 2}]
HOSTILE += [{"dist": "constant", "value": 3}, {"a": {"share": 1}}, 1e-320, 2**53 + 1]


def came_of(give, *values) -> str:
    """What is said of each value, or made of it."""
    said = []
    for value in values:
        try:
            said.append(give(value))
        except (ConfigError, TraceError) as error:
            said.append(str(error))
        except Exception as error:  # not in our words
            said.append(type(error).__name__)
    return text_of(said)


@KEPT.part
def refusals_of_fields() -> Iterator[str]:
    bases = {"static": REPORT, "engine": RTX}
    for name, base in bases.items():
        for field in fields(SimulationConfig):
            its = field.name
            give = lambda x: getattr(base.replace(**{its: x}), its)  # noqa: B023,E731
            yield f"{name} {its} = {came_of(give, *HOSTILE)}"


def mixed(kinds, base) -> Iterator[tuple[str, object]]:
    """By kind and parameter, how it is made with another value of that."""
    for name, kind in kinds.items():
        taken = inspect.signature(kind).parameters
        usual = {n: 9 if p.default is p.empty else p.default for n, p in taken.items()}
        usual = {n: base.get(n, its) for n, its in usual.items()}
        for its in taken:
            yield f"{name}.{its}", partial(made, kind, usual, its)


def made(kind, usual, name, value):
    return getattr(kind(**usual | {name: value}), name)


@KEPT.part
def refusals_of_parameters() -> Iterator[str]:
    ends = {"min": 2, "short_min": 2, "short_prob": 0.5, "values": (2, 3)}
    ends |= {"weights": (1, 2), "laws": (LAWS["constant"],), "shares": (1.0,)}
    ends |= {"mu": 1.0, "sigma": 1.0, "alpha": 1.0, "step_law": "sum", "random_seed": 1}
    for kinds in (lengths.LENGTH_LAWS, arrivals.ARRIVAL_PATTERNS, CONTROLLERS):
        for name, give in mixed(kinds, ends):
            yield f"{name} = {came_of(give, *HOSTILE)}"
    others = {"prefixes": SharedPrefixes, "times": StepTime, "slo": SLO}
    others |= {"class": RequestClass}
    for name, give in mixed(others, ends):
        yield f"{name} = {came_of(give, *HOSTILE)}"
    for name in POLICIES:
        params = inspect.signature(POLICIES[name]).parameters
        for its in params:
            give = lambda x: getattr(get_policy(name, **{its: x}), its)  # noqa: B023,E731
            seed = its == "random_seed"  # which is drawn where it is None
            values = [x for x in HOSTILE if not (seed and x is None)]
            yield f"policy {name}.{its} = {came_of(give, *values)}"
    for field in ("think_time", "patience"):
        give = partial(people.seconds_law, field)
        yield f"{field} = {came_of(lambda x: give(x)(U), *HOSTILE)}"  # noqa: B023


@KEPT.part
def refusals_of_columns() -> Iterator[str]:
    right = [[0.0, 1.0, 2.5], [5, 6, 7], [1, 2, 3]]
    wrong = [[], [1], [1, 2, -3], [0, 1, 2], [2, 1, 0], [1, np.nan, 2], ["a", "b", "c"]]
    wrong += [
        ["1", "2", "3"],
        [True, False, True],
        None,
        3,
        [1.5, 2.0, 3.0],
        [[1], 2, 3],
    ]
    wrong += [[1e16, 1e17, 1e18], [0, 0, 0], pd.Series([1, 2, 3]), np.array([1j, 2, 3])]
    for i, name in enumerate(("arrival_time", "prompt_length", "output_length")):

        def give(value, at=i):
            its = Workload.from_arrays(*[*right[:at], value, *right[at + 1 :]])
            return its.columns

        yield f"{name} = {came_of(give, *wrong)}"
    config = REPORT.replace(warmup_requests=0)
    scaled = Workload.from_arrays(*right).scaled
    yield f"scaled = {came_of(lambda x: scaled(x).arrival_time, *HOSTILE)}"
    runs = came_of(lambda x: simulate(config, x).latency, *HOSTILE)
    yield f"workload = {runs}"
    for make in (stats.intervals.compute_confidence_interval, stats.mser5):
        yield f"{make.__name__} = {came_of(make, *wrong)}"


@KEPT.part
def runs_by_hand() -> Iterator[str]:
    works = {"own": Workload.generate(SHORT.replace(num_requests=40, arrival_rate=9.0))}
    at = [0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 1.0, 9.0, 200.0]
    prompts = [300, 200, 9, 120, 60, 40, 20, 10, 20, 50]
    works["ties"] = Workload.from_arrays(at, prompts, prompts[::-1])
    choices = [c for c in CHOICES["control"] if c] + CHOICES["policy"]
    choices += [{"batch_timeout": 0.4}, {"batch_timeout": 0.0}, {"batch_size": 1}, {}]
    for changes, (name, work) in itertools.product(choices, works.items()):
        its = SHORT.replace(**{"batch_size": 4, "batch_timeout": 2.0, **changes})
        record = serve_by_hand(its, work)
        columns = {f.name: getattr(record, f.name) for f in fields(record)}
        yield f"{name} {changes} = {text_of(columns)}"
    control = {"batch_control": "queue", "batch_control_params": {"interval": 3.0}}
    for changes in (
        {},
        {"batch_timeout": 0.4},
        control,
        {"batch_timeout": 9.0, **control},
    ):
        env = simpy.Environment()
        server = ServerByHand(env, SHORT.replace(**{"batch_size": 3, **changes}))
        env.process(server.run())
        for request in works["ties"].requests():
            server.enqueue_request(request)
        env.run()
        told = [env.now, server.get_statistics()]  # nothing is to come any more
        server.close()
        env.run()
        told += [env.now, server.get_statistics(), len(server.completed)]
        yield f"open {changes} = {text_of(told)}"
    env = simpy.Environment()
    other = LLMInferenceServer(env, SHORT.replace(arrival_rate=4.0), works["own"])
    env.process(other.run())
    env.run()
    yield f"statistics of columns = {text_of(other.get_statistics())}"


@KEPT.part
def those_who_leave_a_controlled_server() -> Iterator[str]:
    ends = ({"patience": 1.0}, {"request_timeout": 1.5}, {"request_timeout": 0.0})
    ends += ({"patience": {"dist": "exponential", "mean": 2.0}, "queue_limit": 9},)
    servers = ({}, {"server": "continuous"}, {"server": "continuous", "kv_blocks": 60})
    controls = [c for c in CHOICES["control"] if c]
    for i, (a, b, c) in enumerate(itertools.product(ends, servers, controls)):
        its = SHORT.replace(batch_size=6, arrival_rate=9.0, **{**a, **b, **c})
        try:
            record = simulate(its)
        except ConfigError as error:
            yield f"{i} = {error}"
            continue
        columns = {f.name: getattr(record, f.name) for f in fields(record)}
        columns.pop("steps")
        yield f"{i} = {text_of(columns)}"


@KEPT.part
def frames_and_requests() -> Iterator[str]:
    static = SHORT.replace(num_requests=30, warmup_requests=3, queue_limit=20)
    engine = RTX.replace(server="continuous", num_requests=30, warmup_requests=3)
    for name, config in (("static", static), ("engine", engine)):
        record = simulate(config)
        frame = record.to_frame()
        yield f"{name} = {text_of(frame)}"
        again = RunRecord.from_frame(frame)
        yield f"{name} again = {text_of([again.latency, again.ttft, again.tpot])}"
        found = MetricsCollector.compute_metrics(frame, 3)
        yield f"{name} metrics = {text_of([found, goodput(frame, 1.0, 0.1)])}"
        work = Workload.generate(config)
        yield f"{name} workload = {text_of([work.to_frame(), repr(work)])}"
        back = Workload.from_frame(work.to_frame())
        yield f"{name} workload again = {text_of(back.columns)}"
        yield f"{name} preempted = {text_of([record.preemptions, record.waits])}"
    done = Request(3, 1.0, 40, 5, 1, 1.0, 2.0, 2.5, 4.0, 5)
    cut = [Request(1, 1.0, 40, 5), Request(2, 0.0, 7, 1, 0, 0.0, 0.5, 0.75, 0.75, 1)]
    names = "queue_wait_time processing_time total_latency total_tokens ttft tpot"
    for its in (done, *cut):
        yield f"request {its.id} = {text_of([getattr(its, n) for n in names.split()])}"
    orders = []
    waiting = [
        Request(i, 0.1 * i, 90 - 7 * (i % 5), 9 + i % 3, i % 2) for i in range(12)
    ]
    for name in POLICIES:
        ordered = get_policy(name).sort_requests(list(waiting), 9.0)
        orders.append([its.id for its in ordered])
        orders.append([its.id for its in ranked(get_policy(name), waiting, 3.0)])
    yield f"orders = {text_of(orders)}"


@KEPT.part
def what_is_warned_of() -> Iterator[str]:
    static = SHORT.replace(batch_size=4, batch_timeout=0.0, warmup_requests=0)
    engine = RTX.replace(server="continuous", warmup_requests=0)
    tokens = {"output_length_dist": "truncated_normal"}
    for sigma in (5, 9, 12, 25):
        law = {"mu": 100, "sigma": sigma, "min": 10, "max": 500}
        its = engine.replace(**tokens, output_dist_params=law)
        yield f"may carry more {sigma} = {overload.may_carry_more(its)}"
    for values in ([20, 60], [21, 60], [7]):
        law = {
            "output_length_dist": "empirical",
            "output_dist_params": {"values": values},
        }
        more = overload.may_carry_more(engine.replace(**law))
        yield f"may carry more {values} = {more}"
    for policy, size in (("FCFS", 4), ("SJF", 4), ("SJF", 1), ("WFQ", 4)):
        its = static.replace(scheduling_policy=policy, batch_size=size)
        yield f"may carry more {policy} {size} = {overload.may_carry_more(its)}"
    asked = {
        "static": static,
        "SJF": static.replace(scheduling_policy="SJF"),
        "engine": engine,
        "replicas": engine.replace(replicas=2, batch_size=32),
        "large": engine.replace(batch_size=512, kv_blocks=None),
        "lost": static.replace(queue_limit=3),
        "long": static.replace(num_requests=600),
    }
    for name, config in asked.items():
        for load in (0.97, 1.03, 1.6, 4.0):
            its = config.replace(arrival_rate=load * config.max_stable_rate)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                record = simulate(its)
                overload.warn_ahead([its, config], Workload.generate(its))
                overload.warn_of_growth(its, record)
                overload.warn_of_losses(record)
            said = [f"{its.category.__name__}: {its.message}" for its in seen]
            yield f"{name} {load} = {text_of(said)}"


@KEPT.part
def what_is_measured() -> Iterator[str]:
    classes = {"chat": {"share": 2}, "code": {"share": 1, "weight": 3.0}}
    static = REPORT.replace(
        arrival_rate=6.0, request_classes=classes, batch_timeout=0.0
    )
    engine = RTX.replace(server="continuous", request_classes=classes)
    swing = {"amplitude": 2.0, "period": 12.0}
    wave = static.replace(arrival_pattern="sinusoidal", arrival_pattern_params=swing)
    slo = SLO(ttft=1.0, tpot=0.1, classes={"chat": SLO(ttft=0.3)})
    for name, its in (("static", static), ("engine", engine)):
        record = simulate(its)
        yield f"{name} groups = {text_of(measures.by_group(its, record))}"
        yield f"{name} classes = {text_of(measures.by_class(its, record))}"
        yield f"{name} within = {text_of(measures.by_class(its, record, slo))}"
        yield f"{name} tails = {text_of(measures.tails(its, record))}"
        times = traffic.token_times(record)
        yield f"{name} times = {text_of(times)}"
    parts = measures.latency_parts(engine, simulate(engine))
    yield f"parts = {text_of(parts)}"
    yield f"wave = {text_of(measures.over_a_wave(wave, simulate(wave)))}"
    trace = Workload.generate(engine)
    yield f"twin = {text_of(traffic.twin(trace))}"
    counted = traffic.counts(trace.arrival_time, 2.0)
    yield f"counts = {text_of([counted, traffic.dispersion(counted)])}"
    gaps = np.diff(trace.arrival_time)
    law = traffic.fitted_lognormal(trace.prompt_length)
    far = (
        traffic.distance(trace.prompt_length, law),
        traffic.distance_by_chance(law, 90),
    )
    yield f"traffic = {text_of([traffic.variation(gaps), law, far])}"
    yield f"replayed = {text_of(pd.DataFrame(traffic.replayed(RTX, trace)))}"
    yield f"typical = {text_of(traffic.typical(gaps))}"
    yield f"blocks = {text_of(traffic.by_blocks(np.mean, gaps))}"
    for arrivals_of in ("gaps", "poisson"):
        its = trace.law(arrivals_of)
        yield f"law {arrivals_of} = {text_of(its)}"
        again = trace.resample(40, 3, arrivals_of)
        yield f"resampled {arrivals_of} = {text_of(again.columns)}"
    yield f"scaled = {text_of(trace.scaled(2.5).columns)}"


@KEPT.part
def orders() -> Iterator[str]:
    draw = np.random.default_rng(8)
    waiting = Waiting(
        np.arange(20),
        np.sort(draw.uniform(0.0, 30.0, 20)),
        draw.integers(1, 500, 20),
        draw.integers(1, 300, 20),
        draw.integers(0, 2, 20),
    )
    for name in POLICIES:
        its = get_policy(name)
        if hasattr(its, "keys"):
            yield f"{name} = {text_of(np.asarray(its.keys(waiting)))}"
    changed = {
        "Predicted-SJF": {"prediction_sigma": 0.6, "random_seed": 4},
        "Priority": {"aging_rate": 0.3, "urgency_weight": 2.0, "base_priority": 1.5},
        "SJF-Aging": {"aging_rate": 0.02, "alpha": 2e-4},
    }
    for name, params in changed.items():
        keys = get_policy(name, **params).keys(waiting)
        yield f"{name}, other = {text_of(np.asarray(keys))}"
    model = {"layers": 32, "kv_heads": 8, "head_size": 128}
    found = [engines.kv_blocks(gib, **model) for gib in (0.1, 5.055, 40.0)]
    found += [engines.kv_blocks(5.055, **model, bytes_per_value=1.0, block_size=32)]
    yield f"blocks = {text_of(found)}"


@KEPT.part
def words() -> Iterator[str]:
    for value in (0.0, 1e-5, 1.234e-4, 0.0999, 5.0, 99.96, 12345.6, 1e6, 9.99e6, 1e7):
        both = latex.shown(value), latex.shown(-value), latex.shown(value, ".1%")
        yield f"{value} = {text_of(both)}"
        for half in (0.0, 0.035, 0.0354, 0.0356, 0.3, 3.6, 400.0):
            found = latex.shown_with_bounds(Estimate(value, value - half, value + half))
            yield f"{value} ± {half} = {text_of(found)}"
    for value in (None, True, np.float64(3.0), np.inf, -np.inf, np.nan, 10500, "a-b"):
        yield f"{value!r} = {latex.shown(value)}"
    for low, high, value, margin in itertools.product(
        (0.0, 1.0), (2.0, np.inf), (0.5, 1.2, 2.5), (0.0, 0.4)
    ):
        its = Verdict(
            "a", Estimate(value, value - 0.3, value + 0.3), low, high, margin=margin
        )
        yield f"{low} {high} {value} {margin} = {text_of([str(its), its.spared])}"
        yield f"{low} {high} {value} {margin} html = {its._repr_html_()}"


@pytest.mark.parametrize("part", KEPT.parts)
def test_each_number_is_what_was_found_right(part):
    with warnings.catch_warnings(action="ignore"):
        assert KEPT.differs(part) == []


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):
        KEPT.write()
