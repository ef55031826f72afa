"""What a figure, or a panel, consists of, as lines of text: see ``kept_text``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets as w
import matplotlib as mpl
import numpy as np
from kept_text import text_of
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.spines import Spine

# Of a widget what is the reader's; what else it has is for its page.
_SHOWN = (
    "align_self bar_style base continuous_update description disabled display flex "
)
_SHOWN += "flex_flow format grid_area grid_template_columns interval max max_width min "
_SHOWN += "options readout_format step tooltip value visibility width description_width"


def of_figure(fig: Figure) -> Iterator[str]:
    """All that was asked for: axes, what is drawn on them, legends."""
    engine = type(fig.get_layout_engine()).__name__
    size = fig.get_size_inches().tolist()
    yield f"figure = {text_of([size, fig.dpi, engine])}"
    for i, ax in enumerate(fig.axes):
        yield from (f"axes {i} {line}" for line in _of_axes(ax))
    for i, legend in enumerate(fig.legends):
        yield from (f"legend {i} {line}" for line in _of_legend(legend))


def _of_axes(ax: Axes) -> Iterator[str]:
    words = [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
    yield f"words = {text_of(words)}"
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        yield f"{name} = {text_of(_of_axis(axis))}"
    every = (its for its in ax.get_children() if isinstance(its, _DRAWN))
    drawn = (its for its in every if its is not ax.patch and not isinstance(its, Spine))
    for i, artist in enumerate(drawn):
        yield f"{i} {type(artist).__name__} = {text_of(_of_artist(artist))}"
    if legend := ax.get_legend():
        yield from (f"legend {line}" for line in _of_legend(legend))


def _of_axis(axis: Axis) -> list[Any]:
    scale: Any = getattr(axis, "_scale")  # noqa: B009
    form, ends = axis.get_major_formatter(), np.sort(axis.get_view_interval())
    steps = axis.get_major_locator()
    return [
        axis.get_scale(),
        getattr(scale, "base", None),
        "by itself" if _by_itself(axis) else axis.get_view_interval().tolist(),
        type(form).__name__,
        [form(x, 0) for x in (ends[0] + 0.25 * np.ptp(ends), ends[1])]
        if "Str" in type(form).__name__
        else [its.get_text() for its in axis.get_ticklabels()]
        if "Fixed" in type(form).__name__
        else None,
        type(axis.get_minor_formatter()).__name__,
        type(steps).__name__,
        getattr(steps, "_nbins", None),
        [tick.gridline.get_visible() for tick in axis.get_major_ticks()[:1]],
        axis.get_tick_params().get("labelbottom"),
    ]


def _by_itself(axis: Axis) -> bool:
    ax: Any = axis.axes
    which = "x" if axis.axis_name == "x" else "y"
    return bool(getattr(ax, f"get_autoscale{which}_on")())


_DRAWN = (Line2D, Patch, Collection)


def _of_artist(its: Artist) -> list[Any]:
    style = [its.get_zorder(), its.get_alpha(), its.get_clip_on(), its.get_animated()]
    if isinstance(its, Line2D):
        return [_label(its), *_look(its), *style, *map(np.asarray, its.get_data())]
    if isinstance(its, Patch):
        path = its.get_patch_transform().transform(its.get_path().vertices)
        colour, edge = its.get_facecolor(), its.get_edgecolor()
        return [
            _label(its),
            _hex(colour),
            _hex(edge),
            its.get_linewidth(),
            *style,
            path,
        ]
    assert isinstance(its, Collection)
    paths = [path.vertices for path in its.get_paths()]
    every = np.concatenate([*paths, np.asarray(its.get_offsets()).reshape(-1, 2)])
    colours = [_hex(c) for c in (*its.get_facecolor(), *its.get_edgecolor())]
    widths = np.asarray(its.get_linewidth())
    return [_label(its), sorted(set(colours)), widths, *style, every]


def _label(its: Artist) -> str:
    label = str(its.get_label())
    return "" if label.startswith("_") else label


def _hex(colour: Any) -> str:
    return to_hex(colour, keep_alpha=True)


def _look(its: Line2D) -> list[Any]:
    dashes = getattr(its, "_unscaled_dash_pattern")  # noqa: B009
    face = its.get_markerfacecolor()
    return [
        _hex(its.get_color()),
        its.get_linestyle(),
        dashes,
        its.get_linewidth(),
        its.get_solid_capstyle(),
        its.get_marker(),
        its.get_markersize(),
        face if face == "none" else _hex(face),
        its.get_markeredgewidth(),
    ]


def _of_legend(legend: Legend) -> Iterator[str]:
    anchor = legend.get_bbox_to_anchor()
    if legend.axes is not None:
        anchor = anchor.transformed(legend.axes.transAxes.inverted())
    place = [getattr(legend, name, None) for name in ("_loc", "_outside_loc")]
    where = np.round(anchor.bounds, 3).tolist() if legend.axes is not None else None
    columns = getattr(legend, "_ncols")  # noqa: B009
    yield f"place = {text_of([*place, where, columns, legend.handlelength])}"
    words = [its.get_text() for its in legend.get_texts()]
    yield f"words = {text_of([words, legend.get_texts()[0].get_fontsize()])}"
    looks = [_look(its) for its in legend.legend_handles if isinstance(its, Line2D)]
    yield f"looks = {text_of(looks)}"


def of_widgets(widget: w.Widget, place: str = "widget") -> Iterator[str]:
    """A widget and all that is in it, but for pictures."""
    yield f"{place} = {type(widget).__name__} {text_of(_shown(widget))}"
    for i, child in enumerate(getattr(widget, "children", ())):
        yield from of_widgets(child, f"{place} {i}")


def _shown(widget: w.Widget) -> dict[str, Any]:
    told = {name: getattr(widget, name, None) for name in _SHOWN.split()}
    told = {name: its for name, its in told.items() if its is not None}
    if isinstance(told.get("value"), bytes):
        told.pop("value")
    for part in ("layout", "style"):
        if inner := getattr(widget, part, None):
            told[part] = {k: v for k, v in inner.get_state().items() if _is_told(k, v)}
    return told


def _is_told(name: str, value: Any) -> bool:
    return name in _SHOWN.split() and value not in (None, "")


def style() -> Any:
    """Figures as matplotlib has them, whatever was set before."""
    return mpl.rc_context(mpl.rcParamsDefault)
