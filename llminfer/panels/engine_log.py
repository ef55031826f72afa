"""Pictures of a log beside its simulation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.base.arrays import FloatArray
from llminfer.calibrate import MEASURES, Calibration
from llminfer.data.logs import ServedLog
from llminfer.panels.picture import Picture, Points, seconds
from llminfer.report.figures import COLORS, look
from llminfer.servers.overload import described
from llminfer.timeseries import queue_length, running

_MARKS: Any = {"marker": ".", "linestyle": "none", "markersize": 3.0}
LIMITS = ("batch_size", "max_batched_tokens", "replicas", "kv_blocks")
NAMES = {"ttft": "first token (TTFT)", "tpot": "TPOT", "latency": "latency"}


def counts_over_time(
    ax: Axes, calibration: Calibration, measured: pd.DataFrame
) -> None:
    """Requests that run and that wait, measured as marks and simulated as lines.

    Args:
        ax: Where to draw.
        calibration: The simulation.
        measured: Columns ``t`` (seconds), ``running`` and ``waiting``.
    """
    record = calibration.record
    simulated = {"waiting": queue_length(record), "running": running(record)}
    times = np.linspace(0.0, float(measured["t"].max()), 500)
    for color, (name, series) in zip(COLORS, simulated.items(), strict=False):
        ax.plot(times, series(times), color=color, label=name)
        every, label = measured.iloc[::4], f"{name}, measured"
        ax.plot(every["t"], every[name], color=color, label=label, **_MARKS)
    cut = float(calibration.log.last_token_time[calibration.fitted].max())
    ax.axvline(cut, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="time, seconds", xlim=(0.0, None), ylim=(0.0, None))


def distribution(ax: Axes, logs: Mapping[str, ServedLog], measure: str) -> None:
    """The share of requests within a time, in each of some logs.

    Args:
        ax: Where to draw.
        logs: By name; the first is drawn as measured, in black.
        measure: ttft, tpot or latency.
    """
    for i, (name, log) in enumerate(logs.items()):
        x, y = _empirical_cdf(getattr(log, measure))
        style = {**look(i - 1), "marker": ""} if i else {"color": "black"}
        ax.plot(x, y, label=name, **style)
    ax.set(xlabel=f"{NAMES[measure]}, seconds", xlim=(0.0, None), ylim=(0.0, 1.02))
    ax.locator_params(axis="x", nbins=5)


def _empirical_cdf(values: FloatArray) -> Points:
    ordered = np.sort(values[~np.isnan(values)])
    return ordered, np.arange(1, len(ordered) + 1) / len(ordered)


class LogPicture(Picture):
    """The share of requests within a TTFT, a TPOT and a latency.

    As measured in black, as simulated in colour.

    Args:
        log: What was measured; its requests are simulated, whatever the arrival rate.

    Attributes:
        pace: How often the log's own rate they arrive at.
        prompt_factor: How often as long their prompts are.
        output_factor: How often as long their outputs are.
    """

    controls = ("pace", "prompt_factor", "output_factor", *LIMITS)
    of = "serves the requests of the log"
    pace, prompt_factor, output_factor = 1.0, 1.0, 1.0
    measurable = False  # there are no others like them

    def __init__(self, log: ServedLog) -> None:
        super().__init__()
        self.log = log
        self.requests = len(log)

    def asked(self) -> Workload:
        """The requests of the log, as they are or as many times as much."""
        its = self.log.workload.scaled(self.pace)
        prompts = np.rint(self.prompt_factor * its.prompt_length).clip(1)
        outputs = np.rint(self.output_factor * its.output_length).clip(1)
        lengths = {"prompt_length": prompts, "output_length": outputs}
        return replace(its, **{n: each.astype(np.int64) for n, each in lengths.items()})

    def servers(self, config: SimulationConfig) -> Mapping[str, SimulationConfig]:
        its = self.asked()  # if all came at once, there is no rate
        return {"the log": described(its, config)} if np.ptp(its.arrival_time) else {}

    def compose(self, figure: Figure) -> None:
        axes = zip(figure.subplots(1, 3, sharey=True), MEASURES, strict=True)
        for i, (ax, measure) in enumerate(axes):
            x, y = _empirical_cdf(getattr(self.log, measure))
            ax.plot(x, y, color="black", label="measured")
            self.add(ax, measure, i, "simulated")
            ax.set(xlim=(0.0, 1.3 * x[-1]), ylim=(0.0, 1.02))
            ax.set_xlabel(f"{NAMES[measure]}, seconds")
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        figure.axes[0].set_ylabel("share of requests")

    def compute(self, config: SimulationConfig) -> None:
        served = ServedLog.from_record(simulate(config, self.asked()))
        for name in MEASURES:
            self.move(name, *_empirical_cdf(getattr(served, name)))
            real, ours = (np.nanmean(getattr(s, name)) for s in (self.log, served))
            said = {"measured": seconds(real), "simulated": seconds(ours)}
            said["difference"] = f"{ours / real - 1.0:+.1%}"
            self.readings[f"mean {NAMES[name]}"] = said
