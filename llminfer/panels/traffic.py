"""A panel on traces: what was recorded, replayed beside its synthetic twin."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.laws.fields import SERVERS
from llminfer.panels.controls import Control, PictureControl, log, selection
from llminfer.panels.panel import Panel
from llminfer.panels.picture import Picture, over_shares, seconds
from llminfer.report.figures import log_axis
from llminfer.study.traffic import token_times, twin

_GROUP = 25  # requests in a row
_LEAST, _MOST = 0.01, 1000.0  # seconds shown


class TrafficPicture(Picture):
    """Left: the share of requests within a TTFT and a TPOT, of a trace and its twin.

    Right: the worst TTFT of each 25 requests in a row, by arrival, of both.

    Args:
        traces: By name; the first requests of each are replayed.

    Attributes:
        trace: The name of the one that is shown.
    """

    requests = 1200
    of = "the twin"

    def __init__(self, traces: Mapping[str, Workload]) -> None:
        super().__init__()
        self.traces = {n: _first(its, self.requests) for n, its in traces.items()}
        self.twins = {name: twin(its) for name, its in self.traces.items()}
        self.trace = next(iter(traces))

    def pace(self, config: SimulationConfig) -> float:
        """How often the trace's own rate a configuration has."""
        return float(config.arrival_rate / self.twins[self.trace]["arrival_rate"])

    def short(self, config: SimulationConfig) -> SimulationConfig:
        its = len(self.traces[self.trace])
        return config.replace(num_requests=its, warmup_requests=0)

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        over_shares(left, _LEAST, _MOST, "seconds")
        self.add(left, "ttft", 1, "TTFT, trace", linestyle="-")
        self.add(left, "ttft twin", 1, "TTFT, its twin", linestyle=":")
        self.add(left, "tpot", 0, "TPOT, trace", linestyle="--")
        self.add(left, "tpot twin", 0, "TPOT, its twin", linestyle="-.")
        log_axis(right, _LEAST, _MOST)
        right.set(xlim=(0, self.requests), xlabel="request, by arrival")
        right.set_ylabel(f"worst TTFT of {_GROUP} in a row, s")
        self.add(right, "path", 1, "trace", linestyle="-")
        self.add(right, "path twin", 1, "its twin", linestyle=":")
        for ax in (left, right):
            ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    def compute(self, config: SimulationConfig) -> None:
        trace = self.traces[self.trace]
        begins = np.arange(0, len(trace), _GROUP)
        replay, synthetic = trace.scaled(self.pace(config)), Workload.generate(config)
        both = (("", replay, "trace"), (" twin", synthetic, "its twin"))
        for tail, requests, column in both:
            times = token_times(simulate(config, requests))
            for name, its in times.items():
                self.move_distribution(f"{name}{tail}", its)
                p50, p99 = map(seconds, np.quantile(its, (0.5, 0.99)))
                time = name.upper()
                self.say(column, {f"median {time}": p50, f"p99 {time}": p99})
            self.move(f"path{tail}", begins, np.maximum.reduceat(times["ttft"], begins))


class TraceControl(PictureControl):
    """The trace to replay, which gives a configuration its twin's requests."""

    def write(self, config: SimulationConfig, value: Any) -> SimulationConfig:
        its = super().write(config, value)
        return its.replace(**self.picture.twins[value], batch_timeout=0.0)


class PaceControl(PictureControl):
    """How often the trace's own rate, which the configuration has till then."""

    def read(self, config: SimulationConfig) -> Any:
        return self.picture.pace(config)

    def write(self, config: SimulationConfig, value: float) -> SimulationConfig:
        return config.replace(arrival_rate=value * config.arrival_rate)


class TrafficPanel(Panel):
    """A trace, the rate at which it is replayed, and what serves it.

    The configuration is that of the twin, which has the same mean rate.

    Args:
        base: Where the controls start, and what they do not set.
        traces: By name; the first is shown at the start.
    """

    def __init__(self, base: SimulationConfig, traces: Mapping[str, Workload]) -> None:
        picture = TrafficPicture(traces)
        names, pace = {"options": list(traces)}, log(-2, 0.5, 0.05)
        controls = (
            TraceControl("trace", "trace", w.Dropdown, names),
            PaceControl("pace", "× its own rate", options=pace),
            Control("server", "server", w.Dropdown, {"options": SERVERS}),
            "scheduling_policy",
            selection("batch_size", "batch limit B", *(2**k for k in range(9))),
        )
        super().__init__(base, picture, controls)


def _first(trace: Workload, requests: int) -> Workload:
    """The first so many requests, or all."""
    columns = (trace.arrival_time, trace.prompt_length, trace.output_length)
    return Workload.from_arrays(*(column[:requests] for column in columns))
