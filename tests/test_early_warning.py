"""Early warning against brute force: signals, alarms and the area under the ROC."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr

from llminfer import SimulationConfig, compute_confidence_interval, simulate
from llminfer.study.early_warning import (
    SIGNALS,
    STEP,
    WINDOW,
    auc,
    auc_by_signal,
    crossing_time,
    first_alarms,
    judge,
    load_ramp,
    quiet_alarms,
    quiet_threshold,
    right_and_wrong,
    roc_curve,
    sample_times,
    spread,
    trade_off,
    warning_signals,
)
from tests.made_up import RUNS, TIME

BASE = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    batch_size=8,
    batch_timeout=0.0,
    warmup_requests=0,
    random_seed=3,
)
RAMP = load_ramp(BASE, 0.2, 1.3, 500.0, 600.0)
NO_PARAMS = {"arrival_pattern_params": {}, "num_requests": 10_000}
IDLE = BASE.replace(arrival_rate=0.02, num_requests=30)  # windows without a request


def overlap(begin, end, low, high):
    """Seconds that the span from begin to end has in common with low to high."""
    return max(0.0, min(end, high) - max(begin, low))


def by_definition(config, record, t):
    """Every signal at one time, by loops over requests and batches."""
    rows = list(
        zip(
            record.arrival_time.tolist(),
            record.processing_start_time.tolist(),
            record.processing_end_time.tolist(),
            strict=True,
        )
    )
    batches = list(
        zip(record.batch_start, record.batch_end, record.batch_size, strict=True)
    )
    since = t - WINDOW
    now = sum(overlap(a, s, since, t) for a, s, _ in rows) / WINDOW
    before = sum(overlap(a, s, since - WINDOW, since) for a, s, _ in rows) / WINDOW
    begun = [size for start, _, size in batches if since < start <= t]
    done = [end - a for a, _, end in rows if since < end <= t]
    arrived = sum(since < a <= t for a, _, _ in rows)
    return {
        "queue": sum(a <= t < s for a, s, _ in rows),
        "mean_queue": now,
        "queue_growth": (now - before) / WINDOW,
        "rate_ratio": arrived / WINDOW / config.max_stable_rate,
        "utilization": sum(overlap(b, e, since, t) for b, e, _ in batches) / WINDOW,
        "batch_fill": np.mean(begun) / config.batch_size if begun else 0.0,
        "p99_latency": np.percentile(done, 99) if done else np.nan,
    }


@pytest.mark.parametrize("config", [RAMP, IDLE], ids=["ramp", "idle"])
def test_signals_are_what_they_are_said_to_be(config):
    record = simulate(config)
    found = warning_signals(config, record)
    assert found.keys() == {"time", "load", *SIGNALS}
    for i, t in enumerate(found["time"]):
        for name, value in by_definition(config, record, t).items():
            assert found[name][i] == pytest.approx(value, 1e-9, 1e-9, nan_ok=True), name


def test_a_server_that_never_rests_looks_the_same_at_every_look():
    config = RAMP.replace(arrival_rate=50.0, arrival_pattern="constant", **NO_PARAMS)
    found = warning_signals(config, simulate(config))
    late = np.array(found["utilization"])[np.array(found["time"]) > 2.0 * WINDOW]
    assert len(late) > 5
    assert set(late) == {1.0}


def test_the_load_is_the_rate_over_what_the_server_carries():
    found = warning_signals(RAMP, simulate(RAMP))
    expected = np.minimum(0.2 + 1.1 * np.array(found["time"]) / 500.0, 1.3)
    assert found["load"] == pytest.approx(expected, rel=1e-12)


def test_a_load_ramp_lasts_as_long_as_it_is_told():
    last = [simulate(RAMP.replace(random_seed=s)).arrival_time[-1] for s in range(40)]
    error = np.std(last, ddof=1) / np.sqrt(40)
    assert abs(np.mean(last) - 600.0) < 4.0 * error
    assert error < 5.0


@pytest.mark.parametrize(("requests", "end"), [(9, 1.0), (25, 1.0), (100, 50.0)])
def test_looks_at_a_few_requests_end_when_the_first_is_expected(requests, end):
    config = SimulationConfig(
        arrival_rate=0.01, num_requests=requests, warmup_requests=0
    )
    assert sample_times(config)[-1] == pytest.approx(end / 0.01, abs=STEP)


def test_looks_begin_after_the_warm_up_and_end_before_the_last_arrival():
    config = RAMP.replace(warmup_requests=500)
    times = sample_times(config)
    assert np.diff(times) == pytest.approx(STEP)
    warm = float(config.arrivals.inverse(np.array([500.0]))[0])
    assert warm < times[0] <= warm + STEP
    ends = [simulate(config.replace(random_seed=s)).arrival_time[-1] for s in range(40)]
    assert times[-1] < min(ends)
    assert times[-1] > 0.9 * max(ends)


def alarm_of(values, threshold):
    """When the values first exceed the threshold, one look after the other."""
    ringing = (t for t, v in zip(TIME, values, strict=True) if v > threshold)
    return next(ringing, np.inf)


def test_an_alarm_rings_when_the_signal_first_exceeds_the_threshold():
    thresholds = np.array([-3.0, 0.0, 4.0, 8.5, 99.0])
    found = first_alarms(RUNS, "queue", thresholds)
    brute = [[alarm_of(values, c) for c in thresholds] for values in RUNS["queue"]]
    assert found.tolist() == brute
    assert np.isinf(found).any()


def test_the_crossing_is_where_the_straight_load_is_first_one():
    assert crossing_time([0.0, 10.0, 20.0], [0.7, 0.95, 1.2]) == pytest.approx(12.0)
    assert crossing_time([0.0, 10.0, 20.0], [0.5, 1.5, 0.5]) == pytest.approx(5.0)
    assert crossing_time([10.0, 20.0], [1.1, 0.9]) == 10.0
    assert crossing_time([0.0, 10.0], [0.5, 0.99]) == np.inf


def test_lead_is_from_the_alarm_to_the_crossing():
    judged = judge(RUNS, "queue", 6.0)
    assert "time" not in judged
    for row, values in zip(judged.itertuples(), RUNS["queue"], strict=True):
        alarm = alarm_of(values, 6.0)
        assert row.alarm == alarm
        if row.top > 1.0:
            assert row.lead == pytest.approx(155.0 - alarm)
            assert row.warned == (alarm < 155.0)
        else:
            assert row.lead == np.inf
            assert row.warned == np.isfinite(alarm)
    crossed = judged[judged["top"] > 1.0]
    assert (crossed["lead"] < 0.0).any()
    assert (crossed["lead"] > 0.0).any()


def test_an_alarm_that_never_rings_counts_as_at_the_end():
    judged = judge(RUNS[RUNS["top"] > 1.0], "queue", 99.0)
    assert judged["lead"].to_numpy() == pytest.approx(155.0 - 200.0)
    assert not judged["warned"].any()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_quiet_threshold_is_the_lowest_that_is_quiet_enough(share):
    calm = RUNS[RUNS["top"] < 1.0]
    threshold = quiet_threshold(calm, "queue", share)
    assert judge(calm, "queue", threshold)["warned"].mean() <= share
    assert judge(calm, "queue", threshold - 1e-9)["warned"].mean() > share


def test_trade_off_counts_false_alarms_and_takes_the_median_lead():
    table = trade_off(RUNS, "queue")
    assert len(table) > 3
    for row in table.itertuples():
        judged = judge(RUNS, "queue", row.threshold)
        false = judged.loc[judged["top"] < 1.0, "warned"].mean()
        leads = 155.0 - judged.loc[judged["top"] > 1.0, "alarm"]
        assert row.false == pytest.approx(false)
        assert row.lead == sorted(leads)[(len(leads) - 1) // 2]


def test_spread_holds_the_middle_eight_tenths_of_the_runs_at_each_time():
    table = spread(RUNS, "queue")
    assert table["time"].tolist() == TIME.tolist()
    for i, values in enumerate(zip(*RUNS["queue"], strict=True)):
        ranks = np.nanpercentile(values, [10, 50, 90])
        assert table.loc[i, ["low", "median", "high"]].tolist() == list(ranks)


def test_alarms_at_an_equal_price_are_judged_at_their_quiet_thresholds():
    runs = RUNS.assign(**{name: RUNS["queue"] for name in SIGNALS})
    table = quiet_alarms(runs, 0.25)
    threshold = quiet_threshold(RUNS[RUNS["top"] < 1.0], "queue", 0.25)
    expected = judge(RUNS[RUNS["top"] > 1.0], "queue", threshold)
    assert table["signal"].unique().tolist() == list(SIGNALS)
    for _, rows in table.groupby("signal"):
        pd.testing.assert_frame_equal(rows.assign(signal="queue"), expected)


def test_right_is_the_horizon_before_the_crossing_and_wrong_is_before_it():
    right, wrong = right_and_wrong(RUNS, "queue", 50.0)
    for replication, rows in RUNS.groupby("replication"):
        calm, risky = [], []
        for row in rows.itertuples():
            for t, value in zip(TIME, row.queue, strict=True):
                known = -np.inf if np.isnan(value) else value
                if row.top < 1.0 or t < 105.0:
                    calm.append(known)
                elif t < 155.0:
                    risky.append(known)
        assert right[replication].tolist() == risky
        assert wrong[replication].tolist() == calm


def beaten(right, wrong):
    """The share of pairs in which the right one is higher, ties by half."""
    pairs = list(itertools.product(np.concatenate(right), np.concatenate(wrong)))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_area_is_the_share_of_pairs_in_order_and_its_jackknife():
    right, wrong = right_and_wrong(RUNS, "queue", 50.0)
    n, area = len(right), beaten(right, wrong)
    expected = [
        n * area
        - (n - 1) * beaten(right[:i] + right[i + 1 :], wrong[:i] + wrong[i + 1 :])
        for i in range(n)
    ]
    assert auc(right, wrong) == pytest.approx(expected, rel=1e-9)
    assert np.mean(expected) == pytest.approx(area, abs=0.01)


def test_area_under_the_curve_is_the_area():
    right, wrong = right_and_wrong(RUNS, "queue", 50.0)
    table = roc_curve(right, wrong)
    assert table.iloc[[0, -1]].to_numpy().tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert (table.diff().dropna() >= 0.0).all(axis=None)
    area = np.trapezoid(table["true"], table["false"])
    assert area == pytest.approx(beaten(right, wrong), abs=1e-9)


def test_interval_of_the_area_covers_although_times_of_a_run_are_alike():
    rng = np.random.default_rng(20251)
    truth = ndtr(1.0 / np.sqrt(2.0 * (0.5**2 + 1.0)))
    hits = 0
    for _ in range(400):
        shared = rng.normal(0.0, 0.5, (30, 1))  # of all right times of a replication
        other = rng.normal(0.0, 0.5, (30, 1))
        right = list(1.0 + shared + rng.normal(size=(30, 8)))
        wrong = list(other + rng.normal(size=(30, 20)))
        interval = compute_confidence_interval(auc(right, wrong))
        hits += interval["ci_lower"] <= truth <= interval["ci_upper"]
    assert 0.92 <= hits / 400 <= 0.98


def test_areas_come_as_a_row_a_replication_and_signal():
    rng = np.random.default_rng(5)
    noisier = [list(rng.permutation(values)) for values in RUNS["queue"]]
    runs = RUNS.assign(**dict.fromkeys(SIGNALS, noisier)).assign(queue=RUNS["queue"])
    table = auc_by_signal(runs, 50.0)
    assert table["signal"].tolist() == list(np.repeat(list(SIGNALS), 6))
    assert table["replication"].tolist() == [*range(6)] * len(SIGNALS)
    queue = table[table["signal"] == "queue"]
    expected = auc(*right_and_wrong(RUNS, "queue", 50.0))
    assert queue["auc"].to_numpy() == pytest.approx(expected)
    assert (queue["misordered"] + queue["auc"]).to_numpy() == pytest.approx(1.0)
