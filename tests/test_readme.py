"""The README's numbers are those of the notebooks."""

import json
import re

import cloudpickle
import pandas as pd
import pytest
from bench_memory import RUNS

from llminfer.base.cache import SOURCE
from llminfer.experiment import poolable_metrics, run_many
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


def test_the_readme_says_what_a_run_costs_as_measured():
    """Beside the CSV of the figure: a figure anew is a table anew."""
    runs = pd.read_csv(FIGURES / "bench_memory.csv").set_index(["server", "requests"])
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    said = {what: dict(zip(RUNS, its, strict=True)) for what, *its in rows}
    for server in RUNS:
        its = runs.loc[server]
        bounds = said["seconds a million requests, one core"][server].split(" to ")
        seconds = its.loc[10**6, "us_a_request"], its.loc[10**5, "us_a_request"]
        assert float(bounds[0]) - 0.5 <= min(seconds)
        assert max(seconds) <= float(bounds[-1]) + 0.5
        empty, million = (its.loc[n, "gigabytes"] * 1e3 for n in (1000, 10**6))
        grown = round(million - empty, -2)
        words = f"{round(empty, -1):.0f} MB, and {grown:.0f} a million requests"
        assert said["memory a worker"][server] == words
    assert "from a thousand requests to ten million" in README
    assert set(runs.index.unique("requests")) == {10**n for n in range(3, 8)}


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_the_readme_says_what_a_run_sends_and_brings_back(server):
    """Bytes, packed as a worker gets and gives them."""
    its = RUNS[server].replace(num_requests=20_000, warmup_requests=0)
    row = run_many([its], 1, measure=poolable_metrics)[0]
    job = SOURCE, its.scheduling_policy, poolable_metrics, its
    (said,) = re.findall(r"^\| bytes a run: .*$", README, re.MULTILINE)
    _, _, *cells, _ = said.split("|")
    sent, back = re.findall(r"[\d,]+", cells[list(RUNS).index(server)])
    for shown, packed in ((sent, job), (back, row)):
        size = len(cloudpickle.dumps(packed))
        assert float(shown.replace(",", "")) == pytest.approx(size, rel=0.25)


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
