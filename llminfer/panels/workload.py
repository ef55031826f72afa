"""A panel on workloads: another law of prompt lengths at the same offered load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets as w
import numpy as np

from llminfer.config import SimulationConfig
from llminfer.laws.lengths import LengthLaw
from llminfer.panels.panel import LABEL, SLIDER, Panel
from llminfer.panels.picture import (
    BATCH_LIMITS,
    Curve,
    Picture,
    mean_and_p99,
    over_batch_limits,
)
from llminfer.workload import Workload

_RULES = {"at once": 0.0, "until full": None}
_LENGTHS = np.unique(np.geomspace(1.0, 8192.0, 200).round())  # tokens


class WorkloadPicture(Picture):
    """p99 against the batch limit, for both rules of dispatch, and the prompts."""

    sizes = BATCH_LIMITS

    def __init__(self, requests: int = 1000) -> None:
        super().__init__(requests)

    def compose(self) -> None:
        left, right = self.figure.subplots(1, 2)
        over_batch_limits(left, 0.3, 300.0, "p99 latency, seconds")
        for i, rule in enumerate(_RULES):
            self.add(left, rule, i, rule)
        ring = {"marker": "o", "linestyle": "none", "markerfacecolor": "none"}
        self.add(left, "best", 6, "the best", **ring)
        left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
        right.set(xscale="log", xlim=(1.0, 8192.0), ylim=(0.0, 1.02))
        right.xaxis.set_major_formatter("{x:g}")
        right.set(xlabel="prompt tokens at most", ylabel="share")
        self.add(right, "requests", 2, "of the requests")
        self.add(right, "tokens", 3, "of all prompt tokens")
        right.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)

    def compute(
        self, config: SimulationConfig
    ) -> tuple[dict[str, Curve], dict[str, str]]:
        few = config.replace(num_requests=self.requests, warmup_requests=100)
        requests = Workload.generate(few)
        rate = config.arrival_rate
        sizes = [b for b in self.sizes if config.stable_rate(b) > rate]
        curves: dict[str, Curve] = {}
        readings = {"stable from": f"B = {sizes[0]}" if sizes else "no B shown here"}
        best: list[tuple[float, int]] = []
        for rule, timeout in _RULES.items():
            at = few.replace(batch_timeout=timeout)
            p99 = [mean_and_p99(at.replace(batch_size=b), requests)[1] for b in sizes]
            curves[rule] = (np.array(sizes), np.array(p99))
            if sizes:
                best.append(min(zip(p99, sizes, strict=True)))
                readings[f"best, {rule}"] = (
                    f"B = {best[-1][1]} with {best[-1][0]:.3g} s"
                )
        limits, least = np.array([b for _, b in best]), np.array([s for s, _ in best])
        curves["best"] = (limits, least)
        return curves | _shares(config.prompts), readings | _moments(config.prompts)


def _shares(prompts: LengthLaw) -> dict[str, Curve]:
    """Which share of requests, and of their tokens, lies in prompts up to a length."""
    chance = prompts.pmf()
    tokens = chance * np.arange(len(chance))
    at = np.minimum(_LENGTHS.astype(int), len(chance) - 1)
    return {
        "requests": (_LENGTHS, chance.cumsum()[at]),
        "tokens": (_LENGTHS, tokens.cumsum()[at] / tokens.sum()),
    }


def _moments(prompts: LengthLaw) -> dict[str, str]:
    mean, deviation = prompts.expectation(), prompts.variance() ** 0.5
    return {"prompts": f"mean {mean:.0f}, standard deviation {deviation:.0f} tokens"}


class Shape(NamedTuple):
    """A law of prompt lengths with one parameter to move."""

    name: str  # of the law, as the reader sees it
    label: str  # of the parameter
    parameter: str
    values: Sequence[float]
    start: float
    fixed: Mapping[str, float]  # the other parameters


def _steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + i * step, 2) for i in range(round((high - low) / step) + 1)]


_CAP = {"max": 8192}  # tokens, the context
SHAPES: Mapping[str, Shape] = {
    "uniform": Shape(
        "uniform from 10",
        "up to, tokens",
        "max",
        _steps(50, 1000, 50),
        500,
        {"min": 10},
    ),
    "lognormal": Shape(
        "log-normal, μ = 4", "σ", "sigma", _steps(0.1, 2.5, 0.1), 1.5, {"mu": 4} | _CAP
    ),
    "powerlaw": Shape(
        "power law from 10",
        "exponent",
        "alpha",
        _steps(1.1, 4, 0.1),
        2,
        {"min": 10} | _CAP,
    ),
}


class WorkloadPanel(Panel):
    """A law of prompt lengths, its parameter, and an offered load that stays.

    The arrival rate follows: the load times what ``base.batch_size`` carries.

    Args:
        base: Where the sliders start, and what they do not set; its prompts have one
            of the laws in ``SHAPES``.
    """

    def __init__(self, base: SimulationConfig) -> None:
        super().__init__(base, WorkloadPicture())

    def _sliders(self, names: Sequence[str]) -> dict[str, w.ValueWidget]:
        look = {"layout": SLIDER, "style": LABEL}
        laws = [(shape.name, law) for law, shape in SHAPES.items()]
        self._law = w.Dropdown(description="prompts", options=laws, **look)
        look["continuous_update"] = False
        self._shape = w.SelectionSlider(options=[0], **look)
        self._share = w.FloatSlider(min=0.1, max=0.95, step=0.05, **look)
        self._share.description = f"load of B = {self.base.batch_size}"
        self._law.observe(lambda change: self._offer(change["new"]), "value")
        self._place(self.base)
        return {"law": self._law, "shape": self._shape, "load": self._share}

    def _changes(self) -> dict[str, Any]:
        shape = SHAPES[self._law.value]
        params = {**shape.fixed, shape.parameter: self._shape.value}
        prompts = {
            "prompt_length_dist": self._law.value,
            "prompt_dist_params": params,
        }
        carried = self.config.replace(**prompts).max_stable_rate
        return {**prompts, "arrival_rate": float(f"{self._share.value * carried:.4g}")}

    def _start_again(self) -> None:
        self.preset.value = "as given"
        self._quiet = True
        self._place(self.base)
        self._quiet = False
        self._show()

    def _place(self, config: SimulationConfig) -> None:
        """Move the sliders to ``config``."""
        law, params = config.prompt_length_dist, config.prompt_dist_params
        self._law.value = law
        self._offer(law, params[SHAPES[law].parameter])
        self._share.value = config.offered_load

    def _offer(self, law: str, value: float | None = None) -> None:
        """Let the second slider move the parameter of ``law``, from ``value``."""
        shape, was = SHAPES[law], self._quiet
        self._quiet = True  # one picture for all these moves
        self._shape.description = shape.label
        self._shape.options = [(f"{step:g}", step) for step in shape.values]
        self._shape.value = shape.start if value is None else value
        self._quiet = was
