"""Replications of a configuration behind a button, with progress and cancel."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import ipywidgets as w
import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError
from llminfer.config import SimulationConfig
from llminfer.experiment import metrics_of, replicated, simulate
from llminfer.panels import html
from llminfer.stats.intervals import Estimate, pooled_quantile

_MEANS: Mapping[str, tuple[str, float, str]] = {  # name, scale, unit
    "avg_latency": ("mean latency", 1.0, "s"),
    "avg_ttft": ("TTFT", 1.0, "s"),
    "avg_tpot": ("TPOT", 1e3, "ms"),
    "throughput_req_per_sec": ("throughput", 1.0, "requests/s"),
    "utilization": ("busy", 100.0, "% of the time"),
}


class Replications(w.Box):  # type: ignore[misc]
    """A button that runs a configuration many times, for intervals one can trust.

    The runs go on in a thread, one after another, and the sliders stay alive; to move
    one cancels them.
    """

    number = 30  # independent runs

    def __init__(self) -> None:
        self.start = w.Button(
            description=f"Measure ({self.number} runs)",
            tooltip=f"{self.number} independent runs, for 95% intervals",
            layout=w.Layout(width="auto"),
        )
        self.cancel = w.Button(description="Cancel", disabled=True)
        self.progress = w.IntProgress(
            max=self.number, layout=w.Layout(width="160px", visibility="hidden")
        )
        self.result = w.HTML()
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._config: SimulationConfig | None = None
        self.start.on_click(lambda _: self._begin())
        self.cancel.on_click(lambda _: self.halt())
        flow = w.Layout(display="flex", flex_flow="row wrap", width="100%")
        parts = [self.start, self.cancel, self.progress, self.result]
        super().__init__(parts, layout=flow)

    def offer(self, config: SimulationConfig) -> None:
        """Make ``config`` the one to run; what came of another goes."""
        if config != self._config:
            self.halt()
            self._config = config
            self.result.value = ""

    def halt(self) -> None:
        """Stop; the run that it is in is not finished."""
        self._stop.set()
        self._rest()

    def _begin(self) -> None:
        if self._config is None:
            return
        self._stop = threading.Event()
        self.start.disabled, self.cancel.disabled = True, False
        self.progress.value, self.progress.layout.visibility = 0, "visible"
        task = (self._config, self._stop)
        self.thread = threading.Thread(target=self._replicate, args=task, daemon=True)
        self.thread.start()

    def _rest(self) -> None:
        self.start.disabled, self.cancel.disabled = False, True
        self.progress.layout.visibility = "hidden"

    def _replicate(self, config: SimulationConfig, stop: threading.Event) -> None:
        """Run the replications, unless stopped, and show what they say."""
        try:
            rows: list[dict[str, float]] = []
            latencies: list[FloatArray] = []
            for own in replicated(config, self.number):
                record = simulate(own)
                if stop.is_set():
                    return
                rows.append(metrics_of(own, record))
                latencies.append(record.latency[own.warmup_requests :])
                self.progress.value = len(rows)
            said = html.readings(_intervals(rows, latencies))
        except Exception as error:  # in a thread nobody else would see it
            said = html.alarm(f"{type(error).__name__}: {error}")
        if not stop.is_set():
            self.result.value = said
            self._rest()


def _intervals(
    rows: Sequence[Mapping[str, float]], latencies: Sequence[FloatArray]
) -> dict[str, str]:
    """Means and quantiles with the half-width of their 95% interval, as text."""
    shown: dict[str, str] = {}
    for name, (label, scale, unit) in _MEANS.items():
        values = scale * np.array([row[name] for row in rows])
        if np.isfinite(values).all():
            shown[label] = f"{_with_half(Estimate.of_mean(values))} {unit}"
    for q, label in ((0.5, "median"), (0.99, "p99")):
        try:
            shown[label] = f"{_with_half(pooled_quantile(latencies, q))} s"
        except ConfigError:  # runs too short for this quantile have no interval
            shown[label] = "runs too short for an interval"
    return shown


def _with_half(found: Estimate) -> str:
    """``1.234 ± 0.056``: the half-width to two digits, the value as far."""
    value, half = found.value, found.upper - found.value
    if not half > 0.0:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(half))))
    return f"{value:.{digits}f} ± {half:.{digits}f}"
