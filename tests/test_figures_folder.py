"""The numbers behind the committed figures: whole, and what the verdicts say of them.

A notebook that runs may still draw nonsense. So every table behind a figure is finite,
its intervals hold their values, and verdicts are worked out again from the tables.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "figures"
TABLES = {path.stem: path for path in sorted(FOLDER.glob("*.csv"))}
DRAWN = [name for name in TABLES if (FOLDER / f"{name}.pdf").exists()]
VERDICTS = [name for name in TABLES if name.endswith("_verdicts")]
UNKNOWN = {  # columns that may have no number, and of which tables
    "lead": {"03_lead_against_false_alarms"},  # of an alarm that never rang
    "n": {"09_latency_by_rate"},  # of single runs
    "memories": {"10_cache", "10_users_and_stream"},  # of users who wait
}
ABOVE_NOTHING = ("n", "requests/s", "batch_size", "replicas", "GPUs")


def table(name):
    return pd.read_csv(TABLES[name])


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_rows_and_columns_of_its_own(name):
    frame = table(name)
    assert len(frame) > 0
    assert not frame.duplicated().any() or name in DRAWN  # a curve may come back
    assert (FOLDER / f"{name}.tex").exists() or name in DRAWN
    numbers = frame.select_dtypes("number")
    assert not np.isinf(numbers).to_numpy().any()
    for column in numbers.columns.intersection(ABOVE_NOTHING):
        assert (numbers[column].dropna() > 0).all()


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_finite(name):
    frame = table(name)
    picture = (FOLDER / f"{name}.png", FOLDER / f"{name}.pdf")
    assert all(path.stat().st_size > 2_000 for path in picture)
    numbers = frame.select_dtypes("number")
    assert len(numbers.columns) >= 2
    for column in numbers:
        if name not in UNKNOWN.get(column, ()):
            assert numbers[column].notna().all(), column
    if "mean" in numbers:
        assert numbers["mean"].nunique() > 1  # or nothing was simulated


@pytest.mark.parametrize("name", TABLES)
def test_every_interval_holds_its_value(name):
    frame = table(name)
    for column in frame.columns:
        ends = [f"{column}_lower", f"{column}_upper"]
        if column == "mean":
            ends = ["ci_lower", "ci_upper"]
        if not set(ends) <= set(frame):
            continue
        low, value, high = (frame[its] for its in (ends[0], column, ends[1]))
        known = low.notna()
        slack = 1e-8 * value.abs()
        assert (low <= value + slack)[known].all(), column
        assert (value <= high + slack)[known].all(), column
    if "n" in frame and "ci_lower" in frame and frame["n"].notna().all():
        assert (frame["n"] >= 2).all()


# verdicts


def number(text):
    """The number that a text begins with, and half of its last digit."""
    text = text.strip().replace("−", "-").replace(",", "").replace("∞", "inf")
    found = re.match(r"[+-]?(?:inf|\d+(?:\.(\d+))?)", text)
    digits = len(found[1]) if found[1] else 0
    return float(found[0]), 0.5 * 10.0**-digits


def read(row):
    """Value, lower and upper bound of what was measured; what was claimed; rounding."""
    value, bounds = re.fullmatch(
        r"(.*?)(?: ?\((.* to .*)\))?", row["measured"]
    ).groups()
    bounds = [value, value] if bounds is None else bounds.split(" to ")
    measured = [number(value), *map(number, bounds)]
    said = row["claimed"]
    if said.startswith("above "):
        claimed = [number(said[6:]), (math.inf, 0.0)]
    elif said.startswith("below "):
        claimed = [(-math.inf, 0.0), number(said[6:])]
    else:
        claimed = [*map(number, said.split(" to "))]
    rounding = max(its[1] for its in measured) * 2.0  # claims are said in full
    return [its[0] for its in measured], [its[0] for its in claimed], rounding


@pytest.mark.parametrize("name", VERDICTS)
def test_each_verdict_follows_from_its_own_numbers(name):
    frame = table(name)
    columns = ["hypothesis", "outcome", "measured", "claimed", "margin"]
    assert list(frame.columns) == columns
    assert frame["hypothesis"].is_unique
    for row in frame.to_dict("records"):
        (value, low, high), (least, most), off = read(row)
        assert low - off <= value <= high + off
        inside = least <= low + off and high - off <= most
        clearly_inside = least < low - off and high + off < most
        beyond = max(least - high, low - most)  # how far all of it is outside
        match row["outcome"]:
            case "supported":
                assert inside, row
            case "refuted":
                assert beyond > -off, row
            case "undecided":
                assert not clearly_inside, row
                tenth = 0.1 * max(1.0, *(abs(x) for x in (least, most) if x < 1e9))
                assert beyond < tenth + off, row  # or it would be refuted
            case other:
                pytest.fail(f"no outcome: {other}")


def says(verdicts, hypothesis):
    """What a verdict says was measured: value and bounds, and its rounding."""
    rows = table(verdicts).set_index("hypothesis")
    measured, _, off = read(rows.loc[hypothesis])
    return measured, off


def check(verdicts, hypothesis, row, scale=1.0):
    measured, off = says(verdicts, hypothesis)
    np.testing.assert_allclose(measured, scale * np.array(row), rtol=0, atol=off)


def test_the_gain_of_continuous_batching_is_the_ratio_of_the_capacities_in_its_table():
    rows = table("06_capacity")
    for row in rows.to_dict("records"):
        assert row["gain"] == pytest.approx(row["continuous"] / row["static"], rel=0.02)
        limit = f"within {row['p99 limit, s']:g} s (p99)"
        bounds = [row[f"gain{end}"] for end in ("", "_lower", "_upper")]
        check(
            "06_verdicts", f"{row['setting']}: twice the rate at least {limit}.", bounds
        )
    twice = table("06_verdicts")["outcome"][:3].tolist()
    outcome = np.where(rows["gain_lower"] > 2, "supported", "undecided")
    outcome = np.where(rows["gain_upper"] < 2, "refuted", outcome)
    assert twice == outcome.tolist()


def test_the_verdicts_on_theory_are_counts_of_the_comparisons_beside_them():
    rows = table("07_comparisons")
    off = rows["mean"] - rows["exact"]
    half = (rows["ci_upper"] - rows["ci_lower"]) / 2
    assert np.sign(rows["t"]).tolist() == np.sign(off).tolist()
    t = 2.04523 * off / half  # 29 degrees of freedom
    np.testing.assert_allclose(rows["t"], t, rtol=1e-3, atol=1e-3)
    greatest = rows["t"].abs().max()
    lie = f"All {len(rows)} comparisons lie within 4 standard errors."
    check("07_verdicts", lie, [greatest] * 3)
    missed = int((off.abs() > half).sum())
    few = "At most 6 of them lie outside their 95% interval."
    check("07_verdicts", few, [missed] * 3)


def test_what_is_predicted_of_other_engines_is_in_the_table_of_errors():
    rows = table("08_errors").query("`fitted to` == 'steps'")
    rows = rows.set_index(["run", "measure"])
    words = {"TTFT": "time to first token", "TPOT": "TPOT", "latency": "latency"}
    seen = 0
    for (run, measure), row in rows.iterrows():
        its = f"{run}: the mean {words[measure]} is predicted within "
        for verdict in table("08_verdicts")["hypothesis"]:
            if verdict.startswith(its):
                (value, *_), off = says("08_verdicts", verdict)
                assert value == pytest.approx(100.0 * row["mean"], abs=off)
                seen += 1
    assert seen >= 12


def test_the_bursts_of_the_traces_are_those_of_their_table():
    rows = table("09_bursts").set_index(["trace", "measure"])
    bounds = ["mean", "ci_lower", "ci_upper"]
    for trace in ("chat", "code"):
        cv = rows.loc[(trace, "CV of gaps"), bounds]
        check("09_verdicts", f"{trace}: gaps have a CV of 1.", cv)
        minute = rows.loc[(trace, "dispersion, 60 s"), bounds]
        check("09_verdicts", f"{trace}: a minute's counts are Poisson.", minute)
    lengths = table("09_lognormal").set_index(["trace", "length"])
    for (trace, length), row in lengths.iterrows():
        bounds = row[["distance", "distance_lower", "distance_upper"]]
        check("09_verdicts", f"{trace}: {length}s are log-normal.", bounds)


def test_a_replay_misjudges_what_its_table_says():
    rows = table("10_replay").query("of in ('rate', 'TPOT')")
    assert len(rows) == 6
    for row in rows.to_dict("records"):
        its = f"{row['benchmark']}: replay misjudges the {row['of']} by 40% or more."
        check(
            "10_verdicts",
            its,
            [row[f"error{e}"] for e in ("", "_lower", "_upper")],
            100,
        )


def test_long_runs_cover_what_short_ones_published():
    for name in (name for name in TABLES if name.endswith("_long_runs")):
        for row in table(name).to_dict("records"):
            inside = (
                row["published_lower"] <= row["long runs"] <= row["published_upper"]
            )
            assert (row["covered"] == "yes") is inside, row
