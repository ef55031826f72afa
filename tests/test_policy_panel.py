"""The panel on policies: its sliders choose what they set."""

import numpy as np
import pytest

from llminfer import SimulationConfig
from llminfer.panels.policy import PolicyPanel

pytestmark = pytest.mark.usefixtures("unpainted")

SIGMA = "scheduling_policy_params.prediction_sigma"
AGING = "scheduling_policy_params.aging_rate"


@pytest.fixture
def panel() -> PolicyPanel:
    base = SimulationConfig(
        prompt_length_dist="bimodal",
        prompt_dist_params={
            "short_min": 10,
            "short_max": 50,
            "long_min": 500,
            "long_max": 2000,
            "short_prob": 0.7,
        },
        arrival_rate=2.0,
        batch_size=8,
        batch_timeout=0.0,
        scheduling_policy="SJF",
        random_seed=42,
    )
    return PolicyPanel(base)


def test_a_parameter_goes_only_to_a_policy_that_has_it(panel: PolicyPanel) -> None:
    assert dict(panel.config.scheduling_policy_params) == {}
    panel.controls["scheduling_policy"].value = "Priority"
    assert dict(panel.config.scheduling_policy_params) == {"aging_rate": 0.1}


@pytest.mark.parametrize(
    ("slider", "value", "policy"),
    [(SIGMA, 1.0, "Predicted-SJF"), (AGING, 0.5, "SJF-Aging")],
)
def test_moving_a_parameter_chooses_a_policy_that_has_it(
    panel: PolicyPanel, slider: str, value: float, policy: str
) -> None:
    before = panel.image.value
    panel.controls[slider].value = value
    assert panel.config.scheduling_policy == policy
    name = slider.partition(".")[2]
    assert dict(panel.config.scheduling_policy_params) == {name: value}
    assert panel.image.value != before


def test_reset_goes_back_to_the_start(panel: PolicyPanel) -> None:
    begun = panel.config
    panel.controls[AGING].value = 0.5
    panel.controls["arrival_rate"].value = 1.0
    panel.reset.click()
    assert panel.config == begun
    assert panel.controls[AGING].value == 0.1


def test_under_fcfs_both_curves_agree(panel: PolicyPanel) -> None:
    panel.controls["scheduling_policy"].value = "FCFS"
    lines = panel.picture.lines
    for group in ("short", "long"):
        ours, fcfs = lines[group].get_xdata(), lines[f"{group} FCFS"].get_xdata()
        np.testing.assert_array_equal(ours, fcfs)


def test_sjf_serves_the_short_sooner(panel: PolicyPanel) -> None:
    lines = panel.picture.lines
    ours, fcfs = lines["short"].get_xdata(), lines["short FCFS"].get_xdata()
    assert np.mean(ours) < 0.8 * np.mean(fcfs)
