"""Small parts on which a decision rests, each alone and by its definition."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from llminfer import SLO, SimulationConfig, Workload, simulate, theory
from llminfer.calibrate import _Stretches
from llminfer.capacity import _measured
from llminfer.experiment import metrics_of
from llminfer.plan import _changes
from llminfer.servers.batch_control import LatencyController
from llminfer.servers.token_gaps import token_gaps
from llminfer.stats.pooling import LEVELS
from llminfer.timeseries import kv_occupancy


@pytest.mark.parametrize("late", [0, 1, 2])
def test_latency_control_looks_at_the_99th_percentile(late):
    """Of 101 completions one may be late: then the 99th percentile is not."""
    latencies = np.array([1.0] * (101 - late) + [9.0] * late)
    asked = []

    def seen(begin, end):
        asked.append((begin, end))
        return latencies

    its = LatencyController(target=1.0, window=30.0, step=2.0, backoff=0.5)
    wanted = its.wanted(100.0, SimpleNamespace(latencies=seen), 8.0)
    assert wanted == (10.0 if late < 2 else 4.0)
    assert asked == [(70.0, 100.0)]
    none = SimpleNamespace(latencies=lambda begin, end: np.empty(0))
    assert its.wanted(100.0, none, 8.0) == 8.0


def test_a_target_that_is_just_met_is_met():
    its = LatencyController(target=1.0, window=30.0)
    for value, wanted in ((1.0, 9.0), (np.nextafter(1.0, 2.0), 7.2)):
        seen = SimpleNamespace(latencies=lambda a, b, x=value: np.full(5, x))
        assert its.wanted(0.0, seen, 8.0) == pytest.approx(wanted)


def test_blocks_are_held_while_a_server_works_and_not_while_it_rests():
    config = SimulationConfig(
        server="continuous", kv_blocks=100, num_requests=3, warmup_requests=0
    )
    apart = Workload.from_arrays([1.0, 50.0, 50.0], [64, 64, 128], [9, 1, 40])
    record = simulate(config, apart)
    times, shares = kv_occupancy(record)
    idle = (times > record.processing_end_time[0]) & (times < 50.0)
    assert (shares[idle] == 0.0).all()
    assert np.interp(30.0, times, shares) == 0.0
    busy = np.interp(record.processing_end_time[0] - 1e-6, times, shares)
    assert busy == pytest.approx(math.ceil((64 + 8) / 16) / 100)
    both = np.interp(50.0 + 1e-6, times, shares)
    assert both == pytest.approx(math.ceil(64 / 16) / 100 + math.ceil(128 / 16) / 100)
    area = np.trapezoid(shares, times)
    average = metrics_of(config, record)["avg_kv_occupancy"]
    assert average == pytest.approx(area / (times[-1] - 1.0), rel=1e-9)


@pytest.mark.parametrize("policy", ["SJF", "Predicted-SJF"])
def test_classes_change_nothing_for_a_policy_that_does_not_ask(policy):
    config = SimulationConfig(
        arrival_rate=3.0,
        batch_size=1,
        prompt_dist_params={"mu": 4, "sigma": 1, "max": 2048},
        scheduling_policy=policy,
    )
    classes = config.replace(request_classes={"a": {"share": 1}, "b": {"share": 2}})
    mean = theory.priority(classes).mean
    assert mean == pytest.approx(theory.priority(config).mean, rel=1e-12)


def cuts_by_definition(prefill, least):
    """Cut after so many steps; not within two of a prefill, but after thrice less 2."""
    cuts, since = [0], 0
    for step in range(1, len(prefill)):
        since += 1
        near = any(prefill[max(0, step - 2) : step + 3])
        if since >= (3 * least - 2 if near else least):
            cuts.append(step)
            since = 0
    return cuts


@pytest.mark.parametrize("least", [1, 4, 40])
def test_steps_are_cut_where_no_prefill_is_near(least):
    rng = np.random.default_rng(least)
    n = 900
    prefill = 50 * (rng.random(n) < 0.05)
    steps = pd.DataFrame({"prefill_tokens": prefill, "seconds": rng.random(n) + 0.1})
    steps = steps.assign(decode_seqs=4, decode_kv=100, pairs=prefill * 25)
    cut = _Stretches(steps, least, 512)
    assert cut.cuts == cuts_by_definition(prefill, least)
    ends = [*cut.cuts[1:], n]
    sums = [steps["seconds"][a:b].sum() for a, b in zip(cut.cuts, ends, strict=True)]
    np.testing.assert_allclose(cut.seconds, sums)
    tenth = np.sort(steps["seconds"])[89:91]
    assert tenth[0] <= cut.fastest <= tenth[1]


ENGINE = SimulationConfig(
    server="continuous", batch_size=64, max_batched_tokens=1000, kv_blocks=700
)


def test_a_plan_asks_for_twice_the_memory_another_budget_and_one_more_replica():
    more = "2,000 tokens a step"
    for binds in ("the queue", "p99 TTFT ≤ 1 s", "p99 latency ≤ 9 s"):
        assert _changes(ENGINE, binds) == {
            "twice the KV memory": {"kv_blocks": 1400},
            more: {"max_batched_tokens": 2000},
            "2 replicas": {"replicas": 2, "router": "least_loaded"},
        }
    for binds in ("p99 TPOT ≤ 0.1 s", "p99 ITL ≤ 0.1 s"):
        found = _changes(ENGINE, binds)
        assert found["500 tokens a step"] == {"max_batched_tokens": 500}
        assert more not in found


def test_a_plan_asks_for_nothing_that_cannot_be():
    endless = ENGINE.replace(kv_blocks=None, replicas=3)
    found = _changes(endless, "p99 TPOT ≤ 0.1 s")
    assert list(found) == ["500 tokens a step", "4 replicas"]
    small = ENGINE.replace(max_batched_tokens=100)
    assert _changes(small, "p99 TPOT ≤ 1 s")["64 tokens a step"] == {
        "max_batched_tokens": 64
    }


def test_a_run_leaves_the_quantiles_of_its_gaps_and_of_each_part_of_its_requests():
    config = ENGINE.replace(
        arrival_rate=3.0, num_requests=300, warmup_requests=50, random_seed=4
    )
    record = simulate(config)
    slo = SLO(itl=0.1, ttft=0.3)
    gaps = token_gaps(record, config.step_time, 50)
    (row,) = _measured(config, record, slo=slo, blocks=1)["rows"]
    count, *found = row["quantiles_itl"]
    assert count == gaps.number() == (record.output_length[50:] - 1).sum()
    for level in (0.1, 0.5, 0.9, 0.99):
        at = np.interp(level, LEVELS, found)
        assert at == pytest.approx(float(gaps.quantiles([level])[0]), rel=0.01)
    assert row["avg_itl"] == gaps.mean()
    late = record.processing_start_time > record.arrival_time[-1]
    assert row["waiting"] == late.sum()
    assert row["avg_ttft"] == pytest.approx(record.ttft[50:].mean())
    assert row["within"] == pytest.approx(np.mean(record.ttft[50:] <= 0.3))
    parts = _measured(config, record, slo=slo, blocks=10)["rows"]
    assert len(parts) == 10
    for i, part in enumerate(parts):
        its = slice(50 + 25 * i, 75 + 25 * i)
        assert part["avg_latency"] == pytest.approx(record.latency[its].mean())
        assert part["quantiles_itl"] == row["quantiles_itl"]
