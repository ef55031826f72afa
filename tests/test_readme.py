"""The README's numbers are those of the notebooks."""

import json
import re

import pandas as pd
import pytest

from notebooks.fill_readme import ROOT, filled, listed, page, paragraphs

README = (ROOT / "README.md").read_text("utf-8")
FIGURES = ROOT / "figures"
NUMBERS = (FIGURES / "numbers.tex").read_text("utf-8")


def test_the_readme_says_what_the_notebooks_found():
    assert filled(README, NUMBERS) == README
    assert listed(README, FIGURES) == README
    answers = README.partition("<!--findings-->\n")[2].partition("<!--/")[0]
    assert answers.count("\n- [") == 10
    assert len(re.findall(r"[-+−]?\d[\d.]*%", answers)) >= 20


def test_the_page_of_findings_is_that_of_the_figures():
    assert (FIGURES / "findings.md").read_text("utf-8") == page(README, FIGURES)
    said = paragraphs(README, FIGURES)
    assert (FIGURES / "findings.tex").read_text("utf-8") == said
    rows = sum(len(pd.read_csv(its)) for its in FIGURES.glob("[01]*_verdicts.csv"))
    kinds = re.findall(r"(\d+) (?:supported|refuted|undecided)", said)
    assert sum(map(int, kinds)) == rows > 90


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")))
def test_no_answer_has_a_number_of_its_own(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    for text in ("".join(cell["source"]) for cell in cells):
        if "save_answer(" in text:
            typed = text.replace("says 95%", "")
            assert re.findall(r"[-+−]?\d[\d.]*%", typed) == []


def test_numbers_come_out_as_text():
    macros = "\\newcommand{\\gain}{\\ensuremath{-}59.4\\%}% 01\n"
    macros += "\\newcommand{\\most}{\\ensuremath{\\infty}}% 04\n"
    text = "It is <!--gain-->old<!--/-->, at most <!--most--><!--/-->."
    found = "It is <!--gain-->−59.4%<!--/-->, at most <!--most-->∞<!--/-->."
    assert filled(text, macros) == found
    with pytest.raises(KeyError, match="loss"):
        filled("<!--loss-->1<!--/-->", macros)
