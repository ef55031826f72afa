"""The panel, without a browser."""

import numpy as np
import pytest

from llminfer import SimulationConfig, theory
from llminfer.panels.panel import Panel
from llminfer.panels.picture import BatchSizePicture, LatencyPicture

pytestmark = pytest.mark.usefixtures("unpainted")

BASE = SimulationConfig(
    arrival_rate=4.0,
    batch_timeout=0.0,
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    random_seed=42,
)
NAMES = ("arrival_rate", "alpha", "beta", "gamma", "batch_size", "batch_timeout")


def quick(kind):
    picture = kind()
    picture.requests = 600
    return picture


@pytest.fixture
def panel():
    return Panel(BASE, quick(LatencyPicture), NAMES)


def curve(panel, name):
    return np.array(panel.picture.lines[name].get_data())


@pytest.fixture(scope="module")
def shared():
    return Panel(BASE, quick(LatencyPicture), NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arrival_rate", 5.0),
        ("alpha", 2e-3),
        ("beta", 0.1),
        ("gamma", 2e-3),
        ("batch_size", 4),
        ("batch_timeout", 3.0),
    ],
)
def test_a_slider_moves_curve_picture_numbers_and_configuration(shared, name, value):
    panel = shared  # each of its sliders is moved once
    seen = curve(panel, "latency"), panel.image.value, panel.readings.value
    panel.controls[name].value = value
    assert getattr(panel.config, name) == value
    assert (curve(panel, "latency") != seen[0]).any()
    assert panel.image.value != seen[1]
    assert panel.readings.value != seen[2]
    assert f"{name}={value!r}" in panel.code.value.replace("&#x27;", "'")


def test_waiting_until_full_is_the_last_stop_of_its_slider(panel):
    slider = panel.controls["batch_timeout"]
    slider.index = len(slider.options) - 1
    assert panel.config.batch_timeout is None
    start = Panel(BASE.replace(batch_timeout=None), quick(LatencyPicture), NAMES)
    assert start.config.batch_timeout is None
    assert start.controls["batch_timeout"].label == "until full"


def test_a_value_between_the_stops_becomes_one():
    odd = Panel(BASE.replace(batch_size=48), quick(LatencyPicture), NAMES)
    assert odd.controls["batch_size"].value == odd.config.batch_size == 48


def test_reset_goes_back_and_keep_leaves_the_curves_behind(panel):
    first = curve(panel, "latency")
    panel.controls["arrival_rate"].value = 5.0
    moved = curve(panel, "latency")
    panel.keep.click()
    panel.reset.click()
    assert panel.config == BASE
    assert (curve(panel, "latency") == first).all()
    assert (np.array(panel.picture.kept["latency"].get_data()) == moved).all()


def test_a_preset_moves_all_its_sliders_and_draws_once(panel, monkeypatch):
    drawn = []
    update = panel.picture.update
    monkeypatch.setattr(
        panel.picture, "update", lambda config: drawn.append(config) or update(config)
    )
    panel.preset.value = "llama-3.1-8b-rtx4090"
    assert len(drawn) == 1
    assert panel.config.alpha == panel.controls["alpha"].value == 9.1e-5
    assert panel.config.kappa == 1.42e-7


def test_overload_is_said_in_words(panel):
    assert "Overloaded" not in panel.load.value
    panel.controls["arrival_rate"].value = 20.0
    assert "Overloaded" in panel.load.value


def test_an_error_is_shown_where_the_reader_looks(panel, monkeypatch):
    def broken(config):
        raise RuntimeError("the curve is <lost>")

    monkeypatch.setattr(panel.picture, "update", broken)
    panel.controls["alpha"].value = 2e-3
    assert "RuntimeError: the curve is &lt;lost&gt;" in panel.load.value


def test_a_cell_run_again_finds_its_sliders_and_kept_curves(panel):
    panel.controls["arrival_rate"].value = 3.0
    panel.keep.click()
    panel.preset.value = "llama-3.1-8b-rtx4090"
    panel.controls["batch_size"].value = 8
    again = Panel(BASE, quick(LatencyPicture), NAMES)
    assert again.config == panel.config
    assert again.preset.value == "llama-3.1-8b-rtx4090"
    assert (curve(again, "latency") == curve(panel, "latency")).all()
    kept = [np.array(p.picture.kept["latency"].get_data()) for p in (panel, again)]
    assert (kept[0] == kept[1]).all()
    again.reset.click()
    assert again.config == BASE
    other = Panel(BASE.replace(beta=0.1), quick(LatencyPicture), NAMES)
    assert other.config.batch_size == BASE.batch_size


def test_the_gauge_says_the_load_in_words_and_as_a_meter(panel):
    assert f"load ρ = λ/λ* = {BASE.offered_load:.2f}" in panel.load.value
    assert f'aria-valuenow="{BASE.offered_load:.2f}"' in panel.load.value
    panel.controls["arrival_rate"].value = 50.0
    assert 'aria-valuenow="1.50"' in panel.load.value


def test_theory_is_the_queues_own_at_each_load_and_goes_where_it_has_no_say(panel):
    loads, exact = curve(panel, "theory")
    rates = loads * BASE.max_stable_rate
    queues = [theory.bulk_queue(BASE.replace(arrival_rate=rate)) for rate in rates]
    assert exact == pytest.approx([queue.mean_latency for queue in queues], rel=0.02)
    assert loads.tolist() == curve(panel, "mean")[0].tolist()
    panel.controls["batch_timeout"].value = 1.0
    assert np.isnan(curve(panel, "theory")[1]).all()


def test_every_control_has_a_label_and_every_button_a_tooltip(panel):
    controls = [*panel.controls.values(), panel.preset]
    assert all(control.description for control in controls)
    pressed = (panel.reset, panel.keep, panel.replications.start)
    assert all(button.tooltip for button in pressed)


def test_the_batch_size_picture_shows_both_rules_and_the_capacity():
    panel = Panel(BASE, quick(BatchSizePicture), ("arrival_rate",))
    sizes, capacity = curve(panel, "capacity")
    assert (
        capacity[list(sizes).index(32)] == BASE.replace(batch_size=32).max_stable_rate
    )
    assert curve(panel, "until full mean")[1, -1] > curve(panel, "at once mean")[1, -1]
