"""The panel of workloads: another law at the same load, one picture a move."""

import numpy as np
import pytest

from llminfer import SimulationConfig, simulate
from llminfer.metrics import MetricsCollector
from llminfer.panels.workload import SHAPES, WorkloadPanel, WorkloadPicture

pytestmark = pytest.mark.usefixtures("unpainted")

REFERENCE = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    batch_size=128,
    random_seed=42,
)
START = REFERENCE.replace(arrival_rate=0.8 * REFERENCE.max_stable_rate)


@pytest.fixture
def panel():
    return WorkloadPanel(START)


def test_the_load_stays_as_the_law_moves(panel):
    assert panel.config.offered_load == pytest.approx(0.8, rel=1e-3)
    rates = []
    for law, shape in SHAPES.items():
        panel.controls["prompt_length_dist"].value = law
        assert panel.config.prompt_length_dist == law
        assert panel.config.prompt_dist_params == shape.start
        for value in (shape.values[0], shape.values[-1]):
            panel.controls["shape"].value = value
            assert panel.config.prompt_dist_params[shape.parameter] == value
            assert panel.config.offered_load == pytest.approx(0.8, rel=1e-3)
            rates.append(panel.config.arrival_rate)
    assert len(set(rates)) == len(rates)
    panel.preset.value = "llama-3.1-8b-rtx4090"
    assert panel.config.offered_load == pytest.approx(0.8, rel=1e-3)
    panel.controls["load"].value = 0.5
    assert panel.config.offered_load == pytest.approx(0.5, rel=1e-3)


def test_each_move_draws_once_and_reset_goes_back(panel, monkeypatch):
    first, image = panel.config, panel.image.value
    drawn = []
    update = panel.picture.update
    monkeypatch.setattr(
        panel.picture, "update", lambda config: drawn.append(config) or update(config)
    )
    for name, value in (
        ("prompt_length_dist", "powerlaw"),
        ("shape", 2.5),
        ("load", 0.5),
    ):
        panel.controls[name].value = value
        assert drawn == [panel.config], name
        drawn.clear()
    assert panel.image.value != image
    panel.reset.click()
    assert panel.config == first
    assert panel.image.value == image


def test_the_picture_shows_what_a_simulation_says(panel):
    panel.controls["prompt_length_dist"].value = "uniform"
    sizes, p99 = panel.picture.lines["until full p99"].get_data()
    config = panel.config.replace(
        batch_size=int(sizes[1]), num_requests=1000, warmup_requests=100
    )
    metrics = MetricsCollector.compute_metrics(simulate(config), 100)
    assert p99[1] == metrics["p99_latency"]
    limits, least = panel.picture.lines["best"].get_data()
    assert (limits[1], least[1]) == (sizes[p99.argmin()], p99.min())
    _, tokens = panel.picture.lines["tokens"].get_data()
    _, requests = panel.picture.lines["requests"].get_data()
    assert tokens[-1] == pytest.approx(1.0)
    assert requests[-1] == pytest.approx(1.0)
    assert np.all(tokens <= requests + 1e-12)  # long prompts hold more than their share


def test_a_rate_that_no_limit_carries_is_said():
    picture = WorkloadPicture()
    readings = picture.update(REFERENCE.replace(arrival_rate=100.0))
    assert readings["stable from B"] == {"now": "none here"}
    assert readings["batch limit B"]["best at once"] == "none carries it"
    assert not len(picture.lines["best"].get_xdata())
