"""What the documentation shows is run as it stands."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

import llminfer
from llminfer import SimulationConfig
from llminfer.laws.arrivals import ARRIVAL_PATTERNS
from llminfer.laws.lengths import LENGTH_LAWS, Paired
from llminfer.policies import POLICIES
from llminfer.servers.batch_control import CONTROLLERS

ROOT = Path(__file__).parent.parent
MODULES = ["llminfer"] + [
    module.name for module in pkgutil.walk_packages(llminfer.__path__, "llminfer.")
]
README = ROOT / "README.md"
FAULTS = Path(__file__).with_name("FAULTS.md").read_text("utf-8")
RECIPES = re.findall(
    r"^## (.*)$(?:(?!^## )[\s\S])*?^```python\n([\s\S]*?)^```",
    (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    re.M,
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_come_out_as_shown(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_importing_the_module_loads_nothing_that_draws_or_takes_long():
    code = "import sys, llminfer; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"matplotlib", "seaborn", "ipywidgets", "IPython", "scipy.signal"}
    assert not {*heavy, "scipy.stats"} & set(ran.stdout.split())


def test_the_readmes_python_runs(request, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert blocks
    if any("fetch(" in block for block in blocks):
        request.getfixturevalue("data")
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = re.findall(r"^```text\n(.*?)^```", README.read_text(), re.M | re.S)
    assert said
    assert [text for text in said if text not in ran.stdout] == []


@pytest.mark.parametrize("code", [c for _, c in RECIPES], ids=[n for n, _ in RECIPES])
def test_the_recipe_for_contributors_runs(code):
    known = (POLICIES, LENGTH_LAWS, CONTROLLERS)  # which are as they were afterwards
    with ExitStack() as afterwards:
        for names in known:
            afterwards.enter_context(mock.patch.dict(names))
        exec(code, {"__name__": "__main__"})


def test_there_is_a_recipe_for_each_thing_to_add():
    things = ["policy", "length law", "controller", "experiment"]
    assert [any(thing in title for title, _ in RECIPES) for thing in things] == [
        True
    ] * 4


# Given by the configuration's own fields.
SHARED = {
    "Policies": ("alpha", "beta", "gamma", "random_seed", "request_classes"),
    "Patterns of arrivals": ("rate",),
}


def listed(title):
    """By name the parameters that ``help(SimulationConfig)`` shows under a title."""
    text = inspect.getdoc(SimulationConfig)
    block = re.search(rf"^{title}.*::\n\n((?:    .*\n)+)", text, re.M).group(1)
    joined = re.sub(r",\n +", ", ", block)
    rows = (line.split(maxsplit=1) for line in joined.splitlines())
    return {name: ", ".join(params) for name, *params in rows}


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Laws of lengths", {**LENGTH_LAWS, "paired": Paired}),
        ("Patterns of arrivals", ARRIVAL_PATTERNS),
        ("Policies", POLICIES),
        ("Controllers", CONTROLLERS),
    ],
)
def test_help_lists_all_that_has_parameters(title, known):
    for name, law in known.items():
        its = inspect.signature(law).parameters.values()
        own = [one for one in its if one.name not in SHARED.get(title, ())]
        own.sort(key=lambda one: one.default is not one.empty)
        said = [str(one.replace(annotation=one.empty)) for one in own]
        assert listed(title)[name] == ", ".join(said).replace("*, ", "")
    assert listed(title).keys() == known.keys()


def test_each_fault_has_a_test_that_exists():
    tables = re.findall(r"^\|.*\btest \|\n\|[-|]+\n((?:\|.*\n)+)", FAULTS, re.M)
    rows = "".join(tables).splitlines()
    assert len(rows) > 50
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row.split("|")[-2])
        assert named, row
        for file, name in named:
            source = Path(__file__).with_name(file).read_text("utf-8")
            assert f"\ndef {name}(" in source, row


# What is taken where nothing is said: another value would change readers' numbers.
DEFAULTS = """
calibrate.Fitted.draws(n=20, seed=0)
calibrate.Fitted.interval(n=20, seed=0)
calibrate.Fitted.predict(n=20, seed=0)
calibrate.fit(share=0.4)
calibrate.fit_jointly(share=0.4)
calibrate.fit_steps(step_law='roofline', stretch=40, graph_tokens=512)
capacity.capacity(replications=10, tolerance=0.02, random_seed_start=42)
capacity.Trials(tolerance=0.02, draws=())
capacity.fewest_replicas(gpus_per_replica=1, replications=10, random_seed_start=42)
config.SimulationConfig(arrival_rate=10.0, arrival_pattern='constant', arrival_cv=1.0)
config.SimulationConfig(prompt_length_dist='lognormal', think_time=0.0)
config.SimulationConfig(output_length_dist='truncated_normal', server='static')
config.SimulationConfig(batch_size=32, batch_control='static', replicas=1)
config.SimulationConfig(scheduling_policy='FCFS', router='round_robin')
config.SimulationConfig(alpha=0.001, beta=0.05, gamma=0.0005, delta=0.0, kappa=0.0)
config.SimulationConfig(epsilon=0.0, step_law='sum', launch=0.0, graph_tokens=512)
config.SimulationConfig(max_batched_tokens=2048, block_size=16, chunked_prefill=True)
config.SimulationConfig(reserve_full_prompt=True, prefix_caching=False)
config.SimulationConfig(async_scheduling=False, num_requests=10000)
config.SimulationConfig(warmup_requests=500)
course.RequestGenerator(prompt_length_dist='lognormal', arrival_cv=1.0)
course.RequestGenerator(output_length_dist='truncated_normal')
course.ExperimentConfig(num_replications=30, random_seed_start=42)
data.logs.ServedLog(refused=0, origin=0.0, source='arrays')
experiment.replicated(random_seed_start=42)
experiment.sweep(replications=30, random_seed_start=42)
laws.arrivals.SinusoidalRate(phase=0.0)
laws.engines.Preset(async_scheduling=False, server='continuous', launch=0.0)
laws.engines.Preset(graph_tokens=512)
laws.engines.kv_blocks(bytes_per_value=2.0, block_size=16)
laws.lengths.LengthLaw.expectation(copies=1)
laws.lengths.LengthLaw.pairs(copies=1)
laws.lengths.LengthLaw.joint(copies=1)
laws.lengths.LogNormal(min=1)
laws.prefixes.SharedPrefixes(zipf=0.0)
metrics.MetricsCollector.compute_metrics(warmup_requests=0)
metrics.goodput(warmup_requests=0)
policies.PredictedSJFPolicy(alpha=0.001, beta=0.05, gamma=0.0005, prediction_sigma=0.0)
policies.PriorityPolicy(alpha=0.001, beta=0.05, gamma=0.0005, base_priority=0.0)
policies.PriorityPolicy(aging_rate=0.1, urgency_weight=1.0, request_classes=())
policies.SJFAgingPolicy(alpha=0.001, beta=0.05, gamma=0.0005, aging_rate=0.1)
record.RunRecord.asked(skip=0)
record.RunRecord.measured(skip=0)
report.figures.new(rows=1, columns=1, width=7.0, height=2.4)
report.figures.draw_summary(height=2.4)
report.figures.legend_above(columns=4)
report.timeline.phases(start=0.0, end=inf)
report.timeline.over_time(points=200)
report.verdict.Verdict(unit='', spec='')
request.Request(request_class=0)
request.RequestClass(share=1.0, weight=1.0)
servers.batch_control.QueueController(min_size=1, max_size=128, interval=300.0, k=1.0)
servers.batch_control.RateController(min_size=1, max_size=128, interval=300.0)
servers.batch_control.RateController(headroom=1.25)
servers.batch_control.LatencyController(min_size=1, max_size=128, interval=300.0)
servers.batch_control.LatencyController(step=1.0, backoff=0.9)
servers.token_gaps.token_gaps(warmup_requests=0)
stats.intervals.Estimate.of(quantity='mean')
stats.intervals.Estimate.of_mean(confidence=0.95)
stats.intervals.Estimate.row(quantity='mean')
stats.intervals.compute_confidence_interval(confidence=0.95)
stats.paired.cost_of_choice(confidence=0.95)
stats.paired.best_against_rest(confidence=0.95)
stats.run_length.replicate_until(most=1000)
study.against_theory.beside_theory(replications=30, first_seed=42)
study.coverage.experiments(number=1000, replications=30)
study.coverage.trust(number=1000)
study.measures.beside_long_runs(longer=3.0, replications=3)
theory.known.long_enough(memories=300.0)
theory.service_time.BatchTime(size=1)
timeseries.latency_quantile(quantile=0.99)
timing.StepTime(delta=0.0, kappa=0.0, epsilon=0.0, step_law='sum', launch=0.0)
timing.StepTime(graph_tokens=512)
timing.StepTime.prefill(pairs=0.0)
timing.StepTime.saturation_rate(ahead=0)
workload.Workload.drawn(arrival_cv=1.0, class_shares=())
workload.Workload.law(arrivals='gaps')
workload.Workload.resample(arrivals='gaps')
"""


@pytest.mark.parametrize("line", DEFAULTS.split("\n")[1:-1])
def test_what_is_taken_where_nothing_is_said(line):
    where, _, said = line.partition("(")
    parameters = inspect.signature(pkgutil.resolve_name(f"llminfer.{where}")).parameters
    for one in said[:-1].split(", "):
        name, _, value = one.partition("=")
        assert repr(parameters[name].default) == value
