"""What a panel says in words: the load, the readings, the configuration to copy."""

import html
from collections.abc import Mapping

from llminfer import SimulationConfig

_FULL = 1.5  # load at the end of the gauge
OVERLOADED = "Waits measure the length of the run."
_GOOD, _CLOSE, _BAD = "#0072b2", "#9a6700", "#b00020"  # all readable on white


def gauge(config: SimulationConfig, name: str = "") -> str:
    """The offered load, at its peak, as a bar with a mark at 1, and in words."""
    load, most = config.peak_load, config.max_stable_rate
    color = _GOOD if load < 0.8 else _CLOSE if load < 1.0 else _BAD
    share = 100.0 * min(load, _FULL) / _FULL
    what = f"offered load, {name}" if name else "offered load"
    bar = (
        f'<div role="meter" aria-label="{html.escape(what)}" aria-valuemin="0" '
        f'aria-valuemax="{_FULL}" aria-valuenow="{min(load, _FULL):.2f}" '
        'style="position:relative;width:240px;max-width:100%;height:10px;'
        'background:#e4e4e4;display:inline-block;margin-right:1em">'
        f'<div style="width:{share:.1f}%;height:10px;background:{color}"></div>'
        f'<div style="position:absolute;left:{100.0 / _FULL:.1f}%;top:-3px;width:2px;'
        'height:16px;background:#333333"></div></div>'
    )
    peak = "at its peak " * (config.arrival_pattern != "constant")
    said = f"load ρ = λ/λ* {peak}= {load:.2f}, λ* = {most:.3g} requests/s"
    if config.offered_load < 1.0 <= load:
        said = f"{said}: above 1 for a while, {config.offered_load:.2f} on average"
    elif load >= 1.0:
        said = f"⚠ Overloaded: {said}. {OVERLOADED}"
    said = f"{name}: {said}".removeprefix(": ")
    return f"{bar}{_text(said, color if load >= 0.8 else '#333333')}"


def alarm(text: str) -> str:
    """Something that went wrong."""
    return _text(f"⚠ {text}", _BAD)


def readings(numbers: Mapping[str, str]) -> str:
    """Numbers with their names, side by side as far as there is room."""
    look = "display:inline-block;margin-right:2em;line-height:1.6"
    return _each(f'<span style="{look}">{{}} <b>{{}}</b></span>', numbers)


def named_lines(said: Mapping[str, str]) -> str:
    """Names and what is said of each, a line each."""
    return _each("<div><b>{}</b>: {}</div>", said)


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
    look = "white-space:break-spaces;overflow-wrap:anywhere;"
    look += "line-height:1.4;user-select:all"
    line = html.escape(repr(config) + (f"  # {of}" if of else ""))
    return f'<code title="click, then copy" style="{look}">{line}</code>'


def _each(form: str, said: Mapping[str, str]) -> str:
    return "".join(form.format(*map(html.escape, pair)) for pair in said.items())


def _text(text: str, color: str) -> str:
    look = f"color:{color};font-weight:600;display:inline-block"
    return f'<span style="{look}">{html.escape(text)}</span>'
