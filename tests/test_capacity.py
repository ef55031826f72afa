"""The largest rate within limits: against theory, and against what it promises."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from llminfer import (
    PRESETS,
    SLO,
    ConfigError,
    SimulationConfig,
    Workload,
    capacity,
    fewest_replicas,
    simulate,
    stats,
    sweep,
    theory,
)
from llminfer.capacity import largest_rates
from llminfer.servers.overload import described

SINGLE = SimulationConfig(
    batch_size=1,
    batch_timeout=0.0,
    prompt_length_dist="constant",
    prompt_dist_params={"value": 50},
    num_requests=6000,
    warmup_requests=500,
)
REAL = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    batch_size=16,
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    num_requests=2000,
    warmup_requests=200,
)
ONE = {"replications": 2, "n_jobs": 1}


def test_the_rate_is_where_theory_has_that_p99():
    prefill = SINGLE.alpha * 50 + SINGLE.beta
    limit = 1.0
    found = capacity(SINGLE, SLO(ttft=limit), replications=8, tolerance=0.01, n_jobs=1)
    at = [SINGLE.replace(arrival_rate=found.rate * f) for f in (0.96, 1.04)]
    beyond = [float(theory.mg1(c).survival(limit - prefill)) for c in at]
    assert beyond[0] < 0.01 < beyond[1]


REPORT = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    batch_timeout=0.0,
    num_requests=3500,
)
WIDE = REPORT.replace(  # of notebook 06
    **PRESETS["llama-3.1-8b-rtx4090"].coefficients,
    server="continuous",
    output_length_dist="lognormal",
    output_dist_params={"mu": 5, "sigma": 0.8, "max": 2048},
)


@pytest.mark.parametrize("config", [REPORT, WIDE], ids=["report", "wide"])
def test_it_stays_at_or_below_what_the_server_carries(config):
    """TPOT does not feel the queue: nothing else holds the rate down."""
    slo = SLO(tpot=1000.0)
    for seed in (0, 1000):
        few = {"replications": 5, "n_jobs": 1, "random_seed_start": seed}
        found = capacity(config, slo, **few)
        assert 0.97 < found.rate / config.max_stable_rate <= 1.0
        low, high = np.array(found.interval) / config.max_stable_rate
        assert low < 1.01
        assert high > 0.99


def test_where_theory_has_no_bound_longer_runs_decide():
    """Constant outputs keep in step, and carry more than geometric ones."""
    config = REPORT.replace(
        server="continuous",
        prompt_length_dist="constant",
        prompt_dist_params={"value": 20},
        output_length_dist="constant",
        output_dist_params={"value": 50},
    )
    found = capacity(config, SLO(tpot=1000.0), replications=5, n_jobs=1)
    assert found.rate > 1.03 * config.max_stable_rate
    longer = config.replace(arrival_rate=found.rate, num_requests=60_000)
    grown = []
    for seed in range(3):
        record = simulate(longer.replace(random_seed=seed))
        grown.append(np.mean(record.processing_start_time > record.arrival_time[-1]))
    assert np.mean(grown) < 0.05  # runs without that rule: 0.1


def test_under_a_controller_the_queue_must_not_grow():
    """It may never reach the batch limit that theory counts with."""
    slow = {
        "batch_control": "latency",
        "batch_control_params": {"target": 0.1, "interval": 1.0},
    }
    config = REPORT.replace(**slow, num_requests=2000, warmup_requests=200)
    found = capacity(config, SLO(tpot=1000.0), **ONE)
    assert found.rate < 0.9 * config.max_stable_rate
    breaks = found.evaluated.set_index("rate").loc[found.bracket[1]]
    holds = config.largest_batch
    assert found.metrics["waiting"] <= max(40.0, holds) < breaks["waiting"]


def test_the_bracket_is_as_narrow_as_told_and_its_verdicts_are_right():
    slo = SLO(ttft=1.0, tpot=0.05)
    found = capacity(REAL, slo, **ONE)
    low, high = found.bracket
    assert found.rate == low < high <= 1.02 * low
    table = found.evaluated.set_index("rate")
    assert table.index.is_monotonic_increasing
    assert table.loc[low, "meets"]
    assert not table.loc[high, "meets"]
    kept = (table["p99_ttft"] <= 1.0) & (table["p99_tpot"] <= 0.05)
    steady = table["waiting"] <= 0.02 * 2000
    assert (table["meets"] == (kept & steady)).all()
    assert found.metrics == table.loc[low].drop("meets").to_dict()


def test_the_interval_holds_what_longer_runs_find_and_narrows_with_them():
    slo = SLO(ttft=1.0)
    short = capacity(SINGLE, slo, replications=4, n_jobs=1)
    long = capacity(SINGLE, slo, replications=16, n_jobs=1, random_seed_start=500)
    low, high = short.interval
    assert low < long.rate < high
    assert low < short.rate < high
    assert long.interval[1] / long.interval[0] < high / low
    once = capacity(SINGLE, slo, replications=1, n_jobs=1)
    assert np.isnan(once.interval).all()
    assert "to" not in str(once).splitlines()[0]


def test_it_is_what_a_sweep_at_that_rate_measures():
    found = capacity(REAL, SLO(ttft=1.0), replications=2, n_jobs=1)
    runs = sweep(REAL, {"arrival_rate": [found.rate]}, replications=2, n_jobs=1)
    for name in ("ttft", "tpot", "latency"):
        metrics = found.metrics[f"avg_{name}"]
        assert metrics == pytest.approx(runs[f"avg_{name}"].mean(), rel=1e-6)


def test_the_answer_does_not_depend_on_n_jobs():
    slo = SLO(ttft=1.0)
    one, two = (
        capacity(REAL, slo, replications=3, tolerance=0.2, n_jobs=n) for n in (1, 2)
    )
    assert (one.rate, one.interval) == (two.rate, two.interval)
    assert one.bracket == two.bracket
    pd.testing.assert_frame_equal(one.evaluated, two.evaluated, check_exact=True)


def test_twice_the_times_are_half_the_rate():
    slow = REAL.replace(
        **{name: 2.0 * getattr(REAL, name) for name in ("alpha", "beta", "gamma")},
        **{name: 2.0 * getattr(REAL, name) for name in ("delta", "kappa")},
    )
    one = capacity(REAL, SLO(ttft=0.5), **ONE)
    two = capacity(slow, SLO(ttft=1.0), **ONE)
    assert 2.0 * two.rate == pytest.approx(one.rate, rel=1e-9)


def test_a_stricter_limit_is_never_a_larger_rate():
    rates = [capacity(REAL, SLO(ttft=t), **ONE).rate for t in (0.3, 1.0, 5.0)]
    assert rates == sorted(rates)
    both = capacity(REAL, SLO(ttft=1.0, tpot=0.03), **ONE).rate
    assert both <= rates[1]


def test_goodput_counts_requests_within_all_limits():
    slo = SLO(ttft=1.0, tpot=0.03, goodput=0.9)
    found = capacity(REAL, slo, **ONE)
    assert found.metrics["within"] >= 0.9
    assert found.metrics["goodput"] == found.rate * found.metrics["within"]
    assert found.evaluated.set_index("rate").loc[found.bracket[1], "within"] < 0.9


def test_a_trace_is_replayed_at_scaled_rates():
    base = REAL.replace(num_requests=2500)
    trace = Workload.generate(base.replace(arrival_rate=3.0, random_seed=42))
    config = REAL.replace(arrival_rate=77.0, num_requests=1000)  # of no use here
    replayed = capacity(config, SLO(ttft=1.0), trace.scaled(0.1), n_jobs=1)
    made = capacity(base, SLO(ttft=1.0), replications=1, tolerance=0.01, n_jobs=1)
    span = trace.arrival_time[-1] - trace.arrival_time[0]
    assert replayed.rate == pytest.approx(made.rate * len(trace) / 3.0 / span, rel=0.04)


def test_a_trace_is_carried_no_faster_than_its_lengths_allow():
    """TPOT never feels the queue; lambda* ends it, or three rounds of the trace."""
    static = SINGLE.replace(batch_size=4, warmup_requests=0)
    lively = REAL.replace(warmup_requests=0)
    for config in (static, lively):
        trace = Workload.generate(config.replace(num_requests=2500, random_seed=3))
        most = described(trace, config).max_stable_rate
        slo = SLO(tpot=10.0)
        rate = capacity(config, slo, trace, tolerance=0.005, n_jobs=1).rate
        assert 0.94 * most < rate < (1.0 if config is static else 1.01) * most


def test_full_batches_have_a_lowest_rate_too():
    config = SINGLE.replace(batch_size=16, batch_timeout=None)
    found = capacity(config, SLO(latency=6.0), **ONE)
    assert found.rate > 15 / 6.0  # or the first of a batch waits too long
    with pytest.raises(
        ConfigError, match=r"slo: kept at no rate .* p99 latency <= 1 s: "
    ):
        capacity(config, SLO(latency=1.0), **ONE)


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        (SLO(ttft=0.001), r"one at a time, .*p99 TTFT <= 0.001 s: "),
        (SLO(tpot=0.017), r"one at a time, .*p99 TPOT <= 0.017 s: 0.01"),
        (
            SLO(ttft=0.01, goodput=0.9),
            r"one at a time, .*goodput >= 0.9: 0",
        ),
    ],
)
def test_limits_that_nobody_keeps_are_refused(slo, said):
    with pytest.raises(ConfigError, match=said):
        capacity(REAL, slo, **ONE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "slo: no limit given"),
        ({"goodput": 0.9}, "slo: no limit given"),
        ({"ttft": 0.0}, "ttft=0.0: must be a finite number above 0"),
        ({"ttft": 1.0, "goodput": 90}, "goodput=90: must be .* at most 1"),
    ],
)
def test_a_bad_limit_is_named(wrong, said):
    with pytest.raises(ConfigError, match=said):
        SLO(**wrong)


def test_too_few_requests_are_refused():
    with pytest.raises(ConfigError, match="num_requests=900: must be at least 1200"):
        capacity(REAL.replace(num_requests=900), SLO(ttft=1.0), replications=2)
    trace = Workload.from_arrays(np.arange(2500.0), [9] * 2500, [9] * 2500)
    with pytest.raises(ConfigError, match="workload=2500: must be at least 3072"):
        capacity(REAL.replace(batch_size=1024), SLO(ttft=1.0), trace)
    with pytest.raises(ConfigError, match="must be several requests that come at diff"):
        capacity(REAL, SLO(ttft=1.0), Workload.from_arrays([1.0], [9], [9]))


def test_one_replica_fewer_breaks_the_limits():
    slo = SLO(ttft=1.0, tpot=0.05)
    one = capacity(REAL, slo, **ONE).rate
    fleet = fewest_replicas(
        REAL,
        slo,
        2.5 * one,
        gpus_per_replica=4,
        price_per_gpu_hour=2.5,
        watts_per_gpu=700.0,
        **ONE,
    )
    assert fleet.replicas == 3
    meets = fleet.evaluated.set_index("replicas")["meets"]
    assert meets[3]
    assert not meets[2]
    assert fleet.gpus == 12
    assert fleet.cost_per_hour == 30.0
    assert fleet.kilowatts == pytest.approx(8.4)
    tokens = 2.5 * one * 3600.0 * fleet.metrics["avg_output_length"]
    assert fleet.cost_per_million_tokens == pytest.approx(30.0 / tokens * 1e6)
    assert fleet.kwh_per_million_tokens == pytest.approx(8.4 / tokens * 1e6)


def test_a_fleet_for_a_trace():
    trace = Workload.generate(REAL.replace(num_requests=3000, random_seed=7))
    slo = SLO(ttft=1.0)
    one = capacity(REAL, slo, trace, n_jobs=1).rate
    assert fewest_replicas(REAL, slo, 0.9 * one, trace, n_jobs=1).replicas == 1
    fleet = fewest_replicas(REAL, slo, 1.5 * one, trace, n_jobs=1)
    assert fleet.replicas == 2
    assert fleet.cost_per_hour is None
    static = REAL.replace(server="static", batch_timeout=0.0)
    with pytest.raises(ConfigError, match=r"replicas=\d+: must be 1 unless server="):
        fewest_replicas(static, SLO(ttft=10.0), 50.0, trace, n_jobs=1)


def test_a_price_must_be_above_nothing():
    for name in ("price_per_gpu_hour", "watts_per_gpu"):
        with pytest.raises(ConfigError, match=f"{name}=0: must be"):
            fewest_replicas(REAL, SLO(ttft=1.0), 1.0, **{name: 0})


def largest(rows):
    rates = [1.0, 2.0, 3.0, 4.0]
    runs = pd.DataFrame(
        [
            {"arrival_rate": rate, "replication": i, "p99": value}
            for i, values in enumerate(rows)
            for rate, value in zip(rates, values, strict=True)
        ]
    )
    return largest_rates(runs, "p99", 10.0**1.5)


def test_largest_rates_of_a_sweep():
    assert largest([[1.0, 10.0, 100.0, 1000.0]])[0] == pytest.approx(6.0**0.5)
    assert largest([[2.0] * 4] * 2).tolist() == [4.0, 4.0]
    assert largest([[50.0] * 4] * 2).tolist() == [1.0, 1.0]


def test_largest_rates_are_those_of_all_runs_with_the_jackknifes_interval():
    rows = np.array(
        [[1.0, 10.0, 100.0, 1000.0], [1.0, 12.0, 150.0, 1e3], [1, 9, 70, 9e2]]
    )
    logs = np.log(largest(rows))
    assert np.exp(logs.mean()) == pytest.approx(largest([rows.mean(axis=0)])[0])
    left_out = [
        float(np.log(largest([np.delete(rows, i, axis=0).mean(axis=0)])[0]))
        for i in range(3)
    ]
    direct = stats.jackknife(logs.mean(), left_out)
    found = stats.compute_confidence_interval(logs)
    assert found["ci_upper"] == pytest.approx(direct.upper)
