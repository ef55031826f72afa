"""A verdict follows from the interval, and shows itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llminfer.base.errors import ConfigError
from llminfer.report.verdict import Verdict
from llminfer.stats.intervals import Estimate, compute_confidence_interval


def estimate(lower, upper):
    return Estimate((lower + upper) / 2.0, lower, upper)


@pytest.mark.parametrize(
    ("lower", "upper", "outcome"),
    [
        (17.0, 30.0, "supported"),
        (16.0, 32.0, "supported"),  # the bounds themselves are in the range
        (15.9, 30.0, "undecided"),
        (20.0, 32.1, "undecided"),
        (10.0, 40.0, "undecided"),
        (10.0, 16.0, "undecided"),
        (32.0, 40.0, "undecided"),
        (10.0, 15.9, "refuted"),
        (32.1, 40.0, "refuted"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_between_needs_the_whole_interval(lower, upper, outcome):
    found = Verdict.that_between("h", estimate(lower, upper), 16, 32, margin=0)
    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("lower", "upper", "above"),
    [
        (0.1, 2.0, "supported"),
        (0.0, 2.0, "undecided"),  # 0 is not above 0
        (-1.0, 0.1, "undecided"),
        (-1.0, 0.0, "refuted"),
        (0.0, 0.0, "refuted"),
        (-2.0, -1.0, "refuted"),
        (-math.inf, math.inf, "undecided"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_above_and_below_are_strict_mirror_images(lower, upper, above):
    mirrored = estimate(-upper, -lower)
    assert Verdict.that_above("h", estimate(lower, upper), 0, margin=0).outcome == above
    assert Verdict.that_below("h", mirrored, 0, margin=0).outcome == above


@pytest.mark.parametrize(
    ("lower", "upper", "settings", "outcome"),
    [
        (-0.002, -0.001, {}, "undecided"),  # "refuted, -0.1%" does not happen
        (-0.03, -0.0101, {}, "refuted"),
        (-0.02, -0.0099, {}, "undecided"),
        (0.001, 0.002, {}, "supported"),  # a claim is taken at its word
        (-0.002, -0.001, {"unit": "s"}, "refuted"),  # no scale, so no margin
        (-0.002, -0.001, {"unit": "s", "margin": 0.1}, "undecided"),
        (-0.3, -0.2, {"margin": 0.1}, "refuted"),
    ],
)
def test_what_differs_by_less_than_the_margin_is_not_refuted(
    lower, upper, settings, outcome
):
    found = Verdict.that_above("h", estimate(lower, upper), 0, **settings)
    assert found.outcome == outcome


def test_the_margin_is_a_hundredth_of_the_bound_it_stands_at():
    def said(lower, upper):
        return Verdict.that_between("h", estimate(lower, upper), 16, 32).outcome

    assert said(10.0, 15.83) == said(32.33, 40.0) == "refuted"
    assert said(10.0, 15.85) == said(32.31, 40.0) == "undecided"
    assert said(16.0, 32.0) == "supported"
    assert said(15.99, 32.0) == "undecided"
    below = [Verdict.that_below("h", estimate(x, 9.0), -7).outcome for x in (-7, -6.92)]
    assert below == ["undecided", "refuted"]
    with pytest.raises(ConfigError, match=r"margin=-1: must be .* at least 0"):
        Verdict.that_below("h", estimate(0.0, 1.0), 1, margin=-1)


NUMBERS = st.floats(-100.0, 100.0)
CLAIMS = [
    lambda found, a, b, **given: Verdict.that_above("h", found, a, **given),
    lambda found, a, b, **given: Verdict.that_below("h", found, a, **given),
    lambda found, a, b, **given: Verdict.that_between("h", found, *sorted([a, b])),
]


@given(st.tuples(*[NUMBERS] * 4), NUMBERS, NUMBERS, st.sampled_from(CLAIMS))
def test_a_wider_interval_never_decides_what_a_narrower_one_left_open(
    ends, a, b, claim
):
    left, lower, upper, right = sorted(ends)
    narrow = claim(estimate(lower, upper), a, b).outcome
    wide = claim(estimate(left, right), a, b).outcome
    assert wide in (narrow, "undecided")


@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0.0, 10.0))
def test_a_margin_turns_refutations_into_doubt_and_nothing_else(p, q, bound, margin):
    found = estimate(min(p, q), max(p, q))
    strict = Verdict.that_above("h", found, bound, margin=0).outcome
    kind = Verdict.that_above("h", found, bound, margin=margin).outcome
    shifted = Verdict.that_above("h", found, bound - margin, margin=0).outcome
    assert kind == strict or (strict, kind) == ("refuted", "undecided")
    assert (kind == "refuted") == (shifted == "refuted")


def test_an_interval_and_a_row_judge_alike():
    found = compute_confidence_interval([3.0, 4.0, 5.0])
    by_row = Verdict.that_above("h", found, 0)
    assert by_row == Verdict.that_above("h", Estimate.of(found), 0)
    assert by_row.estimate == Estimate(4.0, found["ci_lower"], found["ci_upper"])


def test_one_replication_decides_nothing():
    assert Verdict.that_above("h", compute_confidence_interval([9.0]), 0).outcome == (
        "undecided"
    )


def test_bounds_must_be_numbers_in_order():
    with pytest.raises(ConfigError, match="low=32: must be at most high=16"):
        Verdict.that_between("h", estimate(0.0, 1.0), 32, 16)
    with pytest.raises(ConfigError, match="bound=nan"):
        Verdict.that_below("h", estimate(0.0, 1.0), math.nan)


def test_it_reads_as_a_sentence_with_the_digits_its_interval_knows():
    verdict = Verdict.that_between(
        "p99 < 7 & > 5", Estimate(5.9612, 5.9012, 6.0212), 5, 7, unit="s"
    )
    expected = "supported: measured 5.96 s (5.90 to 6.02), claimed 5 to 7 s"
    assert str(verdict) == expected
    assert repr(verdict) == "p99 < 7 & > 5\n" + expected
    shown = verdict._repr_html_()
    assert "<i>p99 &lt; 7 &amp; &gt; 5</i>" in shown
    assert "Supported</b>: measured 5.96 s (5.90 to 6.02), claimed 5 to 7 s" in shown


def test_shares_can_be_shown_in_percent():
    drop = Estimate(-0.283, -0.301, -0.265)
    verdict = Verdict.that_between("h", drop, -0.3, -0.2, spec=".1%")
    assert str(verdict) == (
        "undecided: measured −28.3% (−30.1% to −26.5%), claimed −30% to −20%"
    )


def test_what_is_known_exactly_has_no_bounds():
    verdict = Verdict.that_below("h", Estimate(3.0, 3.0, 3.0), 6)
    assert str(verdict) == "supported: measured 3.00, claimed below 6"


@pytest.mark.parametrize(
    ("claim", "spec", "unit", "claimed", "margin"),
    [
        (0.0, "+.1%", "", "above 0%", "1%"),
        (-0.5, "+.0%", "", "above −50%", "0.5%"),
        (0.125, "+.1%", "", "above +12.5%", "0.125%"),
        (2.0, "", "s", "above 2 s", "0.02 s"),
        (0.0, "", "s", "above 0 s", "0 s"),
    ],
)
def test_bounds_and_margins_in_the_fewest_digits(claim, spec, unit, claimed, margin):
    its = Verdict.that_above("h", Estimate(1, 0, 2), claim, spec=spec, unit=unit)
    assert (its.claimed, its.spared) == (claimed, margin)


def test_one_sided_claims_are_said_as_such():
    some = Estimate(0.5, 0.25, 0.75)
    assert str(Verdict.that_above("h", some, 0)).endswith("claimed above 0")
    assert str(Verdict.that_below("h", some, 1, unit="s")).endswith("claimed below 1 s")
