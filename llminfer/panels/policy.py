"""A panel on policies: who gains and who pays against first come, first served."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from llminfer.config import SimulationConfig
from llminfer.experiment import simulate
from llminfer.panels.panel import Panel
from llminfer.panels.picture import Curve, Picture
from llminfer.policies import POLICIES
from llminfer.workload import Workload

_POLICY, _PARAMS = "scheduling_policy", "scheduling_policy_params"
_SIGMA, _AGING = f"{_PARAMS}.prediction_sigma", f"{_PARAMS}.aging_rate"
_CHOOSES = {_SIGMA: "Predicted-SJF", _AGING: "SJF-Aging"}  # where the chosen has none


class PolicyPicture(Picture):
    """Latency of short and of long requests, under a policy and under FCFS.

    A request is long if its prompt is longer than the mean of the prompts' law.
    """

    def __init__(self, requests: int = 3000) -> None:
        super().__init__(requests)

    def compose(self) -> None:
        left, right = self.figure.subplots(1, 2, sharey=True)
        self._side(left, "short")
        self._side(right, "long")
        left.set_ylabel("share of requests")

    def _side(self, ax: Axes, group: str) -> None:
        ax.set(xscale="log", xlim=(0.1, 1000.0), ylim=(0.0, 1.02))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="latency, seconds", title=f"{group} requests")
        self.add(ax, f"{group} FCFS", 6, "FCFS", linestyle=":")
        self.add(ax, group, 0 if group == "short" else 1, "the policy")
        ax.legend(loc="lower right")

    def compute(
        self, config: SimulationConfig
    ) -> tuple[dict[str, Curve], dict[str, str]]:
        few = config.replace(num_requests=self.requests, warmup_requests=300)
        requests = Workload.generate(few)
        fcfs = few.replace(scheduling_policy="FCFS", scheduling_policy_params={})
        shares = np.linspace(0.0, 1.0, 101)
        curves: dict[str, Curve] = {}
        readings: dict[str, str] = {}
        for name, run in (("", few), (" FCFS", fcfs)):
            record = simulate(run, requests)
            latency = (record.processing_end_time - record.arrival_time)[300:]
            long = record.prompt_length[300:] > config.prompts.expectation()
            readings[f"mean{name}"] = f"{latency.mean():.3g} s"
            for group, its in (("short", latency[~long]), ("long", latency[long])):
                if its.size:
                    curves[f"{group}{name}"] = (np.quantile(its, shares), shares)
                    p99 = np.quantile(its, 0.99)
                    readings[f"p99 of {group}{name}"] = f"{p99:.3g} s"
        return curves, readings


class PolicyPanel(Panel):
    """A policy to choose, its parameters, and what it does to short and long.

    Moving a parameter that the chosen policy lacks chooses one that has it.

    Args:
        base: Where the sliders start, and what they do not set.
    """

    def __init__(self, base: SimulationConfig) -> None:
        names = (_POLICY, "arrival_rate", _SIGMA, _AGING)
        super().__init__(base, PolicyPicture(), names)

    def _moved(self, change: Any) -> None:
        moved = [n for n in _CHOOSES if self.controls[n] is change["owner"]]
        lacks = [n for n in moved if not _takes(self.controls[_POLICY].value, n)]
        if lacks and not self._quiet:
            self._set({_POLICY: _CHOOSES[lacks[0]]})
        else:
            super()._moved(change)

    def _changes(self) -> dict[str, Any]:
        values = super()._changes()
        policy = values[_POLICY]
        told = {name: values.pop(name) for name in _CHOOSES}
        own = {
            name.partition(".")[2]: value
            for name, value in told.items()
            if _takes(policy, name)
        }
        return {**values, _PARAMS: own}


def _takes(policy: str, name: str) -> bool:
    """Whether a policy has the parameter that a dotted name ends in."""
    return name.partition(".")[2] in inspect.signature(POLICIES[policy]).parameters
