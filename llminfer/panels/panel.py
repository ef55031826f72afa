"""Panels: sliders beside a picture that answers at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import ipywidgets as w

from llminfer import SimulationConfig
from llminfer.laws.engines import LAW, PRESETS
from llminfer.panels import html
from llminfer.panels.controls import CONTROLS, Control, rounded
from llminfer.panels.picture import Picture
from llminfer.panels.replications import Replications

_GIVEN = "as given"  # the coefficients of ``base``
IMAGE = w.Layout(max_width="calc(100% - 4px)", align_self="flex-start")


# What a panel shows: its configuration, the preset, and the sliders by field.
State = tuple[SimulationConfig, str, dict[str, Any]]


class Panel(w.VBox):  # type: ignore[misc]
    """Sliders for a configuration, a picture of it, and its numbers.

    A cell that is run again finds its sliders and kept curves as they were left.

    Args:
        base: Where the sliders start, and what they do not set.
        picture: Draws a configuration.
        controls: Fields or parameters with a slider, of ``CONTROLS``, or controls of
            another make. Later ones see the configuration that earlier ones wrote.

    Attributes:
        controls: The sliders by field.
        config: The configuration now shown.
        memory: What each panel of this kernel showed last, for a cell that is run
            again; by what the panel was made of.
    """

    memory: ClassVar[dict[tuple[str, ...], dict[str, State]]] = {}

    def __init__(
        self,
        base: SimulationConfig,
        picture: Picture,
        controls: Sequence[str | Control] = ("arrival_rate", "alpha", "beta", "gamma"),
    ) -> None:
        self.base = self.config = rounded(base)
        self.picture = picture
        self._quiet = False
        made = [CONTROLS[c] if isinstance(c, str) else c for c in controls]
        self._made = {control.name: control for control in made}
        self.controls = {control.name: control.widget() for control in made}
        self.load, self.readings, self.code = w.HTML(), w.HTML(), w.HTML()
        self.image = w.Image(format="png", layout=IMAGE)
        self.replications = Replications()
        below = [self.readings, self.replications, self.code]
        super().__init__([self.load, self.image, self._widgets(), *below])
        values = {name: its.read(self.base) for name, its in self._made.items()}
        self._start: State = (self.base, _GIVEN, values)
        key = (type(self).__name__, type(picture).__name__, repr(base), *self.controls)
        self._left = self.memory.setdefault(key, {"kept": self._start})
        now = self._left.get("now", self._start)
        self._go_to(*self._left["kept"])
        self.picture.keep()
        self._go_to(*now)

    def _widgets(self) -> w.GridBox:
        """All that the reader moves, side by side as far as there is room."""
        presets = {"options": [_GIVEN, *PRESETS]}
        self.preset = Control("", "coefficients", w.Dropdown, presets).widget()
        self.reset = w.Button(description="Reset", tooltip="Back to the start")
        self.keep = w.Button(description="Keep", tooltip="Keep these curves in grey")
        for name, slider in self.controls.items():
            slider.observe(partial(self._moved, name), "value")
        self.preset.observe(self._preset_chosen, "value")
        self.reset.on_click(lambda _: self._go_to(*self._start))
        self.keep.on_click(lambda _: self._keep_curves())
        moved = [self.preset, *self.controls.values(), w.HBox([self.reset, self.keep])]
        columns = w.Layout(grid_template_columns="repeat(auto-fill, 350px)")
        return w.GridBox(moved, layout=columns)

    @contextmanager
    def _one_picture(self) -> Iterator[None]:
        """Draw once after all the moves of a ``with``."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self._show()

    def _moved(self, name: str, _: Any) -> None:
        if not self._quiet:
            with self._one_picture():
                self._made[name].follow(self.controls)

    def _preset_chosen(self, change: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        given = {name: getattr(self.base, name) for name in LAW}
        preset = change["new"]
        fields = PRESETS[preset].coefficients if preset in PRESETS else given
        moved = {name: fields[name] for name in fields if name in self.controls}
        self._go_to(self.config.replace(**fields), preset, moved)

    def _keep_curves(self) -> None:
        self.picture.keep()
        self._left["kept"] = self._left["now"]
        self._show()

    def _go_to(
        self, config: SimulationConfig, preset: str, values: Mapping[str, Any]
    ) -> None:
        """Show ``config`` under the name of a preset, with sliders moved to values."""
        with self._one_picture():
            self.config, self.preset.value = config, preset
            for name, value in values.items():
                self._made[name].put(self.controls, value)

    def _show(self) -> None:
        """Draw the configuration that the sliders say; an error is said in words."""
        values = {name: slider.value for name, slider in self.controls.items()}
        try:
            config = self.config
            for name, value in values.items():
                config = self._made[name].write(config, value)
            self.config = rounded(config)
            readings = self.picture.update(self.config)
            self.image.value = self.picture.png()
            shown = self.picture.shown(self.config)
            short = self.picture.short(self.config)
            servers = self.picture.servers(shown).items()
            gauges = "<br>".join(html.gauge(its, name) for name, its in servers)
        except Exception as error:  # whatever it is, the reader must see it here
            self.load.value = html.alarm(f"{type(error).__name__}: {error}")
            return
        self.load.value = gauges
        rests_on = {"from": html.run_length(short, 1)}
        self.readings.value = html.readings(rests_on | readings)
        self.code.value = html.code(shown, self.picture.of)
        measured = shown if self.picture.measurable else None
        self.replications.offer(measured, self.picture.of)
        self._left["now"] = (self.config, self.preset.value, values)
