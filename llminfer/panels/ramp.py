"""What a panel draws of a server whose load climbs."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llminfer import SimulationConfig, simulate
from llminfer.panels.picture import Picture
from llminfer.report.figures import log_axis
from llminfer.study.early_warning import judge, warning_signals

_MOST_SHOWN = 1.6  # load at the right edge


class RampPicture(Picture):
    """Left: the queue against the load as it climbs, a dot where its alarm rings.

    Right: arrival rate, utilisation and batch fill of the last minute. A red line is at
    load 1.

    Attributes:
        requests: Requests a simulation, at most; a climb that takes more is cut off.
        threshold: The alarm rings when more requests wait.
    """

    requests = 12_000
    threshold = 100.0

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        log_axis(left, 1.0, 10_000.0)
        self.add(left, "queue", 0, "requests waiting")
        left.axhline(self.threshold, color="black", linewidth=1.0, linestyle=":")
        self.add(left, "alarm", 6, "first alarm", marker="o", linestyle="none")
        left.set(ylabel="queue, requests")
        self.add(right, "rate_ratio", 2, "arrival rate / λ*")
        self.add(right, "utilization", 1, "utilisation")
        self.add(right, "batch_fill", 0, "batch fill")
        right.set(ylim=(0.0, _MOST_SHOWN), ylabel="over the last minute")
        for ax in (left, right):
            ax.set(xlim=(0.0, _MOST_SHOWN), xlabel="load now, λ(t)/λ*")
            ax.axvline(1.0, color="#b00020", linewidth=1.0)
            ax.legend(loc="upper left")

    def short(self, config: SimulationConfig) -> SimulationConfig:
        climb = np.array([config.arrival_pattern_params["duration"]])
        expected = math.ceil(float(config.arrivals.cumulative(climb)[0]))
        most = min(expected, self.requests)
        return config.replace(num_requests=most, warmup_requests=0)

    shown = short

    def compute(self, config: SimulationConfig) -> None:
        seen = warning_signals(config, simulate(config))
        load, queue = np.array(seen["load"]), np.array(seen["queue"])
        within = np.where(load <= _MOST_SHOWN, load, np.nan)
        for name in ("queue", "rate_ratio", "utilization", "batch_fill"):
            self.move(name, within, seen[name])
        self.move("alarm", [], [])
        alarms = {
            f"queue over {self.threshold:g}": ("queue", self.threshold),
            "arrivals over λ*": ("rate_ratio", 1.0),
            "busy over 95%": ("utilization", 0.95),
        }
        for column, alarm in alarms.items():
            found = judge(pd.DataFrame([seen]), *alarm).iloc[0]
            rang, crossing = found["alarm"], found["crossing"]
            said = {"alarm": _when(rang), "warning": _lead(rang, crossing)}
            self.say(column, said | {"load 1 is reached": _when(crossing)})
            if alarm[0] == "queue":
                first = np.array(seen["time"]) == rang
                self.move("alarm", load[first], queue[first])


def _when(seconds: float) -> str:
    return f"at {seconds:,.0f} s" if math.isfinite(seconds) else "never"


def _lead(alarm: float, crossing: float) -> str:
    """How early an alarm was, in words."""
    if math.isinf(alarm):
        return "none"
    if math.isinf(crossing):
        return "false alarm"
    early = crossing - alarm
    return f"{abs(early):,.0f} s " + ("before" if early > 0.0 else "after")
