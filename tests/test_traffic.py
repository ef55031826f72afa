"""Traces beside the usual assumptions: numbers that are known, and coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llminfer import ConfigError, SimulationConfig, Workload, fetch, simulate
from llminfer.experiment import metrics_of
from llminfer.laws.lengths import LogNormal
from llminfer.stats.intervals import compute_confidence_interval
from llminfer.study.traffic import (
    by_blocks,
    counts,
    dispersion,
    distance,
    distance_by_chance,
    fitted_lognormal,
    mean_rate,
    replayed,
    token_times,
    twin,
    typical,
    variation,
)

LAW = {"mu": 5.0, "sigma": 0.9, "max": 4000}  # tokens


def made(cv: float = 1.0, requests: int = 20_000) -> Workload:
    config = SimulationConfig(
        arrival_rate=4.0,
        arrival_cv=cv,
        prompt_dist_params=LAW,
        num_requests=requests,
        warmup_requests=0,
        random_seed=7,
    )
    return Workload.generate(config)


def test_a_log_normal_is_found_again():
    law = fitted_lognormal(made().prompt_length)
    assert law.mu == pytest.approx(LAW["mu"], abs=0.02)
    assert law.sigma == pytest.approx(LAW["sigma"], rel=0.02)
    short = LogNormal(2.5, 0.8).tokens(np.random.default_rng(1).random(100_000))
    assert fitted_lognormal(short).mu == pytest.approx(2.5, abs=0.01)  # the floor


def test_a_twin_is_a_configuration_of_the_same_rate_and_means():
    trace = made()
    config = SimulationConfig(**twin(trace), num_requests=len(trace), random_seed=8)
    other = Workload.generate(config)
    assert mean_rate(other.arrival_time) == pytest.approx(
        mean_rate(trace.arrival_time), rel=0.02
    )
    ratio = other.prompt_length.mean() / trace.prompt_length.mean()
    assert ratio == pytest.approx(1.0, rel=0.03)
    assert config.output_length_dist == "lognormal"


def test_poisson_arrivals_have_dispersion_and_variation_one():
    arrival = made().arrival_time
    assert variation(np.diff(arrival)) == pytest.approx(1.0, abs=0.03)
    assert dispersion(counts(arrival, 1.0)) == pytest.approx(1.0, abs=0.06)


def test_counts_of_a_renewal_process_disperse_as_its_gaps_vary_squared():
    # Cox and Lewis (1966): IDC of long windows is the squared CV of the gaps
    arrival = made(cv=2.0, requests=200_000).arrival_time
    assert variation(np.diff(arrival)) == pytest.approx(2.0, rel=0.02)
    assert dispersion(counts(arrival, 50.0)) == pytest.approx(4.0, rel=0.15)


def test_only_whole_windows_are_counted():
    arrival = np.array([5.0, 5.5, 6.0, 6.9, 7.0, 8.4])
    np.testing.assert_array_equal(counts(arrival, 1.0), [2, 2, 1])
    with pytest.raises(ConfigError, match=r"^window=2\.0: must be at most 1\.7"):
        counts(arrival, 2.0)
    with pytest.raises(ConfigError, match=r"^window=0"):
        counts(arrival, 0)


def test_distance_is_the_greatest_gap_between_survivals():
    # three of four are 1, and the law never goes below 3
    law = LogNormal(math.log(3.5), 0.0)
    assert distance(np.array([1, 1, 1, 3]), law) == pytest.approx(0.75)
    assert distance(np.array([3, 3, 3]), law) == pytest.approx(0.0)


def test_true_log_normals_stay_below_the_distance_by_chance():
    law = LogNormal(**LAW)
    by_chance = distance_by_chance(law, 2000)
    assert 0.6 / math.sqrt(2000) < by_chance < 1.36 / math.sqrt(2000)
    random = np.random.default_rng(3)
    draws = [law.tokens(random.random(2000)) for _ in range(100)]
    beyond = [distance(its, fitted_lognormal(its)) > by_chance for its in draws]
    assert 0.0 < np.mean(beyond) < 0.13  # 5%, give or take


@given(st.lists(st.floats(-1e3, 1e3), min_size=40, max_size=40))
def test_of_a_mean_leaving_out_blocks_is_students_interval(values):
    path = np.array(values)
    found = by_blocks(np.mean, path)
    means = path.reshape(10, 4).mean(axis=1)
    student = compute_confidence_interval(means)
    assert found.value == pytest.approx(path.mean(), abs=1e-9)
    assert found.lower == pytest.approx(student["ci_lower"], abs=1e-6)
    assert found.upper == pytest.approx(student["ci_upper"], abs=1e-6)


def test_blocks_cover_the_mean_of_a_path_whose_neighbours_are_alike():
    random = np.random.default_rng(5)
    noise = random.normal(size=(300, 2000))
    path = np.empty_like(noise)
    path[:, 0] = noise[:, 0]
    for t in range(1, noise.shape[1]):
        path[:, t] = 0.9 * path[:, t - 1] + noise[:, t]
    held = [by_blocks(np.mean, its) for its in path]
    covered = np.mean([its.lower <= 0.0 <= its.upper for its in held])
    assert covered > 0.89  # 95% wanted; taken as independent they cover 35%


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match=r"^values=19: must be at least 20"):
        by_blocks(np.mean, np.arange(19.0))
    with pytest.raises(ConfigError, match=r"^arrival_time"):
        mean_rate(np.array([1.0, 1.0]))


@pytest.mark.parametrize(
    ("name", "poisson_gaps"), [("azure-2023-conv", True), ("azure-2023-code", False)]
)
def test_the_azure_traces_are_bursty_and_one_hides_it(data, name, poisson_gaps):
    arrival = Workload.from_csv(fetch(name)).arrival_time
    assert (variation(np.diff(arrival)) < 1.2) == poisson_gaps
    assert by_blocks(dispersion, counts(arrival, 60.0)).lower > 5.0


def test_token_times_are_those_of_the_metrics():
    config = SimulationConfig(
        server="continuous", arrival_rate=2.0, num_requests=500, warmup_requests=0
    )
    trace = made(requests=500)
    record = simulate(config, trace)
    metrics, times = metrics_of(config, record), token_times(record)
    table = {row["metric"]: row for row in replayed(config, trace)}
    for name in ("ttft", "tpot"):
        assert times[name].mean() == pytest.approx(metrics[f"avg_{name}"])
        for q in ("p50", "p99"):
            row = table[f"{q}_{name}"]
            assert row["mean"] == pytest.approx(metrics[f"{q}_{name}"], rel=1e-3)
            assert row["ci_lower"] <= row["mean"] <= row["ci_upper"]


def test_what_is_typical_turns_over_with_a_ratio():
    some = np.array([0.5, 1.0, 3.0, 8.0])
    found, turned = typical(some), typical(1.0 / some)
    assert found["mean"] == pytest.approx(12.0**0.25)
    assert turned["mean"] == pytest.approx(1.0 / found["mean"])
    assert turned["ci_lower"] == pytest.approx(1.0 / found["ci_upper"])
