"""A panel on workloads: another law of prompt lengths at the same offered load."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ipywidgets as w
import numpy as np
from matplotlib.axes import Axes

from llminfer import SimulationConfig
from llminfer.panels import picture
from llminfer.panels.controls import Control, Widgets
from llminfer.panels.panel import Panel

_LENGTHS = np.unique(np.geomspace(1.0, 8192.0, 200).round())  # tokens


class WorkloadPicture(picture.BatchSizePicture):
    """Left: mean and p99 latency against the batch limit, for both rules of dispatch.

    At the limits that carry the load, with a cross for now and rings around the best.
    Right: the share of requests, and of all their tokens, in prompts up to a length.
    """

    def compose_right(self, ax: Axes) -> None:
        ax.set(xscale="log", xlim=(1.0, 8192.0), ylim=(0.0, 1.02))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="prompt tokens at most", ylabel="share")
        self.add(ax, "requests", 2, "of the requests")
        self.add(ax, "tokens", 3, "of all prompt tokens")
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    def compute_right(self, config: SimulationConfig) -> None:
        """Move the shares of requests and of their tokens in prompts up to a length."""
        chance = config.prompts.pmf()
        tokens = chance * np.arange(len(chance))
        at = np.minimum(_LENGTHS.astype(int), len(chance) - 1)
        self.move("requests", _LENGTHS, chance.cumsum()[at])
        self.move("tokens", _LENGTHS, tokens.cumsum()[at] / tokens.sum())
        mean, sd = config.prompts.expectation(), config.prompts.variance() ** 0.5
        said = {"mean prompt": mean, "standard deviation": sd}
        self.say("now", {name: f"{its:,.0f} tokens" for name, its in said.items()})


class Shape(NamedTuple):
    """A law of prompt lengths with one parameter to move."""

    name: str  # of the law, as the reader sees it
    label: str  # of the parameter
    parameter: str
    start: Mapping[str, float]  # no prompt is longer than the context
    values: Sequence[float]


def _steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + i * step, 2) for i in range(round((high - low) / step) + 1)]


_UNIFORM = {"min": 10, "max": 500}, _steps(50, 1000, 50)
_NORMAL = {"mu": 4, "sigma": 1.5, "max": 8192}, _steps(0.1, 2.5, 0.1)
_POWER = {"alpha": 2, "min": 10, "max": 8192}, _steps(1.1, 4, 0.1)
SHAPES: Mapping[str, Shape] = {
    "uniform": Shape("uniform from 10", "up to (tokens)", "max", *_UNIFORM),
    "lognormal": Shape("log-normal, μ = 4", "σ", "sigma", *_NORMAL),
    "powerlaw": Shape("power law from 10", "exponent", "alpha", *_POWER),
}


class LawControl(Control):
    """The laws of prompt lengths to choose from."""

    def write(self, config: SimulationConfig, value: str) -> SimulationConfig:
        law = {"prompt_length_dist": value, "prompt_dist_params": SHAPES[value].start}
        return config.replace(**law)

    def follow(self, widgets: Widgets) -> None:
        its = SHAPES[widgets[self.name].value]
        _SHAPE.put(widgets, its.start[its.parameter])


class ShapeControl(Control):
    """The parameter of the law that is chosen."""

    def read(self, config: SimulationConfig) -> float:
        parameter = SHAPES[config.prompt_length_dist].parameter
        return float(config.prompt_dist_params[parameter])

    def write(self, config: SimulationConfig, value: float) -> SimulationConfig:
        parameter = SHAPES[config.prompt_length_dist].parameter
        return config.replace(**{f"prompt_dist_params.{parameter}": value})

    def put(self, widgets: Widgets, value: float) -> None:
        shape, slider = SHAPES[widgets[_LAW.name].value], widgets[self.name]
        slider.description = shape.label
        slider.options = [(f"{step:g}", step) for step in shape.values]
        super().put(widgets, value)


class LoadControl(Control):
    """The offered load, which the arrival rate follows."""

    def read(self, config: SimulationConfig) -> float:
        return config.offered_load

    def write(self, config: SimulationConfig, value: float) -> SimulationConfig:
        return config.replace(arrival_rate=value * config.max_stable_rate)


_LAWS = [(shape.name, law) for law, shape in SHAPES.items()]
_LAW = LawControl("prompt_length_dist", "prompts", w.Dropdown, {"options": _LAWS})
_SHAPE = ShapeControl("shape", "", w.SelectionSlider, {"options": [0]})
_LOADS = {"min": 0.1, "max": 0.95, "step": 0.05}


class WorkloadPanel(Panel):
    """A law of prompt lengths, its parameter, and an offered load that stays.

    The arrival rate follows: the load times what ``base.batch_size`` carries.

    Args:
        base: Where the sliders start, and what they do not set; its prompts have one
            of the laws in ``SHAPES``.
    """

    def __init__(self, base: SimulationConfig) -> None:
        label = f"load of B = {base.batch_size}"
        load = LoadControl("load", label, w.FloatSlider, _LOADS)
        super().__init__(base, WorkloadPicture(), (_LAW, _SHAPE, load))
