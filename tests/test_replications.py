"""Measuring behind a button: what it says, how it stops."""

import re
import threading

import numpy as np
import pytest
from panel_table import caption_of, table_in

from llminfer import ExperimentConfig, SimulationConfig, sweep
from llminfer.experiment import replicated, simulate
from llminfer.panels import replications as module
from llminfer.panels.html import OVERLOADED
from llminfer.panels.replications import Replications
from llminfer.stats.intervals import pooled_quantile, summarize
from llminfer.study.early_warning import load_ramp

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
    found = table_in(button.result)
    said = found["latency"]["mean"].split()
    assert float(said[0]) == pytest.approx(mean, rel=0.02)
    assert float(said[2]) == pytest.approx(half, rel=0.05)
    assert [said[1], said[3]] == ["±", "s"]
    assert list(found["latency"]) == ["mean", "median", "p99"]
    for time, unit in (("latency", "s"), ("TTFT", "s"), ("TPOT", "ms")):
        assert re.fullmatch(rf"[\d.]+ ± [\d.]+ {unit}", found[time]["p99"])
    rests_on = "From 3 runs of 9,500 requests, 500 of them warm-up, with 95% intervals"
    assert caption_of(button.result) == rests_on
    assert button.progress.value == 3
    assert not button.start.disabled
    assert button.cancel.disabled


def test_a_run_too_short_for_a_quantile_has_no_interval_of_it(button):
    button.offer(BASE)
    button.start.click()
    finish(button)
    for time in ("latency", "TTFT", "TPOT"):
        assert table_in(button.result)[time]["p99"].startswith("runs too short")


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


def test_the_bar_counts_the_runs_that_are_done(button, monkeypatch):
    seen = []

    def watched(config):
        bar = button.progress
        seen.append((bar.value, bar.max, bar.layout.visibility))
        return simulate(config)

    monkeypatch.setattr(module, "simulate", watched)
    button.offer(BASE)
    for _ in range(2):  # from nothing again
        button.start.click()
        finish(button)
        assert seen == [(done, 3, "visible") for done in range(3)]
        assert button.progress.value == 3
        seen.clear()


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


def test_quantiles_are_of_all_runs_together(button):
    button.offer(LONG)
    button.start.click()
    finish(button)
    records = [simulate(own) for own in replicated(LONG, 3)]
    runs = sweep(LONG, {"batch_size": [LONG.batch_size]}, replications=3, n_jobs=1)
    for label, time, scale in (
        ("latency", "latency", 1.0),
        ("TTFT", "ttft", 1.0),
        ("TPOT", "tpot", 1e3),
    ):
        values = [scale * getattr(record, time)[500:] for record in records]
        exact = pooled_quantile(values, 0.99)
        said = table_in(button.result)[label]["p99"].split()
        assert float(said[0]) == pytest.approx(exact.value, abs=0.05 * float(said[2]))
        (row,) = summarize(runs, "batch_size", f"p99_{time}").to_dict("records")
        half = scale * (row["ci_upper"] - row["mean"])
        assert float(said[2]) == pytest.approx(half, rel=0.05)


def test_each_number_is_the_metric_of_its_name_in_its_unit(button):
    button.offer(LONG.replace(num_requests=20_000))
    button.start.click()
    finish(button)
    config = LONG.replace(num_requests=20_000)
    runs = sweep(config, {"batch_size": [LONG.batch_size]}, replications=3, n_jobs=1)
    rows = {"mean": "avg", "median": "median", "p99": "p99"}
    names = {
        (row, of): f"{metric}_{row.lower()}"
        for row in ("latency", "TTFT", "TPOT")
        for of, metric in rows.items()
        if of != "median" or row == "latency"
    }
    names |= {("throughput", "mean"): "throughput_req_per_sec"}
    names |= {("busy", "mean"): "utilization"}
    found = table_in(button.result)
    seen = {(row, of) for row, cells in found.items() for of, it in cells.items() if it}
    assert seen == names.keys()
    for row, of in seen:
        value = found[row][of].split()[0]
        scale = {"TPOT": 1e3, "busy": 100.0}.get(row, 1.0)  # milliseconds, per cent
        mean = summarize(runs, "batch_size", names[row, of])["mean"].item()
        assert float(value) == pytest.approx(scale * mean, rel=0.02), (row, of)


def test_the_button_says_what_it_does(button):
    assert Replications().start.tooltip == "3 independent runs, for 95% intervals"
    button.offer(BASE)
    assert button.start.description == "Measure (3 runs)"


def test_one_token_each_has_no_time_per_output_token(button):
    one = {"output_length_dist": "constant", "output_dist_params": {"value": 1}}
    button.offer(BASE.replace(**one))
    button.start.click()
    finish(button)
    assert "TPOT" not in button.result.value
    assert "mean" in table_in(button.result)["TTFT"]


@pytest.mark.parametrize("how", ["load", "ramp"])
def test_a_queue_that_grows_is_said_instead_of_intervals(button, how):
    most = LONG.max_stable_rate
    if how == "load":
        config = LONG.replace(arrival_rate=1.3 * most)
    else:  # below 1 on average
        config = load_ramp(LONG, 0.4, 1.3, 2000.0, 2000.0)
        assert config.offered_load < 1.0
    button.offer(config)
    button.start.click()
    finish(button)
    assert "the queue grows until their end" in button.result.value
    assert OVERLOADED in button.result.value
    assert re.search(r"Throughput [\d.]+ requests/s", button.result.value)
    assert "±" not in button.result.value


@pytest.mark.parametrize("load", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("timeout", [0.0, None])
def test_a_stable_queue_is_not_taken_for_one_that_grows(button, load, timeout):
    rate = load * LONG.max_stable_rate
    button.offer(LONG.replace(arrival_rate=rate, batch_timeout=timeout))
    button.start.click()
    finish(button)
    assert "mean" in table_in(button.result)["latency"]


def test_what_it_measures_of_a_picture_is_on_the_button_and_in_the_result(button):
    button.offer(BASE, "the twin")
    assert button.start.description == "Measure the twin (3 runs)"
    button.start.click()
    finish(button)
    assert "500 of them warm-up, the twin, with" in caption_of(button.result)
    button.offer(None)
    assert button.layout.display == "none"
    button.offer(BASE)
    assert button.layout.display == "flex"
    assert button.start.description == "Measure (3 runs)"
    assert button.result.value == ""


@pytest.mark.parametrize(
    ("requests", "middle", "last"),
    [(1000, 0, 20), (1000, 20, 30), (1000, 100, 150), (100, 0, 8), (100, 4, 8)],
)
def test_where_a_queue_is_said_to_grow(requests, middle, last):
    """Beyond half as many again, one in fifty of all, and those who are served."""
    its = {"num_requests": requests, "warmup_requests": 0}
    config = SimulationConfig(arrival_rate=0.5, batch_size=8, **its)
    assert not module._grows(config, [(middle, last)] * 3)
    assert not module._grows(config, [(middle, last + 1), (middle, last - 1)])
    assert module._grows(config, [(middle, last + 1)] * 3)
    assert module._grows(config, [(middle, last + 4), (middle, last - 1)])
