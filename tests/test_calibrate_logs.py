"""What logs bring along: a workload, failures, prefix hits, users who wait; tables."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from test_calibrate import SETTINGS, TRUTH, h200, made_log

from llminfer import ConfigError, SimulationConfig, TraceError, Workload, simulate
from llminfer.calibrate import (
    MEASURES,
    Calibration,
    computed,
    errors,
    fit,
    fit_jointly,
    fit_table,
    mean_error,
    think_time,
    users,
)
from llminfer.capacity import SLO, capacity
from llminfer.data.logs import ServedLog
from llminfer.experiment import metrics_of
from llminfer.stats.intervals import Estimate

KNOWN = {name: Estimate(value, 0.0, 1.0) for name, value in TRUTH.items()}
ENGINE = {**SETTINGS, "kv_blocks": None}


def calibration(log, settings=ENGINE):
    """A calibration that found the truth."""
    every = np.ones(len(log), dtype=bool)
    base = SimulationConfig(server="continuous", **settings, **TRUTH, warmup_requests=0)
    covariance = np.eye(len(KNOWN)) * 1e-4
    record = simulate(base, log.workload)
    return Calibration(KNOWN, (), settings, log, record, every, covariance=covariance)


# The log's own workload goes along


def test_a_calibration_hands_on_the_workload_of_its_log():
    log = made_log(n=60, rate=1.5)
    config = calibration(log).config()
    assert config == SimulationConfig(
        server="continuous",
        **ENGINE,
        **TRUTH,
        **log.workload.law(),
        num_requests=2_000,
        warmup_requests=200,
    )
    assert calibration(log, {**ENGINE, "batch_size": 256}).config().num_requests == 2560
    some = calibration(log).config(num_requests=50, arrival_rate=9.0)
    assert (some.warmup_requests, some.arrival_rate) == (5, 9.0)
    assert calibration(log).config(warmup_requests=7).warmup_requests == 7
    poisson = calibration(log).config(**log.workload.law("poisson"))
    assert poisson.arrival_gaps is None
    constant = {"output_length_dist": "constant", "output_dist_params": {"value": 9}}
    assert calibration(log).config(**constant).outputs.expectation() == 9.0
    found = capacity(config, SLO(tpot=0.03), replications=2, tolerance=0.5, n_jobs=1)
    assert 0.5 < found.rate < config.max_stable_rate
    assert found.metrics["avg_output_length"] == pytest.approx(
        log.workload.output_length.mean(), rel=0.05
    )


def test_a_log_without_a_rate_asks_for_one():
    log = made_log(n=40)
    once = dataclasses.replace(log.workload, arrival_time=np.zeros(40))
    its = calibration(dataclasses.replace(log, workload=once))
    with pytest.raises(ConfigError, match=r"^arrival_rate=inf: must be"):
        its.config()
    assert its.config(arrival_rate=2.0).prompts.expectation() == pytest.approx(
        once.prompt_length.mean()
    )
    assert [c.arrival_rate for c in its.draws(2, arrival_rate=2.0)] == [2.0, 2.0]
    assert list(its.predict(once, n=2).index) == list(MEASURES)


def test_runs_of_a_measured_engine_bracket_what_was_measured():
    log, settings, steps = h200("256x2048-conv-10")
    fitted = fit(log, settings, share=1.0, steps=steps)
    config = fitted.config(num_requests=len(log), warmup_requests=0)
    runs = [simulate(config.replace(random_seed=seed)) for seed in range(30)]
    for name in MEASURES:
        means = [np.nanmean(getattr(run, name)) for run in runs]
        low, high = np.quantile(means, [0.05, 0.95])
        assert low < np.nanmean(getattr(log, name)) < high
        assert high < 1.25 * low
    assert 20.0 < config.max_stable_rate < 28.0  # 113.7 with the report's lengths


# Requests that were given up


def impatient(log, share=0.1):
    """The same log, whose slowest requests were given up."""
    late = log.latency > np.quantile(log.latency, 1.0 - share)
    first, last = (
        np.where(late, np.nan, its)
        for its in (log.first_token_time, log.last_token_time)
    )
    return dataclasses.replace(log, first_token_time=first, last_token_time=last), late


def test_requests_that_were_given_up_load_the_engine_and_are_not_compared():
    whole = made_log()
    log, late = impatient(whole)
    assert not (log.first_completed(1.0) & late).any()
    assert log.first_completed(1.0).sum() == (~late).sum() == 144
    assert log.first_completed(0.5).sum() == 72
    found = fit(log, SETTINGS)
    for name in ("alpha", "gamma"):
        estimate = found.coefficients[name]
        assert estimate.value == pytest.approx(TRUTH[name], rel=0.15)
    truth = calibration(whole, SETTINGS).config().max_stable_rate
    assert found.config().max_stable_rate == pytest.approx(truth, rel=0.03)
    table = found.errors()
    assert table.notna().all(axis=None)
    assert table["mean"].abs().max() < 0.06
    rest = ~found.fitted
    assert np.isfinite(mean_error(log, found.simulated, rest, "latency").value)
    every = np.ones(160, dtype=bool)
    pd.testing.assert_frame_equal(
        errors(log, found.simulated, every), errors(whole, found.simulated, ~late)
    )
    # without them the engine seems to have had an easier time
    kept = Workload(*(its[~late] for its in log.workload.columns.values()))
    easier = found.config(**kept.law()).max_stable_rate
    assert easier > 1.02 * found.config().max_stable_rate
    small = impatient(made_log(n=30))[0]
    assert fit(small, SETTINGS, share=1.0).laws["sum"] < 0.03


# Tokens found in the prefix cache


def test_what_a_prefix_cache_had_is_not_computed():
    log, settings, _ = h200("256x512-prefix")
    plain = made_log(n=20)
    assert computed(plain) is plain.workload
    settings["step_law"] = "roofline"
    found = fit(log, settings)
    assert found.errors()["mean"].abs().max() < 0.05
    alone = dataclasses.replace(log.workload, segments=None)
    whole = simulate(found.config(warmup_requests=0), alone)
    unaware = errors(log, ServedLog.from_record(whole), ~found.fitted)
    assert unaware.loc["ttft", "mean"] > 0.5
    hits = log.cached_tokens
    assert hits.sum() > 0.4 * log.workload.prompt_length.sum()
    own = found.config().prompts.expectation()
    assert own == pytest.approx((log.workload.prompt_length - hits).mean())


# Users who wait for their answers


def answered(concurrency, n, seed, lag=0.003):
    """A log of users without a pause, whose answers take some time."""
    rng = np.random.default_rng(seed)
    free, sent, last = np.zeros(concurrency), [], []
    for time in rng.gamma(4.0, 0.5, n):
        i = int(np.argmin(free))
        sent.append(free[i])
        last.append(free[i] + time)
        free[i] = last[-1] + lag * rng.random()
    work = Workload.from_arrays(sent, np.full(n, 50), np.full(n, 20))
    return ServedLog(work, np.array(sent), np.array(sent) + 0.1, np.array(last))


@pytest.mark.parametrize("concurrency", [1, 2, 16, 64])
def test_users_who_wait_are_counted(concurrency):
    assert users(answered(concurrency, 20 * concurrency + 40, seed=1)) == concurrency
    if concurrency > 1:
        assert users(answered(concurrency, 20 * concurrency, 1, lag=0.0)) == concurrency


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("lag", [0.001, 0.02])
def test_users_whose_answers_all_take_as_long_are_counted(concurrency, lag):
    sent = (2.0 + lag) * np.repeat(np.arange(30.0), concurrency)
    sent += np.tile(np.arange(concurrency) * (2.0 + lag) / concurrency, 30)
    work = Workload.from_arrays(sent, np.full(len(sent), 9), np.full(len(sent), 9))
    assert users(ServedLog(work, sent, sent + 0.1, sent + 2.0)) == concurrency
    assert users(ServedLog(work, sent, sent + 0.1, sent + 1.5)) == 0
    at_once = dataclasses.replace(work, arrival_time=np.zeros(len(sent)))
    assert users(ServedLog(at_once, np.zeros(len(sent)), sent + 0.1, sent + 1.5)) == 0


@pytest.mark.parametrize(
    ("run", "most"),
    [
        ("256x2048-closed-16", 16),
        ("256x2048-conv-4", 0),
        ("256x2048-conv-10", 0),
        ("48x2048-kv2000-conv-9", 0),
    ],
)
def test_a_measured_log_says_who_sent_it(run, most):
    log, settings, steps = h200(run)
    assert users(log) == most
    if most:
        with pytest.warns(
            UserWarning, match="16 users, it looks like, who wait"
        ) as seen:
            fit(log, settings | {"step_law": "sum"}, steps=steps)
        assert seen[0].filename == __file__
        with pytest.warns(UserWarning, match="16 users") as seen:
            fit_jointly([log], [settings | {"step_law": "sum"}], steps=[steps])
        assert seen[0].filename == __file__


@pytest.mark.parametrize("clients", [1, 7])
@pytest.mark.parametrize(
    "law", [0.25, {"dist": "exponential", "mean": 0.25}], ids=["constant", "random"]
)
def test_how_long_users_think_is_in_their_log(clients, law):
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-h200", clients=clients, think_time=law, num_requests=1500
    )
    log = ServedLog.from_record(simulate(config.replace(warmup_requests=0)))
    rel = 1e-9 if law == 0.25 else 0.1  # four standard errors
    assert think_time(log, clients) == pytest.approx(0.25, rel=rel)
    # the interactive law, of what is in the log alone
    sent, ends = log.workload.arrival_time, log.last_token_time
    rate = len(log) / (ends.max() - sent.min())
    there = rate * (log.latency.mean() + think_time(log, clients))
    assert there == pytest.approx(clients, rel=0.02)


def test_whose_users_went_on_without_an_answer_is_refused():
    log = answered(2, 20, seed=1)
    with pytest.raises(ConfigError, match=r"^clients=20: must be .* at most 19"):
        think_time(log, 20)
    with pytest.raises(ConfigError, match=r"^clients=0"):
        think_time(log, 0)
    with pytest.raises(TraceError, match=r"^log of 20 requests: 2 cut off: must be"):
        think_time(impatient(log)[0], 2)


@pytest.mark.parametrize("load", [0.1, 0.6, 0.95, 1.3])
@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0])
def test_arrivals_that_do_not_wait_raise_no_alarm(cv, load):
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-h200", batch_size=16, warmup_requests=0, arrival_cv=cv
    )
    config = config.replace(arrival_rate=load * config.max_stable_rate)
    for seed in range(12):
        run = config.replace(num_requests=50 * (1 + seed % 4), random_seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log = ServedLog.from_record(simulate(run))
        assert users(log) == 0, (cv, load, seed)
    assert users(impatient(log, 0.3)[0]) == 0


# Tables of statistics by load

ROWS = {"prompt_length": 600, "output_length": 30, "requests": 60}


def table_of(loads, by="rate", law="sum", **changes):
    """What a benchmark of the known engine would say."""
    rows = []
    for load in loads:
        asked = {"arrival_rate": load} if by == "rate" else {"max_concurrency": load}
        config = SimulationConfig(
            server="continuous",
            prompt_length_dist="constant",
            prompt_dist_params={"value": 600},
            output_length_dist="constant",
            output_dist_params={"value": 30},
            num_requests=60,
            warmup_requests=0,
            random_seed=77,
            **{"arrival_rate": 1e9, **asked, **ENGINE, **TRUTH, "step_law": law},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            its = metrics_of(config, simulate(config))
        rows.append({by: load, **ROWS})
        for key, of in {"mean": "avg", "p50": "p50", "p95": "p95"}.items():
            for name in ("ttft", "tpot", "itl", "latency"):
                rows[-1][f"{key}_{name}"] = its[f"{of}_{name}"]
        rows[-1]["achieved_rate"] = its["throughput_req_per_sec"]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def by_rate():
    return table_of([0.3, 2.0, 5.0])


def test_a_table_by_rate_finds_what_an_engine_carries(by_rate):
    by_rate.loc[1, "p95_itl"] = np.nan
    found = fit_table(by_rate, ENGINE)
    for name in ("gamma", "kappa"):
        assert found.coefficients[name].lower < TRUTH[name], name
        assert found.coefficients[name].upper > TRUTH[name], name
    truth = SimulationConfig(server="continuous", **ENGINE, **TRUTH)
    law = {"prompt_length_dist": "constant", "prompt_dist_params": {"value": 600}}
    law |= {"output_length_dist": "constant", "output_dist_params": {"value": 30}}
    carried = found.config(**law).max_stable_rate
    assert carried == pytest.approx(truth.replace(**law).max_stable_rate, rel=0.1)
    assert found.settings["kv_blocks"] is None
    assert set(found.laws) == {"sum"}
    assert "step law: sum" in str(found)


def test_a_table_of_one_statistic_says_what_it_cannot_tell(by_rate):
    settings = {k: v for k, v in ENGINE.items() if k != "step_law"}
    one = by_rate.loc[:0, ["rate", *ROWS, "p50_tpot"]].assign(requests=20)
    few = fit_table(one, settings)
    assert {"alpha", "beta"} <= set(few.unidentified)
    assert set(few.laws) == {"sum", "roofline"}


def test_a_table_that_cannot_be_read_is_said_in_words(by_rate):
    for bad, words in {
        "rate": r"^rate\[2\]=-1.0: must be a finite number above 0",
        "mean_ttft": r"^mean_ttft\[2\]=-1.0: must be",
        "requests": r"^requests\[2\]=-1.0: must be",
    }.items():
        wrong = by_rate.astype(float)
        wrong.loc[2, bad] = -1.0
        with pytest.raises(TraceError, match=words):
            fit_table(wrong, ENGINE)
    with pytest.raises(ConfigError, match="prompt_length"):
        fit_table(by_rate.drop(columns="prompt_length"), ENGINE)
    with pytest.raises(ConfigError, match="mean_ttft"):
        fit_table(by_rate[["rate", *ROWS]], ENGINE)
    with pytest.raises(ConfigError, match="rate"):
        fit_table(by_rate.drop(columns="rate"), ENGINE)


def test_a_table_by_users_needs_the_closed_loop():
    found = fit_table(table_of([1, 4, 16], by="concurrency"), ENGINE)
    for name in ("alpha", "gamma"):
        assert found.coefficients[name].value == pytest.approx(TRUTH[name], rel=0.1)
