"""The largest rate within limits: against theory, and against what it promises."""

from __future__ import annotations

import re
import sys

import numpy as np
import pandas as pd
import pytest
from made_up import REQUESTS
from scipy.optimize import brentq

from llminfer import (
    PRESETS,
    SLO,
    ConfigError,
    SimulationConfig,
    Workload,
    calibrate,
    capacity,
    experiment,
    fewest_replicas,
    goodput,
    simulate,
    stats,
    sweep,
    theory,
)
from llminfer.capacity import Trials, largest_rates
from llminfer.data import ServedLog
from llminfer.report import figures
from llminfer.servers.overload import described
from llminfer.stats.intervals import compute_confidence_interval, jackknife

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


@pytest.fixture(autouse=True)
def store_folder(tmp_path_factory, monkeypatch):
    """One store for this file: what many searches begin with is simulated once."""
    folder = tmp_path_factory.getbasetemp() / "capacities"
    monkeypatch.setenv("LLMINFER_CACHE", str(folder))
    return folder


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
    slo = SLO(tpot=4.0)
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
    found = capacity(config, SLO(tpot=4.0), replications=5, n_jobs=1)
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
    found = capacity(config, SLO(tpot=4.0), **ONE)
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
    assert low < short.rate < high < 1.3 * low
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


def test_the_answer_does_not_depend_on_n_jobs(monkeypatch):
    monkeypatch.setenv("LLMINFER_CACHE", "/dev/null/nowhere")  # each simulates
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
    assert 0.0 < rates[0] < rates[1] < rates[2]
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
        slo = SLO(tpot=4.0)
        rate = capacity(config, slo, trace, tolerance=0.005, n_jobs=1).rate
        assert 0.94 * most < rate < (1.0 if config is static else 1.01) * most


def test_full_batches_have_a_lowest_rate_too():
    config = SINGLE.replace(batch_size=16, batch_timeout=None)
    found = capacity(config, SLO(latency=6.0), **ONE)
    assert found.rate > 15 / 6.0  # or the first of a batch waits too long
    with pytest.raises(
        ConfigError, match=r"slo: kept at no rate .* p99 latency ≤ 1 s: "
    ):
        capacity(config, SLO(latency=1.0), **ONE)


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        (SLO(ttft=0.001), r"one at a time, .*p99 TTFT ≤ 0.001 s: "),
        (SLO(tpot=0.017), r"one at a time, .*p99 TPOT ≤ 0.017 s: 0.01"),
        (
            SLO(ttft=0.01, goodput=0.9),
            r"one at a time, .*goodput ≥ 0.9: 0",
        ),
    ],
)
def test_limits_that_nobody_keeps_are_refused(slo, said):
    with pytest.raises(ConfigError, match=said):
        capacity(REAL.replace(num_requests=1200), slo, **ONE)


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


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"ttft": 500}, "ttft=500: must be seconds: 0.5 if 500 ms are meant"),
        ({"tpot": 20.0, "ttft": 0.5}, "tpot=20: must be seconds: 0.02 if 20 ms"),
        ({"itl": {"p50": 0.05, "p99": 80}}, "itl=80: must be seconds: 0.08 if"),
        ({"latency": {"mean": 5000}}, "latency=5000: must be seconds: 5 if"),
    ],
)
def test_a_limit_in_milliseconds_is_suspected_where_it_is_given(limits, said):
    with pytest.warns(UserWarning, match=f"^{said}") as caught:
        slo = SLO(**limits)
    assert len(caught) == 1
    assert slo == SLO(**limits)  # and taken as it was given


def test_a_limit_that_may_be_meant_needs_no_word(recwarn):
    SLO(ttft=60.0, tpot=4.0, latency=900.0, itl=4.0)
    SLO(ttft={"p50": 30.0, "p99": 60.0}, latency=600)
    assert not recwarn.list


def test_too_few_requests_are_refused():
    with pytest.raises(ConfigError, match="num_requests=900: must be at least 1200"):
        capacity(REAL.replace(num_requests=900), SLO(ttft=1.0), replications=2)
    trace = Workload.from_arrays(np.arange(2500.0), [9] * 2500, [9] * 2500)
    with pytest.raises(ConfigError, match="workload=2500: must be at least 3072"):
        capacity(REAL.replace(batch_size=1024), SLO(ttft=1.0), trace)
    with pytest.raises(
        ConfigError, match="must be a Workload of several requests that come"
    ):
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


@pytest.mark.parametrize(("share", "sure"), [(0.6, True), (0.999, False)])
def test_a_fleet_says_if_its_runs_can_tell(share, sure):
    slo = SLO(ttft=1.0, tpot=0.05)
    one = capacity(REAL, slo, replications=4, n_jobs=1).rate
    fleet = fewest_replicas(REAL, slo, share * one, replications=4, n_jobs=1)
    assert (fleet.replicas, fleet.sure) == (1, sure)
    assert repr(fleet).startswith("1 replica, 1 GPU")
    assert repr(fleet).endswith("too few runs") is not sure


@pytest.mark.parametrize(("requests", "sound"), [(6_000, False), (80_000, True)])
def test_an_answer_near_saturation_says_how_many_memories_it_rests_on(requests, sound):
    config = SINGLE.replace(num_requests=requests)
    found = capacity(config, SLO(ttft=4.0), replications=2, tolerance=0.1, n_jobs=1)
    load = found.rate / config.max_stable_rate
    assert 0.8 < load < 0.97
    lasts = (requests - 500) / theory.memory(config.replace(arrival_rate=found.rate))
    assert found.memories == pytest.approx(lasts)
    assert (found.memories >= 300.0) is sound is found.row()["sound"]
    assert ("too short to be sure" in str(found)) is not sound
    if not sound:
        (n,) = re.findall(r"300 take ([\d,]+) requests", found.basis)
        longer = config.replace(num_requests=int(n.replace(",", "")))
        at = longer.replace(arrival_rate=found.rate)
        assert theory.measured_memories(at) == pytest.approx(300.0, rel=0.1)


def test_an_answer_at_lambda_star_is_no_error():
    with pytest.warns(UserWarning, match="must be seconds: 1000 if 1e\\+06 ms are"):
        slo = SLO(ttft=1e6)
    found = capacity(SINGLE, slo, replications=2, tolerance=1e-4, n_jobs=1)
    assert found.memories < 1e-3
    assert "a run lasts 0 memories of the queue, " in found.basis


def test_a_class_that_nobody_is_in_is_refused():
    for name in (7, 1):
        with pytest.raises(ConfigError, match=f"classes={name}: must be .* at most 0"):
            capacity(REAL, SLO(classes={name: SLO(ttft=1.0)}))
    with pytest.raises(ConfigError, match="classes='chat': must be a number: the conf"):
        capacity(REAL, SLO(classes={"chat": SLO(ttft=1.0)}))


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


# what an answer rests on: limits of other kinds, traces, classes, coefficients


def pooled(config, rate, name, seeds=(42, 43)):
    """A time of all measured requests, from runs of their own."""
    runs = [simulate(config.replace(arrival_rate=rate, random_seed=i)) for i in seeds]
    return np.concatenate(
        [getattr(run, name)[config.warmup_requests :] for run in runs]
    )


@pytest.mark.parametrize(
    ("slo", "name", "statistic"),
    [
        (SLO(ttft={"p50": 0.12}), "ttft", lambda x: np.quantile(x, 0.5)),
        (SLO(latency={"mean": 4.0}), "latency", np.mean),
        (SLO(tpot={"p90": 0.02}), "tpot", lambda x: np.nanquantile(x, 0.9)),
    ],
)
def test_a_limit_on_any_statistic_is_where_runs_of_their_own_have_it(
    slo, name, statistic
):
    found = capacity(REAL, slo, tolerance=0.05, **ONE)
    (limit,) = slo.limits
    assert found.binds == str(limit)
    there = float(statistic(pooled(REAL, found.rate, name)))
    assert found.metrics[limit.metric] == pytest.approx(there, rel=0.01)
    assert there <= limit.bound * 1.01
    assert float(statistic(pooled(REAL, found.bracket[1], name))) > limit.bound * 0.99
    assert found.slack[str(limit)] == pytest.approx(1.0 - there / limit.bound, abs=0.01)


def test_gaps_between_tokens_are_limited_as_a_sweep_measures_them():
    found = capacity(REAL, SLO(itl={"p90": 0.03}), tolerance=0.1, **ONE)
    runs = sweep(REAL, {"arrival_rate": [found.rate]}, replications=2, n_jobs=1)
    table = stats.summarize(runs, "arrival_rate", ["p90_itl"])
    assert found.metrics["p90_itl"] == pytest.approx(float(table["mean"][0]), rel=0.01)
    assert found.metrics["p90_itl"] <= 0.03


def test_a_class_has_limits_of_its_own():
    classes = {"chat": {"share": 1.0, "base_priority": 5.0}, "batch": {"share": 3.0}}
    config = REAL.replace(scheduling_policy="Priority", request_classes=classes)
    slo = SLO(latency=60.0, classes={"chat": SLO(ttft={"p90": 0.4}), 1: SLO(ttft=20.0)})
    assert [limit.metric for limit in slo.limits] == [
        "p99_latency",
        "p90_ttft[chat]",
        "p99_ttft[1]",
    ]
    found = capacity(config, slo, tolerance=0.1, **ONE)
    seeds = (42, 43)
    who = np.concatenate(
        [
            Workload.generate(config.replace(random_seed=i)).request_class[200:]
            for i in seeds
        ]
    )
    ttft = pooled(config, found.rate, "ttft")
    for number, name in enumerate(("p90_ttft[chat]", "p99_ttft[1]")):
        mine = np.quantile(ttft[who == number], (0.9, 0.99)[number])
        assert found.metrics[name] == pytest.approx(mine, rel=0.03)
    with pytest.raises(ConfigError, match="classes='chit': must be one of batch, chat"):
        capacity(config, SLO(classes={"chit": SLO(ttft=1.0)}), **ONE)


def test_the_share_within_limits_is_a_count_and_goodput_has_the_same_rule():
    """A request of one token has no TPOT to miss, here as in ``goodput``."""
    config = REAL.replace(
        num_requests=2200,
        output_length_dist="bimodal",
        output_dist_params={
            **dict(short_min=1, short_max=1, long_min=50, long_max=90, short_prob=0.5)
        },
    )
    slo = SLO(ttft=0.5, tpot=0.02, goodput=0.8)
    found = capacity(config, slo, replications=1, tolerance=0.1, n_jobs=1)
    run = simulate(config.replace(arrival_rate=found.rate, random_seed=42))
    late = (run.ttft > 0.5) | (run.tpot > 0.02)
    assert (run.output_length[200:] == 1).any()
    assert found.metrics["within"] == pytest.approx(1.0 - late[200:].mean())
    span = run.processing_end_time[200:].max() - run.arrival_time[200]
    met = goodput(run, 0.5, 0.02, warmup_requests=200) * span
    assert met == pytest.approx(found.metrics["within"] * 2000)


def test_with_outputs_of_one_token_tpot_never_binds():
    one = {"output_length_dist": "constant", "output_dist_params": {"value": 1}}
    config = SINGLE.replace(**one, num_requests=2500)
    found = capacity(config, SLO(tpot=1e-6), replications=1, n_jobs=1)
    assert found.binds == "the queue"
    assert found.rate == pytest.approx(config.max_stable_rate, rel=0.03)


def test_the_interval_of_a_trace_holds_what_theory_has():
    prefill, slo = SINGLE.alpha * 50 + SINGLE.beta, SLO(ttft={"p90": 0.5})

    def beyond(rate):
        at = SINGLE.replace(arrival_rate=rate)
        return float(theory.mg1(at).survival(0.5 - prefill)) - 0.1

    truth = brentq(beyond, 1.0, 0.99 * SINGLE.max_stable_rate)
    config, held, widths = SINGLE.replace(warmup_requests=0), 0, []
    for seed in range(6):
        trace = Workload.generate(config.replace(random_seed=seed))
        found = capacity(config, slo, trace, tolerance=0.05, n_jobs=1)
        low, high = found.interval
        held += low < truth < high
        widths.append(high / low)
        assert found.basis == "10 blocks of the trace"
    assert held >= 4
    assert np.median(widths) < 1.25


def test_arrivals_by_the_second_are_carried():
    config = REAL.replace(warmup_requests=0)
    trace = Workload.generate(config.replace(num_requests=2500, arrival_rate=2.0))
    columns = {name: its.copy() for name, its in trace.columns.items()}
    columns["arrival_time"] = np.floor(trace.arrival_time / 5.0) * 5.0
    tied = Workload.from_arrays(**columns)
    slo = SLO(ttft=20.0)
    smooth = capacity(config, slo, trace, tolerance=0.1, n_jobs=1).rate
    assert 0.3 * smooth < capacity(config, slo, tied, tolerance=0.1, n_jobs=1).rate
    with pytest.raises(ConfigError, match="at one time come so at every rate"):
        capacity(config, SLO(ttft=0.03), tied, n_jobs=1)


def test_a_tolerance_that_no_search_reaches_is_refused():
    with pytest.raises(
        ConfigError, match=r"tolerance=1e-16: must be .* at least 0.0001"
    ):
        capacity(REAL, SLO(ttft=1.0), tolerance=1e-16)


@pytest.mark.parametrize("traced", [False, True])
def test_asking_again_simulates_nothing(traced, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path))
    trace = Workload.generate(SINGLE.replace(random_seed=3)) if traced else None
    how = {"tolerance": 0.2, "replications": 2, "n_jobs": 1}
    first = capacity(SINGLE, SLO(ttft=1.0), trace, **how)
    other = capacity(SINGLE, SLO(ttft=0.5), trace, **how)
    assert other.rate < first.rate
    monkeypatch.setattr(experiment, "_simulated", None)
    again = capacity(SINGLE, SLO(ttft=1.0), trace, **how)
    pd.testing.assert_frame_equal(again.evaluated, first.evaluated, check_exact=True)
    if traced:
        with pytest.raises(TypeError):  # another trace
            capacity(SINGLE, SLO(ttft=1.0), trace.scaled(1.5), **how)


def test_a_rate_that_varies_keeps_its_shape():
    params = {"amplitude": 1.0, "period": 400.0}
    config = SINGLE.replace(
        arrival_rate=2.0,
        arrival_pattern="sinusoidal",
        arrival_pattern_params=params,
        num_requests=3000,
    )
    found = capacity(config, SLO(ttft=5.0), tolerance=0.1, **ONE)
    as_before = Workload.generate(config.replace(random_seed=42))
    its = as_before.scaled(found.rate / config.arrivals.mean(config.num_requests))
    other = Workload.generate(config.replace(random_seed=43))
    its_other = other.scaled(found.rate / config.arrivals.mean(config.num_requests))
    times = [simulate(config, work).ttft[500:] for work in (its, its_other)]
    p99 = np.quantile(np.concatenate(times), 0.99)
    assert found.metrics["p99_ttft"] == pytest.approx(p99, rel=0.01)


def test_a_table_has_the_capacities_of_its_settings():
    slo = SLO(ttft=1.0, tpot=0.05)
    over = {"kv_blocks": [600, 2000], "replicas": [1, 2]}
    how = {"tolerance": 0.1, **ONE}
    table = capacity(REAL, slo, over=over, **how)
    assert table[["kv_blocks", "replicas"]].to_numpy().tolist() == [
        [600, 1],
        [600, 2],
        [2000, 1],
        [2000, 2],
    ]
    one = capacity(REAL.replace(kv_blocks=2000), slo, **how)
    row = table.iloc[2]
    assert (row["rate"], row["binds"]) == (one.rate, one.binds)
    assert (row["rate_lower"], row["rate_upper"]) == one.interval
    assert row["throughput"] == one.rate * one.metrics["avg_output_length"]
    assert row["user_speed"] == 1.0 / one.metrics["avg_tpot"]
    double = table.iloc[3]
    assert double["throughput_per_gpu"] == double["throughput"] / 2
    assert 1.8 < double["rate"] / row["rate"] < 2.6
    assert table["rate"][0] < table["rate"][2]


def test_a_setting_that_keeps_the_limits_nowhere_carries_nothing():
    slo, gammas = SLO(tpot=0.02), [REAL.gamma, 0.03]
    table = capacity(REAL, slo, over={"gamma": gammas}, tolerance=0.2, **ONE)
    assert table["rate"][0] > 0.0
    assert table["rate"][1] == 0.0
    assert "kept at no rate" in table["binds"][1]
    left, right = figures.draw_capacity(table).axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == [
        f"gamma={gammas[0]}",
        "gamma=0.03",
    ]
    assert right.get_ylabel() == "tokens/s a GPU"


def test_the_front_is_what_nothing_beats():
    rates = {"rate": [1.0] * 4, "rate_lower": [0.5] * 4, "rate_upper": [2.0] * 4}
    speed = {"user_speed": [10.0, 20, 30, 25], "throughput_per_gpu": [9.0, 5, 3, 2]}
    table = pd.DataFrame({"setting": list("abcd"), **rates, **speed})
    left, right = figures.draw_capacity(table).axes
    assert left.get_xlim() == (0.0, pytest.approx(1.1 * 2.0))  # all is seen
    assert right.get_xlim() == (0.0, pytest.approx(1.1 * table["user_speed"].max()))
    most = table["throughput_per_gpu"].max()
    assert right.get_ylim() == (0.0, pytest.approx(1.1 * most))
    front = right.get_lines()[-1]
    assert front.get_xdata().tolist() == [30.0, 20.0, 10.0]


def test_paired_runs_tell_settings_apart_that_intervals_cannot():
    slo, how = SLO(ttft=0.5), {"replications": 6, "tolerance": 0.05, "n_jobs": 1}
    base = capacity(REAL, slo, **how)
    slower = REAL.replace(gamma=1.05 * REAL.gamma)
    other = capacity(slower, slo, **how)
    its = other.against(base)
    assert its.lower < its.value < its.upper < 0.0
    assert other.interval[1] > base.interval[0]  # alone they overlap
    none = base.against(base)
    assert (none.value, none.lower, none.upper) == (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def engine():
    """An engine whose coefficients are known, and what its log says of it."""
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        server="continuous",
        arrival_rate=4.0,
        **REQUESTS,
    )
    log = ServedLog.from_record(simulate(config))
    settings = {"batch_size": 16, "step_law": "sum", "server": "continuous"}
    return config, log, settings


def test_a_calibration_answers_for_its_own_log(engine, monkeypatch):
    monkeypatch.setattr(sys.modules["llminfer.capacity"], "_DRAWS", 3)
    config, log, settings = engine
    slo, how = SLO(ttft=1.0, tpot=0.04), {"replications": 3, "n_jobs": 1}
    found = capacity(calibrate.fit(log, settings), slo, **how)
    longer = config.replace(num_requests=2600, warmup_requests=200)
    truth = capacity(longer, slo, **how).rate
    low, high = found.interval
    assert low < truth < high
    assert found.rate == pytest.approx(truth, rel=0.15)
    runs = compute_confidence_interval(found.logs)
    assert np.log(high / low) > runs["ci_upper"] - runs["ci_lower"]
    basis, *doubts = found.basis.splitlines()
    assert basis == "3 replications, 3 draws of the coefficients"
    assert 50 < found.memories < 300
    short = f"too short to be sure: a run lasts {found.memories:.0f} memories of the"
    assert doubts[0].startswith(f"{short} queue, 300 take ")
    seen = int(found.metrics["largest_batch"]), 15
    assert doubts[1:] == [
        "beyond the log: batches of {}, there of {}".format(*seen),
        "KV memory is not given, and taken as without limit",
    ]
    with pytest.raises(
        ConfigError, match=r"log=.*: must be with its engine's settings"
    ):
        capacity(log, slo)


def test_what_a_fitted_engine_leaves_in_doubt(engine, monkeypatch):
    """Each line where it is so, and only there."""
    _, log, settings = engine
    fitted = calibrate.fit(log, settings)
    most = int(fitted.record.batch_size.max())
    off = {"ttft": -0.05, "tpot": 0.1, "latency": 0.02}

    def doubts(batch, blocks=900):
        errors = pd.DataFrame({"mean": off, "p99": 9.0})
        monkeypatch.setattr(type(fitted), "errors", lambda self: errors)
        config = fitted.config(kv_blocks=blocks, arrival_rate=1.0)
        trials = Trials(config, SLO(ttft=1.0), None, 3, 1, 0, fitted=fitted)
        few = config.replace(num_requests=10**7)  # runs that are long enough
        return trials._doubts({"largest_batch": batch}, few)

    assert doubts(most) == []
    assert doubts(most + 1) == [
        f"beyond the log: batches of {most + 1}, there of {most}"
    ]
    assert doubts(most, None) == ["KV memory is not given, and taken as without limit"]
    off["tpot"] = 0.15
    assert doubts(most) == []
    off["ttft"] = -0.204
    assert doubts(most) == [
        "the fit is poor: the mean ttft of the requests held back is 20% off"
    ]


@pytest.mark.parametrize(
    ("what", "slo", "said"),
    [
        ({"batch_size": 4}, SLO(ttft=1.0), "what={'batch_size': 4}: must be a Simul"),
        (REAL, {"ttft": 1.0}, "slo={'ttft': 1.0}: must be an SLO such as"),
    ],
)
def test_a_wrong_kind_of_argument_is_named(what, slo, said):
    with pytest.raises(ConfigError, match=said):
        capacity(what, slo)


def test_arguments_of_a_fleet_the_other_way_round_are_named():
    with pytest.raises(ConfigError, match=r"slo=3.0: .* the order is what, slo, rate"):
        fewest_replicas(REAL, 3.0, SLO(ttft=1.0))


def test_bad_limits_of_other_kinds_are_named():
    for wrong, said in (
        ({"ttft": {"p5": 1.0}}, "ttft='p5': must be one of mean, p50"),
        ({"ttft": {"p50": -1.0}}, "ttft=-1.0: must be a finite number above 0"),
        ({"ttft": {"p50": 1.0}, "goodput": 0.9}, "goodput=0.9: must be None beside"),
        ({"ttft": 1.0, "itl": 1.0, "goodput": 0.9}, "goodput=0.9: must be None beside"),
        ({"classes": {"a": SLO(itl=1.0)}}, r"classes\['a'\]=.*: must be an SLO of"),
    ):
        with pytest.raises(ConfigError, match=said):
            SLO(**wrong)


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
    direct = jackknife(logs.mean(), left_out)
    found = compute_confidence_interval(logs)
    assert found["ci_upper"] == pytest.approx(direct.upper)


# those who are refused, who give up, who wait for their answers, who are not there


@pytest.mark.parametrize("shed", [{"queue_limit": 5}, {"patience": 0.5}])
def test_who_is_not_served_is_within_no_limit(shed):
    config = REAL.replace(**shed)
    slo = SLO(ttft=1.0, goodput=0.9)
    found = capacity(config, slo, tolerance=0.2, **ONE)
    assert found.binds == "goodput ≥ 0.9"
    runs = sweep(
        config, {"arrival_rate": [*found.bracket]}, **ONE, measure=within_a_second
    )
    shares = runs.groupby("arrival_rate")["within"].mean()
    assert shares.iloc[0] >= 0.9 > shares.iloc[1]
    assert found.metrics["within"] == pytest.approx(shares.iloc[0])
    with pytest.raises(ConfigError, match="of a goodput: those refused or given up"):
        capacity(config, SLO(ttft=1.0), **ONE)


def within_a_second(config, record):
    served = np.nan_to_num(record.ttft[config.warmup_requests :], nan=np.inf) <= 1.0
    return {"within": np.mean(served & (record.outcome[config.warmup_requests :] == 0))}


def test_users_who_wait_for_answers_send_at_no_rate():
    with pytest.raises(ConfigError, match="clients=20: must be None"):
        capacity(REAL.replace(clients=20), SLO(tpot=0.05), **ONE)


def test_a_class_without_requests_breaks_nothing():
    classes = {"a": {"share": 1}, "none": {"share": 0}}
    config = REAL.replace(request_classes=classes)
    alone = SLO(ttft=1.0, classes={"a": SLO(ttft=0.5)})
    its = {"a": SLO(ttft=0.5), "none": SLO(ttft=0.1, goodput=0.9)}
    both = SLO(ttft=1.0, classes=its)
    rates = [capacity(config, s, tolerance=0.2, **ONE).rate for s in (alone, both)]
    assert rates[0] == rates[1]


def test_decoding_that_takes_no_time_has_no_end_of_speed():
    free = SINGLE.replace(gamma=0.0)
    (row,) = capacity(
        free, SLO(ttft=1.0), over={"beta": [0.05]}, tolerance=0.2, **ONE
    ).to_dict("records")
    assert row["user_speed"] == np.inf


def test_limits_are_given_by_name_beyond_the_first_four():
    assert SLO(1.0, 2.0, 3.0).bounds == SLO(ttft=1.0, tpot=2.0, latency=3.0).bounds
    with pytest.raises(TypeError, match="positional"):
        SLO(1.0, 2.0, 3.0, None, 0.5)
