"""A plan: what the engine that left a log carries within limits, on one page."""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llminfer import calibrate
from llminfer.base.errors import TraceError
from llminfer.calibrate import Calibration
from llminfer.capacity import (
    SLO,
    Capacity,
    KeptNowhere,
    Trials,
    resolved,
    settings_of,
)
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import metrics_of
from llminfer.stats.intervals import Estimate

_LEAST = 100  # requests
_WORST = 0.15  # error of a mean on the requests held back, relative
_AT_ONCE = 0.05  # of the mean gap: who is sent so soon after an answer waited for it
_STYLE = (
    "font:16px/1.5 system-ui,sans-serif;max-width:46em;margin:2em auto;padding:0 1em;"
    "color:#222"
)

_RESTS = (
    "Changes are paired differences: the same requests and the same draws of the "
    "coefficients with and without. Other hardware behind a replica, another model or "
    "other requests are not in this."
)

Part = str | pd.DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What an engine carries within limits: print it, show it, or save its page.

    Attributes:
        sentence: The answer.
        sections: What it rests on: by title paragraphs and tables.
        fitted: The engine, fitted to the first part of its log.
        capacity: What it carries.
        what_ifs: A row a change of the engine: ``setting``, ``rate`` with its bounds,
            ``binds``, and ``difference``, relative to the engine as it is, with those
            of the paired difference.
        slo: The limits.
    """

    sentence: str
    sections: Mapping[str, Sequence[Part]]
    fitted: Calibration
    capacity: Capacity
    what_ifs: pd.DataFrame
    slo: SLO

    def __repr__(self) -> str:
        blocks = [self.sentence]
        for title, parts in self.sections.items():
            blocks += [title.upper(), *parts]
        return "\n\n".join(
            textwrap.fill(its, 88)
            if isinstance(its, str)
            else its.to_string(index=False)
            for its in blocks
        )

    def _repr_html_(self) -> str:
        look = {"index": False, "border": 0, "justify": "left"}
        blocks = [f"<h2>{html.escape(self.sentence)}</h2>", self._picture()]
        for title, parts in self.sections.items():
            blocks += [f"<h3>{html.escape(title)}</h3>"]
            blocks += [
                f"<p>{html.escape(its)}</p>"
                if isinstance(its, str)
                else its.to_html(**look)
                for its in parts
            ]
        return f'<div style="{_STYLE}">{"".join(blocks)}</div>'

    def to_html(self, path: str | Path) -> Path:
        """Write the page, which needs no other file."""
        head = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Plan</title>'
        )
        look = "<style>td,th{padding:.2em 1em .2em 0;vertical-align:top}</style>"
        file = Path(path)
        file.write_text(f"{head}{look}{self._repr_html_()}</html>", encoding="utf-8")
        return file

    def _picture(self) -> str:
        """Each limited time over its limit, by rate, as SVG."""
        from llminfer.report import figures

        fig, ax = figures.new(height=2.6)
        its = self.capacity.evaluated
        its = its[its["rate"] < 1.5 * self.capacity.rate]
        for i, limit in enumerate(self.slo.limits):
            ax.plot(
                its["rate"],
                its[limit.metric] / limit.bound,
                label=limit,
                **figures.look(i),
            )
        ax.axvspan(
            *self.capacity.interval,
            alpha=0.15,
            color=figures.GHOST,
            label="carried, 95%",
        )
        ax.axvline(
            _rate(self.fitted.log), color=figures.GHOST, linestyle=":", label="the log"
        )
        ax.axhline(1.0, color="black", linewidth=0.8)
        ax.set(xlabel="requests/s", ylabel="share of the limit", yscale="log")
        figures.legend_above(fig, ax)
        text = io.StringIO()
        fig.savefig(text, format="svg")
        figures.plt.close(fig)
        return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]


def plan(what: ServedLog | Calibration, slo: SLO, n_jobs: int | None = None) -> Report:
    """What the engine that left a log carries within limits, and what would change it.

    The engine is fitted to the part of the log that completes first; the rest says how
    good that is. Its capacity is asked for requests like those of the log, then again
    with more KV memory, another token budget and a second replica, under the same
    seeds and draws of the coefficients.

    Args:
        what: A log that knows its engine's settings, or what was fitted to it.
        slo: The limits.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.

    Raises:
        ConfigError: A log without settings; limits that no rate keeps.
        TraceError: The log cannot tell: fewer than 100 requests, a closed loop, or a
            mean that is over 15% wrong on the requests held back.
    """
    log = what if isinstance(what, ServedLog) else what.log
    _check_log(log)
    if isinstance(what, ServedLog):
        what = calibrate.fit(what, settings_of(what))
    errors = what.errors()
    worst = errors["mean"].abs().max()
    if worst > _WORST:
        which = errors["mean"].abs().idxmax()
        said = f"the mean {which} of the requests held back is {worst:.0%} off"
        must = f"must be within {_WORST:.0%}: the law of step times does not fit"
        raise TraceError(f"log: {said}, {must} this engine")
    base, draws = resolved(what)
    trials = Trials(base, slo, None, 10, n_jobs, 42)
    its = trials.found(draws)
    what_ifs = pd.DataFrame(
        [_changed(trials, its, draws, *change) for change in _changes(base, its.binds)]
    )
    low, high = its.interval
    limits = ", ".join(map(str, slo.limits))
    sentence = (
        f"This engine carries {its.rate:.3g} requests/s (95%: {low:.3g} to {high:.3g}) "
        f"like those of its log within {limits}: {its.rate / _rate(log):.2g} times the "
        f"log's rate. What breaks first is {its.binds}."
    )
    sections = {
        "The log": [_held(what, base)],
        "The fit": _fit_said(what, errors),
        "What it carries": _carried_said(its),
        "What if": [_shown(what_ifs), _RESTS],
    }
    return Report(sentence, sections, what, its, what_ifs, slo)


def _check_log(log: ServedLog) -> None:
    """Refuse what no answer can rest on."""
    if len(log) < _LEAST:
        raise TraceError(f"log: {len(log)} requests: must be at least {_LEAST}")
    arrival, ends = log.workload.arrival_time, np.sort(log.last_token_time)
    before = np.searchsorted(ends, arrival, side="right")
    since = arrival - np.concatenate(([-math.inf], ends))[before]
    waited = float(np.mean(since < _AT_ONCE / _rate(log)))
    if waited > 0.5:
        must = "must be open: requests that come at their own times"
        what = f"{waited:.0%} of the requests were sent as soon as another was answered"
        raise TraceError(f"log: a closed loop: {what}: {must}")


def _rate(log: ServedLog) -> float:
    """Requests a second."""
    return len(log) / float(np.ptp(log.workload.arrival_time))


def _changes(config: SimulationConfig, binds: str) -> list[tuple[str, dict[str, Any]]]:
    """What could be changed: in words, and as fields of the configuration."""
    faster = any(name in binds for name in ("TPOT", "ITL"))
    tokens = config.max_batched_tokens
    budget = max(tokens // 2, config.largest_batch) if faster else 2 * tokens
    more = config.replicas + 1
    changes = [
        (f"{budget:,} tokens a step", {"max_batched_tokens": budget}),
        (f"{more} replicas", {"replicas": more, "router": "least_loaded"}),
    ]
    if config.kv_blocks is not None:
        blocks = 2 * config.kv_blocks
        changes.insert(0, (f"{blocks:,} KV blocks", {"kv_blocks": blocks}))
    return changes


def _changed(
    trials: Trials,
    base: Capacity,
    draws: Sequence[SimulationConfig],
    setting: str,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """A row of the what-ifs."""
    config, *others = (trials.changed(its, changes) for its in (trials.config, *draws))
    try:
        its = replace(trials, config=config).found(others)
    except KeptNowhere:
        none = Estimate(0.0, 0.0, 0.0).row("rate") | {"binds": "at every rate"}
        return {"setting": setting, **none, "difference": -1.0}
    return {"setting": setting, **its.row(), **its.against(base).row("difference")}


def _held(fitted: Calibration, base: SimulationConfig) -> str:
    """What the log holds, and how loaded the engine was."""
    log, load = fitted.log, _rate(fitted.log) / base.max_stable_rate
    seen = metrics_of(fitted.config().replace(warmup_requests=0), fitted.record)
    failed = f" {log.failed:,} more failed." * bool(log.failed)
    memory = seen.get("max_kv_occupancy")
    full = "" if memory is None else f", and at most {memory:.0%} of its KV memory"
    work = log.workload
    return (
        f"{len(log):,} requests at {_rate(log):.3g} a second, on average "
        f"{work.prompt_length.mean():,.0f} prompt and {work.output_length.mean():,.0f} "
        f"output tokens.{failed} Their load was {load:.0%} of lambda*, the most such an "
        f"engine carries without limits; it was busy {seen['utilization']:.0%} of the "
        f"time, with {seen['avg_batch_size']:.3g} sequences in a step{full}."
    )


def _fit_said(fitted: Calibration, errors: pd.DataFrame) -> list[Part]:
    """How good the fit is, and what it cannot tell."""
    n = int((~fitted.fitted).sum())
    unsure = ", ".join(fitted.unidentified)
    cannot = (
        f"The log cannot tell {unsure}, which keep the ratio to gamma of other engines; "
        "the intervals count that in."
    )
    table = errors[["mean", "p50", "p99"]].map("{:+.1%}".format).reset_index()
    said = f"Simulated over measured, on {n:,} requests that the fit did not see:"
    return [said, table, cannot if unsure else "The log tells every coefficient."]


def _carried_said(its: Capacity) -> list[Part]:
    """How far each limit is at that rate, and what the interval is made of."""
    rows = [{"limit": name, "room left": f"{x:.0%}"} for name, x in its.slack.items()]
    said = f"At {its.rate:.3g} requests/s; {its.binds} is the first to break above."
    return [said, pd.DataFrame(rows), f"The interval comes from {its.basis}."]


def _shown(what_ifs: pd.DataFrame) -> pd.DataFrame:
    """The what-ifs as a reader wants them."""
    rows = [
        {
            "setting": its["setting"],
            "requests/s": "{rate:.3g} ({rate_lower:.3g} to {rate_upper:.3g})".format(
                **its
            ),
            "change": "{difference:+.0%} ({difference_lower:+.0%} to "
            "{difference_upper:+.0%})".format(**its),
            "breaks first": its["binds"],
        }
        for its in what_ifs.to_dict("records")
    ]
    return pd.DataFrame(rows)
