"""A page of paragraphs and tables: as text, in a notebook, or as a file."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

Part = str | pd.DataFrame

_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Plan</title><style>'
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;"
    "padding:0 1em}td,th{padding:.2em 1em .2em 0;white-space:nowrap}"
    "svg{max-width:100%;height:auto}</style>"
)


@dataclass(frozen=True, eq=False, repr=False)
class Page:
    """Print it, show it, or save it.

    Attributes:
        sentence: What it says, in one.
        sections: What that rests on: by title paragraphs and tables.

    >>> Page("It works.", {"Why": ["It was tried."]})
    It works.
    <BLANKLINE>
    WHY
    <BLANKLINE>
    It was tried.
    """

    sentence: str
    sections: Mapping[str, Sequence[Part]]

    def picture(self) -> str:
        """What stands below the sentence, as HTML or SVG."""
        return ""

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
        page = f"{_PAGE}<body>{self._repr_html_()}</body></html>"
        Path(path).write_text(page, encoding="utf-8")
