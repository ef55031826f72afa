"""What a panel says in words: the load, the readings, the configuration to copy."""

import html
from collections.abc import Mapping, Sequence

from llminfer import SimulationConfig

Table = Mapping[str, Mapping[str, str]]  # text by row and column

_FULL = 1.5  # load at the end of the gauge
OVERLOADED = "Waits measure the length of the run."
_GOOD, _CLOSE, _BAD = "#0072b2", "#9a6700", "#b00020"
_RULE = "border-bottom:1px solid #88888866"  # in the dark theme too


def gauge(config: SimulationConfig, name: str = "") -> str:
    """The offered load, at its peak, as a bar with a mark at 1, and in words."""
    load, most = config.peak_load, config.max_stable_rate
    color = _GOOD if load < 0.8 else _CLOSE if load < 1.0 else _BAD
    share = 100.0 * min(load, _FULL) / _FULL
    what = f"offered load, {name}" if name else "offered load"
    bar = (
        f'<div role="meter" aria-label="{html.escape(what)}" aria-valuemin="0" '
        f'aria-valuemax="{_FULL}" aria-valuenow="{min(load, _FULL):.2f}" '
        'style="width:240px;max-width:100%;height:12px;display:inline-block;'
        f"margin-right:1em;background:linear-gradient(#333,#333) {100 / _FULL:.1f}% 0/"
        f'2px 100% no-repeat,linear-gradient(90deg,{color} {share:.1f}%,#ccc 0)"></div>'
    )
    peak = "at its peak " * (config.arrival_pattern != "constant")
    said = f"load ρ = λ/λ* {peak}= {load:.2f}, λ* = {most:.3g} requests/s"
    if config.offered_load < 1.0 <= load:
        said = f"{said}: above 1 for a while, {config.offered_load:.2f} on average"
    said = f"{name}: {said}".removeprefix(": ")
    over = config.offered_load >= 1.0
    words = f'<span style="display:inline-block">{html.escape(said)}</span>'
    return f"{bar}{words} {alarm(f'Overloaded. {OVERLOADED}') * over}"


def alarm(text: str) -> str:
    """Something that went wrong, white on red: readable on a page of any colour."""
    look = f"background:{_BAD};color:white;padding:2px 6px;font-weight:600"
    return f'<span style="{look}">{html.escape(f"⚠ {text}")}</span>'


def table(rows: Table, caption: str) -> str:
    """What is said, under a caption; columns in the order in which they come up."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [_line("th", "", columns)] + [
        _line("td", name, [its.get(column, "") for column in columns])
        for name, its in rows.items()
    ]
    look = "border-collapse:collapse;line-height:1.5;text-align:right;margin:8px 0"
    above = f"<caption style='text-align:left'>{html.escape(caption)}</caption>"
    wide = "min-width:min(420px,100%)"
    return f'<table style="{look};{wide}">{above}{"".join(lines)}</table>'


def _line(kind: str, name: str, texts: Sequence[str]) -> str:
    """A line of a table, after its name: of headings (th) or of values (td)."""
    cell = f"<{kind} style='padding-left:1.5em'>{{}}</{kind}>"
    cells = "".join(cell.format(html.escape(text)) for text in texts)
    named = f"<th style='text-align:left;font-weight:normal'>{html.escape(name)}</th>"
    return f"<tr style='{_RULE}'>{named}{cells}</tr>"


def in_words(rows: Table) -> str:
    """A table for those who hear it, not see it.

    >>> in_words({"p99": {"static": "3 s", "continuous": "1 s"}, "busy": {"now": "9%"}})
    'p99: static 3 s, continuous 1 s; busy: now 9%.'
    """
    said = {n: ", ".join(f"{c} {v}" for c, v in its.items()) for n, its in rows.items()}
    return "; ".join(f"{name}: {its}" for name, its in said.items()) + "."


def heading(text: str) -> str:
    """What stands over a group of controls."""
    return f'<div style="{_RULE};font-weight:600">{text}</div>'


def run_length(config: SimulationConfig, runs: int) -> str:
    """What numbers rest on, in words."""
    of = "one run" if runs == 1 else f"{runs} runs"
    skipped = config.warmup_requests
    warm = f", {skipped:,} of them warm-up" if skipped else ""
    return f"{of} of {config.num_requests:,} requests{warm}"


def code(config: SimulationConfig, of: str = "") -> str:
    """The configuration as a line of Python, all of it selected by one click.

    Args:
        config: What to say.
        of: What of a picture it is, a comment behind it.
    """
    look = "display:block;white-space:break-spaces;overflow-wrap:anywhere;"
    look += "line-height:1.4;user-select:all"
    line = html.escape(repr(config) + (f"  # {of}" if of else ""))
    return f'<code title="click, then copy" style="{look}">{line}</code>'
