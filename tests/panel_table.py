"""A table that a panel shows, read back from its HTML."""

from __future__ import annotations

import html
import re

from ipywidgets import HTML

Table = dict[str, dict[str, str]]


def table_in(widget: HTML) -> Table:
    """The text of each cell that has one, by row and column."""
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", widget.value)
    cells = [re.findall(r"<t([hd])[^>]*>(.*?)</t\1>", line) for line in lines]
    (_, *heads), *rows = [[html.unescape(text) for _, text in line] for line in cells]
    return {
        name: {head: text for head, text in zip(heads, its, strict=True) if text}
        for name, *its in rows
    }


def caption_of(widget: HTML) -> str:
    """What stands above it."""
    return html.unescape(re.findall(r"<caption[^>]*>(.*?)</caption>", widget.value)[0])
