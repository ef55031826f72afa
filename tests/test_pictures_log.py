"""Pictures of a log: what is drawn is what was measured and what was simulated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from panel_table import table_in

from llminfer import SimulationConfig, Workload, simulate
from llminfer.calibrate import MEASURES, Calibration
from llminfer.data.logs import ServedLog
from llminfer.panels import engine_log
from llminfer.panels.panel import Panel

SETTINGS = {"batch_size": 4, "max_batched_tokens": 256}
CONFIG = SimulationConfig(server="continuous", warmup_requests=0, **SETTINGS)


@pytest.fixture(scope="module")
def calibration():
    """An engine that the simulator takes to be half as fast as it is."""
    work = Workload.from_arrays(np.arange(20.0) / 10, np.full(20, 50), np.full(20, 9))
    log = ServedLog.from_record(simulate(CONFIG.replace(alpha=5e-4, gamma=0.01), work))
    record = simulate(CONFIG.replace(alpha=1e-3, gamma=0.02), work)
    return Calibration({}, (), SETTINGS, log, record, log.first_completed(0.4))


@pytest.fixture
def ax():
    return Figure().subplots()


def off(panel):
    return [its["difference"] for its in table_in(panel.readings).values()]


def drawn(ax):
    return {str(line.get_label()): line.get_data() for line in ax.get_lines()}


def test_distributions_are_of_all_requests_of_each_log(calibration, ax):
    logs = {"measured": calibration.log, "simulated": calibration.simulated}
    engine_log.distribution(ax, logs, "latency")
    lines = drawn(ax)
    for name, log in logs.items():
        x, share = lines[name]
        np.testing.assert_array_equal(x, np.sort(log.latency))
        assert share[-1] == 1.0
    assert lines["simulated"][0].mean() > lines["measured"][0].mean()


def test_counts_over_time_stand_beside_the_measured_ones(calibration, ax):
    seen = pd.DataFrame({"t": range(8), "running": 1, "waiting": 2})
    engine_log.counts_over_time(ax, calibration, seen)
    lines = drawn(ax)
    assert lines["running, measured"][1].tolist() == [1, 1]
    assert lines["waiting, measured"][0].tolist() == [0, 4]
    assert lines["running"][1].max() == 4
    assert lines["waiting"][1].max() > 4


def test_a_panel_compares_a_configuration_with_the_log(calibration):
    picture = engine_log.LogPicture(calibration.log)
    panel = Panel(CONFIG.replace(alpha=5e-4, gamma=0.01), picture, ["alpha", "gamma"])
    for name in MEASURES:
        x, _ = picture.lines[name].get_data()
        np.testing.assert_allclose(x, np.sort(getattr(calibration.log, name)))
    assert off(panel) == ["+0.0%"] * 3
    panel.controls["gamma"].value = 0.02
    x, _ = picture.lines["tpot"].get_data()
    assert x.mean() > calibration.log.tpot.mean()
    assert "+0.0%" not in off(panel)
