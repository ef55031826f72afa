"""The ROC of a signal and its area, against pairs counted one by one."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtr

from llminfer import compute_confidence_interval
from llminfer.study.roc import auc, auc_by_signal, curve, right_and_wrong
from tests.made_up import RUNS, TIME


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
    table = curve(right, wrong)
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
    runs = RUNS.assign(mean_queue=noisier)
    table = auc_by_signal(runs, 50.0, ["queue", "mean_queue"])
    assert table["signal"].tolist() == ["queue"] * 6 + ["mean_queue"] * 6
    assert table["replication"].tolist() == [*range(6), *range(6)]
    queue = table[table["signal"] == "queue"]
    expected = auc(*right_and_wrong(RUNS, "queue", 50.0))
    assert queue["auc"].to_numpy() == pytest.approx(expected)
    assert (queue["misordered"] + queue["auc"]).to_numpy() == pytest.approx(1.0)
