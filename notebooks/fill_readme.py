"""What the notebooks found, from ``figures/`` into the README and a page of findings.

A number of the README stands between ``<!--name-->`` and ``<!--/-->``, which no reader
sees; the name is that of its macro in ``figures/numbers.tex``. Between
``<!--findings-->`` and ``<!--/findings-->`` stand the notebooks' answers. The page is
``figures/findings.md``, and for LaTeX ``findings.tex``.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd

from llminfer.report.latex import escape, plain

ROOT = Path(__file__).parents[1]
_MACRO = re.compile(r"^\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}%", re.MULTILINE)
_PLACE = re.compile(r"<!--([A-Za-z]+)-->[^<]*<!--/-->")
_LIST = re.compile(r"(?<=<!--findings-->\n).*?(?=<!--/findings-->)", re.DOTALL)
_ROW = re.compile(r"^\| \[((\d\d) [^]]*)\]\((\S+)\) \| (.*) \|$", re.MULTILINE)


def filled(text: str, numbers: str) -> str:
    """``text`` with the numbers of a ``numbers.tex`` in its places.

    Raises:
        KeyError: A place names a number that no notebook writes.
    """
    latex = dict(_MACRO.findall(numbers))
    return _PLACE.sub(
        lambda place: f"<!--{place[1]}-->{plain(latex[place[1]])}<!--/-->", text
    )


def listed(text: str, figures: Path) -> str:
    """``text`` with an item for each notebook that has an answer in its list."""
    items = [
        f"- [{number}]({path}): {_answer(figures, number)}\n"
        for _, number, path, _ in _ROW.findall(text)
    ]
    return _LIST.sub(lambda _: "".join(items), text)


def page(text: str, figures: Path) -> str:
    """Each notebook's question, answer, verdicts and figures, as Markdown."""
    parts = ["# Findings\n\nWritten by `make report`, from the executed notebooks.\n"]
    for title, number, path, question in _ROW.findall(text):
        parts.append(f"\n## [{title}](../{path}): {question}\n")
        parts.append(f"\n{_answer(figures, number)}\n")
        table = figures / f"{number}_verdicts.csv"
        if table.exists():
            columns = ["outcome", "hypothesis", "measured"]
            rows = pd.read_csv(table, dtype=str)[columns].to_numpy().tolist()
            head, *lines = (" | ".join(row) for row in [columns, ["---"] * 3, *rows])
            parts.append(
                "\n" + "\n".join(f"| {its} |" for its in (head, *lines)) + "\n"
            )
        pictures = sorted(figures.glob(f"{number}_*.pdf"))
        links = ", ".join(f"[{its.stem[3:]}]({its.stem}.png)" for its in pictures)
        parts.append(f"\nFigures: {links}.\n")
    return "".join(parts)


def paragraphs(text: str, figures: Path) -> str:
    """The same for LaTeX: question, answer, and how many claims held."""
    parts = []
    for _, number, _, question in _ROW.findall(text):
        answer = (figures / f"{number}_answer.tex").read_text("utf-8").strip()
        table = figures / f"{number}_verdicts.csv"
        if table.exists():
            counts = Counter(pd.read_csv(table)["outcome"])
            kinds = ("supported", "refuted", "undecided")
            said = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
            answer += f" \\emph{{Hypotheses: {said}.}}"
        parts.append(f"\\paragraph{{{escape(question)}}} {answer}\n\n")
    return "".join(parts)


def _answer(figures: Path, number: str) -> str:
    return (figures / f"{number}_answer.md").read_text("utf-8").strip()


if __name__ == "__main__":
    readme, figures = ROOT / "README.md", ROOT / "figures"
    numbers = (figures / "numbers.tex").read_text("utf-8")
    text = listed(filled(readme.read_text("utf-8"), numbers), figures)
    readme.write_text(text, "utf-8")
    (figures / "findings.md").write_text(page(text, figures), "utf-8")
    (figures / "findings.tex").write_text(paragraphs(text, figures), "utf-8")
    print("Done: look at figures/, and at the notebooks in JupyterLab (make lab).")
