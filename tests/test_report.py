"""Tables and macros for the report."""

import html
import math
import multiprocessing
import re
import warnings
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from llminfer import SimulationConfig, SimulationRunner
from llminfer.base.errors import ConfigError, OverloadWarning
from llminfer.report.latex import (
    escape,
    macro_name,
    plain,
    shown,
    shown_with_bounds,
)
from llminfer.report.tables import (
    against,
    begin,
    figures_dir,
    glossary,
    save_answer,
    save_numbers,
    save_table,
    save_verdicts,
)
from llminfer.report.verdict import COLORS, Verdict
from llminfer.stats.intervals import Estimate


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMINFER_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def in_processes(*calls):
    """Run each call in a process of its own, as notebooks do, all at once."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=call, args=given) for call, *given in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * len(calls)


def macros(figures):
    lines = (figures / "numbers.tex").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("%")]


# Numbers and text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.9612, "5.96"),
        (0.59612, "0.596"),
        (0.00012345, "0.000123"),
        (0.0000012345, "1.23×10⁻⁶"),
        (9.999, "10.0"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (1.5e9, "1.50×10⁹"),
        (0.0, "0"),
        (-2.5, "−2.50"),
        (16, "16"),
        (10500, "10,500"),
        (np.int64(10500), "10,500"),
        (np.float32(0.5), "0.500"),
        (True, "yes"),
        (np.False_, "no"),
        (None, "–"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
        ("p99 - 5", "p99 - 5"),
    ],
)
def test_numbers_are_shown_without_noise(value, text):
    assert shown(value) == text


def test_a_format_of_ones_own_wins():
    assert shown(0.2834, ".1%") == "28.3%"
    assert shown("text", ".1%") == "text"


@pytest.mark.parametrize(
    ("half", "text"),
    [
        (0.06, ("5.96", "5.90", "6.02")),
        (0.012, ("5.961", "5.949", "5.973")),
        (0.5, ("6.0", "5.5", "6.5")),
        (5.0, ("6", "1", "11")),
        (0.0, ("5.96", "5.96", "5.96")),
        (math.nan, ("5.96", "–", "–")),
    ],
)
def test_an_interval_decides_the_digits(half, text):
    assert shown_with_bounds(Estimate(5.961, 5.961 - half, 5.961 + half)) == text


def test_zero_has_no_sign():
    assert shown_with_bounds(Estimate(-0.0001, -0.5, 0.5)) == ("0.0", "−0.5", "0.5")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("p99_latency", r"p99\_latency"),
        ("50% & more", r"50\% \& more"),
        ("$#{}", r"\$\#\{\}"),
        (r"a\b", r"a\textbackslash{}b"),
        ("x^2~", r"x\textasciicircum{}2\textasciitilde{}"),
        ("λ < 5", r"\ensuremath{\lambda} \ensuremath{<} 5"),
        ("[1]*", "{[}1{]}{*}"),
        ("10⁻⁶", r"10\textsuperscript{\ensuremath{-}}\textsuperscript{6}"),
        ("Erdős, naïve", "Erdős, naïve"),
    ],
)
def test_text_is_escaped(text, latex):
    assert escape(text) == latex


def test_a_character_latex_does_not_know_is_named():
    with pytest.raises(ConfigError, match=r"'漢' \(U\+6F22\)"):
        escape("漢")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("bestBatch", "bestBatch"),
        ("p99_at_16", "pNineNineAtOneSix"),
        ("wait_SJF", "waitSJF"),
    ],
)
def test_macro_names_are_letters_only(given, name):
    assert macro_name(given) == name


@pytest.mark.parametrize("bad", ["", "9best", "best-batch", "best batch", "α"])
def test_a_name_no_macro_can_have_is_refused(bad):
    with pytest.raises(ConfigError, match="name="):
        macro_name(bad)


# A notebook's first call


def test_a_notebook_begins_with_whole_sentences_and_without_warnings():
    with pd.option_context("display.max_colwidth", 50), warnings.catch_warnings():
        warnings.simplefilter("error")
        begin()
        assert pd.options.display.max_colwidth is None
        warnings.warn("rate 10: over the top", OverloadWarning, stacklevel=1)


# The folder


def test_figures_go_where_the_variable_says(figures):
    assert figures_dir() == figures
    assert figures.is_dir()


def test_figures_go_to_the_nearest_folder_upwards(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMINFER_FIGURES")
    (tmp_path / "repo" / "figures").mkdir(parents=True)
    (tmp_path / "repo" / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "repo" / "notebooks")
    assert figures_dir() == tmp_path / "repo" / "figures"


# Tables


def some_table():
    return pd.DataFrame(
        {
            "policy": ["SJF_Aging", "50%"],
            "mean_wait": [1.23456789, -0.5],
            "p": [0.00001, 0.04],
            "runs": [30, 10500],
        }
    )


def test_a_table_is_booktabs_with_rounded_numbers(figures):
    shown = save_table(some_table(), "02_policies", formats={"p": ".3f"})
    assert shown.columns.tolist() == ["policy", "mean_wait", "p", "runs"]
    assert shown["runs"].tolist() == ["30", "10,500"]
    text = (figures / "02_policies.tex").read_text("utf-8")
    assert text.splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"policy & mean wait & p & runs \\",
        r"\midrule",
        r"SJF\_Aging & 1.23 & 0.000 & 30 \\",
        r"50\% & \ensuremath{-}0.500 & 0.040 & 10,500 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_its_csv_keeps_the_numbers(figures):
    save_table(some_table(), "02_policies")
    pd.testing.assert_frame_equal(
        pd.read_csv(figures / "02_policies.csv"), some_table(), rtol=1e-8
    )


def test_a_caption_makes_it_float_under_a_label(figures):
    save_table(some_table(), "02_a", caption="Load < 1, 95%")
    text = (figures / "02_a.tex").read_text("utf-8")
    assert text.startswith("\\begin{table}\n\\centering")
    assert r"\caption{Load \ensuremath{<} 1, 95\%}" in text
    assert r"\label{tab:02_a}" in text


def test_a_wide_table_floats_across_both_columns(figures):
    wide = pd.DataFrame({f"a_column_{i}": [0.5] for i in range(5)})
    save_table(wide, "02_a", caption="Wide")
    text = (figures / "02_a.tex").read_text("utf-8")
    assert text.startswith(r"\begin{table*}")


def test_an_index_with_a_name_is_a_column(figures):
    pivot = some_table().pivot_table(index="policy", values="p")
    save_table(pivot, "02_a")
    text = (figures / "02_a.tex").read_text("utf-8")
    assert r"policy & p \\" in text
    assert save_table(pivot, "02_a").index.name == "policy"


def test_an_estimate_and_its_bounds_share_a_column(figures):
    frame = pd.DataFrame(
        {
            "mean": [5.961, 124.4],
            "ci_lower": [5.901, 101.4],
            "ci_upper": [6.021, 147.4],
            "relative": [0.1, 0.2],
            "relative_lower": [0.05, 0.1],
            "relative_upper": [0.15, 0.3],
            "lone_lower": [1, 2],
        }
    )
    save_table(frame, "02_a", formats={"relative": ".0%"})
    text = (figures / "02_a.tex").read_text("utf-8")
    assert text.splitlines()[2:6] == [
        r"mean & relative & lone lower \\",
        r"\midrule",
        r"5.96 (5.90 to 6.02) & 10\% (5\% to 15\%) & 1 \\",
        r"124 (101 to 147) & 20\% (10\% to 30\%) & 2 \\",
    ]
    assert list(pd.read_csv(figures / "02_a.csv")) == list(frame)


def test_rows_that_have_no_name_are_not_numbered():
    page = save_table(pd.DataFrame({"a": [5, 6]}), "01_plain")._repr_html_()
    assert re.findall(r">(\d)<", page) == ["5", "6"]


def test_what_has_no_width_is_shown_once(figures):
    frame = pd.DataFrame({"rate": [6.18, 2.0], "rate_lower": [6.18, 1.5]})
    shown = save_table(frame.assign(rate_upper=[6.18, 2.5]), "01_at_least")
    assert shown["rate"].tolist() == ["6.18", "2.0 (1.5 to 2.5)"]


def test_sentences_are_broken_into_lines(figures):
    frame = pd.DataFrame({"policy": ["SJF"], "hypothesis": ["a " * 16]})
    save_table(frame, "02_a")
    text = (figures / "02_a.tex").read_text("utf-8")
    assert text.startswith(r"\begin{tabular}{lp{0.35\linewidth}}")


def test_same_table_same_bytes(figures):
    save_table(some_table(), "02_a")
    first = (figures / "02_a.tex").read_bytes()
    save_table(some_table(), "02_a")
    assert (figures / "02_a.tex").read_bytes() == first


def test_bad_names_and_columns_are_refused():
    with pytest.raises(ConfigError, match="name='02/a'"):
        save_table(some_table(), "02/a")
    with pytest.raises(ConfigError, match=r"mean: no such column.*mean_wait"):
        save_table(some_table(), "02_a", formats={"mean": ".2f"})


# Macros


def test_numbers_become_sorted_macros(figures):
    save_numbers({"stable_rate": 5.9612, "best": 16, "drop": "28%"}, source="01")
    assert macros(figures) == [
        r"\newcommand{\best}{16}% 01",
        r"\newcommand{\drop}{28\%}% 01",
        r"\newcommand{\stableRate}{5.96}% 01",
    ]


def test_estimates_and_verdicts_bring_their_bounds(figures):
    found = Estimate(5.96, 5.90, 6.02)
    verdict = Verdict.that_above("h", found, 5, unit="s")
    save_numbers({"rate": found, "claim": verdict}, source="01")
    sentence = "supported: measured 5.96 s (5.90 to 6.02), claimed above 5 s"
    assert macros(figures) == [
        r"\newcommand{\claim}{5.96}% 01",
        r"\newcommand{\claimHigh}{6.02}% 01",
        r"\newcommand{\claimLow}{5.90}% 01",
        r"\newcommand{\claimOutcome}{supported}% 01",
        rf"\newcommand{{\claimVerdict}}{{{sentence}}}% 01",
        r"\newcommand{\rate}{5.96}% 01",
        r"\newcommand{\rateHigh}{6.02}% 01",
        r"\newcommand{\rateLow}{5.90}% 01",
    ]


def test_cells_of_one_notebook_add_up_and_a_repeated_one_replaces(figures):
    save_numbers({"best": 16}, source="01")
    save_numbers({"worst": 128}, source="01")
    save_numbers({"best": 32}, source="01")
    assert macros(figures) == [
        r"\newcommand{\best}{32}% 01",
        r"\newcommand{\worst}{128}% 01",
    ]


def test_a_rerun_removes_what_the_notebook_no_longer_writes_and_nothing_else(figures):
    in_processes((save_numbers, {"gone": 1, "best": 16}, "01"))
    in_processes((save_numbers, {"policy": "SJF"}, "02"))
    in_processes((save_numbers, {"best": 32}, "01"))
    assert macros(figures) == [
        r"\newcommand{\best}{32}% 01",
        r"\newcommand{\policy}{SJF}% 02",
    ]


def test_two_notebooks_cannot_write_one_macro(figures):
    save_numbers({"best": 16}, source="01")
    with pytest.raises(ConfigError, match=r"notebook 01 writes \\best too"):
        save_numbers({"best": 32}, source="02")
    assert macros(figures) == [r"\newcommand{\best}{16}% 01"]


def test_two_names_cannot_become_one_macro():
    with pytest.raises(ConfigError, match=r"name='pNine'.*\\pNine is there already"):
        save_numbers({"p9": 1, "pNine": 2}, source="01")


def write_some(source, barrier):
    barrier.wait(120)
    for i in range(20):
        save_numbers({f"{source}_{i}": i}, source=source)


def test_notebooks_that_run_at_once_lose_nothing(figures):
    barrier = multiprocessing.get_context("fork").Barrier(3)
    in_processes(*((write_some, source, barrier) for source in ("one", "two", "six")))
    assert len(macros(figures)) == 60


def test_verdicts_are_saved_as_macros_and_table_in_one_call(figures):
    verdict = Verdict.that_below("h", Estimate(0.5, 0.25, 0.75), 1, unit="s")
    table = save_verdicts({"fast": verdict}, "01", caption="All of them.")
    assert table.to_dict("records") == [
        {
            "hypothesis": "h",
            "outcome": "supported",
            "measured": "0.50 s (0.25 to 0.75)",
            "claimed": "below 1 s",
            "margin": "0.01 s",
        }
    ]
    shown = table._repr_html_()
    assert "All of them. Supported: the whole interval" in shown
    assert "text-align: left" in shown
    assert f"color: {COLORS['supported']}" in shown
    assert shown == table._repr_html_()  # the same at each display
    assert "\\fastOutcome" in (figures / "numbers.tex").read_text("utf-8")
    assert "All of them." in (figures / "01_verdicts.tex").read_text("utf-8")
    assert pd.read_csv(figures / "01_verdicts.csv").equals(table)


# Comparisons


def test_alternatives_against_a_baseline_in_each_setting():
    base = [10.0, 11.0, 12.0, 13.0]
    rows = [
        {"load": load, "policy": policy, "replication": i, "mean": value * factor}
        for load, sure in ((0.8, 0.5), (0.9, 1.0))
        for policy, factor in (("FCFS", 1.0), ("SJF", sure), ("Other", 1.5))
        for i, value in enumerate(base)
    ]
    table = against(pd.DataFrame(rows), "mean", "policy", "FCFS", "load")
    assert table.index.tolist() == ["SJF", "Other"]
    assert table[0.8].tolist() == ["-50%*", "+50%*"]
    assert table[0.9].tolist() == ["+0%", "+50%*"]


def test_a_table_in_print_has_names_and_minus_signs_and_its_csv_the_numbers(figures):
    frame = pd.DataFrame({"mean": [1.0], "ci_lower": [0.5], "ci_upper": [1.5]})
    frame["lead"] = "-160 s"
    frame["name"] = "p-99"
    save_table(frame, "01_named", names={"mean": "coverage"})
    printed = (figures / "01_named.tex").read_text("utf-8")
    assert "coverage & lead" in printed
    assert r"\ensuremath{-}160 s & p-99" in printed
    assert list(pd.read_csv(figures / "01_named.csv")) == list(frame)
    with pytest.raises(ConfigError, match="maen"):
        save_table(frame, "01_named", names={"maen": "coverage"})


def test_an_answer_is_filled_in_from_its_own_notebook(figures):
    save_numbers({"gain": Estimate(-0.283, -0.301, -0.265), "share": "50% & α"}, "01")
    save_numbers({"other": 7.0}, "02")
    said = save_answer("It gains {gain} ({gainLow} to {gainHigh}) of {share}_x.", "01")
    assert said == "It gains −0.283 (−0.301 to −0.265) of 50% & α_x."
    assert said._repr_markdown_() == said
    assert (figures / "01_answer.md").read_text("utf-8") == said + "\n"
    assert (figures / "01_answer.tex").read_text("utf-8") == (
        "It gains \\gain{} (\\gainLow{} to \\gainHigh{}) of \\share{}\\_x.\n"
    )
    with pytest.raises(ConfigError, match="did you mean gain"):
        save_answer("{gan}", "01")
    with pytest.raises(ConfigError, match="text='other'"):
        save_answer("{other}", "01")


def test_all_that_is_escaped_comes_back():
    signs = "αβγλμ×·±≤≥≈∞→<>−⁰⁹{}$&#%_[]*⁻\\~^|° – — ’ ” … abc"
    assert plain(escape(signs)) == signs


def test_the_glossary_knows_each_setting_and_each_metric():
    terms = glossary()
    settings = terms.index[terms["kind"] == "setting"].tolist()
    assert settings == [field.name for field in fields(SimulationConfig)]
    base = SimulationConfig(num_requests=60, warmup_requests=10, arrival_rate=2.0)
    users = {"clients": 5, "turns": 3, "patience": 9.0, "queue_limit": 9}
    cache = {"server": "continuous", "prefix_caching": True, "kv_blocks": 1_000}
    known = terms.index[terms["kind"] == "metric"]
    ahead = r"(avg|median|std|min|max|p\d+)_|(?=(refused|given_up)_share)"
    for config in (base, base.replace(**users, **cache)):
        for name in SimulationRunner(config).run():
            bare = re.sub(rf"^({ahead})", "", name).replace("e2e", "latency")
            assert bare.replace("_share", "_requests") in known, name
    assert terms["meaning"].str.endswith(".").all()


def test_the_glossary_is_shown_whole_and_to_the_left():
    terms, page = glossary(), html.unescape(glossary()._repr_html_())
    assert terms["meaning"].str.len().max() > pd.get_option("display.max_colwidth")
    assert all(meaning in page for meaning in terms["meaning"])
    assert "text-align: left" in page
    assert not terms["meaning"].str.contains("`", regex=False).any()


def test_a_table_stands_under_its_caption():
    frame = pd.DataFrame({"a<b": ["x & y"]}, index=pd.Index(["<1>"], name="B"))
    page = save_table(frame, "01_said", "What it is, seconds.")._repr_html_()
    assert "<caption>What it is, seconds.</caption>" in page
    assert "x &amp; y" in page
    assert "a&lt;b" in page
    assert "&lt;1&gt;" in page


def test_verdicts_on_one_page_keep_their_colours():
    one = Estimate(1.0, 0.9, 1.1)
    yes = {"isThere": Verdict.that_above("It is there.", one, 0.5)}
    no = {"isGone": Verdict.that_above("It is gone.", one, 2.0)}
    pages = [
        save_verdicts(its, source)._repr_html_()
        for source, its in {"01": yes, "02": no}.items()
    ]
    names = {re.search(r'<table id="(\w+)"', page).group(1) for page in pages}
    assert len(names) == 2
    for page, outcome in zip(pages, ("supported", "refuted"), strict=True):
        (cell,) = re.findall(rf'id="(\w+)" class="data \w+ \w+" >{outcome}<', page)
        assert re.search(rf"#{cell} {{\s+color: {COLORS[outcome]}", page)


@pytest.mark.parametrize("source", ["", "0 1", "01\n", "a/b", 1])
def test_macros_come_from_a_source_with_a_name(figures, source):
    with pytest.raises(ConfigError, match=r"^source="):
        save_numbers({"best": 16}, source=source)
    assert not (figures / "numbers.tex").exists()


@pytest.mark.parametrize(
    ("bound", "said", "spared"),
    [
        (0.00640445, "below 0.00640", "6.40×10⁻⁵"),
        (1234.0, "below 1234", "12.34"),
        (0.0125, "below 0.0125", "0.000125"),
    ],
)
def test_a_bound_that_was_computed_has_three_digits(bound, said, spared):
    verdict = Verdict.that_below("It is small.", Estimate(1.0, 0.9, 1.1), bound)
    assert (verdict.claimed, verdict.spared) == (said, spared)


def test_letters_that_latex_has_end_before_u_0180():
    assert escape("\u017f") == "\u017f"
    with pytest.raises(ConfigError, match=r"U\+0180.*must be put in words"):
        escape("\u0180")
