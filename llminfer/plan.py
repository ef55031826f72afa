"""A plan: what the engine that left a log carries within limits, on one page."""

import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llminfer.base.columns import mean_rate
from llminfer.base.errors import TraceError, fail
from llminfer.base.slo import SLO
from llminfer.calibrate import Calibration, sent_on_answers
from llminfer.capacity import WORST, Capacity, Trials, fitted_to, loads
from llminfer.config import SimulationConfig
from llminfer.data.logs import ServedLog
from llminfer.experiment import metrics_of
from llminfer.report.tables import as_text

Part = str | pd.DataFrame

_LEAST = 100  # requests
_RUNS = 10  # replications
_NAMES = {"setting": "", "rate": "requests/s", "difference": "change"}
_NAMES |= {"binds": "breaks first"}
_RESTS = (
    "Changes are paired: the same requests and the same draws of the coefficients with "
    "and without. Another model, other hardware or other requests are not in this."
)


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What an engine carries within limits: print it, show it, or save its page.

    Attributes:
        sentence: The answer.
        sections: What it rests on: by title paragraphs and tables.
        fitted: The engine, fitted to the first part of its log.
        capacity: What it carries.
        what_ifs: A row a change: ``setting``, the columns of a table of capacities, and
            ``difference``, relative to the engine as it is, with the bounds of the
            paired difference.
    """

    sentence: str
    sections: Mapping[str, Sequence[Part]]
    fitted: Calibration
    capacity: Capacity
    what_ifs: pd.DataFrame

    def picture(self) -> str:
        """What each change would carry, as SVG."""
        from llminfer.report import figures  # slow to load

        fig, text = figures.draw_capacity(self.what_ifs), io.StringIO()
        fig.savefig(text, format="svg")
        return text.getvalue()[text.getvalue().index("<svg") :]

    def __repr__(self) -> str:
        lines = [textwrap.fill(self.sentence, 88)]
        for title, parts in self.sections.items():
            lines.append(title.upper())
            for its in parts:
                if isinstance(its, str):
                    lines.append(textwrap.fill(its, 88))
                else:
                    lines.append(its.to_string(index=False))
        return "\n\n".join(lines)

    def _repr_html_(self) -> str:
        lines = [f"<h2>{html.escape(self.sentence)}</h2>", self.picture()]
        for title, parts in self.sections.items():
            lines.append(f"<h3>{title}</h3>")
            for its in parts:
                if isinstance(its, str):
                    lines.append(f"<p>{html.escape(its)}</p>")
                else:
                    lines.append(its.to_html(index=False, border=0, justify="left"))
        return "\n".join(lines)

    def to_html(self, path: str | Path) -> None:
        """Write the page, which needs no other file."""
        page = Path(__file__).with_name("plan.html").read_text("utf-8")
        Path(path).write_text(page.replace("$body", self._repr_html_()), "utf-8")


def plan(what: ServedLog | Calibration, slo: SLO, n_jobs: int | None = None) -> Report:
    """What the engine that left a log carries within limits, and what would change it.

    The engine is fitted to the part of the log that completes first; the rest says how
    good that is. Its capacity is asked for requests like those of the log, then again
    with more KV memory, another token budget and one more replica, under the same
    seeds and draws of the coefficients.

    Args:
        what: A log that knows its engine's settings, or what was fitted to one.
        slo: The limits.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.

    Raises:
        ConfigError: A log without settings; limits that no rate keeps.
        TraceError: The log cannot tell: fewer than 100 requests, a closed loop, or a
            mean that is over 15% wrong on the requests held back.
    """
    if isinstance(what, SimulationConfig):
        raise fail("what", what, "a log or a Calibration; capacity takes this")
    log = what.log if isinstance(what, Calibration) else what
    if isinstance(log, ServedLog):
        _check_log(log)
    fitted = fitted_to(what)
    errors = fitted.errors()
    off = errors["mean"].abs()
    if not off.max() <= WORST:
        said = f"the mean {off.idxmax()} of those held back is {off.max():.0%} off"
        must = f"must be at most {WORST:.0%}, or the simulator is not this engine"
        raise TraceError(f"log: {said}: {must}")
    base, *draws = loads(fitted)
    trials = Trials(base, slo, None, _RUNS, n_jobs, 42, draws=draws, fitted=fitted)
    its = trials.found()
    rows = [{"setting": "as it is", **its.row()}]
    for setting, changes in _changes(base, its.binds).items():
        rows.append({"setting": setting, **trials.row(changes, its)})
    what_ifs = pd.DataFrame(rows)
    sections: dict[str, list[Part]] = {
        "The log": [_held(fitted, base)],
        "The fit": _fit(fitted, errors),
        "What it carries": [*str(its).splitlines()],
        "What if": [_shown(what_ifs), _RESTS],
    }
    return Report(_answer(slo, its, fitted.log), sections, fitted, its, what_ifs)


def _answer(slo: SLO, its: Capacity, log: ServedLog) -> str:
    """The sentence of a plan."""
    limits, own = ", ".join(map(str, slo.limits)), mean_rate(log.workload.arrival_time)
    return (
        f"This engine carries {str(its).partition(', ')[0]} like those of its log "
        f"within {limits}: {its.rate / own:.2g} times the {own:.3g} of the log. What "
        f"breaks first is {its.binds}."
    )


def _check_log(log: ServedLog) -> None:
    """Refuse what no answer can rest on."""
    if len(log) < _LEAST:
        raise TraceError(f"log: {len(log)} requests: must be at least {_LEAST}")
    if (waited := sent_on_answers(log)) > 0.5:
        what = f"{waited:.0%} of its requests were sent once another was answered"
        must = "must be open, of requests that come at times of their own"
        raise TraceError(f"log: a closed loop: {what}: {must}")


def _changes(config: SimulationConfig, binds: str) -> dict[str, dict[str, Any]]:
    """What could be changed: by its words fields of the configuration."""
    tokens, more = config.max_batched_tokens, config.replicas + 1
    less = max(tokens // 2, config.largest_batch)
    budget = less if "TPOT" in binds or "ITL" in binds else 2 * tokens
    memory = {} if config.kv_blocks is None else {"kv_blocks": 2 * config.kv_blocks}
    changes: dict[str, dict[str, Any]] = {
        "twice the KV memory": memory,
        f"{budget:,} tokens a step": {"max_batched_tokens": budget},
        f"{more} replicas": {"replicas": more, "router": "least_loaded"},
    }
    return {name: its for name, its in changes.items() if its}


def _shown(what_ifs: pd.DataFrame) -> pd.DataFrame:
    """The what-ifs as a reader wants them."""
    text = as_text(what_ifs, {"difference": "+.0%"})
    return text.reindex(columns=list(_NAMES), fill_value="–").rename(columns=_NAMES)


def _held(fitted: Calibration, base: SimulationConfig) -> str:
    """What the log holds, and how loaded the engine was."""
    log, work = fitted.log, fitted.log.workload
    rate, most = mean_rate(work.arrival_time), base.max_stable_rate
    prompt, output = work.prompt_length.mean(), work.output_length.mean()
    seen = metrics_of(fitted.config(warmup_requests=0), fitted.record)
    failed = f" {log.refused:,} more were refused." * bool(log.refused)
    memory = seen.get("max_kv_occupancy", math.nan)
    full = f" and up to {memory:.0%} of the KV memory" * (memory >= 0.0)
    return (
        f"{len(log):,} requests at {rate:.3g} a second; in the mean "
        f"{prompt:,.0f} prompt and {output:,.0f} output tokens.{failed} That is "
        f"{rate / most:.0%} of lambda*, the most that such an engine carries without "
        f"limits. A step had {seen['avg_batch_size']:.3g} sequences{full}."
    )


def _fit(fitted: Calibration, errors: pd.DataFrame) -> list[Part]:
    """How good the fit is, and what it cannot tell."""
    n, unsure = int((~fitted.fitted).sum()), ", ".join(fitted.unidentified)
    said = f"Simulated over measured, on {n:,} requests that the fit did not see:"
    table = errors[["mean", "p50", "p99"]].map("{:+.1%}".format).reset_index()
    cannot = (
        f"The log cannot tell: {unsure or 'nothing'}. Such a one keeps the ratio "
        "to gamma of other engines, give or take a factor that the draws count in."
    )
    return [said, table, cannot]
