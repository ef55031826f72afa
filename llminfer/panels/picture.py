"""What a panel draws: a figure made once, whose curves follow a configuration."""

import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from llminfer import SimulationConfig, Workload, goodput, simulate
from llminfer.base.arrays import FloatArray
from llminfer.metrics import MetricsCollector
from llminfer.panels import html
from llminfer.record import RunRecord
from llminfer.report import figures
from llminfer.report.figures import COLORS, DASHES, log_axis, powers_of_two
from llminfer.theory.known import latency_curve

Limited = tuple[int, float, float]  # a batch limit, mean and p99 latency, seconds
Points = tuple[FloatArray, FloatArray]  # points, x and y
Readings = dict[str, dict[str, str]]  # text by row and column
SHARES = np.linspace(0.0, 1.0, 101)
BATCH_LIMITS = (1, 2, 4, 8, 16, 32, 64, 128)
TIMEOUTS: Mapping[str, float | None] = {"at once": 0.0, "until full": None}
DOT: Any = {"marker": "o", "linestyle": "none", "markersize": 7.0}
SQUARE, CROSS, RING = ({**DOT, "marker": m} for m in ("s", "x", "o"))
RING |= {"markerfacecolor": "none", "markersize": 10.0}
_CUTS = {"mean": "avg", "median": "p50"}
_SMALL = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")
_SCREEN: Any = {**figures.STYLE, "font.size": 10.0, "axes.labelsize": 10.0}
_SCREEN |= dict.fromkeys(_SMALL, 9.0)


class Picture(ABC):
    """Curves that follow a configuration, over grey ones that were kept.

    Attributes:
        requests: Requests a simulation; few, so that the answer comes at once.
        warmup: Those of them that are left out.
        of: What of the picture the configuration is, if it shows more than one.
        measurable: Whether the configuration alone says what was simulated.
        controls: Names of controls that a panel has beside those it is given.
        lines: The curves by name, once the figure is made.
        kept: The grey ones behind them.
        readings: Numbers with their units, of what was computed last, by name and then
            by what is compared.
        kept_readings: Those of the grey curves.
    """

    requests: int
    warmup = 0
    of = ""
    measurable = True
    controls: Sequence[str] = ()

    def __init__(self) -> None:
        self.lines: dict[str, Line2D] = {}
        self.kept: dict[str, Line2D] = {}
        self.readings: Readings = {}
        self.kept_readings: Readings = {}
        self._marks: dict[str, str] = {}

    @cached_property
    def figure(self) -> Figure:
        """Axes, labels and legends, made and painted at the first use."""
        with mpl.rc_context(_SCREEN):
            figure = Figure(figsize=(8.6, 3.6), dpi=100, layout="constrained")
            self.compose(figure)
            canvas: Any = FigureCanvasAgg(figure)
            canvas.draw()  # without the curves, which are animated
        self._canvas, self._backdrop = canvas, canvas.copy_from_bbox(figure.bbox)
        return figure

    def shown(self, config: SimulationConfig) -> SimulationConfig:
        """What is simulated, but for the number of requests."""
        return config

    def short(self, config: SimulationConfig) -> SimulationConfig:
        """The same with the few requests of the picture."""
        return config.replace(num_requests=self.requests, warmup_requests=self.warmup)

    def servers(self, config: SimulationConfig) -> Mapping[str, SimulationConfig]:
        """The servers whose load is said, by name."""
        return {self.of: config}

    @abstractmethod
    def compose(self, figure: Figure) -> None:
        """Make the axes, and a line for each curve with ``add``."""

    @abstractmethod
    def compute(self, config: SimulationConfig) -> None:
        """Simulate ``config``'s few requests, ``move`` curves, and set ``readings``."""

    def add(
        self, ax: Axes, name: str, i: int, label: str | None = None, **style: Any
    ) -> None:
        """A curve in the ``i``-th look, and the grey one behind it."""
        self._marks[name] = style.get("marker", "")
        style = {"linestyle": DASHES[i], "clip_on": "marker" not in style} | style
        grey: Any = {"color": figures.GHOST, "linewidth": 1.0} | style
        own: Any = {"color": COLORS[i], "label": label} | style
        (self.kept[name],) = ax.plot([], [], animated=True, **grey)
        (self.lines[name],) = ax.plot([], [], animated=True, **own)
        for line in (self.kept[name], self.lines[name]):
            line.set_in_layout(False)  # empty, it has no extent to make room for

    @property
    def alt(self) -> str:
        """What is seen, for those who do not see it: the class's text, and readings."""
        seen = re.split(r"\n\s+A[a-z]+:\n", str(self.__doc__))[0]
        return f"{' '.join(seen.split())} {html.in_words(self.readings)}"

    def say(self, column: str, rows: Mapping[str, str]) -> None:
        """Set readings of one of those that are compared."""
        for name, text in rows.items():
            self.readings.setdefault(name, {})[column] = text

    def say_times(self, column: str, found: Mapping[str, Any], *names: str) -> None:
        """Set readings such as ``p99 TTFT`` to what is found among the metrics."""
        for name in names:
            cut, time = name.lower().split()
            key = f"{_CUTS.get(cut, cut)}_{time}"
            self.say(column, {name: seconds(found[key])})

    def update(self, config: SimulationConfig) -> Readings:
        """Move the curves to ``config``; the readings as text."""
        _, self.readings = self.figure, {}  # its lines are made with it
        with warnings.catch_warnings(action="ignore"):  # the gauge says the load
            self.compute(self.short(config))
        return self.readings

    def move(self, name: str, x: ArrayLike, y: ArrayLike) -> None:
        """Put a curve's points where they are, or at the edge they are beyond."""
        line, x, y = self.lines[name], np.atleast_1d(x), np.atleast_1d(y)
        ax: Any = line.axes
        (left, right), (low, high) = map(sorted, (ax.get_xlim(), ax.get_ylim()))
        line.set_data(np.clip(x, left, right), np.clip(y, low, high))
        if self._marks[name] and len(x):
            beyond = ">" if min(x) > right else "^" if min(y) > high else ""
            line.set_marker(beyond or self._marks[name])

    def move_distribution(self, name: str, values: FloatArray) -> None:
        """Make a curve the share of ``values`` below each of their quantiles."""
        self.move(name, np.quantile(values, SHARES), SHARES)

    def keep(self) -> None:
        """Leave the present curves behind in grey, and their readings."""
        self.kept_readings = self.readings
        for name, line in self.lines.items():
            self.kept[name].set_data(*line.get_data())
            self.kept[name].set_marker(line.get_marker())

    def png(self) -> bytes:
        """The picture."""
        figure = self.figure
        self._canvas.restore_region(self._backdrop)
        for line in (*self.kept.values(), *self.lines.values()):
            figure.draw_artist(line)
        buffer, fast = io.BytesIO(), {"compress_level": 1}
        imsave(buffer, self._canvas.buffer_rgba(), format="png", pil_kwargs=fast)
        return buffer.getvalue()


class GoodputPicture(Picture):
    """One that counts the requests which meet an SLO, whose limits are moved by hand.

    Attributes:
        ttft_limit: Of the time to the first token, seconds.
        tpot_limit: Of the time an output token after it, seconds.
    """

    controls = "ttft_limit", "tpot_limit"
    ttft_limit, tpot_limit = 1.0, 0.1

    def say_goodput(self, column: str, record: RunRecord) -> None:
        """Read a run's goodput, and mark the share of its requests that count."""
        limits = self.ttft_limit, self.tpot_limit
        name = "goodput (TTFT ≤ {:.3g} s, TPOT ≤ {:.3g} s)".format(*limits)
        self.say(column, {name: per_second(goodput(record, *limits, self.warmup))})
        late = record.tpot > self.tpot_limit  # of one token there is none to be late
        good = (record.ttft <= self.ttft_limit) & ~late
        if f"{column} good" in self.lines:
            self.move(f"{column} good", self.ttft_limit, good[self.warmup :].mean())


class LatencyPicture(GoodputPicture):
    """Left: the share of requests with their first and last token within a time.

    A square marks those within the SLO. Right: mean and p99 latency against the offered
    load, with the mean that theory has, and a dot for now.
    """

    requests, warmup = 2000, 300
    loads = (0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 0.97)

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        over_shares(left, 0.01, 1000.0, "seconds from arrival")
        self.add(left, "latency", 0, "all done (latency)")
        self.add(left, "ttft", 1, "first token (TTFT)")
        self.add(left, "now good", 6, "within the SLO", **SQUARE)
        left.legend(loc="lower right")
        log_axis(right, 0.01, 1000.0)
        right.set_xlim(0.0, 1.2)
        right.set(xlabel="offered load ρ = λ/λ*", ylabel="latency, seconds")
        self.add(right, "p99", 1, "p99")
        self.add(right, "mean", 0, "mean")
        right.axvline(1.0, color="#b00020", linewidth=1.0)
        self.add(right, "theory", 6, "mean, theory", linestyle=":", linewidth=2.0)
        self.add(right, "here", 6, "now", **DOT)
        right.legend(loc="upper left")

    def compute(self, config: SimulationConfig) -> None:
        record = simulate(config)
        metrics = MetricsCollector.compute_metrics(record, self.warmup)
        steady = config.arrival_pattern == "constant"  # then any rate will do
        at_any = config.replace(arrival_rate=1.0) if steady else config
        mean, p99 = _along(at_any, self.loads)
        self.move("mean", self.loads, mean)
        self.move("p99", self.loads, p99)
        self.move("theory", self.loads, latency_curve(config, self.loads))
        self.move("here", config.offered_load, metrics["avg_latency"])
        for time in ("latency", "ttft"):
            self.move_distribution(time, getattr(record, time)[self.warmup :])
        self.say_times("now", metrics, "mean latency", "median latency", "p99 latency")
        self.say_times("now", metrics, "mean TTFT", "p99 TTFT")
        batch = f"{metrics['avg_batch_size']:.1f} requests"
        busy = f"{metrics['utilization']:.0%} of the time"
        carried = per_second(metrics["throughput_req_per_sec"])
        self.say("now", {"mean batch": batch, "busy": busy, "throughput": carried})
        self.say_goodput("now", record)
        for name in self.readings.keys() & self.kept_readings.keys():
            self.readings[name]["kept (grey)"] = self.kept_readings[name]["now"]


class BatchSizePicture(Picture):
    """Left: mean and p99 latency against the batch limit, for both rules of dispatch.

    At the limits that carry the load, with a cross for now and rings around the best.
    Right: what each limit can carry, beside what arrives.
    """

    requests, warmup = 1000, 100

    def compose(self, figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        over_batch_limits(left, 0.05, 1000.0, "latency, seconds")
        for i, rule in enumerate(TIMEOUTS):
            self.add(left, f"{rule} p99", 2 * i + 1, f"{rule}, p99")
            self.add(left, f"{rule} mean", 2 * i, f"{rule}, mean")
        self.add(left, "best", 6, "best p99", **RING)
        self.add(left, "here", 6, "now, p99", **CROSS)
        left.legend(loc="upper right", ncols=2)
        self.compose_right(right)

    def compose_right(self, ax: Axes) -> None:
        """Make the axes on the right."""
        over_batch_limits(ax, 0.1, 100.0, "requests/s")
        self.add(ax, "capacity", 0, "most it can carry, λ*(B)")
        self.add(ax, "arriving", 1, "arriving, λ")
        ax.legend(loc="upper left")

    def compute(self, config: SimulationConfig) -> None:
        requests = Workload.generate(config)
        best: list[Limited] = []
        now = (config.batch_size, *mean_and_p99(config, requests))
        self.move("here", now[0], now[2])
        self._say_limit("now", [now])
        rate = config.arrival_rate
        stable = [
            b for b in BATCH_LIMITS if config.replicas * config.stable_rate(b) > rate
        ]
        self.say("now", {"stable from B": str(stable[0]) if stable else "none here"})
        for rule, timeout in TIMEOUTS.items():
            at = config.replace(batch_timeout=timeout)
            runs = (
                (b, mean_and_p99(at.replace(batch_size=b), requests)) for b in stable
            )
            rows = [(b, *found) for b, found in runs]
            sizes, means, p99s = np.array(rows).reshape(-1, 3).T
            self.move(f"{rule} mean", sizes, means)
            self.move(f"{rule} p99", sizes, p99s)
            best += self._say_limit(f"best {rule}", rows)
        self.move("best", *np.array(best).reshape(-1, 3).T[[0, 2]])
        self.compute_right(config)

    def compute_right(self, config: SimulationConfig) -> None:
        """Move the curves on the right."""
        most = [config.replicas * config.stable_rate(b) for b in BATCH_LIMITS]
        self.move("capacity", BATCH_LIMITS, most)
        self.move("arriving", BATCH_LIMITS, [config.arrival_rate] * len(most))

    def _say_limit(self, column: str, rows: Sequence[Limited]) -> Sequence[Limited]:
        """Read that of some limits which has the least p99, and return it, if any."""
        self.say(column, {"batch limit B": "none carries it"})
        for size, mean, p99 in (best := sorted(rows, key=itemgetter(2))[:1]):
            said = {"mean latency": seconds(mean), "p99 latency": seconds(p99)}
            self.say(column, {"batch limit B": str(size)} | said)
        return best


def seconds(value: float) -> str:
    """Three digits and the unit.

    >>> seconds(1983.2), seconds(0.01234)
    ('1,980 s', '0.0123 s')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f} s" if rounded >= 1000.0 else f"{rounded:.3g} s"


def per_second(value: float) -> str:
    """Three digits and the unit.

    >>> per_second(0.12345)
    '0.123 requests/s'
    """
    return f"{value:.3g} requests/s"


def over_shares(ax: Axes, low: float, high: float, label: str) -> None:
    """Make ``ax`` one for distributions of times from ``low`` to ``high``."""
    ax.set(xscale="log", xlim=(low, high), ylim=(0.0, 1.02))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel=label, ylabel="share of requests")


def over_batch_limits(ax: Axes, low: float, high: float, label: str) -> None:
    """Make ``ax`` one for curves over ``BATCH_LIMITS``, from ``low`` to ``high``."""
    powers_of_two(ax, list(BATCH_LIMITS))
    log_axis(ax, low, high)
    ax.set(xlim=(0.9, 142.0), xlabel="batch limit B", ylabel=label)


@lru_cache(maxsize=64)
def _along(config: SimulationConfig, loads: tuple[float, ...]) -> FloatArray:
    """Simulated mean and p99 of latency by offered load, seconds, shape (2, loads)."""
    requests = Workload.generate(config)
    pace = config.max_stable_rate / config.arrivals.mean(config.num_requests)
    rows = [mean_and_p99(config, requests.scaled(load * pace)) for load in loads]
    return np.array(rows).T


def mean_and_p99(config: SimulationConfig, requests: Workload) -> tuple[float, float]:
    """Mean and p99 of latency, seconds, without the warm-up."""
    record = simulate(config, requests)
    latency = record.latency[config.warmup_requests :]
    return float(latency.mean()), float(np.quantile(latency, 0.99))
