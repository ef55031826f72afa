"""What only happens when something is odd: nothing else in the tests gets there."""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import pytest

from llminfer import SLO, ConfigError, SimulationConfig, Workload, plan, simulate, sweep
from llminfer.base.cache import _text
from llminfer.data import read_log
from llminfer.panels.replications import _with_half
from llminfer.report.latex import shown_with_bounds
from llminfer.stats.intervals import Estimate
from llminfer.theory.single_server import by_key

SMALL = SimulationConfig(
    arrival_rate=1.0, batch_size=4, num_requests=60, warmup_requests=0
)


def test_a_set_in_the_code_of_a_policy_is_told_in_one_order():
    """Else its key would change with the order in which this process hashes texts."""
    names = [f"name {i}" for i in range(20)]
    assert _text(frozenset(names)) == str(sorted(map(repr, names)))
    code = compile("x in {'b', 'a', 'c'}", "", "eval")
    assert "[\"'a'\", \"'b'\", \"'c'\"]" in _text(code)


def test_a_damaged_store_that_cannot_be_moved_is_not_used(monkeypatch, store_folder):
    store_folder.mkdir()
    file = store_folder / "runs.sqlite"
    file.write_bytes(b"no database" * 100)

    def refused(*_):
        raise PermissionError("a folder of somebody else's")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.warns(UserWarning, match="from here on runs are not remembered"):
        runs = [sweep(SMALL, {"batch_size": [2, 4]}, 2, n_jobs=1) for _ in range(2)]
    assert runs[0].equals(runs[1])
    assert file.read_bytes() == b"no database" * 100


def test_a_configuration_has_no_log_to_plan_from():
    with pytest.raises(ConfigError, match="a log or a Calibration; capacity takes"):
        plan(SMALL, SLO(ttft=1.0))


def test_replications_that_agree_to_the_last_digit_have_no_half_width():
    assert _with_half(1.23456, 0.0) == "1.235"
    assert _with_half(1.23456, math.nan) == "1.235"
    assert _with_half(1.23456, 0.056) == "1.235 ± 0.056"


def test_where_no_rate_keeps_the_limits_the_least_that_was_tried_stands_for_it():
    of_capacity = sys.modules["llminfer.capacity"]
    its = of_capacity.Trials(
        SMALL.replace(num_requests=2000), SLO(ttft=1e-9), None, 1, 1, 42
    )
    assert its.log_rate(1.0) == math.log(min(its.rows))
    assert not any(row["meets"] for row in its.rows.values())


def test_a_block_that_one_token_needs_is_needed():
    """The last token of an answer is never in the cache: 31 + 3 - 1 are 33."""
    server = SMALL.replace(server="continuous", kv_blocks=2, block_size=16)
    assert len(simulate(server, Workload.from_arrays([0.0], [30], [3])).latency) == 1
    with pytest.raises(ConfigError, match="kv_blocks=2: must be at least 3"):
        simulate(server, Workload.from_arrays([0.0], [31], [3]))


def test_a_queue_by_key_of_more_work_than_time_is_refused():
    with pytest.raises(ConfigError, match=r"must be below 2\.5 requests"):
        by_key(3.0, [1, 2], [0.5, 0.5], [0.2, 0.6], second_moment=0.3)


def test_over_one_percent_lost_is_said():
    arrival = [0.0] * 5 + [100.0 * i for i in range(1, 196)]
    work = Workload.from_arrays(arrival, [10] * 200, [10] * 200)
    server = SMALL.replace(batch_size=1, queue_limit=2)
    with pytest.warns(UserWarning, match="were refused or given up"):
        record = simulate(server, work)
    assert 0.01 < np.mean(record.outcome > 0) < 0.02


def test_six_decimals_are_shown_where_the_interval_knows_them():
    found = shown_with_bounds(Estimate(0.123456, 0.123452, 0.123460))
    assert found == ("0.123456", "0.123452", "0.123460")


def test_whole_seconds_that_may_be_milliseconds_are_in_doubt(tmp_path):
    path = tmp_path / "trace.csv"
    rows = "".join(f"{3 * i},100,20\n" for i in range(40))
    path.write_text("ts,prompt_tokens,output_tokens\n" + rows)
    with pytest.warns(UserWarning, match="a request comes every 3 s"):
        assert read_log(path).arrival_time[-1] == 117.0
