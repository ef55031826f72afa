"""What a panel says in words: the load, the readings, the configuration to copy."""

from __future__ import annotations

import html
from collections.abc import Mapping

from llminfer.config import SimulationConfig

_FULL = 1.5  # load at the end of the gauge
_GOOD, _CLOSE, _BAD = "#0072b2", "#9a6700", "#b00020"  # all readable on white


def gauge(config: SimulationConfig) -> str:
    """The offered load as a bar with a mark at 1, and in words."""
    load, most = config.offered_load, config.max_stable_rate
    color = _GOOD if load < 0.8 else _CLOSE if load < 1.0 else _BAD
    share = 100.0 * min(load, _FULL) / _FULL
    bar = (
        f'<div role="meter" aria-label="offered load" aria-valuemin="0" '
        f'aria-valuemax="{_FULL}" aria-valuenow="{min(load, _FULL):.2f}" '
        'style="position:relative;width:240px;max-width:100%;height:10px;'
        'background:#e4e4e4;display:inline-block;margin-right:1em">'
        f'<div style="width:{share:.1f}%;height:10px;background:{color}"></div>'
        f'<div style="position:absolute;left:{100.0 / _FULL:.1f}%;top:-3px;width:2px;'
        'height:16px;background:#333333"></div></div>'
    )
    said = f"load ρ = λ/λ* = {load:.2f}, λ* = {most:.3g} requests/s"
    if load >= 1.0:
        said = f"⚠ Overloaded: {said}. Waits measure the length of the run."
    return f"{bar}{_text(said, color if load >= 0.8 else '#333333')}"


def alarm(text: str) -> str:
    """Something that went wrong."""
    return _text(f"⚠ {text}", _BAD)


def readings(numbers: Mapping[str, str]) -> str:
    """Numbers with their names, side by side as far as there is room."""
    return "".join(
        '<span style="display:inline-block;margin-right:2em;line-height:1.6">'
        f"{html.escape(name)} <b>{html.escape(value)}</b></span>"
        for name, value in numbers.items()
    )


def named_lines(said: Mapping[str, str]) -> str:
    """Names and what is said of each, a line each."""
    return "".join(
        f"<div><b>{html.escape(name)}</b>: {html.escape(text)}</div>"
        for name, text in said.items()
    )


def code(config: SimulationConfig) -> str:
    """The configuration as a line of Python, all of it selected by one click."""
    look = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;user-select:all"
    line = html.escape(repr(config))
    return f'<code title="click, then copy" style="{look}">{line}</code>'


def _text(text: str, color: str) -> str:
    look = f"color:{color};font-weight:600;display:inline-block"
    return f'<span style="{look}">{html.escape(text)}</span>'
