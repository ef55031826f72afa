"""Panels: sliders beside a picture that answers at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets as w

from llminfer.config import SimulationConfig
from llminfer.panels import html
from llminfer.panels.measure import Measurement
from llminfer.panels.picture import Picture
from llminfer.policies import POLICIES
from llminfer.timing import COEFFICIENTS, PRESETS


class Control(NamedTuple):
    """How one field of a configuration is set by hand."""

    label: str
    make: Callable[..., w.ValueWidget]
    options: Mapping[str, Any]


def _log(low: float, high: float, step: float) -> dict[str, Any]:
    """Options of a slider from 10^low to 10^high, ``step`` a key press in log10."""
    return {"min": low, "max": high, "step": step, "readout_format": ".3g"}


_SIZES = [2**k for k in range(10)]
_NONE = math.inf  # a selection cannot hold None
_TIMEOUTS: list[tuple[str, float]] = [
    ("at once", 0.0),
    *((f"{s:g} s", s) for s in (0.1, 0.3, 1.0, 3.0, 10.0)),
    ("until full", _NONE),
]
_BUDGETS = [2**k for k in range(8, 15)]
_BLOCKS: list[tuple[str, float]] = [
    *((str(n), n) for n in (640, 800, 1024, 1280, 1536, 2048, 3072, 4096)),
    ("no limit", _NONE),
]
_SIGMAS = [0.0, 0.1, 0.25, 0.5, 1.0, 2.0]

CONTROLS: Mapping[str, Control] = {
    "arrival_rate": Control("λ (requests/s)", w.FloatLogSlider, _log(-1, 2, 0.02)),
    "alpha": Control("α (s/token)", w.FloatLogSlider, _log(-5, -2, 0.05)),
    "beta": Control("β (s/prefill)", w.FloatLogSlider, _log(-4, 0, 0.05)),
    "gamma": Control("γ (s/decode step)", w.FloatLogSlider, _log(-5, -1, 0.05)),
    "delta": Control("δ (s/sequence)", w.FloatLogSlider, _log(-7, -2, 0.05)),
    "kappa": Control("κ (s/KV token)", w.FloatLogSlider, _log(-9, -4, 0.05)),
    "batch_size": Control("batch size B", w.SelectionSlider, {"options": _SIZES}),
    "batch_timeout": Control("wait to fill", w.SelectionSlider, {"options": _TIMEOUTS}),
    "max_batched_tokens": Control(
        "token budget", w.SelectionSlider, {"options": _BUDGETS}
    ),
    "kv_blocks": Control("KV blocks", w.SelectionSlider, {"options": _BLOCKS}),
    "chunked_prefill": Control(
        "prefill", w.Dropdown, {"options": [("in chunks", True), ("whole", False)]}
    ),
    "arrival_pattern_params.end_rate": Control(
        "λ at the end", w.FloatLogSlider, _log(-1, 2, 0.02)
    ),
    "arrival_pattern_params.duration": Control(
        "climb (s)", w.FloatLogSlider, _log(2, 3.5, 0.05) | {"readout_format": ".0f"}
    ),
    "scheduling_policy": Control("policy", w.Dropdown, {"options": list(POLICIES)}),
    "scheduling_policy_params.prediction_sigma": Control(
        "σ of prediction", w.SelectionSlider, {"options": _SIGMAS, "value": 0.5}
    ),
    "scheduling_policy_params.aging_rate": Control(
        "ageing rate", w.FloatLogSlider, _log(-3, 1, 0.1) | {"value": 0.1}
    ),
}
SLIDER = w.Layout(width="340px", flex="0 0 auto")
IMAGE = w.Layout(max_width="calc(100% - 4px)", align_self="flex-start")
LABEL = {"description_width": "120px"}


class _Moment(NamedTuple):
    """What a panel shows."""

    config: SimulationConfig
    preset: str
    values: Mapping[str, Any]


_LEFT: dict[tuple[str, ...], dict[str, _Moment]] = {}  # by panel


class Panel(w.VBox):  # type: ignore[misc]
    """Sliders for a configuration, a picture of it, and its numbers.

    A cell that is run again finds its sliders and kept curves as they were left.

    Args:
        base: Where the sliders start, and what they do not set.
        picture: Draws a configuration.
        controls: Fields or parameters with a slider, of ``CONTROLS``.

    Attributes:
        controls: The sliders by field.
        config: The configuration now shown.
    """

    def __init__(
        self,
        base: SimulationConfig,
        picture: Picture,
        controls: Sequence[str] = ("arrival_rate", "alpha", "beta", "gamma"),
    ) -> None:
        self.base = self.config = base
        self.picture = picture
        self._quiet = False
        self.controls = self._sliders(controls)
        key = (type(self).__name__, type(picture).__name__, repr(base), *self.controls)
        self._left = _LEFT.setdefault(key, {})
        self.preset = w.Dropdown(
            options=["as given", *PRESETS],
            description="coefficients",
            layout=SLIDER,
            style=LABEL,
        )
        self.reset = w.Button(description="Reset", tooltip="Back to the start")
        self.keep = w.Button(description="Keep", tooltip="Keep these curves in grey")
        self.image = w.Image(format="png", layout=IMAGE)
        self.load, self.readings, self.code = w.HTML(), w.HTML(), w.HTML()
        self.measurement = Measurement()
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.preset.observe(self._preset_chosen, "value")
        self.reset.on_click(lambda _: self._start_again())
        self.keep.on_click(lambda _: self._keep_curves())
        hand = [self.preset, *self.controls.values(), w.HBox([self.reset, self.keep])]
        columns = w.Layout(grid_template_columns="repeat(auto-fill, 350px)")
        hands = w.GridBox(hand, layout=columns)
        told = [self.readings, self.measurement, self.code]
        super().__init__([self.load, self.image, hands, *told])
        left = dict(self._left)
        self._show()
        self.picture.keep()
        self._show()
        if left:
            self._go_on_from(left)

    def _sliders(self, names: Sequence[str]) -> dict[str, w.ValueWidget]:
        return {name: _slider(name, self.base) for name in names}

    def _changes(self) -> dict[str, Any]:
        """The fields that the sliders set."""
        return {name: _told(control) for name, control in self.controls.items()}

    def _moved(self, _: Any) -> None:
        if not self._quiet:
            self._show()

    def _preset_chosen(self, change: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        name = change["new"]
        given = {field: getattr(self.base, field) for field in COEFFICIENTS}
        self._set(given if name not in PRESETS else PRESETS[name].coefficients)

    def _start_again(self) -> None:
        self.preset.value = "as given"
        self._set({name: _setting(self.base, name) for name in self.controls})

    def _keep_curves(self) -> None:
        self.picture.keep()
        self._left["kept"] = self._left["now"]
        self._show()

    def _go_on_from(self, left: Mapping[str, _Moment]) -> None:
        """Be as the panel was that this cell showed before."""
        for moment in ("kept", "now"):
            if moment in left:
                self._quiet = True
                self.config, self.preset.value, values = left[moment]
                for name, value in values.items():
                    self.controls[name].value = value
                self._quiet = False
                self._show()
                if moment == "kept":
                    self._keep_curves()

    def _set(self, values: Mapping[str, Any]) -> None:
        """Move the sliders to ``values`` and draw once."""
        self._quiet = True
        try:
            rest = {k: v for k, v in values.items() if k not in self.controls}
            self.config = self.config.replace(**rest)
            for name in values.keys() & self.controls.keys():
                _put(self.controls[name], values[name])
        finally:
            self._quiet = False
        self._show()

    def _show(self) -> None:
        """Draw the configuration that the sliders say; an error is said in words."""
        try:
            self.config = self.config.replace(**self._changes())
            readings = self.picture.update(self.config)
            self.image.value = self.picture.png()
        except Exception as error:  # whatever it is, the reader must see it here
            self.load.value = html.alarm(f"{type(error).__name__}: {error}")
            return
        self.load.value = html.gauge(self.config)
        self.readings.value = html.readings(readings)
        self.code.value = html.code(self.config)
        self.measurement.offer(self.config)
        values = {name: control.value for name, control in self.controls.items()}
        self._left["now"] = _Moment(self.config, self.preset.value, values)


def _slider(name: str, base: SimulationConfig) -> w.ValueWidget:
    control = CONTROLS[name]
    patient = {} if control.make is w.Dropdown else {"continuous_update": False}
    slider = control.make(
        description=control.label,
        **patient,
        layout=SLIDER,
        style=LABEL,
        **control.options,
    )
    _put(slider, _setting(base, name))
    return slider


def _setting(config: SimulationConfig, name: str) -> Any:
    """A field's value, or that of one parameter: ``prompt_dist_params.mu``."""
    field, _, parameter = name.partition(".")
    value = getattr(config, field)
    if not parameter:
        return value
    # A parameter of another policy than the configuration's has its usual value.
    return value.get(parameter, CONTROLS[name].options.get("value"))


def _put(slider: w.ValueWidget, value: Any) -> None:
    """Move a slider; a value outside its range goes to the end, an odd one is added."""
    if isinstance(slider, w.FloatLogSlider):
        low, high = slider.base**slider.min, slider.base**slider.max
        slider.value = min(max(value, low), high)
    elif isinstance(slider, w.SelectionSlider):
        wanted = _NONE if value is None else value
        options = [o if isinstance(o, tuple) else (str(o), o) for o in slider.options]
        if wanted not in [option for _, option in options]:
            options.append((f"{wanted:g}", wanted))
            slider.options = sorted(options, key=lambda option: option[1])
        slider.value = wanted
    else:
        slider.value = value


def _told(slider: w.ValueWidget) -> Any:
    """What a slider says, to four digits: nobody sets more by hand."""
    if isinstance(slider, w.FloatLogSlider):
        return float(f"{slider.value:.4g}")
    return None if slider.value == _NONE else slider.value
