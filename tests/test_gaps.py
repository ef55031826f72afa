"""Gaps between tokens: pooled without a list of them, and equal to the list's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import RUNS, serve_columns
from hypothesis import given, settings
from hypothesis import strategies as st

from llminfer import SimulationConfig, simulate
from llminfer.servers import token_gaps as module
from llminfer.servers.token_gaps import Gaps, token_gaps

SHARES = [0.0, 0.001, 0.1, 0.37, 0.5, 0.9, 0.99, 0.9999, 1.0]
SECONDS = st.sampled_from([0.5, 1.0, 1.5]) | st.floats(0.01, 3.0)
GROWTH = st.sampled_from([0.0, 0.5]) | st.floats(0.0, 0.1)
ROWS = st.lists(
    st.tuples(SECONDS, GROWTH, st.integers(0, 40), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


def listed(rows):
    """Every gap by itself."""
    each = [np.repeat(f + g * np.arange(n), weight) for f, g, n, weight in rows]
    return np.concatenate(each)


@pytest.mark.parametrize("few", [False, True], ids=["listed", "narrowed down"])
@settings(max_examples=120)
@given(rows=ROWS)
def test_pooled_quantiles_are_those_of_the_list(few, rows):
    every = listed(rows)
    pooled = Gaps(*map(np.array, zip(*rows, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        if few:  # so that a small pool takes the way of a large one
            patch.setattr(module, "_LISTED", 3)
            patch.setattr(module, "_SAMPLED", 8)
        found = pooled.quantiles(SHARES)
    if not len(every):
        assert np.isnan(found).all()
        assert math.isnan(pooled.mean())
        return
    np.testing.assert_allclose(found, np.quantile(every, SHARES), rtol=1e-12)
    assert pooled.mean() == pytest.approx(every.mean(), rel=1e-12)
    assert pooled.number() == len(every)


def static_gaps(record, config, skip):
    """Each request's decode steps until it has all its tokens, one by one."""
    law, found = config.step_time, []
    starts = record.processing_start_time
    for i in range(skip, len(starts)):
        mates = np.flatnonzero(starts == starts[i])
        tokens = int(record.prompt_length[mates].sum())
        for j in range(int(record.output_length[i]) - 1):
            found.append(law.decode(len(mates), tokens + j * len(mates), 1))
    return np.array(found)


@settings(max_examples=100)
@given(run=RUNS, data=st.data())
def test_a_static_server_makes_a_token_a_step_until_it_pads(run, data):
    config, workload = run
    config = config.replace(gamma=max(config.gamma, 1e-3))
    record = serve_columns(config, workload)
    skip = data.draw(st.integers(0, len(workload) - 1))
    every = static_gaps(record, config, skip)
    pooled = token_gaps(record, config.step_time, skip)
    assert pooled.number() == len(every)
    if len(every):
        found = pooled.quantiles(SHARES)
        np.testing.assert_allclose(found, np.quantile(every, SHARES), rtol=1e-7)


def test_gaps_far_from_each_other_are_found_too(monkeypatch):
    """The way down begins below the least of them."""
    monkeypatch.setattr(module, "_LISTED", 3)
    monkeypatch.setattr(module, "_SAMPLED", 8)
    rows = [(first, 0.001, 20, 1) for first in (1.0, 2.0, 3.0, 500.0, 1000.0)]
    found = Gaps(*map(np.array, zip(*rows, strict=True))).quantiles(SHARES)
    np.testing.assert_allclose(found, np.quantile(listed(rows), SHARES), rtol=1e-12)


@pytest.mark.parametrize("kv_blocks", [None, 60])
@pytest.mark.parametrize("at_once", [1, 2, 7, 100])
def test_gaps_are_the_same_however_many_steps_are_looked_at_at_once(
    monkeypatch, at_once, kv_blocks
):
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        server="continuous",
        arrival_rate=5.0,
        batch_size=4,
        prompt_dist_params={"mu": 4, "sigma": 1.0, "max": 256},
        kv_blocks=kv_blocks,
        num_requests=60,
        warmup_requests=0,
        random_seed=3,
    )
    record = simulate(config)
    whole = token_gaps(record, config.step_time)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    parts = token_gaps(record, config.step_time)
    assert parts.number() == whole.number()
    shares = np.linspace(0.0, 1.0, 40)
    np.testing.assert_allclose(parts.quantiles(shares), whole.quantiles(shares))
