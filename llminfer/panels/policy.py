"""A panel on policies: who gains and who pays against first come, first served."""

import inspect
from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from llminfer import SimulationConfig, Workload, simulate
from llminfer.panels.controls import Control, Widgets, log
from llminfer.panels.panel import Panel
from llminfer.panels.picture import Picture, over_shares, seconds
from llminfer.policies import POLICIES

_PARAMS = "scheduling_policy_params"


class PolicyPicture(Picture):
    """Left: the share of the short requests within a latency; right: of the long.

    Under the policy chosen in colour, under FCFS in black. A request is long if its
    prompt is longer than the mean of the prompts' law.
    """

    requests, warmup = 3000, 300
    of = "the policy chosen"

    def compose(self, figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for i, (ax, group) in enumerate(zip(axes, ("short", "long"), strict=True)):
            over_shares(ax, 0.1, 1000.0, "latency, seconds")
            ax.set(title=f"{group} requests", ylabel="")
            self.add(ax, f"{group} FCFS", 6, "FCFS", linestyle=":")
            self.add(ax, group, i, "the policy")
            ax.legend(loc="lower right")
        axes[0].set_ylabel("share of requests")

    def compute(self, config: SimulationConfig) -> None:
        requests = Workload.generate(config)
        fcfs = config.replace(scheduling_policy="FCFS", scheduling_policy_params={})
        policy = str(config.scheduling_policy)
        both = ((" FCFS", fcfs, "FCFS"), ("", config, policy))
        for name, run, column in both:
            record = simulate(run, requests)
            latency = record.latency[self.warmup :]
            long = record.prompt_length[self.warmup :] > config.prompts.expectation()
            self.say(column, {"mean latency": seconds(latency.mean())})
            for group, its in (("short", latency[~long]), ("long", latency[long])):
                if its.size:
                    self.move_distribution(f"{group}{name}", its)
                    p99 = seconds(np.quantile(its, 0.99))
                    self.say(column, {f"p99 of {group} requests": p99})


class PolicyParameter(Control):
    """A parameter that some policies have; moving it chooses one that has it."""

    def write(self, config: SimulationConfig, value: Any) -> SimulationConfig:
        takes = self._belongs_to(config.scheduling_policy)
        return super().write(config, value) if takes else config

    def follow(self, widgets: Widgets) -> None:
        policy = widgets["scheduling_policy"]
        if not self._belongs_to(policy.value):
            policy.value = _CHOOSES[self.name]

    def _belongs_to(self, policy: Any) -> bool:
        parameter = self.name.partition(".")[2]
        return parameter in inspect.signature(POLICIES[policy]).parameters


_NOISE, _AGEING = f"{_PARAMS}.prediction_sigma", f"{_PARAMS}.aging_rate"
_CHOOSES = {_NOISE: "Predicted-SJF", _AGEING: "SJF-Aging"}
_SIGMAS = {"options": [0.0, 0.1, 0.25, 0.5, 1.0, 2.0], "value": 0.5}
_RATES = log(-3, 1, 0.1) | {"value": 0.1}
_CONTROLS = (
    "scheduling_policy",
    "arrival_rate",
    PolicyParameter(_NOISE, "σ of prediction", w.SelectionSlider, _SIGMAS),
    PolicyParameter(_AGEING, "ageing rate", options=_RATES),
)


class PolicyPanel(Panel):
    """A policy to choose, its parameters, and what it does to short and long.

    Args:
        base: Where the sliders start, and what they do not set.
    """

    def __init__(self, base: SimulationConfig) -> None:
        super().__init__(base, PolicyPicture(), _CONTROLS)
