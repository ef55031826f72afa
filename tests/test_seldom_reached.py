"""What only happens when something is odd: nothing else in the tests gets there."""

from __future__ import annotations

import math
import os
import sys

import pytest

from llminfer import SLO, ConfigError, SimulationConfig, plan, sweep
from llminfer.base.cache import _text
from llminfer.panels.replications import _with_half

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
