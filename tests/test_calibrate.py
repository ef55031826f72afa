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
from llminfer.calibrate import MEASURES, errors, fit, fit_steps
from llminfer.data.logs import ServedLog
from llminfer.timing import COEFFICIENTS, StepTime

TRUTH = {"alpha": 2e-4, "beta": 8e-3, "gamma": 0.012, "delta": 1e-4, "kappa": 4e-7}
SETTINGS = {"batch_size": 48, "max_batched_tokens": 1024, "kv_blocks": 3000}


def made_log(n=160, rate=6.0, prompts=None, truth=TRUTH):
    """The log of an engine that obeys the law, its clock read with some noise."""
    rng = np.random.default_rng(3)
    drawn = rng.lognormal(6.0, 0.8, n).astype(int) + 1
    work = Workload.from_arrays(
        np.cumsum(rng.exponential(1.0 / rate, n)),
        drawn if prompts is None else np.full(n, prompts),
        rng.integers(20, 300, n),
    )
    config = SimulationConfig(server="continuous", warmup_requests=0, **SETTINGS)
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
    assert not {"alpha", "gamma"} & set(found.unidentified)
    assert found.coefficients["alpha"].value == pytest.approx(2e-4, rel=0.03)
    assert found.coefficients["gamma"].value == pytest.approx(0.012, rel=0.1)


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
    assert config.alpha == found.coefficients["alpha"].value
    again = simulate(found.config(), found.log.workload)
    np.testing.assert_array_equal(
        again.processing_end_time, found.record.processing_end_time
    )
    residuals = found.residuals()
    assert list(residuals) == ["completed", "fitted", *MEASURES]
    assert residuals["fitted"].sum() == 64
    assert residuals.loc[~residuals["fitted"], "latency"].abs().median() < 0.02
    assert list(found.table().index) == list(COEFFICIENTS)
    assert str(found).count("\n") == 4


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
    prefill = fitted.config().step_time.prefill(500)
    assert prefill == pytest.approx(500 * 2e-4 + 8e-3, rel=0.05)


def test_coefficients_of_zero_do_no_harm():
    truth = {"alpha": 1e-4, "beta": 0.02, "gamma": 0.01, "delta": 0.0, "kappa": 0.0}
    fitted = fit(made_log(n=80, truth=truth), SETTINGS)
    assert fitted.errors().loc[["tpot", "latency"], "mean"].abs().max() < 0.02


@pytest.mark.parametrize("name", ["rtx4090_llama-3.1-8b", "rtxpro6000_qwen3-32b"])
def test_real_engines_are_predicted_within_three_percent(data, name):
    folder = data / "vllm-logs" / name
    table = fit(read_vllm_log(folder), read_settings(folder)).errors()
    assert table["mean"].abs().max() < 0.03
    assert table.loc["latency"].abs().max() < 0.07


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
    work = Workload.from_arrays(np.arange(20.0), np.full(20, 9), np.ones(20))
    single = ServedLog(work, np.arange(20.0), np.arange(20.0) + 1, np.arange(20.0) + 1)
    with pytest.raises(TraceError, match="with TPOTs"):
        fit(single, SETTINGS, share=1.0)


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


def made_steps(n=200, noise=0.0, **fixed):
    rng = np.random.default_rng(5)
    columns = {
        "prefill_tokens": rng.integers(1, 2048, n) * (np.arange(n) % 2),
        "sequences": np.where(np.arange(n) % 4 == 1, 0, rng.integers(1, 64, n)),
        "kv_tokens": rng.integers(1, 60_000, n),
    }
    table = pd.DataFrame(columns | fixed)
    table.loc[table["sequences"] == 0, "kv_tokens"] = 0
    table.loc[
        (table["sequences"] == 0) & (table["prefill_tokens"] == 0), "sequences"
    ] = 1
    law = StepTime(**TRUTH)
    p, b, k = (
        table[c].to_numpy() for c in ("prefill_tokens", "sequences", "kv_tokens")
    )
    seconds = np.where(p > 0, law.prefill(p), 0.0) + np.where(
        b > 0, law.decode(b, k, 1), 0.0
    )
    return table.assign(seconds=seconds * np.exp(noise * rng.normal(size=n)))


def test_exact_steps_give_the_exact_law():
    fitted = fit_steps(made_steps())
    for name, truth in TRUTH.items():
        assert fitted.coefficients[name].value == pytest.approx(truth, rel=1e-6)
    assert fitted.unidentified == ()
    assert fitted.config().gamma == pytest.approx(0.012)


def test_noisy_steps_give_intervals_that_hold():
    inside = 0
    for name, estimate in fit_steps(made_steps(noise=0.05)).coefficients.items():
        inside += estimate.lower < TRUTH[name] < estimate.upper
        assert estimate.value == pytest.approx(TRUTH[name], rel=0.2)
    assert inside >= 4


@pytest.mark.parametrize(
    ("fixed", "unknown"),
    [
        ({"prefill_tokens": 512}, {"alpha", "beta"}),
        ({"prefill_tokens": 0, "sequences": 9}, {"alpha", "beta", "gamma", "delta"}),
        ({"sequences": 16}, {"gamma", "delta"}),
    ],
)
def test_steps_too_much_alike_leave_coefficients_unidentified(fixed, unknown):
    assert unknown <= set(fit_steps(made_steps(**fixed)).unidentified)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seconds", 0.0, r"^seconds\[7\]=0: must be a finite number above 0"),
        ("seconds", math.nan, r"^seconds\[7\]=nan: must be"),
        ("sequences", -1.0, r"^sequences\[7\]=-1: must be a finite number of at least"),
        ("kv_tokens", math.inf, r"^kv_tokens\[7\]=inf: must be"),
        ("kv_tokens", "many", "^kv_tokens: must be numbers"),
    ],
)
def test_what_is_bad_in_steps_is_named(column, value, message):
    steps = made_steps().astype(object)
    steps.loc[7, column] = value
    with pytest.raises(TraceError, match=message):
        fit_steps(steps)


def test_steps_without_a_column_or_too_few_are_refused():
    with pytest.raises(ConfigError, match="kv_tokens"):
        fit_steps(made_steps().drop(columns="kv_tokens"))
    with pytest.raises(TraceError, match=r"^5 steps: must be more than 5"):
        fit_steps(made_steps().head(5))
