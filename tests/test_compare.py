"""Alternatives that share their requests are compared in pairs."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from llminfer.base.errors import ConfigError
from llminfer.stats.paired import (
    best_against_rest,
    blocked_anova,
    cost_of_choice,
    holm,
    paired_differences,
)

N = 12


def sweep_table(shared=1.0, effect=0.2, noise=0.1, seed=3):
    """Three policies whose waits rise and fall together with the replication."""
    random = np.random.default_rng(seed)
    common = shared * random.normal(size=N)
    rows = [
        {
            "policy": policy,
            "replication": i,
            "seed": 42 + i,
            "wait": 5.0 + common[i] + shift + noise * random.normal(),
        }
        for policy, shift in (("FCFS", 0.0), ("SJF", -effect), ("WFQ", effect / 2))
        for i in range(N)
    ]
    return pd.DataFrame(rows)


def columns(table):
    return {
        policy: group["wait"].to_numpy() for policy, group in table.groupby("policy")
    }


def test_each_pair_is_students_paired_test():
    table = sweep_table()
    waits = columns(table)
    found = paired_differences(table, "wait", "policy")
    pairs = list(zip(found["baseline"], found["alternative"], strict=True))
    assert pairs == [("FCFS", "SJF"), ("FCFS", "WFQ"), ("SJF", "WFQ")]
    for row in found.itertuples():
        test = reference.ttest_rel(waits[row.alternative], waits[row.baseline])
        interval = test.confidence_interval()
        assert (row.t, row.p) == pytest.approx((test.statistic, test.pvalue))
        assert row.difference_lower == pytest.approx(interval.low)
        assert row.difference_upper == pytest.approx(interval.high)
        assert row.n == N


def test_pairs_see_what_independent_samples_cannot():
    seen = {"paired": 0, "unpaired": 0}
    for seed in range(100):
        table = sweep_table(seed=seed)
        waits = columns(table)
        paired = paired_differences(table, "wait", "policy", baseline="FCFS").iloc[0]
        unpaired = reference.ttest_ind(waits["SJF"], waits["FCFS"])
        seen["paired"] += paired["significant"]
        seen["unpaired"] += unpaired.pvalue <= 0.05
        wide = np.ptp(unpaired.confidence_interval())
        assert paired["difference_upper"] - paired["difference_lower"] < wide / 2.0
    assert seen["paired"] > 90
    assert seen["unpaired"] < 20


def test_order_of_rows_does_not_matter_to_the_pairing():
    table = sweep_table()
    mixed = table.sample(frac=1.0, random_state=1)
    mixed = pd.concat(
        [mixed.query("policy == 'FCFS'"), mixed.query("policy != 'FCFS'")]
    )
    for frame in (table, mixed):
        found = paired_differences(frame, "wait", "policy", baseline="FCFS")
        found = found.set_index("alternative")["t"]
        assert found["SJF"] == pytest.approx(
            paired_differences(table, "wait", "policy", baseline="FCFS")["t"].iloc[0]
        )


def test_relative_change_is_of_the_baseline():
    found = paired_differences(sweep_table(), "wait", "policy", baseline="SJF")
    waits = columns(sweep_table())
    expected = waits["FCFS"].mean() / waits["SJF"].mean() - 1.0
    assert found["baseline"].unique().tolist() == ["SJF"]
    assert found.loc[0, "relative"] == pytest.approx(expected)


def test_bounds_of_the_relative_change_are_the_ratios_a_paired_test_just_accepts():
    table = sweep_table(shared=0.5, effect=0.6, noise=0.5)
    waits = columns(table)
    row = paired_differences(table, "wait", "policy", baseline="FCFS").iloc[0]
    for bound in (row["relative_lower"], row["relative_upper"]):
        scaled = (1.0 + bound) * waits["FCFS"]
        assert reference.ttest_rel(waits["SJF"], scaled).pvalue == pytest.approx(0.05)
    assert row["relative_lower"] < row["relative"] < row["relative_upper"]


def test_a_baseline_that_may_be_zero_has_no_relative_interval():
    table = sweep_table()
    table["wait"] -= table["wait"].mean()
    row = paired_differences(table, "wait", "policy").iloc[0]
    assert np.isnan(row["relative_lower"])
    assert np.isnan(row["relative_upper"])


def test_alternatives_without_any_difference_are_alike():
    found = paired_differences(sweep_table(effect=0.0, noise=0.0), "wait", "policy")
    assert (found["difference"] == 0.0).all()
    assert (found["relative_upper"] == 0.0).all()
    assert (found["p_holm"] == 1.0).all()
    assert not found["significant"].any()


def test_a_constant_difference_is_certain():
    found = paired_differences(
        sweep_table(shared=0.0, effect=1.0, noise=0.0), "wait", "policy"
    )
    assert (found["p"] == 0.0).all()
    assert found["t"].tolist() == [-np.inf, np.inf, np.inf]


def test_holm_by_hand():
    p = np.array([0.03, 0.01, 0.5, 0.02])
    # 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.5, never falling
    assert holm(p) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm(np.array([0.4, 0.6])) == pytest.approx([0.8, 0.8])
    assert holm(np.array([0.9, 0.7])) == pytest.approx([1.0, 1.0])


def test_correction_counts_the_comparisons_made():
    one = paired_differences(sweep_table(), "wait", "policy", baseline="FCFS")
    assert one["p_holm"].min() == pytest.approx(2.0 * one["p"].min())
    every = paired_differences(sweep_table(), "wait", "policy")
    assert every["p_holm"].min() == pytest.approx(3.0 * every["p"].min())


def test_a_difference_counts_only_after_the_correction():
    found = paired_differences(sweep_table(effect=0.12), "wait", "policy")
    doubtful = found[(found["p"] < 0.05) & (found["p_holm"] > 0.05)]
    assert len(doubtful)
    assert not doubtful["significant"].any()
    assert found["significant"].tolist() == (found["p_holm"] <= 0.05).tolist()


def test_missing_and_repeated_runs_are_named():
    table = sweep_table()
    lacking = table.drop(table.query("policy == 'SJF' and replication > 8").index)
    message = (
        "policy='SJF' lacks replication 9: must have each replication exactly once"
    )
    with pytest.raises(ConfigError, match=message):
        paired_differences(lacking, "wait", "policy")
    twice = pd.concat([table, table.query("policy == 'WFQ' and replication == 4")])
    with pytest.raises(ConfigError, match="policy='WFQ' repeats replication 4:"):
        blocked_anova(twice, "wait", "policy")
    table.loc[table.index[2], "wait"] = np.nan
    with pytest.raises(ConfigError, match="policy='FCFS' lacks replication 2:"):
        paired_differences(table, "wait", "policy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "wiat"}, "wiat: no such column"),
        ({"baseline": "SJFF"}, "baseline='SJFF': must be one of 'FCFS', 'SJF', 'WFQ'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        paired_differences(
            **{"frame": sweep_table(), "metric": "wait", "over": "policy", **arguments}
        )


def test_one_alternative_or_one_block_compares_nothing():
    table = sweep_table()
    with pytest.raises(ConfigError, match="policy="):
        paired_differences(table.query("policy == 'SJF'"), "wait", "policy")
    with pytest.raises(ConfigError, match="replication="):
        blocked_anova(table.query("replication == 0"), "wait", "policy")


def test_none_is_an_alternative_like_others():
    table = sweep_table()
    table["timeout"] = table["policy"].map({"FCFS": np.nan, "SJF": 0.0, "WFQ": 1.0})
    found = paired_differences(table, "wait", "timeout")
    expected = paired_differences(table, "wait", "policy")
    assert found["difference"].tolist() == expected["difference"].tolist()


# Analysis of variance


def residual_squares(y, *factors):
    """Sum of squares that a least squares fit of these factors leaves."""
    design = [np.ones((len(y), 1))]
    design += [pd.get_dummies(factor).to_numpy(float) for factor in factors]
    design = np.hstack(design)
    fit = np.linalg.lstsq(design, y, rcond=None)[0]
    return ((y - design @ fit) ** 2).sum(), np.linalg.matrix_rank(design)


def test_blocked_anova_is_the_f_test_of_nested_least_squares_fits():
    table = sweep_table()
    y, policy, block = (table[name] for name in ("wait", "policy", "replication"))
    small, rank_small = residual_squares(y, block)
    large, rank_large = residual_squares(y, block, policy)
    df, df_error = rank_large - rank_small, len(y) - rank_large
    f = (small - large) / df / (large / df_error)
    found = blocked_anova(table, "wait", "policy").set_index("design").loc["blocked"]
    assert (found["df"], found["df_error"]) == (df, df_error) == (2, 2 * (N - 1))
    assert found["F"] == pytest.approx(f, rel=1e-9)
    assert found["p"] == pytest.approx(reference.f.sf(f, df, df_error), rel=1e-9)


def test_one_way_anova_beside_it_is_the_usual_one_and_sees_less():
    table = sweep_table()
    found = blocked_anova(table, "wait", "policy").set_index("design")
    expected = reference.f_oneway(*columns(table).values())
    one_way = found.loc["one-way"]
    assert (one_way["F"], one_way["p"]) == pytest.approx(tuple(expected))
    assert (one_way["df"], one_way["df_error"]) == (2, 3 * (N - 1))
    assert found.loc["blocked", "p"] < one_way["p"] / 100.0


def test_blocked_anova_of_two_alternatives_is_the_paired_test_squared():
    table = sweep_table().query("policy != 'WFQ'")
    t = paired_differences(table, "wait", "policy").iloc[0]
    blocked = blocked_anova(table, "wait", "policy").iloc[0]
    assert blocked["F"] == pytest.approx(t["t"] ** 2)
    assert blocked["p"] == pytest.approx(t["p"])


def test_it_raises_false_alarms_as_often_as_it_says():
    tables = (sweep_table(effect=0.0, seed=seed) for seed in range(400))
    alarms = sum(blocked_anova(t, "wait", "policy")["p"].iloc[0] < 0.1 for t in tables)
    assert abs(alarms - 40) < 4.0 * np.sqrt(400 * 0.1 * 0.9)


def test_the_best_of_a_claim_is_held_against_the_best_of_the_rest():
    rows = [
        {"B": b, "replication": r, "p99": level + r + wobble * r}
        for b, level, wobble in (
            (1, 9.0, 0.0),
            (2, 5.0, 0.1),
            (4, 6.0, 0.0),
            (8, 7.0, 0.0),
        )
        for r in range(4)
    ]
    row = best_against_rest(pd.DataFrame(rows), "p99", "B", claimed=[1, 4])
    assert (row["baseline"], row["alternative"]) == (4, 2)
    assert row["difference"] == pytest.approx(-1.0 + 0.1 * 1.5)
    for claimed in ([3], [1, 2, 4, 8]):
        with pytest.raises(ConfigError, match=r"claimed=.*some, but not all, of 1, 2"):
            best_against_rest(pd.DataFrame(rows), "p99", "B", claimed=claimed)


def ties(blocks, random):
    """Seven alternatives that are equally good; noise shared, and skewed of its own."""
    own = random.gamma(2.0, size=(blocks, 7))
    waits = 10.0 + 3.0 * random.normal(size=(blocks, 1)) + own
    return pd.DataFrame(
        {
            "wait": waits.ravel(),
            "limit": np.tile(np.arange(7), blocks),
            "replication": np.repeat(np.arange(blocks), 7),
        }
    )


@pytest.mark.parametrize("claimed", [[3], [2, 3]])
def test_among_equals_the_best_of_a_claim_is_seldom_judged(claimed):
    """The two that look best, compared as if nobody had picked them, often are."""
    random = np.random.default_rng(7)
    wrong, naive = {"difference": 0, "relative": 0}, 0
    for _ in range(400):
        table = ties(12, random)
        row = best_against_rest(table, "wait", "limit", claimed)
        for name in wrong:
            wrong[name] += not row[name + "_lower"] <= 0.0 <= row[name + "_upper"]
        waits = table["wait"].to_numpy().reshape(12, -1)  # blocks by limit
        two = (waits[:, int(row[name])] for name in ("baseline", "alternative"))
        naive += reference.ttest_rel(*two).pvalue < 0.05
    assert max(wrong.values()) <= 20
    assert naive > max(wrong.values())


def test_of_two_the_best_against_the_rest_is_their_paired_difference():
    table = limits_table([10.0, 11.0], seed=1)
    row = best_against_rest(table, "p99", "limit", claimed=[0])
    pair = paired_differences(table, "p99", "limit", baseline=0).iloc[0]
    for name in ("difference", "relative"):
        for end in ("", "_lower", "_upper"):
            assert row[name + end] == pytest.approx(pair[name + end])


def test_a_true_best_is_still_found_and_its_bounds_hold_the_truth():
    held = found = 0
    for seed in range(200):
        table = limits_table([10.4, 10.0, 10.4, 10.5, 12.0], seed)
        row = best_against_rest(table, "p99", "limit", claimed=[1, 2])
        held += row["difference_lower"] <= 0.4 <= row["difference_upper"]
        found += row["difference_lower"] > 0.0
    assert held >= 190
    assert found > 150


def limits_table(means, seed, noise=0.2):
    random = np.random.default_rng(seed)
    common = random.normal(size=N)
    rows = [
        {"limit": limit, "replication": i, "p99": mean + common[i] + error}
        for limit, mean in enumerate(means)
        for i, error in enumerate(noise * random.normal(size=N))
    ]
    return pd.DataFrame(rows)


def test_of_two_the_cost_is_their_paired_difference():
    table = limits_table([10.0, 11.0], seed=1)
    cost = cost_of_choice(table, "p99", "limit", choice=1)
    pair = paired_differences(table, "p99", "limit", baseline=0).iloc[0]
    assert (cost["choice"], cost["best"]) == (1, 0)
    for end in ("", "_lower", "_upper"):
        assert cost["cost" + end] == pytest.approx(pair["relative" + end])
    assert cost["cost_lower"] < 0.1 < cost["cost_upper"]


def test_the_best_costs_nothing_and_its_rival_bounds_it():
    table = limits_table([10.0, 10.1, 15.0], seed=2)
    cost = cost_of_choice(table, "p99", "limit", choice=0)
    assert cost["best"] == 0
    assert (cost["cost"], cost["cost_lower"]) == (0.0, 0.0)
    far = limits_table([10.0, 15.0, 15.0], seed=2)
    assert cost_of_choice(far, "p99", "limit", choice=0)["cost_upper"] == 0.0


def test_luck_of_the_best_is_not_held_against_the_choice():
    tables = [limits_table([10.0] * 8, seed) for seed in range(200)]
    false = {"allowed for": 0, "naive": 0}
    for table in tables:
        cost = cost_of_choice(table, "p99", "limit", choice=0)
        false["allowed for"] += cost["cost_lower"] > 0.0
        if cost["best"] != 0:
            pairs = paired_differences(table, "p99", "limit", baseline=cost["best"])
            mine = pairs[pairs["alternative"] == 0].iloc[0]
            false["naive"] += mine["relative_lower"] > 0.0
    assert false["allowed for"] <= 0.05 * len(tables)
    assert false["naive"] > 0.05 * len(tables)


def test_a_choice_that_is_not_there_is_named():
    table = limits_table([10.0, 11.0], seed=1)
    with pytest.raises(ConfigError, match=r"choice=3: must be one of 0, 1"):
        cost_of_choice(table, "p99", "limit", choice=3)


def test_a_cost_without_bounds_says_so():
    """The best may cost nothing, so that no ratio to it has a bound."""
    runs = pd.DataFrame(
        {"cost": [0.0, 1.0, 2.0, -1.0, 1.0, 0.5], "kind": list("ab") * 3}
    )
    runs["replication"] = [0, 0, 1, 1, 2, 2]
    found = cost_of_choice(runs, "cost", "kind", "b")
    assert (found["cost_lower"], found["cost_upper"]) == (0.0, np.inf)


def test_a_replication_without_a_number_is_one_like_others():
    table = sweep_table()
    found = paired_differences(table, "wait", "policy", baseline="FCFS")
    table.loc[table["replication"] == 3, "replication"] = np.nan
    again = paired_differences(table, "wait", "policy", baseline="FCFS")
    pd.testing.assert_frame_equal(found, again)
