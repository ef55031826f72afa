"""Pictures, panels and tables consist of what was looked at and found right.

``python tests/test_kept_pictures.py`` keeps what there is now: where a change is meant.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from kept_figures import of_figure, of_widgets, style
from kept_text import Kept, text_of
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llminfer import SimulationConfig, Workload, simulate
from llminfer.calibrate import Calibration
from llminfer.data.logs import ServedLog
from llminfer.panels import engine_log, gallery, html, picture
from llminfer.panels.panel import Panel
from llminfer.panels.policy import PolicyPanel, PolicyPicture
from llminfer.panels.ramp import RampPicture
from llminfer.panels.replications import Replications
from llminfer.panels.story import StoryPanel
from llminfer.panels.traffic import TrafficPanel
from llminfer.panels.wave import WavePicture
from llminfer.panels.workload import WorkloadPanel
from llminfer.report import figures, timeline
from llminfer.study.early_warning import load_ramp

KEPT = Kept("pictures")
REPORT = gallery.REPORT
RTX = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    arrival_rate=2.0,
    batch_size=16,
    kv_blocks=600,
    prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 2048},
    output_dist_params={"mu": 90, "sigma": 30, "min": 10, "max": 200},
    num_requests=150,
    warmup_requests=0,
    random_seed=5,
)
TRACE = Workload.generate(RTX)
LOG = ServedLog.from_record(simulate(RTX, TRACE))


@contextmanager
def unpainted() -> Iterator[None]:
    """Panels of few requests, whose axes nobody paints."""
    blank = lambda canvas: canvas.get_renderer().clear()  # noqa: E731
    with (
        mock.patch.object(FigureCanvasAgg, "draw", blank),
        mock.patch.object(picture.Picture, "png", return_value=b""),
        mock.patch.object(Panel, "memory", {}),
        warnings.catch_warnings(action="ignore"),
        style(),
    ):
        yield


def few(its, requests=150, warmup=20):
    its.requests, its.warmup = requests, warmup
    return its


def moved(panel) -> Iterator[str]:
    """A panel as it begins, and when each control was moved."""
    yield from of_widgets(panel)
    yield from of_figure(panel.picture.figure)
    for name, control in panel.controls.items():
        stops = getattr(control, "options", None)
        if stops:
            control.index = (control.index + 1) % len(stops)
        elif hasattr(control, "base"):
            control.value *= 10.0 ** (3.0 * control.step)
        else:
            control.value += control.step
        said = [panel.load.value, panel.readings.value, panel.code.value]
        yield f"{name} moved = {text_of([control.value, panel.image.tooltip])}"
        yield f"{name} said = {text_of(said)}"
        yield f"{name} drawn = {text_of(points(panel.picture.lines))}"
    panel.keep.click()
    yield f"kept = {text_of(points(panel.picture.kept))}"


def points(lines):
    return [
        (its.get_marker(), *map(np.asarray, its.get_data())) for its in lines.values()
    ]


SIZE = ("arrival_rate", "batch_size", "batch_timeout")
END, CLIMB = "arrival_pattern_params.end_rate", "arrival_pattern_params.duration"


def of_class(kind, make):
    """A panel whose picture has few requests."""
    with mock.patch.multiple(kind, requests=150, warmup=20):
        yield from moved(make())


def start() -> Iterator[str]:
    yield from of_class(picture.LatencyPicture, gallery.start_panel)


def continuous() -> Iterator[str]:
    yield from of_class(gallery.ContinuousPicture, gallery.continuous_panel)


def users() -> Iterator[str]:
    yield from of_class(gallery.UsersPicture, gallery.users_panel)


def batch_size() -> Iterator[str]:
    yield from moved(Panel(REPORT, few(picture.BatchSizePicture(), 100), SIZE))


def workload() -> Iterator[str]:
    with mock.patch.multiple(picture.BatchSizePicture, requests=100, warmup=20):
        yield from moved(WorkloadPanel(REPORT))


def wave() -> Iterator[str]:
    yield from moved(
        Panel(REPORT.replace(batch_timeout=None), few(WavePicture()), SIZE)
    )


def ramp() -> Iterator[str]:
    climb = load_ramp(REPORT, 0.4, 1.2, 200.0, 250.0)
    yield from moved(Panel(climb, RampPicture(), ("arrival_rate", END, CLIMB)))


def policy() -> Iterator[str]:
    sjf = REPORT.replace(scheduling_policy="SJF")
    yield from of_class(PolicyPicture, lambda: PolicyPanel(sjf))


def traffic() -> Iterator[str]:
    other = TRACE.scaled(3.0)
    yield from moved(TrafficPanel(RTX, {"even": TRACE, "other": other}))


def log() -> Iterator[str]:
    yield from moved(Panel(RTX, engine_log.LogPicture(LOG), ["gamma"]))


def story() -> Iterator[str]:
    panel = StoryPanel(RTX)
    for moment in (panel.moment.value, 0, panel.moment.max):
        panel.moment.value = moment
        yield f"{moment} said = {text_of([panel.text.value, panel.image.tooltip])}"
        for line in of_figure(panel.picture.figure):
            yield f"{moment} {line}"
    yield from of_widgets(panel)
    yield f"frame = {text_of(panel.picture.to_frame())}"


def replications() -> Iterator[str]:
    config = REPORT.replace(num_requests=300, warmup_requests=20)
    long = config.replace(num_requests=2500, arrival_rate=1.0)
    asked = {"short": config, "long": long, "full": config.replace(arrival_rate=40.0)}
    with mock.patch.object(Replications, "number", 4):
        yield from of_widgets(Replications())
        for name, its in asked.items():
            box = Replications()
            box.offer(its, "the server")
            yield f"{name} offered = {text_of(box.start.description)}"
            box._replicate(its, threading.Event())
            yield f"{name} = {text_of(box.result.value)}"
            yield f"{name} progress = {box.progress.value} of {box.progress.max}"


def gauges() -> Iterator[str]:
    for load in (0.1, 0.79, 0.8, 0.81, 0.99, 1.0, 1.01, 1.49, 1.5, 1.51, 3.0):
        rate = load * REPORT.max_stable_rate
        yield f"{load} = {html.gauge(REPORT.replace(arrival_rate=rate), 'a < b')}"
    swing = load_ramp(REPORT, 0.4, 1.2, 500.0, 600.0)
    yield f"ramp = {html.gauge(swing)}"
    yield f"alarm = {html.alarm('a < b')}"
    yield f"table = {html.table({'a<': {'b': '1', 'c>': '2'}, 'd': {}}, 'of <')}"
    yield f"length = {html.run_length(REPORT, 1)}, {html.run_length(RTX, 3)}"
    yield f"heading = {html.heading('Load')}"
    yield f"code = {html.code(REPORT, 'of it')}"


def summary_table():
    cases = pd.MultiIndex.from_product(
        [["a", "b"], ["mean", "p99"], ["one", "two"], [1, 2, 4]],
        names=["rule", "what", "panel", "B"],
    )
    table = pd.DataFrame({"mean": np.arange(24) + 1.0}, index=cases).reset_index()
    lower, upper = table["mean"] - 0.5, table["mean"] + 0.75
    return table.assign(ci_lower=lower, ci_upper=upper, sound=np.arange(24) % 5 > 0)


def summaries() -> Iterator[str]:
    table = summary_table()
    one = table[(table["rule"] == "a") & (table["panel"] == "one")]
    line = one[one["what"] == "mean"]
    axes = {"labels": ("B", "seconds"), "log_x": [1, 2, 4], "log_y": (0.5, 50)}
    parts = {"color": "rule", "linestyle": "what", "panel": "panel"}
    asked = {
        "all": (table, {**parts, **axes, "height": 3.0}),
        "colours": (one, {"color": "what"}),
        "one": (line, {}),
        "sound": (line.drop(columns="sound"), {"labels": ("x", "y")}),
    }
    for name, (rows, options) in asked.items():
        for its in of_figure(figures.draw_summary(rows, "B", **options)):
            yield f"{name} {its}"


def curves() -> Iterator[str]:
    table = summary_table().iloc[[2, 0, 1]]
    fig, (left, right) = figures.new(1, 2, width=figures.COLUMN, sharey=True)
    figures.curve(left, table, "B", 2, "a curve", linewidth=3.0)
    figures.curve(left, table, "B")
    right_table = table.assign(B=["x", "y", "z"])
    figures.dots(right, right_table, "B", ["z", "x", "y"], 3, label="some")
    figures.legend_above(fig, left, columns=2)
    yield from of_figure(fig)
    for i in range(9):
        yield f"look {i} = {text_of(figures.look(i))}"
    other, ax = figures.new()
    figures.powers_of_two(ax, [1, 2, 8])
    figures.log_axis(ax, 0.5, 20.0)
    yield from (f"axes of it {line}" for line in of_figure(other))


def capacities() -> Iterator[str]:
    rate = np.array([3.0, 2.0, 5.0])
    table = pd.DataFrame({"setting": ["as it is", "more", "less"], "B": [1, 2, 3]})
    table = table.assign(rate=rate, rate_lower=rate - 0.25, rate_upper=rate + 0.5)
    table = table.assign(user_speed=[30.0, 50.0, 20.0])
    table = table.assign(throughput_per_gpu=[100.0, 90.0, 80.0])
    yield from of_figure(figures.draw_capacity(table))


def timelines() -> Iterator[str]:
    config = RTX.replace(server="continuous", kv_blocks=40, num_requests=30)
    config = config.replace(
        output_dist_params={"mu": 60, "sigma": 9, "min": 40, "max": 90}
    )
    record = simulate(config.replace(prompt_dist_params={"mu": 4, "sigma": 0.5}))
    fig, ax = figures.new()
    table = timeline.phases(record, 1.0, 9.0)
    yield f"phases = {text_of(table)}"
    yield f"all phases = {text_of(timeline.phases(record))}"
    timeline.draw(ax, table)
    yield from of_figure(fig)
    yield f"over time = {text_of(timeline.over_time(record, 30))}"


def logs() -> Iterator[str]:
    its = Calibration(
        coefficients={},
        unidentified=(),
        settings={},
        log=LOG,
        record=simulate(RTX, TRACE),
        fitted=np.arange(len(LOG)) < 60,
    )
    fig, (left, right) = figures.new(1, 2)
    times = np.linspace(0.0, 50.0, 40)
    seen = pd.DataFrame({"t": times, "running": times / 9.0, "waiting": times / 5.0})
    engine_log.counts_over_time(left, its, seen)
    engine_log.distribution(right, {"a": LOG, "b": its.simulated, "c": LOG}, "tpot")
    yield from of_figure(fig)


for part in (start, continuous, users, batch_size, workload, wave, ramp, policy):
    KEPT.part(part)
for part in (traffic, log, story, replications, gauges):
    KEPT.part(part)
for part in (summaries, curves, capacities, timelines, logs):
    KEPT.part(part)


@pytest.mark.parametrize("part", KEPT.parts)
def test_each_picture_is_what_was_looked_at(part):
    with unpainted():
        assert KEPT.differs(part) == []
    plt.close("all")


if __name__ == "__main__":
    with unpainted():
        KEPT.write()
