"""Coefficients from logs: known ones are found again, and the unknowable is named."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from llminfer import (
    ConfigError,
    SimulationConfig,
    TraceError,
    Workload,
    read_settings,
    read_vllm_log,
    simulate,
)
from llminfer.calibrate import (
    MEASURES,
    Fitted,
    computed,
    errors,
    fit,
    fit_jointly,
    fit_steps,
    mean_error,
    think_time,
    users,
)
from llminfer.data import fetch, read_steps
from llminfer.data.logs import ServedLog
from llminfer.laws.engines import COEFFICIENTS
from llminfer.stats.intervals import Estimate
from llminfer.stats.least_squares import robust

TRUTH = {"alpha": 2e-4, "beta": 8e-3, "gamma": 0.012, "delta": 1e-4, "kappa": 4e-7}
TRUTH |= {"epsilon": 2e-8}
LAUNCH, GRAPH = 0.03, 64  # of a step of more tokens than that
SETTINGS = {"batch_size": 48, "max_batched_tokens": 1024, "kv_blocks": 3000}
SETTINGS |= {"step_law": "sum", "async_scheduling": True}


def made_log(n=160, rate=6.0, prompts=None, settings=SETTINGS, truth=TRUTH):
    """The log of an engine that obeys the law, its clock read with some noise."""
    rng = np.random.default_rng(3)
    drawn = rng.lognormal(6.0, 0.8, n).astype(int) + 1
    work = Workload.from_arrays(
        np.cumsum(rng.exponential(1.0 / rate, n)),
        drawn if prompts is None else np.full(n, prompts),
        rng.integers(20, 300, n),
    )
    config = SimulationConfig(server="continuous", warmup_requests=0, **settings)
    log = ServedLog.from_record(simulate(config.replace(**truth), work))
    late = np.exp(0.01 * rng.normal(size=(2, n)))
    first = work.arrival_time + log.ttft * late[0]
    last = first + (log.last_token_time - log.first_token_time) * late[1]
    return dataclasses.replace(log, first_token_time=first, last_token_time=last)


@pytest.fixture(scope="module")
def found():
    return fit(made_log(), SETTINGS)


def test_known_coefficients_are_found_within_their_intervals(found):
    for name, truth in TRUTH.items():
        estimate = found.coefficients[name]
        assert estimate.lower < truth < estimate.upper, name
        if name not in found.unidentified:  # and the interval says something
            widest = 1.6 if name in ("alpha", "gamma") else 3.5
            assert estimate.upper < widest * estimate.lower, name
    assert not {"alpha", "gamma"} & set(found.unidentified)
    assert found.coefficients["alpha"].value == pytest.approx(2e-4, rel=0.06)
    assert found.coefficients["gamma"].value == pytest.approx(0.012, rel=0.15)


def test_what_was_held_back_is_predicted(found):
    table = found.errors()
    assert list(table.index) == list(MEASURES)
    assert found.fitted.sum() == 64
    assert abs(table.loc["ttft", "mean"]) < 0.05  # a fraction of a second, by luck
    assert table.loc[["tpot", "latency"], "mean"].abs().max() < 0.01
    assert table.loc["latency"].abs().max() < 0.03


def test_a_calibration_hands_on_a_configuration(found):
    config = found.config(kv_blocks=99)
    assert (config.server, config.batch_size, config.kv_blocks) == (
        "continuous",
        48,
        99,
    )
    assert (config.step_law, config.async_scheduling) == ("sum", True)
    assert config.alpha == found.coefficients["alpha"].value
    again = simulate(found.config(), found.log.workload)
    np.testing.assert_array_equal(
        again.processing_end_time, found.record.processing_end_time
    )
    assert list(found.table().index) == list(COEFFICIENTS[:6])
    assert str(found).count("\n") == 6
    assert "step law: sum (sum " in str(found)


def test_draws_spread_as_the_covariance_says(found):
    draws = found.draws(400, seed=1)
    names = list(found.coefficients)
    logs = np.log([[getattr(c, name) for name in names] for c in draws])
    middle = np.log([found.coefficients[name].value for name in names])
    spread = np.sqrt(found.covariance.diagonal())
    np.testing.assert_allclose((logs.mean(axis=0) - middle) / spread, 0.0, atol=0.2)
    np.testing.assert_allclose(logs.std(axis=0), spread, rtol=0.15)
    width = np.log([found.coefficients[name].upper for name in names]) - middle
    np.testing.assert_allclose(width, 1.96 * spread)
    assert found.draws(2, seed=1) == draws[:2]
    assert found.draws(2, seed=2) != draws[:2]


def test_an_answer_carries_the_uncertainty_of_the_coefficients():
    ten = {name: Estimate(10.0, 9.0, 11.0) for name in COEFFICIENTS}
    law = {"step_law": "roofline"}
    fitted = Fitted(ten, (), law, covariance=np.diag([0.01, *[1e-20] * 6]))
    sure = fitted.interval(lambda config: config.gamma, n=30)
    assert sure.upper == pytest.approx(10.0) == sure.lower
    unsure = fitted.interval(lambda config: config.alpha, n=200)
    assert unsure.value == pytest.approx(10.0)
    assert unsure.upper == pytest.approx(10.0 * math.exp(0.196), rel=0.03)
    assert unsure.lower == pytest.approx(10.0 / math.exp(0.196), rel=0.03)


def test_another_load_is_predicted_with_an_interval(found):
    busier = made_log(rate=9.0)
    table = found.predict(busier.workload, n=8)
    for measure in MEASURES:
        row = table.loc[measure]
        real = getattr(busier, measure)
        assert row["ci_lower"] < real.mean() < row["ci_upper"]
        assert row["p99_lower"] < row["p99"] < row["p99_upper"]
        assert row["p50"] == pytest.approx(np.median(real), rel=0.1)
    more = found.predict(busier.workload, n=2, max_batched_tokens=48)
    assert more.loc["ttft", "mean"] > 2.0 * table.loc["ttft", "mean"]


def test_a_fit_is_the_same_each_time():
    log = made_log(n=30)
    one, two = fit(log, SETTINGS), fit(log, SETTINGS)
    assert one.coefficients == two.coefficients


def test_stray_requests_move_little():
    log = made_log(n=60)
    last = log.last_token_time.copy()
    last[:30:6] += 20.0  # a client that reads slowly
    stalled = fit(dataclasses.replace(log, last_token_time=last), SETTINGS, share=1.0)
    clean = fit(log, SETTINGS, share=1.0)
    one, two = (f.simulated.latency.mean() for f in (stalled, clean))
    assert one == pytest.approx(two, rel=0.03)


def test_prompts_all_alike_cannot_tell_alpha_from_beta():
    log = made_log(n=60, rate=0.05, prompts=500)
    fitted = fit(log, SETTINGS, share=0.8)
    assert {"alpha", "beta"} <= set(fitted.unidentified)
    assert "alpha = " in str(fitted)
    assert "the data cannot tell it" in str(fitted)
    # what the two make together is known all the same
    prefill = fitted.config().step_time.prefill(500, 500**2 / 2)
    assert prefill == pytest.approx(500 * 2e-4 + 8e-3 + 125_000 * 2e-8, rel=0.05)


def test_coefficients_of_zero_do_no_harm():
    truth = {"alpha": 1e-4, "beta": 0.02, "gamma": 0.01, "delta": 0.0, "kappa": 0.0}
    fitted = fit(made_log(n=80, truth=truth), SETTINGS)
    assert fitted.errors().loc[["tpot", "latency"], "mean"].abs().max() < 0.02


@pytest.mark.parametrize("truth", ["sum", "roofline"])
def test_budgets_unlike_each_other_tell_the_law(truth):
    wide = {**SETTINGS, "step_law": truth, "max_batched_tokens": 2048}
    narrow = {**wide, "max_batched_tokens": 128}
    law = {**TRUTH, "beta": 0.0}
    logs = [made_log(n=50, settings=s, truth=law) for s in (wide, narrow)]
    for settings in (wide, narrow):
        del settings["step_law"]
    fits = fit_jointly(logs, [wide, narrow], share=1.0)
    assert [f.settings["step_law"] for f in fits] == [truth, truth]
    assert fits[0].laws[truth] == min(fits[0].laws.values())
    assert fits[0].coefficients == fits[1].coefficients
    assert [f.config().max_batched_tokens for f in fits] == [2048, 128]
    for f in fits:
        assert abs(mean_error(f.log, f.simulated, f.fitted, "latency").value) < 0.02


# Real engines


@pytest.mark.parametrize("name", ["rtx4090_llama-3.1-8b", "rtxpro6000_qwen3-32b"])
def test_real_engines_are_predicted_within_three_percent(data, name):
    folder = data / "vllm-logs" / name
    settings = read_settings(folder) | {"step_law": "roofline"}
    table = fit(read_vllm_log(folder), settings).errors()
    assert table["mean"].abs().max() < 0.03
    assert table.loc["latency"].abs().max() < 0.07


def h200(run):
    folder = fetch(f"vllm-h200-{run}")
    return read_vllm_log(folder), read_settings(folder), read_steps(folder)


@pytest.fixture(scope="module")
def one_run():
    log, settings, steps = h200("256x2048-conv-10")
    return fit(log, settings, share=1.0, steps=steps)


FITTED_TO_OUR_LOGS = {
    "llama-3.1-8b-rtx4090-vllm": ["rtx4090_llama-3.1-8b"],
    "qwen3-32b-2xrtxpro6000": ["rtxpro6000_qwen3-32b"],
    "llama-3.1-8b-h200": ["256x2048-conv-10", "256x2048-conv-4", "256x512-conv-10"],
}


@pytest.mark.parametrize("name", FITTED_TO_OUR_LOGS)
def test_a_preset_predicts_the_logs_that_it_was_fitted_to(data, name):
    for run in FITTED_TO_OUR_LOGS[name]:
        measured = run[0].isdigit()
        folder = fetch(f"vllm-h200-{run}") if measured else data / "vllm-logs" / run
        log = read_vllm_log(folder)
        config = SimulationConfig.from_preset(name, **read_settings(folder))
        record = simulate(config, log.workload)
        for time in ("ttft", "tpot", "latency"):
            ratio = getattr(record, time).mean() / getattr(log, time).mean()
            assert ratio == pytest.approx(1.0, abs=0.02), (run, time)


def test_launches_without_a_graph_explain_a_small_engine(one_run):
    log, settings, _ = h200("48x2048-kv2000-conv-9")
    assert settings["graph_tokens"] == 96
    every = np.ones(len(log), dtype=bool)
    off = {}
    for launch in (0.0, one_run.coefficients["launch"].value):
        config = one_run.config(**settings, launch=launch)
        ours = ServedLog.from_record(simulate(config, log.workload))
        off[launch > 0.0] = errors(log, ours, every)["mean"].abs()
    assert off[False].min() > 0.04
    assert off[True][["tpot", "latency"]].max() < 0.03
    assert off[True]["ttft"] < 0.7 * off[False]["ttft"]


def predicted(fitted, log, settings):
    """Relative errors of the means, and of the rate, where ``fitted`` serves a log."""
    config = fitted.config(**{"clients": None, "think_time": 0.0, **settings})
    ours = ServedLog.from_record(simulate(config, log.workload))
    off = errors(log, ours, np.ones(len(log), dtype=bool))
    lasted = [
        its.last_token_time.max() - its.workload.arrival_time.min()
        for its in (log, ours)
    ]
    off.loc["rate", "mean"] = lasted[0] / lasted[1] - 1.0
    return off


@pytest.mark.parametrize(
    ("run", "most"), [("256x2048-conv-4", 0.03), ("256x512-conv-10", 0.05)]
)
def test_one_run_predicts_another_load_and_another_budget(one_run, run, most):
    off = predicted(one_run, *h200(run)[:2])
    assert off["mean"].abs().max() < most
    assert off.loc[list(MEASURES), ["p50", "p99"]].abs().max(axis=None) < 0.1


def test_one_run_predicts_users_who_wait(one_run):
    log, settings, _ = h200("256x2048-closed-16")
    settings |= {"clients": users(log), "think_time": think_time(log, users(log))}
    assert settings["think_time"] == pytest.approx(0.0018, abs=1e-4)
    off = predicted(one_run, log, settings)
    assert off["mean"].abs().max() < 0.05
    assert off.loc[["tpot", "latency", "rate"], "mean"].abs().max() < 0.01
    later = predicted(one_run, log, settings | {"think_time": 0.003})
    assert later.loc["ttft", "mean"] < off.loc["ttft", "mean"] - 0.01


def test_one_run_predicts_prompts_that_share_prefixes(one_run):
    log, settings, _ = h200("256x512-prefix")
    assert predicted(one_run, log, settings)["mean"].abs().max() < 0.05
    record = simulate(one_run.config(**settings), log.workload)
    np.testing.assert_array_equal(record.steps.cached_tokens, log.cached_tokens)


@pytest.mark.parametrize("here", ["256x512-conv-10", "256x512-prefix"])
def test_it_is_not_luck_which_run_was_fitted_to(here):
    log, settings, steps = h200(here)
    fitted = fit(log, settings, share=1.0, steps=steps)
    for run in ("256x2048-conv-4", "256x2048-conv-10", "256x512-conv-10"):
        off = predicted(fitted, *h200(run)[:2])
        assert off["mean"].abs().max() < 0.05, run


def test_requests_and_steps_of_a_run_tell_much_the_same(one_run):
    log, settings, _ = h200("256x2048-conv-10")
    requests = fit(log, {**settings, "step_law": "roofline"}, share=1.0)
    for name in ("alpha", "gamma", "kappa"):
        ratio = requests.coefficients[name].value / one_run.coefficients[name].value
        assert ratio == pytest.approx(1.0, abs=0.15), name
    assert one_run.settings["step_law"] == "roofline"
    assert set(one_run.laws) == {"sum", "roofline"}


# What cannot be done


def test_what_cannot_be_fitted_is_said_in_words():
    log = made_log(n=20)
    with pytest.raises(TraceError, match=r"^log of 20 requests, share=0.4: 8 requests"):
        fit(log, SETTINGS)
    with pytest.raises(ConfigError, match=r"^share="):
        fit(log, SETTINGS, share=2.0)
    with pytest.raises(ConfigError, match=r"^batch_size=0"):
        fit(log, {"batch_size": 0}, share=1.0)
    with pytest.raises(ConfigError, match="no such field"):
        fit(log, {"sequences": 5}, share=1.0)
    with pytest.raises(ConfigError, match=r"^kv_blocks=2: must be at least"):
        fit(log, {"kv_blocks": 2}, share=1.0)
    with pytest.raises(ConfigError, match=r"^logs, settings, steps: 2, 1 and 2: must"):
        fit_jointly([log, log], [SETTINGS])
    work = Workload.from_arrays(np.arange(20.0), np.full(20, 9), np.ones(20))
    single = ServedLog(work, np.arange(20.0), np.arange(20.0) + 1, np.arange(20.0) + 1)
    with pytest.raises(TraceError, match="with TPOTs"):
        fit(single, SETTINGS, share=1.0)


def test_the_error_of_a_mean_has_an_interval(found):
    pair, rest = (found.log, found.simulated), ~found.fitted
    error = mean_error(*pair, rest, "latency")
    assert error.value == pytest.approx(found.errors().loc["latency", "mean"])
    assert error.lower < error.value < error.upper
    with pytest.raises(TraceError, match=r"^19 requests to compare: must be at least"):
        mean_error(*pair, np.arange(160) < 19, "ttft")
    with pytest.raises(ConfigError, match=r"^measure="):
        mean_error(*pair, rest, "speed")


def test_errors_compare_like_with_like():
    work = Workload.from_arrays([0.0, 0.0, 0.0], [1, 1, 1], [2, 3, 1])
    ends = np.array([1.0, 1.0, 1.0])
    real = ServedLog(work, np.zeros(3), ends, np.array([2.0, 3.0, 1.0]))
    ours = ServedLog(work, np.zeros(3), 1.1 * ends, np.array([2.1, 3.1, 9.0]))
    table = errors(real, ours, np.array([True, True, False]))
    assert table.loc["ttft", "mean"] == pytest.approx(0.1)
    assert table.loc["tpot", "mean"] == pytest.approx(0.0)
    assert table.loc["latency", "mean"] == pytest.approx(0.2 / 5.0)
    assert errors(real, ours, np.zeros(3, dtype=bool)).isna().to_numpy().all()


# Where the steps themselves are timed


def made_steps(n=200, noise=0.0, law="sum", **fixed):
    rng = np.random.default_rng(5)
    columns = {
        "prefill_tokens": rng.integers(1, 2048, n) * (np.arange(n) % 2),
        "decode_seqs": np.where(np.arange(n) % 4 == 1, 0, rng.integers(1, 64, n)),
        "decode_kv": rng.integers(1, 60_000, n),
    }
    table = pd.DataFrame(columns | fixed)
    table.loc[table["decode_seqs"] == 0, "decode_kv"] = 0
    idle = (table["decode_seqs"] == 0) & (table["prefill_tokens"] == 0)
    table.loc[idle, "decode_seqs"] = 1
    p, b, k = (table[c] for c in ("prefill_tokens", "decode_seqs", "decode_kv"))
    pairs = p * (rng.integers(0, 4000, n) + p / 2)
    weights = TRUTH["alpha"] * p + TRUTH["gamma"] * (b > 0)
    if law == "roofline":
        floor = np.where(p + b > GRAPH, LAUNCH, TRUTH["gamma"])
        weights = np.maximum(floor, TRUTH["alpha"] * (p + b))
    seconds = weights + TRUTH["beta"] * (p > 0) + TRUTH["delta"] * b
    seconds += TRUTH["kappa"] * k + TRUTH["epsilon"] * pairs
    return table.assign(
        pairs=pairs, seconds=seconds * np.exp(noise * rng.normal(size=n))
    )


@pytest.mark.parametrize("law", ["sum", "roofline"])
def test_exact_steps_give_the_exact_law(law):
    fitted = fit_steps(made_steps(law=law), law, stretch=1, graph_tokens=GRAPH)
    for name, truth in TRUTH.items():
        assert fitted.coefficients[name].value == pytest.approx(truth, rel=0.05), name
    assert fitted.unidentified == ()
    assert ("launch" in fitted.coefficients) == (law == "roofline")
    if law == "roofline":
        assert fitted.coefficients["launch"].value == pytest.approx(LAUNCH, rel=0.05)
    assert fitted.config().step_law == law


def test_a_late_clock_averages_out_over_stretches():
    rng = np.random.default_rng(6)
    some = rng.integers(1, 2048, 4000) * (rng.random(4000) < 0.1)
    steps = made_steps(n=4000, law="roofline", prefill_tokens=some)
    late = np.where(steps["prefill_tokens"].shift(-1, fill_value=0) > 0, 0.01, 0.0)
    steps["seconds"] += late - np.append(0.0, late[:-1])  # one longer, the next shorter
    fits = (fit_steps(steps, stretch=m, graph_tokens=GRAPH) for m in (1, 14))
    single, sums = fits
    assert single.coefficients["beta"].value < 0.1 * TRUTH["beta"]
    assert sums.coefficients["beta"].value > 0.7 * TRUTH["beta"]
    for name in ("alpha", "gamma", "kappa"):
        assert sums.coefficients[name].value == pytest.approx(TRUTH[name], rel=0.1)


def test_noisy_steps_give_intervals_that_hold():
    inside = 0
    fitted = fit_steps(made_steps(noise=0.05), "sum", stretch=1)
    for name in TRUTH:
        estimate = fitted.coefficients[name]
        inside += estimate.lower < TRUTH[name] < estimate.upper
        assert estimate.value == pytest.approx(TRUTH[name], rel=0.1)
        width = math.sqrt(estimate.upper / estimate.lower) - 1.0
        assert 0.05 < width < {"delta": 0.6, "epsilon": 0.4}.get(name, 0.35), name
        middle = math.sqrt(estimate.upper * estimate.lower)
        assert middle == pytest.approx(estimate.value)  # as much to either side
    assert inside >= 5


@pytest.mark.parametrize(
    ("fixed", "unknown"),
    [
        ({"prefill_tokens": 512}, {"alpha", "beta"}),
        ({"prefill_tokens": 0, "decode_seqs": 9}, {"alpha", "beta", "gamma", "delta"}),
        ({"decode_seqs": 16}, {"gamma", "delta"}),
    ],
)
def test_steps_too_much_alike_leave_coefficients_unidentified(fixed, unknown):
    found = fit_steps(made_steps(**fixed), "sum", stretch=1)
    assert unknown <= set(found.unidentified)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seconds", 0.0, r"^seconds\[7\]=0.0: must be a finite number above 0"),
        ("seconds", math.nan, r"^seconds\[7\]=nan: must be"),
        ("decode_seqs", -1.0, r"^decode_seqs\[7\]=-1.0: must be a finite number of at"),
        ("decode_kv", math.inf, r"^decode_kv\[7\]=inf: must be"),
        ("decode_kv", "many", r"^decode_kv\[7\]=many: must be a finite number of at"),
    ],
)
def test_what_is_bad_in_steps_is_named(column, value, message):
    steps = made_steps().astype(object)
    steps.loc[7, column] = value
    with pytest.raises(TraceError, match=message):
        fit_steps(steps)


def test_steps_without_a_column_or_too_few_are_refused():
    with pytest.raises(ConfigError, match="decode_kv"):
        fit_steps(made_steps().drop(columns="decode_kv"))
    with pytest.raises(TraceError, match=r"^5 steps, 5 stretches: must be more than 7"):
        fit_steps(made_steps().head(5), stretch=1)
    with pytest.raises(ConfigError, match=r"^step_law='square'"):
        fit_steps(made_steps(), "square")


def test_a_law_is_judged_on_what_was_held_back(found):
    log, ours, part = found.log, found.simulated, found.fitted
    rest = ~part & ~np.isnan(log.last_token_time)
    assert (part.sum(), rest.sum()) == (64, 96)
    short = 50.0 * np.median(log.tpot[part])
    misses = [
        np.log((ours.ttft + short) / (log.ttft + short))[rest],
        np.log(ours.tpot / log.tpot)[rest],
        np.log((ours.latency + short) / (log.latency + short))[rest],
    ]
    squares = robust(np.concatenate(misses)) ** 2
    assert found.laws["sum"] == pytest.approx(np.sqrt(squares.mean()), rel=1e-9)


def test_of_a_prompt_that_was_all_cached_a_token_is_computed():
    log = made_log(n=20)
    cached = dataclasses.replace(log, cached_tokens=log.workload.prompt_length)
    assert computed(cached).prompt_length.tolist() == [1] * 20
