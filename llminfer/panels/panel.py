"""Panels: sliders beside a picture that answers at once."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import ipywidgets as w
from traitlets import Unicode

from llminfer import SimulationConfig
from llminfer.panels import html
from llminfer.panels.controls import CONTROLS, GROUPS, Control, rounded
from llminfer.panels.picture import Picture
from llminfer.panels.replications import Replications

FLOW = w.Layout(display="flex", flex_flow="row wrap", width="100%")
_COLUMNS = w.Layout(grid_template_columns="repeat(auto-fill, minmax(330px, 1fr))")

# What a panel shows: its configuration, and the sliders by field.
State = tuple[SimulationConfig, dict[str, Any]]


class _Image(w.Image):  # type: ignore[misc]
    description = Unicode("").tag(sync=True)  # without one, its view shows no tooltip


class PicturePanel(w.VBox):  # type: ignore[misc]
    """Widgets around a picture, which alone is shown where no kernel runs.

    Attributes:
        picture: What draws.
        image: What is drawn; who cannot see it hears what is to be seen.
    """

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self.picture = picture
        whole = w.Layout(max_width="calc(100% - 4px)", align_self="flex-start")
        self.image = _Image(format="png", layout=whole)

    def draw(self) -> None:
        """Show the picture as it is now."""
        with self.image.hold_sync():  # the page would draw it anew for its text
            self.image.value, self.image.tooltip = self.picture.png(), self.picture.alt

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], Any]:
        """The widgets, and for a page without a kernel a picture with its text."""
        alt, png = self.picture.alt, b64encode(self.image.value).decode()
        bundle = super()._repr_mimebundle_(**options)
        shown = {**bundle, "image/png": png, "text/plain": alt}
        return shown, {"image/png": {"alt": alt}}


class Panel(PicturePanel):
    """Sliders for a configuration, a picture of it, and its numbers.

    A cell that is run again finds its sliders and kept curves as they were left.

    Args:
        base: Where the sliders start, and what they do not set.
        picture: Draws a configuration.
        controls: Fields or parameters with a slider, of ``CONTROLS``, or controls of
            another make. Later ones see the configuration that earlier ones wrote.
            Those that the picture asks for come with it.

    Attributes:
        controls: The sliders by field.
        preset: The list of engines.
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
        super().__init__(picture)
        self.base = self.config = rounded(base)
        self._quiet = False
        asked = ("preset", *controls, *picture.controls)
        made = (CONTROLS[c] if isinstance(c, str) else c for c in asked)
        self._made = {control.name: control.bound(picture) for control in made}
        self.controls = {name: its.widget() for name, its in self._made.items()}
        self.preset = self.controls["preset"]
        self.load, self.readings, self.code = w.HTML(), w.HTML(), w.HTML()
        self.replications = Replications()
        below = [self._grouped(), self.readings, self._buttons(), self.code]
        self.children = [self.load, self.image, *below]
        values = {name: its.read(self.base) for name, its in self._made.items()}
        self._start: State = (self.base, values)
        key = (type(self).__name__, type(picture).__name__, repr(base), *self.controls)
        self._left = self.memory.setdefault(key, {"kept": self._start})
        now = self._left.get("now", self._start)
        self._go_to(*self._left["kept"])
        self.picture.keep()
        self._go_to(*now)

    def _grouped(self) -> w.GridBox:
        """The controls under headings, side by side as far as there is room."""
        parts: list[w.Widget] = []
        for group in GROUPS:
            its = [n for n, control in self._made.items() if control.group == group]
            if its:
                row = w.Layout(grid_area="auto / 1 / auto / -1")  # all columns
                parts.append(w.HTML(html.heading(group), layout=row))
            parts += [self.controls[name] for name in its]
        for name, slider in self.controls.items():
            slider.observe(partial(self._moved, name), "value")
        return w.GridBox(parts, layout=_COLUMNS)

    def _buttons(self) -> w.Box:
        """All that the reader presses."""
        self.reset = w.Button(description="Reset", tooltip="Back to the start")
        self.keep = w.Button(description="Keep", tooltip="Keep these curves in grey")
        self.reset.on_click(lambda _: self._go_to(*self._start))
        self.keep.on_click(lambda _: self._keep_curves())
        return w.Box([self.reset, self.keep, self.replications], layout=FLOW)

    @contextmanager
    def _one_picture(self) -> Iterator[None]:
        """Draw once after all the moves of a ``with``."""
        self._quiet = True
        try:
            yield
            self._show()
        finally:
            self._quiet = False

    def _moved(self, name: str, _: Any) -> None:
        if not self._quiet:
            with self._one_picture():
                self._made[name].follow(self.controls)

    def _keep_curves(self) -> None:
        self.picture.keep()
        self._left["kept"] = self._left["now"]
        self._go_to(*self._left["now"])

    def _go_to(self, config: SimulationConfig, values: Mapping[str, Any]) -> None:
        """Show ``config``, with sliders moved to values."""
        with self._one_picture():
            self.config = config
            for name, value in values.items():
                self._made[name].put(self.controls, value)

    def _show(self) -> None:
        """Draw the configuration that the sliders say; an error is said in words."""
        try:
            config = self.config
            for name, slider in self.controls.items():
                config = self._made[name].write(config, slider.value)
            self.config = rounded(config)
            self.preset.value = self._made["preset"].read(self.config)
            readings = self.picture.update(self.config)
            self.draw()
            shown = self.picture.shown(self.config)
            short = self.picture.short(self.config)
            servers = self.picture.servers(shown).items()
            gauges = "<br>".join(html.gauge(its, name) for name, its in servers)
        except Exception as error:  # whatever it is, the reader must see it here
            said = f"{type(error).__name__}: {error}. What is shown is from before."
            self.load.value = html.alarm(said)
            return
        self.load.value = gauges
        self.readings.value = html.table(readings, f"From {html.run_length(short, 1)}")
        self.code.value = html.code(shown, self.picture.of)
        offered = shown if self.picture.measurable else None
        self.replications.offer(offered, self.picture.of)
        values = {name: slider.value for name, slider in self.controls.items()}
        self._left["now"] = (self.config, values)
