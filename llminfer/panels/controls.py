"""Controls: what sets one field of a configuration by hand, and how."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import ipywidgets as w

from llminfer import PRESETS, SimulationConfig
from llminfer.laws.engines import LAW
from llminfer.policies import POLICIES

GROUPS: Mapping[str, str] = {  # what stands under which heading, in this order
    "Load": "arrival_rate end_rate duration pace load clients mean patience",
    "Workload": "trace prompt_length_dist shape mu prompt_factor output_factor",
    "Engine": "",  # and all the others
    "Memory": "kv_blocks",
    "SLO": "ttft_limit tpot_limit",
}
_AUTO, _LABEL = w.Layout(width="auto"), {"description_width": "160px"}
_NONE = math.inf  # a selection cannot hold None

Widgets = Mapping[str, w.ValueWidget]


@dataclass(frozen=True)
class Control:
    """How a field of a configuration, or one of its parameters, is set by hand.

    Args:
        name: The field, or the parameter as in ``prompt_dist_params.mu``.
        label: What stands beside the widget, with the unit.
        make: The kind of widget.
        options: What it is made with.
    """

    name: str
    label: str
    make: type[w.ValueWidget] = w.FloatLogSlider
    options: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, picture: Any) -> "Control":
        """The control in a panel with this picture."""
        return self

    @property
    def group(self) -> str:
        """The heading under which it stands."""
        name = self.name.rpartition(".")[2]
        return next((g for g, its in GROUPS.items() if name in its.split()), "Engine")

    def widget(self) -> w.ValueWidget:
        """The slider or the list, not yet moved."""
        patient = {} if self.make is w.Dropdown else {"continuous_update": False}
        look = {"description": self.label, "layout": _AUTO, "style": _LABEL}
        return self.make(**look, **patient, **self.options)

    def read(self, config: SimulationConfig) -> Any:
        """What the widget says of ``config``."""
        owner, _, parameter = self.name.partition(".")
        value = getattr(config, owner)
        if parameter:  # of another policy than this one it has its usual value
            value = value.get(parameter, self.options.get("value"))
        return _NONE if value is None else value

    def write(self, config: SimulationConfig, value: Any) -> SimulationConfig:
        """``config`` with what the widget says."""
        owner, _, parameter = self.name.partition(".")
        if parameter and not owner.endswith("_params"):
            law = {**getattr(config, owner), parameter: value}
            return config.replace(**{owner: law})
        return config.replace(**{self.name: None if value == _NONE else value})

    def put(self, widgets: Widgets, value: Any) -> None:
        """Move the widget; a value between the stops of a selection becomes one."""
        slider = widgets[self.name]
        if isinstance(slider, w.SelectionSlider):
            stops = [o if isinstance(o, tuple) else (str(o), o) for o in slider.options]
            if value not in [stop for _, stop in stops]:
                stops.append((f"{value:g}", value))
                slider.options = sorted(stops, key=lambda stop: stop[1])
        slider.value = value  # a slider with two ends stops there

    def follow(self, widgets: Widgets) -> None:
        """Move the other widgets that depend on this one, which a hand has moved."""


@dataclass(frozen=True, kw_only=True)
class PictureControl(Control):
    """An attribute of the panel's picture, which no configuration has."""

    picture: Any = None

    def bound(self, picture: Any) -> Control:
        return replace(self, picture=picture)

    def read(self, config: SimulationConfig) -> Any:
        return getattr(self.picture, self.name)

    def write(self, config: SimulationConfig, value: Any) -> SimulationConfig:
        setattr(self.picture, self.name, value)
        return config


class MedianControl(Control):
    """The median of a log-normal law, tokens, by its ``mu``."""

    def read(self, config: SimulationConfig) -> float:
        return math.exp(super().read(config))

    def write(self, config: SimulationConfig, value: float) -> SimulationConfig:
        return super().write(config, math.log(value))


OWN = "of no preset"


class PresetControl(Control):
    """Coefficients by the engine's name; once one is moved by hand they have none."""

    def read(self, config: SimulationConfig) -> str:
        own = {name: getattr(config, name) for name in LAW}
        return next((n for n, its in PRESETS.items() if its.coefficients == own), OWN)

    def write(self, config: SimulationConfig, value: str) -> SimulationConfig:
        return config if value == OWN else config.replace(**PRESETS[value].coefficients)

    def follow(self, widgets: Widgets) -> None:
        if (chosen := widgets[self.name].value) != OWN:
            for name, value in PRESETS[chosen].coefficients.items():
                if name in widgets:
                    CONTROLS[name].put(widgets, value)


class PolicyControl(Control):
    """The policies to choose from; another one begins with its usual parameters."""

    def write(self, config: SimulationConfig, value: str) -> SimulationConfig:
        if value == config.scheduling_policy:
            return config
        return config.replace(scheduling_policy=value, scheduling_policy_params={})


def rounded(config: SimulationConfig) -> SimulationConfig:
    """``config`` with its numbers to four digits, so that a line to copy is short.

    >>> rounded(SimulationConfig(arrival_rate=4.123456)).arrival_rate
    4.123
    """
    its = {f.name: _four_digits(getattr(config, f.name)) for f in fields(config)}
    return config.replace(**its)


def _four_digits(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _four_digits(its) for name, its in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def log(low: float, high: float, step: float, readout: str = ".3g") -> dict[str, Any]:
    """Options of a slider from 10^low to 10^high, ``step`` a key press in log10."""
    return {"min": low, "max": high, "step": step, "readout_format": readout}


def selection(name: str, label: str, *stops: Any, unit: str = "") -> Control:
    """Numbers to choose from; one that a word stands for comes behind its word."""
    pairs = [s if isinstance(s, tuple) else (f"{s:g}{unit}", s) for s in stops]
    return Control(name, label, w.SelectionSlider, {"options": pairs})


def _or_zero(low: int, high: int) -> list[float]:
    """0, and from 10^low to 10^high twenty numbers a decade, of three digits."""
    return [0.0, *(float(f"{10 ** (i / 20):.3g}") for i in range(20 * low, 20 * high))]


_RAMP = "arrival_pattern_params"
_SECONDS = (0.1, 0.3, 1.0)
_TIMEOUTS = (("at once", 0.0), *_SECONDS, 3.0, 10.0, ("until full", _NONE))
_PATIENCE = (*_SECONDS, 10.0, ("no end", _NONE))
_BLOCKS = (640, 800, 1024, 1280, 1536, *(2**k for k in range(11, 16)))
_POLICIES = {"options": list(POLICIES)}
_PRESETS = {"options": [*PRESETS, OWN]}
_PREFILL = {"options": [("in chunks", True), ("whole", False)]}
_FACTOR, _RATE, _TOKENS = log(-1, 1, 0.05), log(-1, 2, 0.02), log(1, 3.5, 0.05, ".0f")
PROMPTS, OUTPUTS = "prompt_dist_params.mu", "output_dist_params.mu"
CONTROLS: Mapping[str, Control] = {
    control.name: control
    for control in (
        Control("arrival_rate", "λ (requests/s)", options=_RATE),
        MedianControl(PROMPTS, "prompt (median tokens)", options=_TOKENS),
        MedianControl(OUTPUTS, "output (median tokens)", options=_TOKENS),
        Control("think_time.mean", "think time (s)", options=log(-1, 3, 0.05)),
        PresetControl("preset", "coefficients", w.Dropdown, _PRESETS),
        Control("alpha", "α (s/token)", options=log(-5, -2, 0.05)),
        Control("beta", "β (s/prefill)", options=log(-4, 0, 0.05)),
        Control("gamma", "γ (s/decode step)", options=log(-5, -1, 0.05)),
        selection("delta", "δ (s/sequence)", *_or_zero(-7, -2)),
        selection("kappa", "κ (s/KV token)", *_or_zero(-9, -4)),
        selection("batch_size", "batch size B", *(2**k for k in range(10))),
        selection("batch_timeout", "wait to fill", *_TIMEOUTS, unit=" s"),
        selection("max_batched_tokens", "token budget", *(2**k for k in range(8, 15))),
        selection("replicas", "replicas", *range(1, 9)),
        selection("queue_limit", "queue limit", 1, 2, 4, 16, ("none", _NONE)),
        Control("chunked_prefill", "prefill", w.Dropdown, _PREFILL),
        PolicyControl("scheduling_policy", "policy", w.Dropdown, _POLICIES),
        selection("kv_blocks", "KV blocks", *_BLOCKS, ("no limit", _NONE)),
        PictureControl("ttft_limit", "TTFT ≤ (s)", options=log(-2, 3, 0.1)),
        PictureControl("tpot_limit", "TPOT ≤ (s)", options=log(-4, 1, 0.1)),
        PictureControl("pace", "rate, × the log's", options=_FACTOR),
        PictureControl("prompt_factor", "prompt, × the log's", options=_FACTOR),
        PictureControl("output_factor", "output, × the log's", options=_FACTOR),
        selection("clients", "users N", *(2**k for k in range(11))),
        selection("patience", "patience", *_PATIENCE, unit=" s"),
        Control(f"{_RAMP}.end_rate", "λ at the end", options=_RATE),
        Control(f"{_RAMP}.duration", "climb (s)", options=log(2, 3.5, 0.05, ".0f")),
    )
}
