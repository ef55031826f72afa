"""The search for a capacity, on servers whose answer at each rate is a formula."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from llminfer import (
    SLO,
    ConfigError,
    SimulationConfig,
    Workload,
    capacity,
    fewest_replicas,
    simulate,
)
from llminfer.capacity import Trials, _at, _round

CONFIG = SimulationConfig(
    server="continuous",
    output_length_dist="geometric",  # so that lambda* is exact
    output_dist_params={"mean": 50},
    num_requests=2200,
    warmup_requests=200,
)
INEXACT = CONFIG.replace(output_length_dist="constant", output_dist_params={"value": 9})
ONE = {"replications": 1, "n_jobs": 1}


@pytest.fixture
def served(monkeypatch):
    """Sets what a server answers at a rate; gives the rates that were asked, and how
    long."""

    def serve(answer):
        asked = []

        def run(trials, rate, times=1):
            asked.append((rate, times))
            usual = dict.fromkeys(trials._metrics, 0.0)
            its = answer(rate, trials.config, times)
            rows = [usual | one for one in (its if isinstance(its, list) else [its])]
            return pd.DataFrame(rows).assign(rate=0)

        monkeypatch.setattr(Trials, "_run", run)
        return asked

    return serve


def test_below_lambda_star_the_answer_is_within_the_tolerance(served):
    most = CONFIG.max_stable_rate
    for share in (0.9, 0.3, 0.02):
        asked = served(lambda rate, *_, at=share * most: {"p99_ttft": rate / at})
        found = capacity(CONFIG, SLO(ttft=1.0), **ONE)
        assert found.rate <= share * most < found.bracket[1]
        assert found.bracket[1] / found.rate <= 1.02
        assert found.binds == "p99 TTFT ≤ 1 s"
        halvings = [rate for rate, _ in asked if rate <= most]
        assert len(halvings) == len(set(halvings)) <= 2 + 6 + 6  # none asked twice


@pytest.mark.parametrize("tolerance", [0.2, 0.02])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.02])
def test_wherever_it_begins_it_finds_the_same_within_the_tolerance(
    served, share, tolerance
):
    most, tried = CONFIG.max_stable_rate, {}
    for off in (None, 1e-3, 0.2, 0.97, 1.0, 1.03, 4.0):
        asked = served(lambda rate, *_: {"p99_ttft": rate / (share * most)})
        near = None if off is None else off * share * most
        found = capacity(CONFIG, SLO(ttft=1.0), tolerance=tolerance, near=near, **ONE)
        low, high = found.bracket
        assert found.rate == low <= share * most < high <= low * (1.0 + tolerance)
        rates = [rate for rate, _ in asked]
        assert len(rates) == len(set(rates))  # none asked twice
        tried[off] = len(rates)
    assert max(tried[0.97], tried[1.0], tried[1.03]) <= min(6, tried[None] - 1)


def test_limits_that_are_kept_only_high_up_are_found_from_below(served):
    most = CONFIG.max_stable_rate

    def answer(rate, *_):  # below a third of lambda* batches do not fill in time
        return {"p99_ttft": 0.5 if most / 3.0 < rate < 0.6 * most else 2.0}

    served(answer)
    found = capacity(CONFIG, SLO(ttft=1.0), near=0.1 * most, **ONE)
    assert found.rate <= 0.6 * most <= found.bracket[1]


@pytest.mark.parametrize("near", [0.0, -1.0, math.nan, "5"])
def test_where_it_begins_is_a_rate(near):
    with pytest.raises(ConfigError, match="near="):
        capacity(CONFIG, SLO(ttft=1.0), near=near, **ONE)


def test_lambda_star_ends_it_where_theory_has_that_exactly(served):
    asked = served(lambda *_: {"waiting": 1e6})
    found = capacity(CONFIG, SLO(tpot=1.0), **ONE)
    most = CONFIG.max_stable_rate
    assert most / 1.02 < found.rate < most <= found.bracket[1]
    served(lambda rate, *_: [{"avg_ttft": rate / (at * most)} for at in (0.5, 0.9)])
    how = SLO(ttft={"mean": 1.0}), None, 2, 1, 42
    assert Trials(CONFIG, *how).found().interval[1] == most
    unsure = Trials(CONFIG, *how, draws=[CONFIG, CONFIG]).found()
    assert unsure.interval[1] > 2.0 * most  # which is as unsure as its coefficients
    assert found.binds == "the queue"
    assert all(times == 1 for _, times in asked)  # theory needs no longer runs


@pytest.mark.parametrize("carries", [1.05, 1.8, 6.0])
def test_it_goes_up_by_tenths_from_lambda_star_where_that_is_a_bound(served, carries):
    at = carries * INEXACT.max_stable_rate
    asked = served(lambda rate, *_: {"waiting": 0.0 if rate <= at else 1000.0})
    found = capacity(INEXACT, SLO(tpot=1.0), tolerance=0.005, **ONE)
    assert found.rate <= at < found.bracket[1] <= 1.005 * found.rate
    up = sorted({rate for rate, _ in asked if rate >= INEXACT.max_stable_rate})
    assert all(b / a <= 1.1 + 1e-9 for a, b in pairwise(up))


def test_a_queue_may_be_as_long_as_the_tolerance_of_all_or_as_one_batch(served):
    for batch, tolerance, waiting in ((32, 0.05, 110.0), (64, 0.02, 64.0)):
        config = INEXACT.replace(batch_size=batch)
        for more in (0.0, 0.5):
            served(lambda *_, its=waiting + more: {"waiting": its})
            trials = Trials(config, SLO(tpot=1.0), None, 1, 1, 42, tolerance)
            assert trials.meets(0.5 * config.max_stable_rate) is (more == 0.0)


def test_near_lambda_star_a_run_of_three_times_the_length_decides(served):
    most = INEXACT.max_stable_rate
    for share in (0.94, 0.96):
        for longer in (76.0, 77.0):  # 44 x sqrt 3 is 76.2

            def answer(rate, config, times, longer=longer):
                return {"waiting": 0.0 if times == 1 else longer}

            asked = served(answer)
            trials = Trials(INEXACT, SLO(tpot=1.0), None, 1, 1, 42)
            kept = trials.meets(share * most)
            assert [times for _, times in asked] == ([1] if share < 0.95 else [1, 3])
            assert kept is (share < 0.95 or longer < 76.2)
            if share > 0.95:
                row = trials.rows[share * most]
                assert row["waiting"] == pytest.approx(longer / math.sqrt(3.0))
    asked = served(lambda *_: {"p99_tpot": 2.0})
    Trials(INEXACT, SLO(tpot=1.0), None, 1, 1, 42).meets(most)
    assert len(asked) == 1  # broken already


def test_the_longer_run_really_is_and_a_trace_goes_round():
    trials = Trials(INEXACT, SLO(tpot=1.0), None, 2, 1, 42)
    for times in (1, 3):
        one = _at(trials.config, 2.0, times)
        assert (one.num_requests, one.arrival_rate) == (times * 2200, 2.0)
    arrival = np.array([3.0, 3.5, 5.0, 7.0])
    trace = Workload.from_arrays(arrival, [1, 2, 3, 4], [5, 6, 7, 8])
    thrice = _round(trace, 3, 2.0)
    assert thrice.prompt_length.tolist() == [1, 2, 3, 4] * 3
    assert thrice.output_length.tolist() == [5, 6, 7, 8] * 3
    gaps = np.diff(thrice.arrival_time)
    np.testing.assert_allclose(gaps[:3] / gaps[0], [1.0, 3.0, 4.0])
    assert gaps[3] == pytest.approx(1 / 2.0)  # rounds are a mean gap apart
    np.testing.assert_allclose(gaps[4:7], gaps[:3])
    assert thrice.arrival_time[4] - thrice.arrival_time[0] == pytest.approx(4 / 2.0)


def test_a_pattern_goes_faster_as_a_whole():
    params = {"amplitude": 1.0, "period": 400.0}
    wave = CONFIG.replace(
        arrival_rate=2.0, arrival_pattern="sinusoidal", arrival_pattern_params=params
    )
    factor = 8.0 / wave.arrivals.mean(2200)
    fast = _at(wave, 8.0, 1)
    its = fast.arrival_pattern_params
    assert fast.arrivals.mean(2200) == pytest.approx(8.0)
    assert its["amplitude"] == pytest.approx(factor)
    assert its["period"] == pytest.approx(400.0 / factor)
    step = {"step_time": 100.0, "step_rate": 5.0}
    ramp = {"end_rate": 5.0, "duration": 100.0}
    for pattern, given, times in (("step", step, 100.0), ("ramp", ramp, 100.0)):
        one = CONFIG.replace(
            arrival_rate=2.0, arrival_pattern=pattern, arrival_pattern_params=given
        )
        its = _at(one, 8.0, 1).arrival_pattern_params
        factor = 8.0 / one.arrivals.mean(2200)
        rate, time = (
            its.get("step_rate", its.get("end_rate")),
            its.get("step_time", its.get("duration")),
        )
        assert (rate, time) == pytest.approx((5.0 * factor, times / factor))


def test_full_batches_are_sought_in_smaller_steps_and_only_so_far_down(served):
    fills = SimulationConfig(batch_size=4, num_requests=2200, warmup_requests=200)
    most = fills.max_stable_rate
    band = 0.52 * most, 0.6 * most  # steps of a half would pass over it
    asked = served(
        lambda rate, *_: {"p99_latency": 0.5 if band[0] < rate < band[1] else 2.0}
    )
    found = capacity(fills, SLO(latency=1.0), **ONE)
    assert band[0] < found.rate < band[1] <= found.bracket[1]
    asked = served(lambda *_: {"p99_latency": 2.0})
    with pytest.raises(ConfigError, match="wait to be full"):
        capacity(fills, SLO(latency=1.0), **ONE)
    assert most / 1500 < min(asked)[0] < most / 800
    asked = served(lambda *_: {"p99_latency": 2.0})
    with pytest.raises(ConfigError, match=r"one at a time, and at .*latency ≤ 1 s: 2"):
        capacity(fills.replace(batch_timeout=1.0), SLO(latency=1.0), **ONE)
    assert 3e-7 < min(asked)[0] / most < 2e-6


def test_limits_kept_on_a_lower_stretch_give_the_upper_end_of_the_one_found(served):
    """The interval is of the stretch that the answer ends, not of one below it."""
    most = CONFIG.max_stable_rate
    served(
        lambda rate, *_: (
            {"p99_ttft": 0.5 if rate < 0.7 * most else 2.0}
            | {"p99_latency": 2.0 if rate < 0.3 * most else 0.5}
        )
    )
    found = capacity(CONFIG, SLO(ttft=1.0, latency=1.0), **ONE)
    assert found.rate == pytest.approx(0.7 * most, rel=0.02)


def test_all_of_the_requests_may_have_to_be_within(served):
    most = CONFIG.max_stable_rate
    served(lambda rate, *_: {"within": 1.0 if rate < 0.4 * most else 1.0 - 1e-6})
    found = capacity(CONFIG, SLO(ttft=1.0, goodput=1.0), **ONE)
    assert found.rate < 0.4 * most < found.bracket[1]
    assert found.metrics["goodput"] == found.rate
    assert found.slack["goodput ≥ 1"] == 0.0


def test_the_interval_is_what_leaving_out_each_replication_does(served):
    """Limits that each replication breaks at a rate of its own, linear in between."""
    most = CONFIG.max_stable_rate
    own = np.array([0.30, 0.34, 0.38, 0.46]) * most
    served(lambda rate, *_: [{"avg_latency": rate / at} for at in own])
    slo, how = SLO(latency={"mean": 1.0}), {"replications": 4, "n_jobs": 1}
    found = capacity(CONFIG, slo, tolerance=1e-4, **how)
    assert found.rate == pytest.approx(4.0 / np.sum(1.0 / own), rel=1e-4)
    without = [3.0 / np.sum(1.0 / np.delete(own, i)) for i in range(4)]
    logs = np.log(without)
    error = math.sqrt(3.0 / 4.0 * np.sum((logs - logs.mean()) ** 2))
    half = 3.182446 * error  # t, 3 degrees
    assert np.log(found.interval[1] / found.rate) == pytest.approx(half, rel=0.02)
    assert np.log(found.rate / found.interval[0]) == pytest.approx(half, rel=0.02)
    assert found.basis == "4 replications"


def test_a_table_compares_what_each_of_its_rows_carries(served):
    most = CONFIG.max_stable_rate
    served(
        lambda rate, config, *_: {"avg_latency": rate / (0.4 * most * config.replicas)}
    )
    trials = Trials(CONFIG, SLO(latency={"mean": 1.0}), None, 2, 1, 42)
    base = trials.found()
    row = trials.row({"replicas": 2}, base)
    assert row["difference"] == pytest.approx(1.0, abs=0.03)
    assert row["rate"] == pytest.approx(0.8 * most, rel=0.02)
    more = trials.changed({"replicas": 3}).config
    assert (more.num_requests, more.warmup_requests) == (6600, 600)
    fixed = trials.changed({"replicas": 3, "num_requests": 5000}).config
    assert (fixed.num_requests, fixed.warmup_requests) == (5000, 600)


# fleets


@pytest.mark.parametrize("needed", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.9])
def test_a_fleet_is_the_fewest_that_do_whichever_way_they_are_sought(
    served, needed, share
):
    """``share``: of the capacity of one that each of several carries."""
    one = 0.4 * CONFIG.max_stable_rate
    rate = one * (1.0 + share * (needed - 1)) * 0.999

    def answer(rate, config, times):
        return {"avg_latency": rate / (one * (1.0 + share * (config.replicas - 1)))}

    served(answer)
    fleet = fewest_replicas(CONFIG, SLO(latency={"mean": 1.0}), rate, **ONE)
    assert fleet.replicas == needed
    table = fleet.evaluated.set_index("replicas")
    assert table.index.is_monotonic_increasing
    assert table.loc[needed, "meets"]
    assert needed == 1 or not table.loc[needed - 1, "meets"]
    assert fleet.metrics == table.loc[needed].drop("meets").to_dict()


def test_what_a_fleet_costs(served):
    one = 0.4 * CONFIG.max_stable_rate
    served(
        lambda rate, config, _: {
            "avg_latency": rate / (one * config.replicas),
            "avg_output_length": 50.0,
        }
    )
    rate, slo = 2.5 * one, SLO(latency={"mean": 1.0})
    dear = {"gpus_per_replica": 4, "price_per_gpu_hour": 2.5, "watts_per_gpu": 700.0}
    fleet = fewest_replicas(CONFIG, slo, rate, **dear, **ONE)
    assert (fleet.replicas, fleet.gpus) == (3, 12)
    million = rate * 50.0 * 3600.0 / 1e6
    assert fleet.cost_per_hour == 30.0
    assert fleet.kilowatts == pytest.approx(8.4)
    assert fleet.cost_per_million_tokens == pytest.approx(30.0 / million)
    assert fleet.kwh_per_million_tokens == pytest.approx(8.4 / million)
    free = fewest_replicas(CONFIG, slo, rate, **ONE)
    assert free.gpus == 3
    bill = (free.cost_per_hour, free.cost_per_million_tokens, free.kilowatts)
    assert (*bill, free.kwh_per_million_tokens) == (None,) * 4


@pytest.mark.parametrize("tells", [(), (1,), (2,), (3,), (2, 3), (1, 2, 3)])
def test_a_fleet_is_sure_if_its_own_runs_and_those_of_one_less_tell(
    served, monkeypatch, tells
):
    one = 0.4 * CONFIG.max_stable_rate
    served(lambda rate, config, _: {"avg_latency": rate / (one * config.replicas)})
    sure = lambda trials, rate: trials.config.replicas in tells  # noqa: E731
    monkeypatch.setattr(Trials, "sure", sure)
    slo = SLO(latency={"mean": 1.0})
    assert fewest_replicas(CONFIG, slo, 2.5 * one, **ONE).sure is ({2, 3} <= {*tells})
    assert fewest_replicas(CONFIG, slo, 0.5 * one, **ONE).sure is (1 in tells)


@pytest.mark.parametrize("gpus", [0, -1, 1.5, True])
def test_a_replica_has_at_least_one_gpu(gpus):
    with pytest.raises(ConfigError, match=f"gpus_per_replica={gpus}: must be a whole"):
        fewest_replicas(CONFIG, SLO(ttft=1.0), 1.0, gpus_per_replica=gpus)


# real runs


def test_the_share_within_limits_is_a_count_from_the_records():
    one = {
        "output_length_dist": "bimodal",
        "output_dist_params": {
            "short_min": 1,
            "short_max": 1,
            "long_min": 30,
            "long_max": 60,
            "short_prob": 0.4,
        },
    }
    config = SimulationConfig(
        server="static",
        batch_size=8,
        batch_timeout=0.3,
        num_requests=1300,
        warmup_requests=300,
        **one,
    )
    slo = SLO(ttft=0.9, tpot=0.0021, latency=1.5, goodput=1.0)
    trials = Trials(config, slo, None, 2, 1, 7)
    for rate in (1.0, 4.0):
        trials.meets(rate)
        late = []
        for seed in (7, 8):
            run = simulate(config.replace(arrival_rate=rate, random_seed=seed))
            single = run.output_length == 1
            assert np.isnan(run.tpot[single]).all()
            off = (run.ttft > 0.9) | (run.latency > 1.5) | (run.tpot > 0.0021)
            late.append(off[300:])
        share = 1.0 - np.mean(late)
        assert 0.0 < share < 1.0
        row = trials.rows[rate]
        assert row["within"] == pytest.approx(share, abs=1e-12)
        assert row["goodput"] == pytest.approx(rate * share, abs=1e-12)
        assert row["meets"] is False


def test_settings_and_draws_change_together():
    draw = CONFIG.replace(gamma=0.001)
    trials = Trials(CONFIG, SLO(ttft=1.0), None, 2, 1, 42, draws=[draw])
    changed = trials.changed({"kv_blocks": 400})
    assert [its.kv_blocks for its in (changed.config, *changed.draws)] == [400, 400]
    assert [its.gamma for its in changed.draws] == [0.001]
    assert dataclasses.replace(trials).rows == {}


def test_unsure_coefficients_widen_the_interval_by_their_own_spread(served):
    """Rates of the draws differ as their gammas do, and so much is added."""
    most = CONFIG.max_stable_rate
    own = np.array([0.30, 0.33, 0.36, 0.45, 0.38])
    gammas = CONFIG.gamma * np.exp([0.1, -0.2, 0.15, -0.05])
    draws = [CONFIG.replace(gamma=gamma) for gamma in gammas]

    def answer(rate, config, times):
        shares = own if config.gamma == CONFIG.gamma else own[:4]
        faster = CONFIG.gamma / config.gamma
        return [{"avg_latency": rate / (most * at * faster)} for at in shares]

    served(answer)
    slo = SLO(latency={"mean": 1.0})
    trials = Trials(CONFIG, slo, None, 5, 1, 42, 1e-4, draws)
    found = trials.found()
    alone = Trials(CONFIG, slo, None, 5, 1, 42, 1e-4).found()
    assert found.rate == alone.rate
    assert found.basis == "5 replications, 4 draws of the coefficients"
    apart = np.diff(found.draws)
    np.testing.assert_allclose(apart, np.diff(-np.log(gammas)), atol=0.02)
    spread = 3.182446 * np.std(-np.log(gammas), ddof=1)  # t, 3 degrees
    of_runs = np.log(alone.interval[1] / alone.rate)
    half = math.hypot(of_runs, spread)
    assert np.log(found.interval[1] / found.rate) == pytest.approx(half, rel=0.05)
    assert np.log(found.rate / found.interval[0]) == pytest.approx(half, rel=0.05)
    same = found.against(found)
    assert (same.value, same.lower, same.upper) == (0.0, 0.0, 0.0)
    other = Trials(CONFIG, slo, None, 5, 1, 42, 1e-4, draws[:3] + draws[:1]).found()
    difference = found.draws - other.draws
    assert other.against(found).upper == pytest.approx(
        math.expm1(3.182446 * difference.std(ddof=1)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, True),
        ({"scheduling_policy": "SJF"}, False),
        ({"kv_blocks": 900}, False),
        ({"prefix_caching": True}, True),
        ({"shared_prefixes": {"count": 2, "tokens": 9}}, True),
        (
            {"shared_prefixes": {"count": 2, "tokens": 9}, "prefix_caching": True},
            False,
        ),
        ({"batch_control": "queue"}, False),
        ({"output_length_dist": "constant", "output_dist_params": {"value": 9}}, False),
    ],
)
def test_where_theory_has_lambda_star_exactly(changes, exact):
    config = CONFIG.replace(**changes)
    trials = Trials(config, SLO(tpot=1.0), None, 1, 1, 42)
    assert trials._exact is exact
    assert trials._near == (math.inf if exact else 0.95 * config.max_stable_rate)
    static = {"output_length_dist": "constant", "output_dist_params": {"value": 9}}
    if not changes:
        fixed = CONFIG.replace(server="static", batch_timeout=0.0, **static)
        assert Trials(fixed, SLO(tpot=1.0), None, 1, 1, 42)._exact
