"""A panel on traces: what was recorded, replayed beside its synthetic twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.axes import Axes

from llminfer.base.arrays import FloatArray
from llminfer.config import SERVERS, SimulationConfig
from llminfer.experiment import simulate
from llminfer.panels.panel import LABEL, SLIDER, Panel
from llminfer.panels.picture import Curve, Picture
from llminfer.policies import POLICIES
from llminfer.report.figures import log_axis
from llminfer.study.traffic import token_times, twin
from llminfer.workload import Workload

_GROUP = 25  # requests in a row
_SHARES = np.linspace(0.0, 1.0, 101)
_LEAST, _MOST = 0.01, 1000.0  # seconds shown


class TrafficPicture(Picture):
    """TTFT and TPOT of a trace and of its twin, and how TTFT went over time.

    Args:
        traces: By name; the first requests of each are replayed.
        requests: How many.
    """

    def __init__(self, traces: Mapping[str, Workload], requests: int = 1200) -> None:
        self.traces = {name: _first(its, requests) for name, its in traces.items()}
        self.chosen = next(iter(traces))
        super().__init__(requests)

    def compose(self) -> None:
        left, right = self.figure.subplots(1, 2)
        left.set(xscale="log", xlim=(_LEAST, _MOST), ylim=(0.0, 1.02))
        left.xaxis.set_major_formatter("{x:g}")
        left.set(xlabel="seconds", ylabel="share of requests")
        self._pair(left, "ttft", 1, ("-", ":"), "TTFT, ")
        self._pair(left, "tpot", 0, ("--", "-."), "TPOT, ")
        left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        log_axis(right, _LEAST, _MOST)
        right.set(xlim=(0, self.requests), xlabel="request, by arrival")
        right.set_ylabel(f"worst TTFT of {_GROUP} in a row, s")
        self._pair(right, "path", 1, ("-", ":"))
        right.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    def _pair(
        self, ax: Axes, name: str, i: int, dashes: tuple[str, str], of: str = ""
    ) -> None:
        """Curves of a trace and of its twin."""
        self.add(ax, name, i, f"{of}trace", linestyle=dashes[0])
        self.add(ax, f"{name} twin", i, f"{of}its twin", linestyle=dashes[1])

    def compute(
        self, config: SimulationConfig
    ) -> tuple[dict[str, Curve], dict[str, str]]:
        trace = self.traces[self.chosen]
        n = len(trace)
        few = config.replace(num_requests=n, warmup_requests=0)
        pace = config.arrival_rate / twin(trace)["arrival_rate"]
        curves: dict[str, Curve] = {}
        readings: dict[str, str] = {}
        for tail, requests in (
            ("", trace.scaled(pace)),
            (" twin", Workload.generate(few)),
        ):
            times = token_times(simulate(few, requests))
            for name, its in times.items():
                curves[f"{name}{tail}"] = _distribution(its)
                p50, p99 = (f"{q:.3g}" for q in np.quantile(its, (0.5, 0.99)))
                readings[f"{name.upper()}{tail}, p50 and p99"] = f"{p50} and {p99} s"
            worst = np.maximum.reduceat(times["ttft"], np.arange(0, n, _GROUP))
            curves[f"path{tail}"] = (np.arange(0.0, n, _GROUP), worst)
        return curves, readings


class TrafficPanel(Panel):
    """A trace, the rate at which it is replayed, and what serves it.

    The configuration is that of the twin, which has the same mean rate.

    Args:
        base: Where the controls start, and what they do not set.
        traces: By name; the first is shown at the start.
    """

    def __init__(self, base: SimulationConfig, traces: Mapping[str, Workload]) -> None:
        self._replay = TrafficPicture(traces)
        self._fields = {n: twin(its) for n, its in self._replay.traces.items()}
        super().__init__(base, self._replay)

    def _sliders(self, names: Sequence[str]) -> dict[str, w.ValueWidget]:
        look = {"layout": SLIDER, "style": LABEL}
        traces, policies = list(self._fields), list(POLICIES)
        sizes = [2**k for k in range(9)]
        late = {**look, "continuous_update": False}
        made = {
            "trace": w.Dropdown(description="trace", options=traces, **look),
            "pace": w.FloatLogSlider(
                description="× its own rate",
                **{"min": -2, "max": 0.5, "step": 0.05, "readout_format": ".3g"},
                **late,
            ),
            "server": w.Dropdown(description="server", options=SERVERS, **look),
            "scheduling_policy": w.Dropdown(
                description="policy", options=policies, **look
            ),
            "batch_size": w.SelectionSlider(
                description="batch limit B", options=sizes, **late
            ),
        }
        for name, value in self._start().items():
            made[name].value = value
        return made

    def _start(self) -> dict[str, Any]:
        """What the controls say of ``base``."""
        trace = next(iter(self._fields))
        return {
            "trace": trace,
            "pace": self.base.arrival_rate / self._fields[trace]["arrival_rate"],
            "server": self.base.server,
            "scheduling_policy": self.base.scheduling_policy,
            "batch_size": self.base.batch_size,
        }

    def _changes(self) -> dict[str, Any]:
        told = {name: control.value for name, control in self.controls.items()}
        self._replay.chosen = trace = told.pop("trace")
        fields = self._fields[trace]
        rate = float(f"{told.pop('pace') * fields['arrival_rate']:.4g}")
        return {**fields, **told, "arrival_rate": rate, "batch_timeout": 0.0}

    def _start_again(self) -> None:
        self._quiet = True
        self.preset.value = "as given"
        for name, value in self._start().items():
            self.controls[name].value = value
        self._quiet = False
        self._preset_chosen({"new": "as given"})


def _first(trace: Workload, requests: int) -> Workload:
    """The first so many requests, or all."""
    columns = (trace.arrival_time, trace.prompt_length, trace.output_length)
    return Workload.from_arrays(*(column[:requests] for column in columns))


def _distribution(values: FloatArray) -> Curve:
    return np.quantile(values, _SHARES), _SHARES
