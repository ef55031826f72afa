"""A picture of batch-size control while the arrival rate swings."""

import numpy as np
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.panels.controls import rounded
from llminfer.panels.picture import Picture, seconds
from llminfer.report.figures import log_axis
from llminfer.study.measures import over_a_wave

CONTROLLERS = ("static", "queue", "rate", "latency")
_TARGET = {"latency": {"target": 10.0}}  # seconds
_ACTS = 12  # times a period


class WavePicture(Picture):
    """Left: the batch limit over one swing of the rate, a curve a controller.

    Right: the p99 of latency. A grey bar is at the rate's peak.

    The base rate is the configuration's; it swings by four fifths of that, with a
    period in which half of the requests arrive.
    """

    of = "the fixed limit"
    requests, warmup = 3000, 150  # in the two periods that are simulated

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for ax, what in ((left, "limit"), (right, "p99")):
            for i, name in enumerate(CONTROLLERS):
                self.add(ax, f"{name} {what}", i, name)
            ax.set(xlim=(0.0, 1.0), xlabel="time, periods of the rate")
            ax.axvline(0.25, color="#cccccc", linewidth=6.0, zorder=0)
        left.set_yscale("log", base=2)
        left.set(ylim=(0.8, 160.0), ylabel="batch limit")
        left.yaxis.set_major_formatter("{x:g}")
        log_axis(right, 0.05, 1000.0)
        right.set_ylabel("p99 latency, seconds")
        left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4)

    def short(self, config: SimulationConfig) -> SimulationConfig:
        mean = config.arrival_rate
        swing = {"amplitude": 0.8 * mean, "period": self.requests / 2.0 / mean}
        wave = {"arrival_pattern": "sinusoidal", "arrival_pattern_params": swing}
        return rounded(super().short(config).replace(**wave))

    shown = short

    def compute(self, config: SimulationConfig) -> None:
        period = config.arrival_pattern_params["period"]
        requests = Workload.generate(config)
        for name in CONTROLLERS:
            every = {} if name == "static" else {"interval": period / _ACTS}
            params = every | _TARGET.get(name, {})
            run = config.replace(batch_control=name, batch_control_params=params)
            found = over_a_wave(run, simulate(run, requests))
            shown = slice(None, 60)
            time = np.array(found["time"][shown]) / period
            for what in ("limit", "p99"):
                self.move(f"{name} {what}", time, found[what][shown])
            said = {"at the peak": "p99_peak", "of all": "p99_latency"}
            p99 = {f"p99 {when}": seconds(found[of]) for when, of in said.items()}
            self.say(name, p99)
