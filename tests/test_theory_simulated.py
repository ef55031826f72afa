"""The simulation against every number that theory knows.

The seeds were fixed before looking, and |z| < 4 is asked for. There are so many runs
that a mean that is 6% wrong fails, and a tail's share or a square that is 10% wrong.
Most of what differs between runs of a busy server is what was asked of it. A server
that takes one request after the other, as fast, is asked the same, and its mean wait is
known: what that says of a run's luck is taken off (a control variate), so that a ninth
of the runs tells as much.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from llminfer import (
    PRESETS,
    SchedulingPolicy,
    SimulationConfig,
    Workload,
    simulate,
    theory,
)
from llminfer.study import against_theory as module
from llminfer.study.against_theory import beside_theory, comparisons, estimates
from llminfer.theory.single_server import by_key

REPLICATIONS, FIRST_SEED, MOST_RUNS = 20, 5_000, 200
CASES = comparisons()
BY_RUN = {
    name: list(group)
    for name, group in itertools.groupby(CASES, lambda case: case.name)
}


def luck(config, load):
    """Mean wait of one server under the load of a run, less the exact mean, seconds.

    Args:
        config: FCFS; the one server works as fast as it does with full batches.
        load: Arrays of the requests: a workload, or the record of a run.
    """
    prices = config.alpha, config.gamma / config.batch_size + config.delta
    laws, lengths = (
        (config.prompts, config.outputs),
        (load.prompt_length, load.output_length),
    )
    mean, variance = 1.0 / config.max_stable_rate, 0.0
    work = np.full(len(load.arrival_time), mean)
    for price, law, its in zip(prices, laws, lengths, strict=True):
        work += price * (its - law.expectation())
        variance += price**2 * law.variance()
    exact = (mean**2 + variance) / 2.0 / (1.0 / config.arrival_rate - mean)
    ahead = np.cumsum(work[:-1] - np.diff(load.arrival_time), dtype=float)
    ahead = np.concatenate([[0.0], ahead])
    wait = ahead - np.minimum.accumulate(ahead)  # Lindley
    return wait[config.warmup_requests :].mean() - exact


def mean_and_error(values, lucks=()):
    """Of values in runs, shape (runs, n); with lucks, as it were if they were 0."""
    ones = np.ones(len(values))
    design = np.column_stack([ones, lucks] if len(lucks) else [ones])
    fit = np.linalg.lstsq(design, values)[0]
    squares = ((values - design @ fit) ** 2).sum(axis=0)
    squares *= np.linalg.inv(design.T @ design)[0, 0]
    return fit[0], np.sqrt(squares / (len(values) - design.shape[1]))


@pytest.mark.parametrize("name", ["continuous, B = 8, RTX 4090 (κ = 0), load 0.85"])
def test_luck_is_nothing_on_the_average(name):
    """Or what is wrong with the requests would be taken off as well."""
    config = BY_RUN[name][0].config
    lucks = []
    for seed in range(FIRST_SEED, FIRST_SEED + MOST_RUNS):
        run = config.replace(random_seed=seed)
        lucks.append([luck(run, Workload.generate(run))])
    mean, error = mean_and_error(lucks)
    assert 4.0 * error < 0.06 * 0.614  # its exact mean wait
    assert abs(mean) < 4.0 * error


@pytest.mark.parametrize("name", BY_RUN)
def test_the_simulation_agrees_with_theory(name):
    cases, runs, gate = BY_RUN[name], [], np.array(np.inf)
    asked, lucks = cases[0].config, []
    exact = np.array([case.exact for case in cases])
    loose = ["share over" in case.metric or "squared" in case.metric for case in cases]
    while (gate > np.where(loose, 0.1, 0.06) * exact).any():
        for _ in range(REPLICATIONS):
            record = simulate(asked.replace(random_seed=FIRST_SEED + len(runs)))
            runs.append([case.estimate(record) for case in cases])
            if asked.server == "continuous" and asked.offered_load < 1.0:
                lucks.append(luck(asked, record))
        assert len(runs) <= MOST_RUNS
        mean, error = mean_and_error(runs, lucks)
        gate = 4.0 * error
    z = (mean - exact) / error
    report = {
        case.metric: round(float(value), 2)
        for case, value in zip(cases, z, strict=True)
    }
    assert np.abs(z).max() < 4.0, report


def test_there_are_enough_comparisons_and_each_is_named_once():
    assert len({(case.name, case.metric) for case in CASES}) == len(CASES) >= 40


def test_each_comparison_has_replications_of_its_own(monkeypatch):
    few = [case for case in CASES if case.name == "full, B = 6, no service time"]
    few += [case for case in CASES if case.name == "flooded, B = 16, report"]
    monkeypatch.setattr(module, "comparisons", lambda: few)
    table = beside_theory(replications=3, first_seed=70, n_jobs=1)
    assert table["metric"].tolist() == ["mean wait", "throughput"]
    assert table["exact"].tolist() == [case.exact for case in few]
    for i, case in enumerate(few):
        configs = [case.config.replace(random_seed=70 + 3 * i + j) for j in range(3)]
        values = [estimates(c, simulate(c))[case.metric] for c in configs]
        row = table.loc[i]
        assert row["mean"] == np.mean(values)
        test = ttest_1samp(values, case.exact)
        assert row["t"] == pytest.approx(test.statistic)
        assert 2 * norm.sf(abs(row["z"])) == pytest.approx(test.pvalue)
        interval = test.confidence_interval()
        assert row["ci_lower"] == pytest.approx(interval.low)
        assert row["ci_upper"] == pytest.approx(interval.high)


CLASSES = SimulationConfig(
    arrival_rate=4.0,
    batch_size=1,
    prompt_dist_params={"mu": 4, "sigma": 0.7, "max": 1000},
    num_requests=7_000,
    warmup_requests=1_000,
    request_classes={
        "chat": {"share": 1, "base_priority": 5},
        "code": {"share": 2, "base_priority": 3},
        "batch": {"share": 1, "base_priority": 1},
    },
)


def z_scores_by_class(config, exact):
    waits, lucks = np.empty((REPLICATIONS, len(exact))), []
    for i in range(len(waits)):
        run = config.replace(random_seed=FIRST_SEED + i)
        workload = Workload.generate(run)
        record = simulate(run, workload)
        wait = record.processing_start_time - record.arrival_time
        for kind in range(len(exact)):
            measured = workload.request_class == kind
            measured[: config.warmup_requests] = False
            waits[i, kind] = wait[measured].mean()
        lucks.append(luck(config, workload))
    mean, error = mean_and_error(waits, lucks)
    assert (4.0 * error < 0.065 * np.asarray(exact)).all()
    return (mean - exact) / error


def test_classes_of_fixed_priority_wait_as_cobham_says():
    config = CLASSES.replace(
        scheduling_policy="Priority",
        scheduling_policy_params={"aging_rate": 0, "urgency_weight": 0},
    )
    exact = theory.priority(config)
    np.testing.assert_allclose(exact.share, [0.25, 0.5, 0.25], rtol=1e-9)
    assert np.abs(z_scores_by_class(config, exact.wait)).max() < 4.0


def ageing(rate, mean, square, slope):
    """Mean waits of classes whose priority is slope x wait, highest first.

    Source: Kleinrock (1964).
    """
    load = rate * mean
    behind_all = rate @ square / 2.0 / (1.0 - load.sum())
    wait = np.zeros(len(rate))
    for p in np.argsort(slope):
        slower, faster = slope < slope[p], slope > slope[p]
        spared = load[slower] * wait[slower] @ (1.0 - slope[slower] / slope[p])
        passed = load[faster] @ (1.0 - slope[p] / slope[faster])
        wait[p] = (behind_all - spared) / (1.0 - passed)
    return wait


class Ageing(SchedulingPolicy):
    """Priority is the wait times a slope that differs by class."""

    name = "Ageing"
    slopes = (6.0, 2.0, 1.0)

    def sort_requests(self, requests, current_time):
        def rank(request):
            slope = self.slopes[request.request_class]
            return slope * (request.arrival_time - current_time), request.id

        return sorted(requests, key=rank)


def test_classes_that_age_at_their_own_pace_wait_as_kleinrock_says():
    time = theory.mg1(CLASSES).service
    rates = CLASSES.arrival_rate * np.array([0.25, 0.5, 0.25])
    alike = np.ones(3)
    exact = ageing(
        rates, time.moment(1) * alike, time.moment(2) * alike, np.array(Ageing.slopes)
    )
    config = CLASSES.replace(scheduling_policy=Ageing())
    assert np.abs(z_scores_by_class(config, exact)).max() < 4.0


def test_ageing_lies_between_fcfs_and_strict_priority():
    rates, mean = np.array([0.2, 0.3, 0.1]), np.array([1.0, 0.5, 3.0])
    square = np.array([2.0, 0.4, 12.0])
    fcfs = np.dot(rates, square) / 2 / (1 - np.dot(rates, mean))
    alike = ageing(rates, mean, square, np.array([2.0, 2.0, 2.0]))
    np.testing.assert_allclose(alike, fcfs, rtol=1e-12)
    steep = ageing(rates, mean, square, np.array([1e-9, 1e9, 1.0]))
    share = np.array(rates) / 0.6
    strict = by_key(0.6, [2, 0, 1], share, mean, share @ square)
    np.testing.assert_allclose(steep, strict.wait[[2, 0, 1]], rtol=1e-6)
    mixed = ageing(rates, mean, square, np.array([1.0, 4.0, 2.0]))
    assert mixed[1] < mixed[2] < mixed[0]
    load = np.multiply(rates, mean)
    assert load @ mixed == pytest.approx(load.sum() * fcfs, rel=1e-12)


ENGINES = {"report": "report", "opt-13b-a100": "opt-13b-a100", "A100": "opt-13b-a100"}
ENGINES |= {"RTX 4090": "llama-3.1-8b-rtx4090", "DGX H100": "llama-2-70b-dgx-h100"}


def is_of_engine(config, name):
    law = PRESETS[ENGINES[name]].coefficients | {"epsilon": 0.0}  # no law knows it
    return (
        law.items()
        <= ({f: getattr(config, f) for f in law} | {"kappa": law["kappa"]}).items()
    )


SAID = {  # what a part of a name says of the configuration
    r"load ([\d.]+)": lambda its, load: its.offered_load == pytest.approx(float(load)),
    r"B = (\d+)": lambda its, size: its.batch_size == int(size),
    "one by one": lambda its: (its.batch_size, its.server) == (1, "static"),
    "greedy": lambda its: (its.batch_timeout, its.server) == (0.0, "static"),
    "full": lambda its: (its.batch_timeout, its.server) == (None, "static"),
    "continuous": lambda its: its.server == "continuous",
    "SJF": lambda its: its.scheduling_policy == "SJF",
    r"noise ([\d.]+)": lambda its, sigma: its.policy().prediction_sigma == float(sigma),
    "flooded": lambda its: its.offered_load > 100.0,
    "no limit": lambda its: its.batch_size >= 64,
    "constant outputs": lambda its: its.outputs.variance() == 0.0,
    "no service time": lambda its: its.alpha == its.beta == its.gamma == 0.0,
    "decode only": lambda its: its.alpha == its.beta == 0.0 < its.gamma < 0.1,
    "κ = 0": lambda its: its.kappa == 0.0,
    f"({'|'.join(ENGINES)})": is_of_engine,
}


def test_each_configuration_is_what_its_name_says():
    for name, cases in BY_RUN.items():
        found = {part: re.search(rf"\b{part}\b", name) for part in SAID}
        assert sum(its is not None for its in found.values()) >= 2, name
        for case, (part, its) in itertools.product(cases, found.items()):
            assert its is None or SAID[part](case.config, *its.groups()), (name, part)
    assert len({cases[0].config.to_json() for cases in BY_RUN.values()}) == len(BY_RUN)


SHORT = SimulationConfig(arrival_rate=2.0, batch_size=1, num_requests=600)


def test_each_share_and_each_group_is_what_its_name_says():
    record = simulate(SHORT)
    for case in CASES:
        if found := re.search(r"^mean wait of prompts to (\d+)$", case.metric):
            law, most = theory.priority(case.config), int(found[1])
            its = law.key <= most
            exact = np.average(law.wait[its], weights=law.share[its])
            assert case.exact == pytest.approx(exact, rel=1e-12)
            for prompt in (most, most + 1):
                prompts = np.where(np.arange(600) % 2, 1, prompt)
                lengths = dataclasses.replace(record, prompt_length=prompts)
                of = lengths.wait[(prompts <= most) & (np.arange(600) >= 7)]
                assert case.measure(lengths, 7) == pytest.approx(of.mean(), rel=1e-12)
        elif found := re.search(r"^share over the (median|p(\d+)) wait$", case.metric):
            assert case.exact == pytest.approx(1.0 - int(found[2] or 50) / 100.0)
