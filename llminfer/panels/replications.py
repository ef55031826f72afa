"""Replications of a configuration behind a button, with progress and cancel."""

import math
import threading
from collections.abc import Mapping, Sequence

import ipywidgets as w
import numpy as np
import pandas as pd

from llminfer import SimulationConfig
from llminfer.experiment import Row, poolable_metrics, replicated, simulate
from llminfer.panels import html
from llminfer.servers.overload import may_carry_more, waiting_in
from llminfer.stats.intervals import summarize

_SHOWN: Mapping[str, tuple[str, str, float, str]] = {  # row, column, scale, unit
    "avg_latency": ("latency", "mean", 1.0, " s"),
    "median_latency": ("latency", "median", 1.0, " s"),
    "p99_latency": ("latency", "p99", 1.0, " s"),
    "avg_ttft": ("TTFT", "mean", 1.0, " s"),
    "p99_ttft": ("TTFT", "p99", 1.0, " s"),
    "avg_tpot": ("TPOT", "mean", 1e3, " ms"),
    "p99_tpot": ("TPOT", "p99", 1e3, " ms"),
    "throughput_req_per_sec": ("throughput", "mean", 1.0, " requests/s"),
    "utilization": ("busy", "mean", 100.0, "% of the time"),
}


class Replications(w.Box):  # type: ignore[misc]
    """A button that runs a configuration many times, for intervals one can trust.

    The runs go on in a thread, one after another, and the sliders stay alive; to move
    one cancels them.
    """

    number = 30  # independent runs

    def __init__(self) -> None:
        tip = f"{self.number} independent runs, for 95% intervals"
        self.start = w.Button(tooltip=tip, layout=w.Layout(width="auto"))
        self.cancel = w.Button(description="Cancel", disabled=True)
        bar = w.Layout(width="160px", visibility="hidden")
        self.progress = w.IntProgress(max=self.number, layout=bar)
        self.result = w.HTML(layout=w.Layout(width="100%"))
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._config: SimulationConfig | None = None
        self._of = ""
        self.start.on_click(lambda _: self._begin())
        self.cancel.on_click(lambda _: self.halt())
        flow = w.Layout(display="flex", flex_flow="row wrap")
        parts = [self.start, self.cancel, self.progress, self.result]
        super().__init__(parts, layout=flow)

    def offer(self, config: SimulationConfig | None, of: str = "") -> None:
        """Make ``config`` the one to run; what came of another goes.

        Args:
            config: What the reader sees; None if no configuration says it all.
            of: What of a picture it is, if that shows more.
        """
        self.layout.display = "none" if config is None else "flex"
        what = f"Measure {of}" if of else "Measure"
        self.start.description = f"{what} ({self.number} runs)"
        if config != self._config:
            self.halt()
            self._config, self._of = config, of
            self.result.value = ""

    def halt(self) -> None:
        """Stop, if it is not done; the run that it is in is not finished."""
        self._stop.set()
        self.start.disabled, self.cancel.disabled = False, True
        self.progress.layout.visibility = "hidden"

    def _begin(self) -> None:
        if self._config is None:
            return
        self._stop = threading.Event()
        self.start.disabled, self.cancel.disabled = True, False
        self.progress.value, self.progress.layout.visibility = 0, "visible"
        task = (self._config, self._stop)
        self.thread = threading.Thread(target=self._replicate, args=task, daemon=True)
        self.thread.start()

    def _replicate(self, config: SimulationConfig, stop: threading.Event) -> None:
        """Run the replications, unless stopped, and show what they say."""
        length = html.run_length(config, self.number)
        length += f", {self._of}" if self._of else ""
        rows: list[Row] = []
        waiting: list[tuple[int, int]] = []
        try:
            for own in replicated(config, self.number):
                record = simulate(own)
                if stop.is_set():
                    return
                rows.append(poolable_metrics(own, record))
                waiting.append(waiting_in(record))
                self.progress.value = len(rows)
            if _grows(config, waiting):
                carried = np.mean([row["throughput_req_per_sec"] for row in rows])
                grows = f"the queue grows until their end. {html.OVERLOADED}"
                rate = f"Throughput {carried:.3g} requests/s."
                said = html.alarm(f"From {length}: {grows} {rate}")
            else:
                said = html.table(
                    _intervals(rows), f"From {length}, with 95% intervals"
                )
        except Exception as error:  # in a thread nobody else would see it
            said = html.alarm(f"{type(error).__name__}: {error}")
        if not stop.is_set():
            self.result.value = said
            self.halt()


def _grows(config: SimulationConfig, waiting: Sequence[tuple[int, int]]) -> bool:
    """Whether the load is above 1, or on average more wait at the end than before.

    They are more than half as many again as in the middle of a run, more than one in
    fifty of all and more than the servers hold: none of it is so in a stable queue.
    """
    if config.offered_load >= 1.0 and not may_carry_more(config):
        return True
    middle, end = np.mean(waiting, axis=0)
    held = config.largest_batch * config.replicas
    return bool(end > max(1.5 * middle, 0.02 * config.num_requests, held))


def _intervals(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Means and quantiles with the half-width of their 95% interval, as text."""
    shown: dict[str, dict[str, str]] = {}
    runs = pd.DataFrame(rows).assign(all="runs", memories=math.inf)
    for row in summarize(runs, "all", list(_SHOWN)).to_dict("records"):
        name, column, scale, unit = _SHOWN[row["metric"]]
        value, half = scale * row["mean"], scale * (row["ci_upper"] - row["mean"])
        if not math.isfinite(value):  # of one token each there is no time per token
            continue
        said = _with_half(value, half) + unit
        said = said if row["sound"] else "runs too short"
        shown.setdefault(name, {})[column] = said
    return shown


def _with_half(value: float, half: float) -> str:
    """``1.234 ± 0.056``: the half-width to two digits, the value as far."""
    if not half > 0.0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:.{digits}f} ± {half:.{digits}f}"
