"""Alarms against brute force: the first one, its lead, and false ones."""

import numpy as np
import pandas as pd
import pytest

from llminfer.study.alarms import (
    crossing_time,
    first_alarms,
    judge,
    quiet_alarms,
    quiet_threshold,
    spread,
    trade_off,
)
from llminfer.study.signals import SIGNALS
from tests.made_up import RUNS, TIME


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
