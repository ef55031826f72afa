"""The panel on traces: what it shows is what a replay and its twin give."""

import numpy as np
import pytest

from llminfer import SimulationConfig, Workload, simulate
from llminfer.panels.traffic import TrafficPanel
from llminfer.study.traffic import mean_rate, twin

pytestmark = pytest.mark.usefixtures("unpainted")

BASE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    batch_size=64,
    warmup_requests=0,
    random_seed=42,
)


def bursty(cv: float, seed: int) -> Workload:
    made = BASE.replace(arrival_cv=cv, num_requests=300, random_seed=seed)
    return Workload.generate(made)


TRACES = {"even": bursty(0.5, 1), "bursts": bursty(5.0, 2)}


@pytest.fixture
def panel():
    return TrafficPanel(BASE.replace(arrival_rate=5.0), TRACES)


def test_it_starts_with_the_first_trace_at_the_rate_that_is_given(panel):
    assert panel.controls["trace"].value == "even"
    assert panel.config.arrival_rate == pytest.approx(5.0)
    fields = twin(TRACES["even"])["prompt_dist_params"]
    four_digits = {name: float(f"{value:.4g}") for name, value in fields.items()}
    assert panel.config.prompt_dist_params == four_digits
    assert panel.config.batch_timeout == 0.0


def test_the_picture_shows_a_replay_and_the_configurations_own_requests(panel):
    panel.controls["trace"].value = "bursts"
    panel.controls["pace"].value = 0.5
    trace = TRACES["bursts"]
    rate = panel.config.arrival_rate
    assert rate == pytest.approx(0.5 * mean_rate(trace.arrival_time), rel=1e-3)
    few = panel.config.replace(num_requests=len(trace), warmup_requests=0)
    pace = rate / mean_rate(trace.arrival_time)
    for name, requests in (("ttft", trace.scaled(pace)), ("ttft twin", None)):
        record = simulate(few, requests)
        ttft = record.first_token_time - record.arrival_time
        x, shares = panel.picture.lines[name].get_data()
        shown = np.clip(np.quantile(ttft, shares), 0.01, 1000.0)  # the axis
        np.testing.assert_allclose(x, shown)
    path = panel.picture.lines["path twin"].get_ydata()
    assert path.max() == ttft.max()


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("trace", "bursts"),
        ("pace", 2.0),
        ("server", "static"),
        ("scheduling_policy", "SJF"),
        ("batch_size", 4),
    ],
)
def test_each_move_draws_once_and_reset_goes_back(panel, monkeypatch, control, value):
    first, image = panel.config, panel.image.value
    drawn = []
    update = panel.picture.update
    monkeypatch.setattr(
        panel.picture, "update", lambda config: drawn.append(config) or update(config)
    )
    panel.controls[control].value = value
    assert drawn == [panel.config]
    assert panel.config != first
    panel.reset.click()
    assert len(drawn) == 2
    assert panel.config == first
    assert panel.image.value == image


def test_coefficients_of_another_engine_stay_through_moves(panel):
    panel.preset.value = "llama-2-70b-dgx-h100"
    gamma = panel.config.gamma
    assert gamma != BASE.gamma
    panel.controls["trace"].value = "bursts"
    assert panel.config.gamma == gamma
    panel.reset.click()
    assert panel.config.gamma == BASE.gamma


def test_curves_of_an_axes_differ_by_more_than_colour(panel):
    for ax in panel.picture.figure.axes:
        shown = [li for li in ax.get_lines() if not li.get_label().startswith("_")]
        assert len({li.get_linestyle() for li in shown}) == len(shown) > 1
