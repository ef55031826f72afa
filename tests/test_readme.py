"""The README's numbers are those of the notebooks."""

import re

import pytest

from notebooks.fill_readme import ROOT, filled

README = (ROOT / "README.md").read_text("utf-8")
NUMBERS = (ROOT / "figures" / "numbers.tex").read_text("utf-8")


def test_the_readme_says_what_the_notebooks_found():
    assert filled(README, NUMBERS) == README
    assert len(re.findall(r"<!--[A-Za-z]+-->[^<]+<!--/-->", README)) >= 10


def test_no_finding_has_a_number_of_its_own():
    findings = README.partition("## What it found")[2].partition("\n## ")[0]
    typed = re.sub(r"<!--\w+-->.*?<!--/-->|\]\(.*?\)|\[\d\d\]", "", findings)
    assert re.findall(r"[-+−]?\d[\d.]*%", typed.replace("says 95%", "")) == []


def test_numbers_come_out_as_text():
    macros = "\\newcommand{\\gain}{\\ensuremath{-}59.4\\%}% 01\n"
    macros += "\\newcommand{\\most}{\\ensuremath{\\infty}}% 04\n"
    text = "It is <!--gain-->old<!--/-->, at most <!--most--><!--/-->."
    found = "It is <!--gain-->−59.4%<!--/-->, at most <!--most-->∞<!--/-->."
    assert filled(text, macros) == found
    with pytest.raises(KeyError, match="loss"):
        filled("<!--loss-->1<!--/-->", macros)
