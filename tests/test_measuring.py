"""Measuring behind a button: what it says, how it stops."""

import re
import threading

import numpy as np
import pytest

from llminfer import ExperimentConfig, SimulationConfig, sweep
from llminfer.panels import measure
from llminfer.panels.measure import Measurement

BASE = SimulationConfig(arrival_rate=4.0, batch_timeout=0.0, num_requests=1000)
LONG = BASE.replace(num_requests=9500)


@pytest.fixture
def measurement(monkeypatch):
    monkeypatch.setattr(Measurement, "replications", 3)
    return Measurement()


def finish(measurement):
    measurement.thread.join(timeout=60)
    assert not measurement.thread.is_alive()


def test_it_says_the_mean_and_half_width_of_a_sweep(measurement):
    measurement.offer(LONG)
    measurement.start.click()
    finish(measurement)
    runs = sweep(LONG, {"batch_size": [LONG.batch_size]}, replications=3, n_jobs=1)
    mean = runs["avg_latency"].mean()
    half = 4.302653 * runs["avg_latency"].std(ddof=1) / np.sqrt(3)  # t, 2 degrees
    said = re.search(r"mean latency <b>([\d.]+) ± ([\d.]+) s", measurement.result.value)
    assert float(said[1]) == pytest.approx(mean, rel=0.02)
    assert float(said[2]) == pytest.approx(half, rel=0.05)
    assert re.search(r"p99 <b>[\d.]+ ± [\d.]+ s", measurement.result.value)
    assert measurement.progress.value == 3
    assert not measurement.start.disabled
    assert measurement.cancel.disabled


def test_a_run_too_short_for_a_quantile_has_no_interval_of_it(measurement):
    measurement.offer(BASE)
    measurement.start.click()
    finish(measurement)
    assert "p99 <b>runs too short" in measurement.result.value


@pytest.mark.parametrize("how", ["cancel", "move"])
def test_cancel_or_a_move_stops_it(measurement, monkeypatch, how):
    begun, go_on = threading.Event(), threading.Event()
    ran = []

    def slow(config):
        ran.append(config)
        begun.set()
        go_on.wait(60)
        return simulate(config)

    simulate = measure.simulate
    monkeypatch.setattr(measure, "simulate", slow)
    measurement.offer(BASE)
    measurement.start.click()
    assert begun.wait(60)
    if how == "cancel":
        measurement.cancel.click()
    else:
        measurement.offer(BASE.replace(arrival_rate=3.0))
    go_on.set()
    finish(measurement)
    assert len(ran) == 1
    assert measurement.result.value == ""
    assert not measurement.start.disabled
    assert measurement.progress.layout.visibility == "hidden"


def test_an_error_in_a_run_is_said(measurement, monkeypatch):
    def broken(config):
        raise RuntimeError("no <room>")

    monkeypatch.setattr(measure, "simulate", broken)
    measurement.offer(BASE)
    measurement.start.click()
    finish(measurement)
    assert "RuntimeError: no &lt;room&gt;" in measurement.result.value
    assert not measurement.start.disabled


def test_it_runs_the_seeds_of_every_other_experiment(measurement, monkeypatch):
    seen = []
    simulate = measure.simulate
    monkeypatch.setattr(
        measure, "simulate", lambda config: seen.append(config) or simulate(config)
    )
    measurement.offer(BASE)
    measurement.start.click()
    finish(measurement)
    assert seen == ExperimentConfig("", "", BASE, 3).get_replication_configs()
