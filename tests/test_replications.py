"""Measuring behind a button: what it says, how it stops."""

import re
import threading

import numpy as np
import pytest

from llminfer import ExperimentConfig, SimulationConfig, sweep
from llminfer.panels import replications as module
from llminfer.panels.replications import Replications

BASE = SimulationConfig(arrival_rate=4.0, batch_timeout=0.0, num_requests=1000)
LONG = BASE.replace(num_requests=9500)


@pytest.fixture
def button(monkeypatch):
    monkeypatch.setattr(Replications, "number", 3)
    return Replications()


def finish(button):
    button.thread.join(timeout=60)
    assert not button.thread.is_alive()


def test_it_says_the_mean_and_half_width_of_a_sweep(button):
    button.offer(LONG)
    button.start.click()
    finish(button)
    runs = sweep(LONG, {"batch_size": [LONG.batch_size]}, replications=3, n_jobs=1)
    mean = runs["avg_latency"].mean()
    half = 4.302653 * runs["avg_latency"].std(ddof=1) / np.sqrt(3)  # t, 2 degrees
    said = re.search(r"mean latency <b>([\d.]+) ± ([\d.]+) s", button.result.value)
    assert float(said[1]) == pytest.approx(mean, rel=0.02)
    assert float(said[2]) == pytest.approx(half, rel=0.05)
    assert re.search(r"p99 <b>[\d.]+ ± [\d.]+ s", button.result.value)
    assert button.progress.value == 3
    assert not button.start.disabled
    assert button.cancel.disabled


def test_a_run_too_short_for_a_quantile_has_no_interval_of_it(button):
    button.offer(BASE)
    button.start.click()
    finish(button)
    assert "p99 <b>runs too short" in button.result.value


@pytest.mark.parametrize("how", ["cancel", "move"])
def test_cancel_or_a_move_stops_it(button, monkeypatch, how):
    begun, go_on = threading.Event(), threading.Event()
    ran = []

    def slow(config):
        ran.append(config)
        begun.set()
        go_on.wait(60)
        return simulate(config)

    simulate = module.simulate
    monkeypatch.setattr(module, "simulate", slow)
    button.offer(BASE)
    button.start.click()
    assert begun.wait(60)
    if how == "cancel":
        button.cancel.click()
    else:
        button.offer(BASE.replace(arrival_rate=3.0))
    go_on.set()
    finish(button)
    assert len(ran) == 1
    assert button.result.value == ""
    assert not button.start.disabled
    assert button.progress.layout.visibility == "hidden"


def test_an_error_in_a_run_is_said(button, monkeypatch):
    def broken(config):
        raise RuntimeError("no <room>")

    monkeypatch.setattr(module, "simulate", broken)
    button.offer(BASE)
    button.start.click()
    finish(button)
    assert "RuntimeError: no &lt;room&gt;" in button.result.value
    assert not button.start.disabled


def test_it_runs_the_seeds_of_every_other_experiment(button, monkeypatch):
    seen = []
    simulate = module.simulate
    monkeypatch.setattr(
        module, "simulate", lambda config: seen.append(config) or simulate(config)
    )
    button.offer(BASE)
    button.start.click()
    finish(button)
    assert seen == ExperimentConfig("", "", BASE, 3).get_replication_configs()
