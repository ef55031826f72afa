"""Who is where in a few seconds of a run: a bar a request, blocks held below."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail
from llminfer.record import RunRecord
from llminfer.report.figures import COLORS
from llminfer.timeseries import kv_occupancy, queue_length, running

LOOKS: Mapping[str, str] = {
    "waiting": "#dddddd",
    "prefilling": COLORS[1],
    "decoding": COLORS[0],
    "preempted": "black",
    "prefilling again": COLORS[4],
}


def phases(
    record: RunRecord, start: float = 0.0, end: float = math.inf
) -> pd.DataFrame:
    """Where each request is between ``start`` and ``end``.

    Args:
        record: A finished run.
        start: Seconds.
        end: Seconds.

    Returns:
        A row a request and phase: ``request``, ``phase`` (a name of ``LOOKS``),
        ``begin`` and ``end``, seconds, cut off at the window; in order of request and
        time. A request whose first token is not out when it is preempted prefills
        "again" as well, for what it had computed is lost.

    Raises:
        ConfigError: ``end`` is not after ``start``.

    >>> from llminfer import SimulationConfig, simulate
    >>> config = SimulationConfig(arrival_rate=2.0, num_requests=2000)
    >>> table = phases(simulate(config.replace(random_seed=1)))
    >>> table["phase"].head(3).tolist()
    ['waiting', 'prefilling', 'decoding']
    """
    if not end > start:
        raise fail("end", end, f"above start={start:g}")
    every, log = np.arange(len(record.arrival_time)), record.steps
    parts = [
        ("waiting", every, record.queue_entry_time),
        ("prefilling", every, record.processing_start_time),
        ("decoding", every, record.first_token_time),
        ("gone", every, record.processing_end_time),
    ]
    if log is not None:
        some = log.preempted_request
        parts.append(("preempted", some, log.preempted_time))
        parts.append(("prefilling again", some, log.resumed_time))
        parts.append(("decoding", some, log.caught_up_time))
    columns = ("phase", "request", "begin")
    tables = (pd.DataFrame(dict(zip(columns, part, strict=True))) for part in parts)
    changes = pd.concat(tables).dropna()  # preempted again before it had caught up
    changes = changes.sort_values(["request", "begin"], kind="stable")
    changes["end"] = changes["begin"].shift(-1)
    rows = changes[changes["phase"] != "gone"]
    rows = rows.assign(begin=rows["begin"].clip(start), end=rows["end"].clip(None, end))
    return rows[rows["end"] > rows["begin"]].reset_index(drop=True)


def draw(ax: Axes, table: pd.DataFrame, looks: Mapping[str, str] = LOOKS) -> None:
    """One bar a request, the first to arrive on top.

    Args:
        ax: Where to draw.
        table: Of ``phases``.
        looks: The colour of each phase.
    """
    for name, color in looks.items():
        rows = table[table["phase"] == name]
        spans = rows["end"] - rows["begin"]
        place = rows["request"] + 1
        ax.barh(place, spans, left=rows["begin"], height=0.8, color=color, label=name)
    ax.set_ylim(table["request"].max() + 1.7, table["request"].min() + 0.3)
    ax.set_xlim(table["begin"].min(), table["end"].max())
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="time, seconds", ylabel="request, by arrival")


def over_time(record: RunRecord, points: int = 200) -> pd.DataFrame:
    """How full a run of a continuous server was, on an even grid of time.

    Args:
        record: A finished run of one server.
        points: Of the grid.

    Returns:
        ``time``, seconds; means between that and the time before of the requests
        ``running`` and ``waiting``, and of the share of KV blocks that is ``held``;
        NaN without a limit.
    """
    last = float(record.processing_end_time.max())
    edges = np.linspace(float(record.arrival_time[0]), last, points + 1)
    table = pd.DataFrame({"time": edges[1:]})
    table["running"] = running(record).means(edges)
    table["waiting"] = queue_length(record).means(edges)
    table["held"] = np.nan
    if record.steps is not None and record.steps.kv_blocks is not None:
        table["held"] = _means(*kv_occupancy(record), edges)
    return table


def _means(times: FloatArray, values: FloatArray, edges: FloatArray) -> FloatArray:
    """Exact means between neighbouring ``edges`` of a path drawn by lines."""
    at = np.searchsorted(times, edges, side="right")
    path = np.insert(values, at, np.interp(edges, times, values))
    steps = np.diff(np.insert(times, at, edges))
    area = np.append(0.0, np.cumsum(steps * (path[1:] + path[:-1]) / 2.0))
    return np.asarray(np.diff(area[at + np.arange(len(edges))]) / np.diff(edges))
