"""A dozen requests, moment by moment, on both servers side by side."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from llminfer import RunRecord, SimulationConfig, Workload, simulate
from llminfer.base.arrays import FloatArray
from llminfer.panels import html
from llminfer.panels.panel import FLOW, PicturePanel
from llminfer.panels.picture import Picture, Points
from llminfer.report import timeline
from llminfer.report.figures import legend_above
from llminfer.report.tables import figures_dir
from llminfer.timing import StepTime

TITLES: Mapping[str, str] = {"static": "static batches", "continuous": "continuous"}
_SAME = {name: timeline.LOOKS[name] for name in ("waiting", "prefilling", "decoding")}
PHASE_COLORS: Mapping[str, str] = {**_SAME, "held by its batch": "#7fbfe6"}
_EVENTS = ("arrives", "goes in", "first token", "last token")

Spans = Mapping[str, tuple[FloatArray, FloatArray]]


def phase_spans(record: RunRecord, step_time: StepTime) -> Spans:
    """From when to when each request is where, by the name of the phase.

    Each is a pair of arrays, seconds, shape (n,). In a static batch a request has its
    last token before the batch ends, unless it is the longest, and is held till then.
    """
    start, first = record.processing_start_time, record.first_token_time
    end = done = record.processing_end_time
    if record.steps is None:
        _, batch, size = np.unique(start, return_inverse=True, return_counts=True)
        tokens = np.bincount(batch, record.prompt_length)[batch]
        steps = record.output_length.astype(np.float64)
        done = first + step_time.decode(size[batch], tokens, steps)
        done = np.where(np.isclose(done, end), end, done)
    spans = (record.arrival_time, start), (start, first), (first, done), (done, end)
    return dict(zip(PHASE_COLORS, spans, strict=True))


class StoryPicture(Picture):
    """A bar a request over time, on a static (left) and a continuous server (right).

    Grey while it waits, then its prefill, its decode, and how long its batch holds it.

    Args:
        config: The server, of either kind, and the law of the requests.

    Attributes:
        moments: When something happens on either server, seconds, ascending.
        now: The moment that is drawn, an index.
    """

    requests = 12  # few enough to be told apart

    def __init__(self, config: SimulationConfig) -> None:
        super().__init__()
        few = self.config = self.short(config)
        workload = Workload.generate(few)
        runs = {name: simulate(few.replace(server=name), workload) for name in TITLES}
        step_time = config.step_time
        self.spans = {name: phase_spans(its, step_time) for name, its in runs.items()}
        self.moments = np.unique([[*own.values()] for own in self.spans.values()])
        self.now = len(self.moments) - 1

    def compose(self, figure: Figure) -> None:
        both = figure.subplots(1, 2, sharex=True, sharey=True)
        ends = (0.0, 1.02 * self.moments[-1])
        for ax, (server, title) in zip(both, TITLES.items(), strict=True):
            ax.set(title=title, xlabel="time, seconds", xlim=ends)
            ax.set_ylim(self.requests + 0.7, 0.3)
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(axis="y", visible=False)
            for name, color in PHASE_COLORS.items():
                bar: Any = {"linewidth": 11, "solid_capstyle": "butt", "color": color}
                self.add(ax, f"{server} {name}", 0, name, **bar, linestyle="-")
            self.add(ax, f"{server} now", 6, linewidth=1.0, linestyle="-")
        both[0].set_ylabel("request")
        legend_above(figure, both[0], columns=len(PHASE_COLORS))

    def to_frame(self) -> pd.DataFrame:
        """One row a server, phase and request, as ``timeline.draw`` takes them."""
        rows = []
        for server, own in self.spans.items():
            for phase, (begin, end) in own.items():
                who = {"server": server, "request": range(len(begin)), "phase": phase}
                rows.append(pd.DataFrame({**who, "begin": begin, "end": end}))
        return pd.concat(rows)

    def save_animation(self, name: str) -> Path:
        """Go through all moments, and save them as ``name.gif`` among the figures."""
        frames = []
        for moment in range(len(self.moments)):
            self.now = moment
            self.update(self.config)
            with Image.open(io.BytesIO(self.png())) as shown:
                frames.append(shown.convert("P", palette=Image.Palette.ADAPTIVE))
        path, pause = figures_dir() / f"{name}.gif", [500] * self.now + [4000]  # ms
        first, *rest = frames
        first.save(path, save_all=True, append_images=rest, duration=pause, loop=0)
        return path

    def compute(self, config: SimulationConfig) -> None:
        now = float(self.moments[self.now])
        for server, own in self.spans.items():
            for name, (start, end) in own.items():
                self.move(f"{server} {name}", *_bars(start, np.minimum(end, now)))
            self.move(f"{server} now", [now, now], [0.3, self.requests + 0.7])
            self.say(TITLES[server], _in_words(own, now))


def _bars(start: FloatArray, end: FloatArray) -> Points:
    """Points of a thick line that is broken between requests."""
    gap = np.full(len(start), np.nan)
    rows = np.arange(1.0, len(start) + 1.0)
    here = np.where(end > start, rows, np.nan)
    return np.column_stack([start, end, gap]).ravel(), np.repeat(here, 3)


def _in_words(own: Spans, now: float) -> dict[str, str]:
    """How many requests are where on a server, and what has just happened there."""
    news = []
    for event, (start, _) in zip(_EVENTS, own.values(), strict=True):
        if (requests := np.flatnonzero(start == now) + 1).size:
            news.append(f"{event}: {', '.join(map(str, requests))}")
    where = {n: int(((s <= now) & (now < e)).sum()) for n, (s, e) in own.items()}
    where["done"] = int((list(own.values())[-1][1] <= now).sum())
    counts = {name: str(n) for name, n in where.items()}
    return counts | {"just now": "; ".join(news) or "nothing"}


class StoryPanel(PicturePanel):
    """A dozen requests on both servers, to play or to step through.

    Args:
        config: The server and the law of the requests.
    """

    picture: StoryPicture

    def __init__(self, config: SimulationConfig) -> None:
        super().__init__(StoryPicture(config))
        last = len(self.picture.moments) - 1
        wide = w.Layout(width="420px", flex="0 0 auto")
        look = {"description": "moment", "layout": wide, "continuous_update": False}
        self.moment = w.IntSlider(max=last, value=last // 2, **look)
        self.play = w.Play(max=last, value=last // 2, interval=700)  # ms a moment
        self.play.tooltip = "Play, pause, or start again"
        w.jslink((self.play, "value"), (self.moment, "value"))
        self.text = w.HTML()
        self.moment.observe(lambda _: self._show(), "value")
        hand = w.Box([self.play, self.moment], layout=FLOW)
        self.children = [self.image, hand, self.text]
        self._show()

    def _show(self) -> None:
        self.picture.now = now = self.moment.value
        said = self.picture.update(self.picture.config)
        self.draw()
        self.text.value = html.table(said, f"at {self.picture.moments[now]:.2f} s")
