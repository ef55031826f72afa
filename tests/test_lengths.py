"""Laws of prompt and output lengths: samples, quantiles and moments agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llminfer.laws.lengths import LENGTH_LAWS, ByClass, length_law

BIMODAL = {
    "short_min": 10,
    "short_max": 50,
    "long_min": 500,
    "long_max": 2000,
    "short_prob": 0.7,
}
CASES = {
    "lognormal": {"mu": 3, "sigma": 0.8},
    "lognormal, clipped": {"mu": 4, "sigma": 1.5, "min": 5, "max": 8192},
    "lognormal, no spread": {"mu": 4, "sigma": 0},
    "uniform": {"min": 10, "max": 500},
    "uniform, fractions": {"min": 1.5, "max": 4.25},
    "uniform, a point": {"min": 7, "max": 7},
    "truncated_normal": {"mu": 100, "sigma": 30, "min": 10, "max": 500},
    "truncated_normal, its tail": {"mu": 5, "sigma": 20, "min": 30, "max": 60},
    "powerlaw": {"alpha": 2.5, "min": 10, "max": 4000},
    "powerlaw, alpha 1": {"alpha": 1, "min": 10, "max": 4000},
    "powerlaw, alpha 1 but for rounding": {"alpha": 1 - 1e-16, "min": 1, "max": 1000},
    "bimodal": BIMODAL,
    "geometric": {"mean": 40},
    "geometric, clipped": {"mean": 40, "max": 90},
    "geometric, mean 1": {"mean": 1},
    "constant": {"value": 128},
    "empirical": {"values": [3, 90, 3, 17], "weights": [1, 2, 0.5, 0]},
    "empirical, unweighted": {"values": [8, 2, 2.9]},
}


def law_of(case):
    return length_law("prompt", case.partition(",")[0], CASES[case])


def z_score(sample, expected):
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return (
        (sample.mean() - expected) / error if error > 0.0 else sample.mean() - expected
    )


ANY_LAW = pytest.mark.parametrize(
    "law", [pytest.param(law_of(case), id=case) for case in CASES]
)


def test_every_law_has_a_case():
    assert {case.partition(",")[0] for case in CASES} == set(LENGTH_LAWS)


@ANY_LAW
def test_tokens_are_whole_and_within_the_support(law):
    ends = np.array([0.0, 1e-300, 1e-16, 0.5, 1.0 - 2.0**-53])
    tokens = law.tokens(ends)
    low, high = law.support
    assert tokens.dtype == np.int64
    assert (tokens >= max(low, 1)).all()
    assert (tokens <= high).all()


@ANY_LAW
def test_a_quantile_exceeds_k_just_where_the_survival_says(law):
    u = (np.arange(20_000) + 0.5) / 20_000
    tokens = law.tokens(u)
    for k in np.unique(np.concatenate([tokens, tokens - 1]))[:400]:
        beyond = u > 1.0 - law.survival(np.array([float(k)]))[0]
        unsure = np.abs(u - 1.0 + law.survival(np.array([float(k)]))[0]) < 1e-9
        assert ((tokens > k) == beyond)[~unsure].all(), k


@ANY_LAW
def test_the_pmf_is_what_a_sample_shows(law):
    pmf = law.pmf()
    assert (pmf >= 0.0).all()
    assert pmf.sum() == pytest.approx(1.0, abs=1e-12)
    sample = law.tokens(np.random.default_rng(2).random(200_000))
    seen, wanted = np.bincount(sample, minlength=len(pmf)), pmf * len(sample)
    common = wanted >= 10.0
    rest = len(sample) - wanted[common].sum()
    misfit = ((seen[: len(pmf)] - wanted) ** 2)[common] / wanted[common]
    misfit = misfit.sum() + (seen[: len(pmf)][~common].sum() - rest) ** 2 / max(rest, 1)
    assert seen[len(pmf) :].sum() == 0
    assert misfit < stats.chi2.isf(3e-5, max(common.sum(), 1))  # as |z| < 4


@pytest.mark.parametrize("copies", [1, 7, 64])
@ANY_LAW
def test_moments_of_the_greatest_are_sums_over_the_pmf(law, copies):
    pmf = law.pmf()
    greatest = np.diff(np.cumsum(pmf) ** copies, prepend=0.0)
    k = np.arange(len(pmf))
    assert law.expectation(copies) == pytest.approx((k * greatest).sum(), rel=1e-9)
    pairs = (k * (k - 1) / 2 * greatest).sum()
    assert law.pairs(copies) == pytest.approx(pairs, rel=1e-8, abs=1e-9)
    variance = ((k - (k * pmf).sum()) ** 2 * pmf).sum()
    assert law.variance() == pytest.approx(variance, rel=1e-8, abs=1e-6)


@pytest.mark.parametrize("copies", [1, 16])
@ANY_LAW
def test_moments_of_the_greatest_are_what_a_sample_shows(law, copies):
    u = np.random.default_rng(20_261).random((40_000, copies))
    greatest = law.tokens(u).max(axis=1).astype(float)
    assert abs(z_score(greatest, law.expectation(copies))) < 4.0
    assert abs(z_score(greatest * (greatest - 1.0) / 2.0, law.pairs(copies))) < 4.0


def test_published_means_of_the_defaults():
    ends = np.array([10.0, 500.0])
    normal = stats.truncnorm(*((ends - 100.0) / 30.0), loc=100.0, scale=30.0)
    assert normal.mean() == pytest.approx(100.133, abs=5e-4)
    outputs = law_of("truncated_normal")
    assert outputs.expectation() == pytest.approx(99.633, abs=5e-4)
    prompts = length_law("prompt", "lognormal", {"mu": 4, "sigma": 1.5})
    assert prompts.expectation() == pytest.approx(167.678, abs=5e-4)
    capped = length_law("prompt", "lognormal", {"mu": 4, "sigma": 1.5, "max": 8192})
    assert capped.expectation() == pytest.approx(165.579, abs=5e-4)


@pytest.mark.parametrize(
    ("case", "cdf"),
    [
        ("lognormal", stats.lognorm(s=0.8, scale=np.exp(3)).cdf),
        ("uniform", stats.uniform(10, 490).cdf),
        (
            "truncated_normal",
            stats.truncnorm(-3, 400 / 30, loc=100, scale=30).cdf,
        ),
        ("powerlaw", lambda x: (1 - (x / 10) ** -1.5) / (1 - 400**-1.5)),
        ("geometric", lambda x: stats.geom(1 / 40).cdf(np.ceil(x) - 1)),
    ],
)
def test_the_law_below_the_floor_is_the_textbooks(case, cdf):
    law = law_of(case)
    k = np.arange(law.support[0], min(law.support[1], 1000) - 1, dtype=float)
    np.testing.assert_allclose(law.survival(k), 1.0 - cdf(k + 1.0), atol=1e-12)


def mass(law, k):
    return law.pmf()[k] if k < len(law.pmf()) else 0.0


def test_truncation_and_bounds_leave_no_atoms():
    normal = length_law(
        "output", "truncated_normal", {"mu": 30, "sigma": 30, "min": 10, "max": 50}
    )
    inside = stats.truncnorm(-20 / 30, 20 / 30, loc=30, scale=30)
    assert mass(normal, 10) == pytest.approx(inside.cdf(11), rel=1e-9)
    assert mass(normal, 49) == pytest.approx(inside.sf(49), rel=1e-9)
    assert mass(normal, 50) == 0.0
    flat = length_law("output", "powerlaw", {"alpha": 0.5, "min": 1, "max": 40})
    assert mass(flat, 40) == 0.0
    assert mass(flat, 39) < mass(flat, 38)
    assert mass(law_of("uniform"), 500) == 0.0
    sample = normal.tokens(np.random.default_rng(5).random(100_000))
    assert sample.min() == 10
    assert sample.max() == 49


def test_a_cap_clips_and_so_makes_an_atom():
    free = length_law("prompt", "lognormal", {"mu": 4, "sigma": 1.5})
    clipped = law_of("lognormal, clipped")
    above = free.survival(np.array([4.0, 8191.0]))
    assert mass(clipped, 8192) == pytest.approx(above[1], rel=1e-9)
    assert mass(clipped, 5) == pytest.approx(1 - above[0] + mass(free_table(), 5))
    u = np.random.default_rng(7).random(10_000)
    both = np.clip(free.tokens(u), 5, 8192)
    np.testing.assert_array_equal(clipped.tokens(u), both)
    p = 1 / 40
    assert mass(law_of("geometric, clipped"), 90) == pytest.approx((1 - p) ** 89)


def free_table():
    return length_law("prompt", "lognormal", {"mu": 4, "sigma": 1.5, "max": 100_000})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("empirical", {"values": [50_000, 90_000, 40_000.5]}),
        ("constant", {"value": 100_000}),
        ("uniform", {"min": 50_000, "max": 50_001}),
        ("lognormal", {"mu": 11, "sigma": 0}),
        ("lognormal", {"mu": 11, "sigma": 1, "max": 120_000}),
        ("bimodal", {**BIMODAL, "long_min": 40_000, "long_max": 90_000}),
    ],
)
@pytest.mark.parametrize("copies", [1, 32])
def test_moments_of_long_lengths_lose_no_digits(name, params, copies):
    law = length_law("prompt", name, params)
    k = np.arange(law.support[1])
    beyond = 1.0 - (1.0 - law.survival(k)) ** copies
    assert law.expectation(copies) == pytest.approx(beyond.sum(), rel=1e-12)
    assert law.pairs(copies) == pytest.approx((k * beyond).sum(), rel=1e-12)


def test_moments_of_an_endless_law_include_its_tail():
    """Floor(X) of a wide log-normal has the mean of X less a half."""
    law = length_law("prompt", "lognormal", {"mu": 12, "sigma": 1})
    assert law.expectation() == pytest.approx(np.exp(12.5) - 0.5, rel=1e-9)
    squares = np.exp(2 * 12 + 2 * 1**2)
    pairs = squares / 2 - np.exp(12.5) + 5 / 12  # floor((X-U)^2 - (X-U))/2, U uniform
    assert law.pairs() == pytest.approx(pairs, rel=1e-7)


RANGES = st.lists(st.integers(1, 300), min_size=2, max_size=2).map(sorted)


@pytest.mark.filterwarnings("error")
@given(RANGES, RANGES, st.sampled_from([0.0, 0.3, 1.0 - 1e-9, 1.0]))
def test_of_two_parts_either_may_be_the_longer(short, long, share):
    """The table ended with the second: theory had a third of the chances."""
    names = ("short_min", "short_max", "long_min", "long_max")
    ends = dict(zip(names, short + long, strict=True))
    law = length_law("output", "bimodal", {**ends, "short_prob": share})
    parts = (law, length_law("output", "constant", {"value": 5}))
    for its in (law, ByClass(parts, (2.0, 1.0))):
        chance = its.pmf()
        assert chance.sum() == pytest.approx(1.0, abs=1e-12)
        mean = chance @ np.arange(len(chance))
        assert mean == pytest.approx(its.expectation(), rel=1e-9)
    drawn = law.tokens((np.arange(20_000) + 0.5) / 20_000)
    assert drawn.mean() == pytest.approx(law.expectation(), rel=1e-3)


@pytest.mark.parametrize("most", [2**21, 2**31])
def test_a_first_part_of_millions_of_tokens_counts(most):
    ends = {"short_min": 1, "short_max": most, "long_min": 20, "long_max": 40}
    law = length_law("output", "bimodal", {**ends, "short_prob": 0.7})
    assert law.expectation() == pytest.approx(0.7 * most / 2 + 0.3 * 29.5, rel=1e-12)


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.integers(0, 2**32))
def test_a_request_moves_one_way_with_a_parameter(sigma, other, seed):
    """Quantiles, not redraws: what common random numbers need."""
    u = np.random.default_rng(seed).random(200)
    low, high = sorted((sigma, other))
    narrow = length_law("prompt", "lognormal", {"mu": 4, "sigma": low}).tokens(u)
    wide = length_law("prompt", "lognormal", {"mu": 4, "sigma": high}).tokens(u)
    assert (wide[u > 0.5] >= narrow[u > 0.5]).all()
    assert (wide[u < 0.5] <= narrow[u < 0.5]).all()
