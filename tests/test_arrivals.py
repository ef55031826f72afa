"""Arrival rates: integral, inverse, and the arrivals drawn through it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from llminfer import (
    ConfigError,
    RequestGenerator,
    SimulationConfig,
    Workload,
    constant_rate,
    ramp_rate,
    sinusoidal_rate,
    step_rate,
)
from llminfer.laws.arrivals import unit_arrivals

RATES = st.floats(0.05, 200.0)
TIMES = st.floats(0.1, 500.0)
SOME_RATE = st.one_of(
    st.builds(constant_rate, RATES),
    st.builds(step_rate, RATES, st.floats(0.0, 500.0), RATES),
    st.builds(ramp_rate, RATES, RATES, TIMES),
    st.builds(
        lambda rate, share, period, phase: sinusoidal_rate(
            rate, share * rate, period, phase
        ),
        RATES,
        st.floats(0.0, 1.0),
        TIMES,
        st.floats(-7.0, 7.0),
    ),
)


@given(SOME_RATE, st.lists(st.floats(0.0, 1e4), min_size=1, max_size=20))
def test_the_inverse_undoes_the_cumulative_rate(rate, counts):
    counts = np.sort(np.array(counts))
    times = rate.inverse(counts)
    assert (times >= 0.0).all()
    assert (np.diff(times) >= 0.0).all()
    np.testing.assert_allclose(rate.cumulative(times), counts, rtol=1e-9, atol=1e-9)


@given(SOME_RATE, st.floats(0.0, 1000.0))
def test_the_cumulative_rate_grows_at_the_rate(rate, t):
    width = 1e-3 * getattr(rate, "period", 1.0)
    window = t + np.array([0.0, width])
    kink = getattr(rate, "step_time", getattr(rate, "duration", -1.0))
    assume(not window[0] < kink < window[1])
    grown = np.diff(rate.cumulative(window))[0]
    assert grown / width == pytest.approx(
        rate(t + width / 2.0), rel=1e-5, abs=1e-5 * rate.rate
    )


def test_a_rate_can_be_called_for_one_time_or_many():
    wave = sinusoidal_rate(10.0, 8.0, 3600.0)
    assert wave(900.0) == pytest.approx(18.0)
    np.testing.assert_allclose(wave(np.array([0.0, 2700.0])), [10.0, 2.0])
    assert step_rate(1.0, 60.0, 5.0)(59.9) == 1.0
    assert step_rate(1.0, 60.0, 5.0)(60.0) == 5.0
    assert ramp_rate(1.0, 5.0, 8.0)(4.0) == pytest.approx(3.0)
    assert ramp_rate(1.0, 5.0, 8.0)(80.0) == pytest.approx(5.0)
    assert constant_rate(3.0)(17.0) == 3.0


@pytest.mark.parametrize(
    "rate",
    [
        constant_rate(2.5),
        step_rate(2.5, 3.0, 4.5),
        ramp_rate(2.5, 4.75, 8.0),
        sinusoidal_rate(2.5, 1.25, 7.0),
    ],
)
def test_whole_seconds_are_times_as_well(rate):
    times = np.arange(10)
    np.testing.assert_array_equal(rate(times), rate(times.astype(np.float64)))
    assert [rate(int(t)) for t in times] == [rate(float(t)) for t in times]
    assert {type(rate(int(t))) for t in times} == {float}


@given(SOME_RATE, st.floats(0.01, 1e5))
def test_the_peak_is_the_greatest_rate_of_the_run(rate, horizon):
    assert rate(np.linspace(0.0, horizon, 777)).max() <= rate.peak(horizon) * (1 + 1e-9)
    if hasattr(rate, "period"):
        assume(horizon >= rate.period)
        assert rate.peak(horizon) == pytest.approx(rate.rate + rate.amplitude)


@given(st.floats(0.0, 1.0), st.floats(-7.0, 7.0), st.floats(0.01, 1.0))
def test_a_crest_counts_only_if_the_run_reaches_it(share, phase, part):
    wave = sinusoidal_rate(5.0, 5.0 * share, 60.0, phase)
    highest = wave(np.linspace(0.0, part * 60.0, 10_001)).max()
    assert wave.peak(part * 60.0) == pytest.approx(highest, rel=1e-6)


@given(SOME_RATE, st.integers(1, 10**6))
def test_the_mean_rate_brings_the_requests_in_their_time(rate, requests):
    lasts = requests / rate.mean(requests)
    assert rate.cumulative(np.array([lasts]))[0] == pytest.approx(requests, rel=1e-8)


def by_inversion(rate, requests, stream):
    return rate.inverse(unit_arrivals(requests, 1.0, stream))


def at_the_current_rate(rate, requests, stream):
    """The wrong way: each gap at the rate of the moment it begins."""
    times, now = np.empty(requests), 0.0
    for i, gap in enumerate(stream.standard_exponential(requests)):
        now += gap / float(rate(now))
        times[i] = now
    return times


def z_of_counts(draw, rate, edges, requests=60, replications=150):
    """How far the counts between ``edges`` are from the integral of the rate.

    Counts of a Poisson process have their mean as variance.
    """
    edges = np.asarray(edges, dtype=np.float64)
    counts = np.zeros(len(edges) - 1)
    for seed in range(replications):
        times = draw(rate, requests, np.random.default_rng(seed))
        assert times[-1] > edges[-1], "too few requests to fill the window"
        counts += np.histogram(times, edges)[0]
    expected = replications * np.diff(rate.cumulative(edges))
    return (counts - expected) / np.sqrt(expected)


STEP_UP = step_rate(0.5, 10.0, 10.0)  # from one request in 2 s to ten a second
AFTER_THE_STEP = [10.0, 12.0]


def test_arrivals_after_a_step_come_at_the_new_rate():
    assert np.abs(z_of_counts(by_inversion, STEP_UP, AFTER_THE_STEP)).max() < 4.0


def test_the_same_check_catches_gaps_drawn_at_the_current_rate():
    late = z_of_counts(at_the_current_rate, STEP_UP, AFTER_THE_STEP)
    assert late.max() < -8.0


def test_sinusoidal_arrivals_follow_the_wave():
    wave = sinusoidal_rate(1.0, 0.9, 10.0)
    phases = np.linspace(0.0, 10.0, 11)
    assert np.abs(z_of_counts(by_inversion, wave, phases)).max() < 4.0
    wrong = z_of_counts(at_the_current_rate, wave, phases)
    assert np.abs(wrong).max() > 8.0


def test_gaps_at_the_current_rate_lose_a_third_of_a_fast_wave():
    """1 + 0.9 sin(2 pi t / 10): 37% of the arrivals are lost (DESIGN section 2)."""
    wave, n = sinusoidal_rate(1.0, 0.9, 10.0), 50_000
    right = n / by_inversion(wave, n, np.random.default_rng(3))[-1]
    wrong = n / at_the_current_rate(wave, n, np.random.default_rng(3))[-1]
    assert right == pytest.approx(1.0, abs=4.0 / np.sqrt(n))
    assert wrong / right == pytest.approx(1.0 - 0.37, abs=0.02)


@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0, 2.5])
def test_gaps_have_the_coefficient_of_variation_asked_for(cv):
    n = 200_000
    gaps = np.diff(unit_arrivals(n, cv, np.random.default_rng(11)), prepend=0.0)
    assert gaps.mean() == pytest.approx(1.0, abs=max(4.0 * cv / np.sqrt(n), 1e-9))
    squares = (gaps - 1.0) ** 2
    error = squares.std() / np.sqrt(n)
    assert squares.mean() == pytest.approx(cv**2, abs=max(4.0 * error, 1e-9))


def test_poisson_gaps_are_exponential_and_bursts_are_gamma():
    unit = np.random.default_rng(12)
    gaps = np.diff(unit_arrivals(20_000, 1.0, unit))
    assert stats.kstest(gaps, "expon").pvalue > 1e-4
    gaps = np.diff(unit_arrivals(20_000, 2.0, unit))
    assert stats.kstest(gaps, stats.gamma(0.25, scale=4.0).cdf).pvalue > 1e-4


def test_bursts_reach_the_workload():
    config = SimulationConfig(num_requests=50_000, random_seed=4, arrival_cv=3.0)
    gaps = np.diff(Workload.generate(config).arrival_time)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant_rate(0.0),
        lambda: constant_rate(float("nan")),
        lambda: step_rate(1.0, -1.0, 2.0),
        lambda: step_rate(1.0, 1.0, 0.0),
        lambda: sinusoidal_rate(1.0, 1.5, 10.0),
        lambda: sinusoidal_rate(1.0, 0.5, 0.0),
        lambda: step_rate(-1.0, 1.0, 2.0),
        lambda: sinusoidal_rate(-1.0, 0.5, 10.0),
        lambda: ramp_rate(-1.0, 2.0, 10.0),
        lambda: ramp_rate(1.0, 0.0, 10.0),
        lambda: ramp_rate(1.0, 2.0, 0.0),
        lambda: RequestGenerator(5.0),
        lambda: RequestGenerator(constant_rate(5.0), arrival_cv=-1.0),
    ],
)
def test_a_rate_that_cannot_be_is_refused(make):
    with pytest.raises(ConfigError, match=r"^\w+=.+: must be "):
        make()
