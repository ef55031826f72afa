"""Figures for print and screen: one style, one way to save."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler

from llminfer.report.tables import figures_dir, safe_name

COLUMN, PAGE = 3.4, 7.0  # inches: one column and the full width of a two-column page
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GHOST = "#888888"
# Of fields that touch, from dark to light: told apart in grey too.
SHADES = ("#000000", "#0072B2", "#D55E00", "#56B4E9", "#F0E442")
# As printed: figures are drawn at their final width.
STYLE: Any = mpl.rc_params_from_file(
    Path(__file__).with_name("print.mplstyle"), use_default_template=False
)
COLORS = tuple(STYLE["axes.prop_cycle"].by_key()["color"])
_LOOKS = list(cycler(color=COLORS, linestyle=DASHES, marker=MARKERS))


def new(
    rows: int = 1,
    columns: int = 1,
    width: float = PAGE,
    height: float = 2.4,
    **axes: Any,
) -> tuple[Figure, Any]:
    """A figure at its final size, and its axes as ``plt.subplots`` gives them.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Inches: ``COLUMN`` or ``PAGE``.
        height: Inches.
        **axes: Passed on to ``plt.subplots``.
    """
    mpl.rcParams.update(STYLE)
    size = (width, height)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", **axes)


def look(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the ``i``-th curve, all different.

    >>> look(1)
    {'color': '#D55E00', 'linestyle': '--', 'marker': 's'}
    """
    return dict(_LOOKS[i % len(_LOOKS)])


def curve(
    ax: Axes,
    table: pd.DataFrame,
    x: str,
    i: int = 0,
    label: str | None = None,
    **style: Any,
) -> None:
    """A curve of means with its band of intervals.

    Args:
        ax: Where to draw.
        table: Columns ``x``, ``mean``, ``ci_lower``, ``ci_upper``.
        x: The column along the axis.
        i: Which colour, dashes and marker.
        label: For the legend.
        **style: Overrides of the line's style.
    """
    ordered = table.sort_values(x)
    shown = {**look(i), **style}
    ax.plot(ordered[x], ordered["mean"], label=label, **shown)
    low, high = ordered["ci_lower"], ordered["ci_upper"]
    ax.fill_between(ordered[x], low, high, color=shown["color"], alpha=0.2, linewidth=0)


def draw_summary(
    table: pd.DataFrame,
    x: str,
    *,
    color: str | None = None,
    linestyle: str | None = None,
    panel: str | None = None,
    height: float = 2.4,
    labels: tuple[str, str] = ("", ""),
    log_x: Sequence[int] | None = None,
    log_y: tuple[float, float] | None = None,
) -> Figure:
    """A figure of means over ``x`` with bands of their intervals, legend above.

    Args:
        table: Columns ``x``, ``mean``, ``ci_lower``, ``ci_upper`` and those named
            here, a row a point. One that rests on too little (``sound``) is hollow.
        x: The column along the axis.
        color: The column whose values get a colour and a marker each, in order of
            appearance.
        linestyle: The column whose values get a line style each; None is ``color``.
        panel: The column whose values get axes each, three in a row.
        height: Inches; the width is the page's.
        labels: Of the axes, with units: x and y.
        log_x: The ticks of a log axis in x; see ``powers_of_two``.
        log_y: The ends of a log axis in y; see ``log_axis``.
    """
    import seaborn.objects as so

    named = {"color": color, "marker": color, "linestyle": linestyle or color}
    named = {key: column for key, column in named.items() if column is not None}
    looks = {
        key: {value: look(i)[key] for i, value in enumerate(table[column].unique())}
        for key, column in named.items()
    }
    plot = so.Plot(table, x, "mean", ymin="ci_lower", ymax="ci_upper")
    plot = plot if panel is None else plot.facet(panel, wrap=3)
    plot = plot.add(so.Band(alpha=0.2), color=color, group=linestyle, legend=False)
    plot = plot.add(so.Line() if color else so.Line(marker="o"), legend=False, **named)
    short = table[~table["sound"].astype(bool)] if "sound" in table else table[:0]
    if len(short):
        hollow = so.Dot(color="white", pointsize=5.0, edgewidth=1.2)
        plot = plot.add(hollow, data=short, edgecolor=color, marker=color, legend=False)
        plot = plot.scale(edgecolor=looks["color"]) if color else plot
    fig = _drawn(plot.scale(**looks).label(x=labels[0], y=labels[1]), height)
    for ax in fig.axes:
        for dot in ax.collections:  # else the line's own markers fill the hollow ones
            dot.set_zorder(3.0)
        if log_x is not None:
            powers_of_two(ax, log_x)
        if log_y is not None:
            log_axis(ax, *log_y)
    dashes = looks["linestyle"] if linestyle else ()
    _add_legend(fig, looks.get("color", ()), dashes, marked=len(short) > 0)
    return fig


def _drawn(plot: Any, height: float) -> Figure:
    """A plot of ``seaborn.objects`` in our style."""
    mpl.rcParams.update(STYLE)
    fig = plt.figure(figsize=(PAGE, height), layout="constrained")
    style = {key: mpl.rcParams[key] for key in plot.config.theme}
    with warnings.catch_warnings():  # seaborn 0.13 is older than pandas 3
        warnings.filterwarnings("ignore", "The copy keyword")
        plot.theme(style).on(fig).plot()
    return fig


def _add_legend(
    fig: Figure, colors: Iterable[Any], dashes: Collection[Any], marked: bool
) -> None:
    """A legend above: a key for each colour and, if they say more, each line style."""
    one = {"linestyle": "-"} if dashes else {}
    black = {"color": "black", "marker": "None"}
    keys = [{"label": its, **look(i), **one} for i, its in enumerate(colors)]
    keys += [{"label": its, **look(i), **black} for i, its in enumerate(dashes)]
    if marked:
        hollow = {"marker": "o", "markerfacecolor": "white", "linestyle": "none"}
        keys.append({"label": "runs too short", **black, **hollow})
    if handles := [Line2D([], [], **key) for key in keys]:
        columns = {"ncols": len(handles), "handlelength": 3.0}
        fig.legend(handles=handles, loc="outside upper center", **columns)


def dots(
    ax: Axes, table: pd.DataFrame, y: str, order: list[str], i: int, *, label: str
) -> None:
    """A mark with its interval for each alternative, one below the other.

    Args:
        ax: Where to draw; its y axis is labelled with the alternatives.
        table: Columns ``y``, ``mean``, ``ci_lower``, ``ci_upper``, a row each.
        y: The column that names the alternatives.
        order: Their names from top to bottom.
        i: Which colour and marker.
        label: For the legend.
    """
    rows = table.set_index(y).loc[order]
    bounds = [rows["mean"] - rows["ci_lower"], rows["ci_upper"] - rows["mean"]]
    places = range(len(order))
    shown = {**look(i), "linestyle": "none", "elinewidth": 0.8}
    ax.errorbar(rows["mean"], places, xerr=bounds, label=label, **shown)
    ax.set_yticks(places, order)
    ax.set_ylim(len(order) - 0.5, -0.5)


def draw_capacity(table: pd.DataFrame) -> Figure:
    """What each setting carries, and its throughput a GPU against its users' speed.

    The dashed line is the front: nothing is faster for users at that throughput.

    Args:
        table: A table of capacities: what comes before its ``rate`` names the rows.
    """
    named = table.iloc[:, : table.columns.get_loc("rate")].astype(str)
    named = ["" if name == "setting" else f"{name}=" for name in named] + named
    fig, (left, right) = new(1, 2, height=1.2 + 0.2 * len(table))
    for i, its in enumerate(table.to_dict("records")):
        shown = {**look(i), "linestyle": "none", "zorder": 3}
        ends = [its["rate"] - its["rate_lower"]], [its["rate_upper"] - its["rate"]]
        left.errorbar(its["rate"], i, xerr=ends, **shown)
        right.plot(its["user_speed"], its["throughput_per_gpu"], **shown)
    left.set_yticks(range(len(table)), [", ".join(row) for row in named.to_numpy()])
    left.set(xlabel="carried, requests/s", ylim=(len(table) - 0.5, -0.5))
    fastest = table.sort_values("user_speed", ascending=False)
    front = fastest["throughput_per_gpu"] >= fastest["throughput_per_gpu"].cummax()
    on = fastest[front]
    right.plot(on["user_speed"], on["throughput_per_gpu"], "--", color=GHOST)
    right.set(xlabel="tokens/s a user", ylabel="tokens/s a GPU")
    left.set_xlim(0.0, 1.1 * table["rate_upper"].max())
    right.set_xlim(0.0, 1.1 * fastest["user_speed"].max())
    right.set_ylim(0.0, 1.1 * fastest["throughput_per_gpu"].max())
    return fig


def log_axis(ax: Axes, low: float, high: float) -> None:
    """A log axis in y from ``low`` to ``high``, labelled 0.1, 1, 10 and so on."""
    ax.set(yscale="log", ylim=(low, high))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def legend_above(fig: Figure, ax: Axes, columns: int = 4) -> None:
    """One legend for all axes of a figure, above them: the curves of ``ax``."""
    fig.legend(
        *ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns
    )


def powers_of_two(ax: Axes, values: Sequence[int]) -> None:
    """A log axis in x that is labelled with ``values``, and nothing between."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [str(value) for value in values])
    ax.minorticks_off()


def save(fig: Figure, name: str, data: pd.DataFrame | None = None) -> None:
    """Write ``name.pdf``, ``name.png`` (300 dpi) and ``name.csv`` into ``figures/``.

    Args:
        fig: Drawn at its final width; the files keep that width.
        name: Begins with the number of its notebook; letters, digits, - and _.
        data: The numbers behind the figure; None takes them from its curves.

    Raises:
        ConfigError: A name of other characters, such as a dot or a slash.
    """
    target = figures_dir() / safe_name("name", name)
    fig.savefig(target.with_suffix(".pdf"), metadata={"CreationDate": None})
    fig.set_layout_engine("none")  # laid out once: again would take half of the time
    fig.savefig(target.with_suffix(".png"), metadata={"Software": None})
    table = _plotted(fig) if data is None else data
    table.to_csv(target.with_suffix(".csv"), index=False, float_format="%.9g")


def _plotted(fig: Figure) -> pd.DataFrame:
    """What the curves of a figure show: axes, label, x, y."""
    rows = [
        (number, line.get_label(), x, y)
        for number, ax in enumerate(fig.axes)
        for line in ax.get_lines()
        for x, y in zip(*map(np.asarray, line.get_data()), strict=True)
    ]
    return pd.DataFrame(rows, columns=["axes", "curve", "x", "y"])
