"""A panel says what it shows: its numbers, its line to copy and what is measured."""

import html
import re
from base64 import b64decode

import numpy as np
import pytest
from panel_table import caption_of, table_in

from llminfer import SimulationConfig, Workload, simulate
from llminfer.data.logs import ServedLog
from llminfer.panels.controls import rounded
from llminfer.panels.engine_log import LogPicture
from llminfer.panels.gallery import (
    REPORT,
    ContinuousPicture,
    continuous_panel,
    start_panel,
)
from llminfer.panels.html import OVERLOADED, gauge
from llminfer.panels.panel import Panel
from llminfer.panels.picture import BatchSizePicture, LatencyPicture
from llminfer.panels.policy import PolicyPanel
from llminfer.panels.ramp import RampPicture
from llminfer.panels.traffic import TrafficPanel
from llminfer.panels.wave import WavePicture
from llminfer.panels.workload import WorkloadPanel
from llminfer.study.early_warning import load_ramp
from llminfer.theory.known import latency_curve

pytestmark = pytest.mark.usefixtures("unpainted")

RTX = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090", arrival_rate=2.0, batch_size=16, random_seed=42
)
TRACE = Workload.generate(RTX.replace(num_requests=400, warmup_requests=0))
END = "arrival_pattern_params.end_rate"
SIZE = ("arrival_rate", "batch_size", "batch_timeout")


def log_panel():
    served = simulate(RTX.replace(num_requests=400, warmup_requests=0), TRACE)
    return Panel(RTX, LogPicture(ServedLog.from_record(served)), ["gamma"])


def few(picture, requests=600):
    picture.requests = requests
    return picture


def wave_panel():
    return Panel(REPORT.replace(batch_timeout=None), few(WavePicture()), SIZE)


def ramp_panel():
    ramp = load_ramp(REPORT, 0.4, 1.2, 500.0, 600.0)
    return Panel(ramp, RampPicture(), ("arrival_rate", END))


PANELS = {
    "latency": lambda: Panel(REPORT, few(LatencyPicture()), SIZE),
    "batch size": lambda: Panel(REPORT, few(BatchSizePicture()), SIZE),
    "continuous": lambda: Panel(
        RTX.replace(server="continuous"), few(ContinuousPicture()), SIZE[:2]
    ),
    "policy": lambda: PolicyPanel(REPORT.replace(scheduling_policy="SJF")),
    "ramp": ramp_panel,
    "wave": wave_panel,
    "workload": lambda: WorkloadPanel(REPORT),
    "traffic": lambda: TrafficPanel(RTX, {"even": TRACE}),
    "log": log_panel,
}


@pytest.fixture(autouse=True)
def forgets(monkeypatch):
    monkeypatch.setattr(Panel, "memory", {})


@pytest.fixture(params=PANELS, scope="module")
def panel(request):
    """One of each, for what holds wherever its sliders are."""
    return PANELS[request.param]()


def text(widget):
    return html.unescape(re.sub("<[^>]+>", " ", widget.value))


def copied(panel):
    return eval(text(panel.code), {"SimulationConfig": SimulationConfig})


def move(panel):
    """Set the first slider that is a number to another place."""
    name, slider = next(
        (n, s) for n, s in panel.controls.items() if hasattr(s, "step") and s.value
    )
    slider.value *= 10.0**0.05
    return name


def test_the_line_to_copy_is_what_the_picture_shows_and_measure_runs(panel):
    for _ in range(2):
        assert copied(panel) == panel.picture.shown(panel.config)
        offered = panel.replications._config
        if panel.picture.measurable:
            assert offered == copied(panel)
            assert panel.replications.layout.display == "flex"
        else:
            assert offered is None
            assert panel.replications.layout.display == "none"
        move(panel)


def test_the_table_has_what_was_read_by_row_and_column(panel):
    shown = {
        row: {column: text for column, text in its.items() if text}
        for row, its in panel.picture.readings.items()
    }
    assert table_in(panel.readings) == shown
    assert len({column for its in shown.values() for column in its}) > 1
    for text in (text for its in shown.values() for text in its.values()):
        assert "e+" not in text
        assert text[0].isalnum() or text[0] in "+-−", text


def test_what_is_seen_is_told_and_is_another_after_a_move(panel):
    before = panel.image.tooltip
    assert before == panel.picture.alt
    assert before.startswith(" ".join(panel.picture.__doc__.split())[:60])
    for section in ("Args", "Attributes", "  ", "\n"):
        assert section not in before
    said = table_in(panel.readings)
    assert all(text in before for its in said.values() for text in its.values())
    move(panel)
    assert panel.image.tooltip == panel.picture.alt != before


def test_no_two_pictures_are_told_alike():
    told = [kind().picture.alt for kind in PANELS.values()]
    assert len({text[:100] for text in told}) == len(told) - 1  # two of batch limits
    assert len(set(told)) == len(told)


def test_without_a_kernel_there_is_the_picture_with_its_text(panel):
    shown, metadata = panel._repr_mimebundle_()
    assert b64decode(shown["image/png"]) == panel.image.value
    assert metadata == {"image/png": {"alt": panel.picture.alt}}
    assert shown["text/plain"] == panel.picture.alt
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_the_line_to_copy_has_no_more_than_four_digits(panel):
    for number in re.findall(r"=(\d*\.\d+(?:e-?\d+)?)|: (\d*\.\d+)", text(panel.code)):
        digits = "".join(number).partition("e")[0].replace(".", "").strip("0")
        assert len(digits) <= 4, number


def test_readings_begin_with_the_length_of_the_one_run_they_are_from(panel):
    short = panel.picture.short(panel.config)
    said = f"one run of {short.num_requests:,} requests"
    if short.warmup_requests:
        said += f", {short.warmup_requests:,} of them warm-up"
    assert caption_of(panel.readings) == f"From {said}"
    if panel.picture.lines.keys() >= {"ttft twin"} or not panel.picture.measurable:
        assert short.num_requests == len(TRACE)


def test_several_in_a_picture_are_told_apart_beside_the_line_and_on_the_button(panel):
    of = panel.picture.of
    assert text(panel.code).strip().endswith(f"  # {of}" if of else ")")
    if panel.picture.measurable:
        assert of in panel.replications.start.description


def test_what_is_measured_in_09_is_of_the_twin():
    panel = PANELS["traffic"]()
    assert panel.replications.start.description == "Measure the twin (30 runs)"
    assert "the twin: load" in text(panel.load)


def test_the_batch_size_panel_says_its_own_limit_and_marks_it():
    panel = PANELS["batch size"]()
    for size, timeout in ((32, 0.0), (8, 1.0)):
        panel.controls["batch_size"].value = size
        panel.controls["batch_timeout"].value = timeout
        record = simulate(panel.config.replace(num_requests=600, warmup_requests=100))
        p99 = np.quantile(record.latency[100:], 0.99)
        assert table_in(panel.readings)["p99 latency"]["now"] == f"{p99:.3g} s"
        mean = record.latency[100:].mean()
        assert table_in(panel.readings)["mean latency"]["now"] == f"{mean:.3g} s"
        (x,), (y,) = panel.picture.lines["here"].get_data()
        assert (x, y) == (size, p99)
        assert (copied(panel).batch_size, copied(panel).batch_timeout) == (
            size,
            timeout,
        )


def test_the_workload_panel_marks_its_own_limit():
    panel = PANELS["workload"]()
    (x,), (y,) = panel.picture.lines["here"].get_data()
    sizes, p99 = panel.picture.lines["at once p99"].get_data()
    assert y == p99[list(sizes).index(x)]
    assert x == REPORT.batch_size
    assert table_in(panel.readings)["p99 latency"]["now"] == f"{y:.3g} s"


def test_the_wave_is_measured_and_not_its_mean_rate():
    panel = wave_panel()
    panel.controls["arrival_rate"].value = 4.0
    wave = copied(panel)
    assert wave.arrival_pattern == "sinusoidal"
    swing = {"amplitude": 3.2, "period": 75.0}
    assert dict(wave.arrival_pattern_params) == swing
    assert (wave.num_requests, wave.warmup_requests) == (600, 150)
    record = simulate(wave)
    limits = panel.picture.lines["static limit"].get_ydata()
    assert set(limits) == {32.0}
    late = table_in(panel.readings)["p99 at the peak"]["static"]
    assert 0.0 < float(late.split()[0]) <= record.latency.max()


def test_a_gauge_is_of_the_peak():
    wave = wave_panel()
    wave.controls["arrival_rate"].value = 4.0
    shown = copied(wave)
    assert shown.offered_load < 1.0 < shown.peak_load
    said = text(wave.load)
    assert f"at its peak = {shown.peak_load:.2f}" in said
    assert f"above 1 for a while, {shown.offered_load:.2f} on average" in said
    assert f'aria-valuenow="{shown.peak_load:.2f}"' in wave.load.value
    ramp = ramp_panel()
    assert "at its peak = 1.20" in text(ramp.load)
    assert OVERLOADED not in text(ramp.load)
    ramp.controls[END].value = 40.0
    assert OVERLOADED in text(ramp.load)


def test_the_continuous_panel_has_a_gauge_for_each_server():
    panel = continuous_panel()
    static = panel.config.replace(server="static")
    assert 0.6 < static.offered_load < 0.95  # both carry it, and one has little left
    for name, config in (("continuous", panel.config), ("static", static)):
        assert f"{name}: load ρ = λ/λ* = {config.offered_load:.2f}" in text(panel.load)
        assert f'aria-label="offered load, {name}"' in panel.load.value
    assert "Overloaded" not in panel.load.value
    said = table_in(panel.readings)
    static_p99, ours = (
        float(said["p99 latency"][name].split()[0].replace(",", ""))
        for name in ("static", "continuous")
    )
    assert static_p99 > 2.0 * ours
    panel.controls["arrival_rate"].value = 5.0
    assert "static: load ρ = λ/λ* = 1.86" in text(panel.load)
    assert "continuous: load ρ" in text(panel.load)
    assert text(panel.load).count("Overloaded") == 1


def test_the_load_of_a_log_is_its_own():
    panel = log_panel()
    rate = len(TRACE) / np.ptp(TRACE.arrival_time)
    prompt, output = TRACE.prompt_length, TRACE.output_length
    own = RTX.replace(
        arrival_rate=rate,
        prompt_length_dist="empirical",
        prompt_dist_params={"values": prompt, "weights": np.ones(len(prompt))},
        output_length_dist="empirical",
        output_dist_params={"values": output, "weights": np.ones(len(output))},
    )
    assert f"the log: load ρ = λ/λ* = {own.offered_load:.2f}" in text(panel.load)


def test_a_log_whose_requests_came_at_once_has_no_load():
    at_once = Workload.from_arrays(np.zeros(20), np.full(20, 50), np.full(20, 9))
    served = simulate(RTX.replace(num_requests=20, warmup_requests=0), at_once)
    panel = Panel(RTX, LogPicture(ServedLog.from_record(served)), ["gamma"])
    assert panel.load.value == ""
    assert "mean latency" in table_in(panel.readings)


def test_now_beyond_an_axis_is_an_arrow_on_its_edge_and_comes_back():
    panel = start_panel()
    here, kept = (by["here"] for by in (panel.picture.lines, panel.picture.kept))
    assert here.get_marker() == "o"
    panel.controls["arrival_rate"].value = 30.0
    assert panel.config.offered_load > 5.0
    assert here.get_xdata()[0] == 1.2 == here.axes.get_xlim()[1]
    assert here.get_marker() == ">"
    assert not here.get_clip_on()
    panel.keep.click()
    assert kept.get_marker() == ">"
    panel.reset.click()
    assert here.get_marker() == "o"
    assert here.get_xdata()[0] == panel.config.offered_load
    slow = panel.picture
    slow.move("here", np.array([0.5]), np.array([5000.0]))
    assert (here.get_ydata()[0], here.get_marker()) == (1000.0, "^")


def test_no_point_of_a_curve_lies_outside_its_axes(panel):
    move(panel)
    for name, line in panel.picture.lines.items():
        for at, ends in (
            (line.get_xdata(), line.axes.get_xlim()),
            (line.get_ydata(), line.axes.get_ylim()),
        ):
            inside = at[~np.isnan(np.asarray(at, dtype=float))]
            assert ((inside >= ends[0]) & (inside <= ends[1])).all(), name


def test_empty_curves_leave_the_axes_their_room(panel):
    boxes = [ax.get_position() for ax in panel.picture.figure.axes]
    assert sum(box.width * box.height for box in boxes) > 0.4


def test_a_climb_beyond_the_axis_ends_there():
    panel = ramp_panel()
    panel.controls[END].value = 40.0
    load, queue = panel.picture.lines["queue"].get_data()
    assert np.nanmax(load) <= 1.6
    assert np.isnan(load[-1])
    assert len(load) == len(queue)


def test_long_times_are_written_out():
    panel = start_panel()
    panel.controls["arrival_rate"].value = 30.0
    panel.controls["alpha"].value = 1e-2
    assert re.fullmatch(r"\d,\d{3} s", table_in(panel.readings)["mean latency"]["now"])
    assert "e+" not in panel.readings.value


def test_rounding_keeps_what_is_no_fraction():
    sizes = REPORT.replace(num_requests=123_456, arrival_rate=2.0 / 3.0)
    assert rounded(sizes) == sizes.replace(arrival_rate=0.6667)


def test_a_gauge_says_its_name_only_if_it_has_one():
    assert 'aria-label="offered load"' in gauge(REPORT)
    assert "<b>" not in gauge(REPORT, "<b>")


def test_a_fault_in_what_is_said_of_the_picture_is_said(monkeypatch):
    panel = wave_panel()

    def broken(config):
        raise RuntimeError("no servers")

    monkeypatch.setattr(panel.picture, "servers", broken)
    panel.controls["batch_size"].value = 4
    assert "RuntimeError: no servers" in panel.load.value


def test_theory_is_of_the_configuration_in_the_line():
    panel = PANELS["latency"]()
    panel.controls["batch_size"].value = 4
    loads, mean = panel.picture.lines["theory"].get_data()
    exact = latency_curve(copied(panel), tuple(loads))
    np.testing.assert_allclose(mean, np.clip(exact, 0.01, 1000.0))


@pytest.mark.parametrize(("load", "filled"), [(0.75, "50.0%"), (3.0, "100.0%")])
def test_a_gauge_is_filled_up_to_its_load(load, filled):
    """It ends at a load of 1.5, with a mark at 1; who is beyond fills all of it."""
    at = REPORT.replace(arrival_rate=load * REPORT.max_stable_rate)
    bar = gauge(at)
    assert re.search(rf"90deg,#\w+ {filled},#ccc 0", bar)
    assert "(#333,#333) 66.7% 0/2px" in bar
