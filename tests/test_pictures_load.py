"""The panel of a climbing load, moved by hand."""

import numpy as np
import pytest
from panel_table import table_in

from llminfer import PRESETS, SimulationConfig
from llminfer.panels.panel import Panel
from llminfer.panels.ramp import RampPicture
from llminfer.study.early_warning import load_ramp

BASE = SimulationConfig(
    prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
    batch_timeout=0.0,
    random_seed=42,
)
CROSSES = load_ramp(BASE, 0.4, 1.2, 1000.0, 1200.0)
END = "arrival_pattern_params.end_rate"
CLIMB = "arrival_pattern_params.duration"


@pytest.fixture
def panel():
    return Panel(CROSSES, RampPicture(), controls=["arrival_rate", END, CLIMB])


def points(panel, name):
    return np.array(panel.picture.lines[name].get_data())


def test_the_alarm_is_the_first_look_at_a_queue_over_the_threshold(panel):
    load, queue = points(panel, "queue")
    first = np.flatnonzero(queue > 100.0)[0]
    assert points(panel, "alarm")[:, 0].tolist() == [load[first], queue[first]]
    assert "queue over 100" in panel.readings.value
    assert load[-1] > 1.0


def test_a_lower_threshold_rings_before_the_crossing_and_a_high_one_after():
    slow = CROSSES.replace(**{CLIMB: 2000.0})
    for threshold, side in ((5.0, "before"), (100.0, "after")):
        picture = RampPicture()
        picture.threshold = threshold
        readings = picture.update(slow)
        load = picture.lines["alarm"].get_data()[0][0]
        assert (load < 1.0) == (side == "before")
        assert readings["warning"][f"queue over {threshold:g}"].endswith(side)


def test_a_ramp_that_stops_below_has_no_crossing_and_at_most_false_alarms(panel):
    panel.controls[END].value = 0.5 * BASE.max_stable_rate
    said = table_in(panel.readings)
    assert set(said["load 1 is reached"].values()) == {"never"}
    assert said["warning"]["queue over 100"] == "none"
    assert points(panel, "queue")[0].max() < 1.0
    assert points(panel, "alarm").size == 0
    panel.picture.threshold = 0.0
    said = panel.picture.update(panel.config)
    assert said["warning"]["queue over 0"] == "false alarm"


def test_a_longer_climb_is_looked_at_more_often_and_cut_off_at_last(panel):
    before = len(points(panel, "queue")[0])
    panel.controls[CLIMB].value = 2000.0
    assert len(points(panel, "queue")[0]) > 1.5 * before
    cut = RampPicture()
    cut.requests = 500
    cut.update(panel.config)
    assert cut.lines["queue"].get_data()[0][-1] < 0.6


def test_reset_takes_the_parameters_back(panel):
    config, start = panel.config, points(panel, "queue")
    panel.controls[CLIMB].value = 300.0
    panel.controls[END].value = 20.0
    panel.reset.click()
    assert panel.config == config
    assert np.array_equal(points(panel, "queue"), start)


def test_the_preset_changes_what_is_full_not_what_arrives(panel):
    ramp = panel.config.arrivals
    panel.preset.value = "llama-3.1-8b-rtx4090"
    assert panel.config.alpha == PRESETS["llama-3.1-8b-rtx4090"].alpha
    assert panel.config.arrivals == ramp
    assert points(panel, "utilization")[1][10:].min() > 0.99
