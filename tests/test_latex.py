"""A report that uses every table, figure and macro compiles."""

import os
import re
import shutil
import string
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from llminfer.report.tables import save_numbers, save_table
from llminfer.report.verdict import Verdict
from llminfer.stats.intervals import Estimate
from notebooks.fill_readme import paragraphs

_PREAMBLE = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\input{%(folder)s/numbers}
\begin{document}
%(body)s
\end{document}
"""
KNOWN = "αβγδεθκλμπρστφ ΔΣ −×·±≤≥≈∞→ ⁰¹²³⁴⁵⁶⁷⁸⁹⁻ µ°–—‘’“”…éüő"


@pytest.fixture(scope="module")
def pdflatex():
    found = shutil.which("pdflatex")
    if found is None:
        why = "pdflatex is missing: install texlive-latex-recommended"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


def report_on(folder):
    """A document with all that lies in ``folder``: how many pieces, and its text."""
    numbers = (folder / "numbers.tex").read_text("utf-8")
    pieces = [rf"\{name}{{}}" for name in re.findall(r"newcommand\{\\(\w+)", numbers)]
    for table in sorted(set(folder.glob("*.tex")) - {folder / "numbers.tex"}):
        pieces.append(rf"\input{{{folder.name}/{table.stem}}}\clearpage")
    for figure in sorted(folder.glob("*.pdf")):
        pieces.append(rf"\includegraphics{{{folder.name}/{figure.name}}}\clearpage")
    return pieces, _PREAMBLE % {"folder": folder.name, "body": "\n\n".join(pieces)}


def compiled(pdflatex, text, folder, tmp_path):
    """Compile ``text`` beside ``folder``; a failure is the test's."""
    (tmp_path / "report.tex").write_text(text, "utf-8")
    if not (tmp_path / folder.name).exists():
        (tmp_path / folder.name).symlink_to(folder.resolve())
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="latin-1", check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "report.pdf").stat().st_size > 1000
    log = (tmp_path / "report.log").read_text("latin-1")
    assert "Missing character" not in log


def test_whatever_a_notebook_writes_compiles(pdflatex, tmp_path, monkeypatch):
    folder = tmp_path / "figures"
    monkeypatch.setenv("LLMINFER_FIGURES", str(folder))
    symbols = string.punctuation + KNOWN
    frame = pd.DataFrame(
        {
            symbols: ["[2ex] first in a row", "* second", symbols],
            "p": [1.5e-9, -0.25, float("inf")],
            "n": [30, 10_500, -1],
        }
    )
    save_table(frame, "01_plain")
    save_table(frame.set_index(symbols), "01_floating", caption=symbols)
    verdict = Verdict.that_below("h", Estimate(-0.28, -0.3, -0.26), 0, spec=".1%")
    save_numbers({"p99": 1e-9, "drop_1": verdict, "all_signs": symbols}, source="01")
    figure = Figure(figsize=(3.4, 2.0))
    figure.subplots().set_title("λ")
    figure.savefig(folder / "01_figure.pdf")
    pieces, text = report_on(folder)
    assert len(pieces) == 10
    compiled(pdflatex, text, folder, tmp_path)


def test_a_broken_piece_is_caught(pdflatex, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "numbers.tex").write_text("\\newcommand{\\half}{50 & more}% 01\n")
    _, text = report_on(folder)
    with pytest.raises(AssertionError, match="Misplaced alignment"):
        compiled(pdflatex, text, folder, tmp_path)


def test_the_figures_folder_compiles(pdflatex, tmp_path):
    own = Path(__file__).parents[1] / "figures"
    folder = Path(os.environ.get("LLMINFER_FIGURES", own))
    if not (folder / "numbers.tex").exists():
        why = f"{folder.name}/ holds no numbers.tex yet: run the notebooks first"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    pieces, text = report_on(folder)
    assert pieces
    compiled(pdflatex, text, folder, tmp_path)


REPORT = Path(__file__).parents[1] / "report" / "main.tex"
_PIECE = re.compile(r"^\\(?:wide|narrow|bare|tablefrom)\{(\w+)\}", re.MULTILINE)


def own_or_set_folder():
    own = REPORT.parents[1] / "figures"
    return Path(os.environ.get("LLMINFER_FIGURES", own))


def test_the_report_takes_each_figure_and_table_once():
    figures = REPORT.parents[1] / "figures"
    there = [its.stem for its in figures.glob("[01]*.pdf")]
    tables = [its.stem for its in figures.glob("[01]*.tex")]
    there += [name for name in tables if not name.endswith("_answer")]
    assert sorted(_PIECE.findall(REPORT.read_text("utf-8"))) == sorted(there)


def test_a_table_gets_a_caption_where_it_brings_none():
    for kind, name in re.findall(
        r"^\\(bare|tablefrom)\{(\w+)\}", REPORT.read_text("utf-8"), re.MULTILINE
    ):
        table = (REPORT.parents[1] / "figures" / f"{name}.tex").read_text("utf-8")
        assert (r"\caption" in table) == (kind == "tablefrom"), name


def test_the_report_compiles(pdflatex, tmp_path):
    folder = own_or_set_folder()
    (tmp_path / "figures").mkdir()
    for its in folder.resolve().iterdir():
        (tmp_path / "figures" / its.name).symlink_to(its)
    found = tmp_path / "figures" / "findings.tex"  # made after the notebooks
    found.unlink(missing_ok=True)
    readme = (REPORT.parents[1] / "README.md").read_text("utf-8")
    found.write_text(paragraphs(readme, folder), "utf-8")
    text = REPORT.read_text("utf-8").replace("../figures", "figures")
    (tmp_path / "report.tex").write_text(text, "utf-8")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    for _ in range(2):  # the second time for the references
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, encoding="latin-1", check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]
    log = (tmp_path / "report.log").read_text("latin-1")
    for fault in ("Missing character", "undefined references", "too large for page"):
        assert fault not in log, fault
