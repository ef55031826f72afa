"""Fill the numbers of the README from those that the notebooks wrote.

A number stands between ``<!--name-->`` and ``<!--/-->``, which no reader sees; the name
is that of its macro in ``figures/numbers.tex``.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MACRO = re.compile(r"^\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}%", re.MULTILINE)
_PLACE = re.compile(r"<!--([A-Za-z]+)-->[^<]*<!--/-->")
_SIGNS = {"-": "\N{MINUS SIGN}", r"\infty": "∞", r"\times": "×"}
_LATEX = re.compile(r"\\ensuremath\{(.*?)\}|\\(?=[%&#$_])")


def filled(text: str, numbers: str) -> str:
    """``text`` with the numbers of a ``numbers.tex`` in its places.

    Raises:
        KeyError: A place names a number that no notebook writes.
    """
    latex = dict(_MACRO.findall(numbers))

    def number(place: re.Match[str]) -> str:
        plain = _LATEX.sub(
            lambda its: _SIGNS[its[1]] if its[1] else "", latex[place[1]]
        )
        return f"<!--{place[1]}-->{plain}<!--/-->"

    return _PLACE.sub(number, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    numbers = (ROOT / "figures" / "numbers.tex").read_text("utf-8")
    readme.write_text(filled(readme.read_text("utf-8"), numbers), "utf-8")
    print("Done: look at figures/, and at the notebooks in JupyterLab (make lab).")
