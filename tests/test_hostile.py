"""Inputs that once gave a wrong number without a word, or broke a run."""

from __future__ import annotations

import importlib
import math
import sys
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.integrate import quad

from llminfer import (
    SLO,
    ConfigError,
    OverloadWarning,
    SimulationConfig,
    TraceError,
    Workload,
    capacity,
    goodput,
    simulate,
    sweep,
)
from llminfer.base import arrays
from llminfer.capacity import Trials
from llminfer.laws.lengths import PowerLaw
from llminfer.panels.ramp import RampPicture
from llminfer.report import figures
from llminfer.stats.run_length import mser5
from llminfer.study.early_warning import load_ramp
from llminfer.timeseries import StepSeries

FEW = SimulationConfig(arrival_rate=1.0, num_requests=20, warmup_requests=0)
ENGINE = SimulationConfig(server="continuous", batch_size=8, warmup_requests=0)


def whole_seconds(n=2400, seed=1):
    """Requests at whole seconds, several at a time, some of one token."""
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.integers(0, n, n)).astype(np.float64)
    return Workload.from_arrays(
        arrival, rng.integers(1, 100, n), rng.choice([1, 1, 5, 40], n)
    )


def test_goodput_and_capacity_count_requests_of_one_token_by_one_rule():
    """A request of one token has no TPOT to miss, whatever the limit."""
    work = whole_seconds()
    slo = SLO(ttft=0.4, tpot=0.0011, goodput=0.5)
    trials = Trials(ENGINE, slo, work, 1, 1, 42)
    trials.meets(rate := 1.0)
    span = np.ptp(work.arrival_time)
    paced = Workload(
        work.arrival_time * (len(work) - 1) / span / rate,
        work.prompt_length,
        work.output_length,
        work.request_class,
    )
    record = simulate(ENGINE, paced)
    lasted = record.processing_end_time.max() - record.arrival_time[0]
    share = goodput(record, 0.4, 0.0011) * lasted / len(work)
    assert trials.rows[rate]["within"] == pytest.approx(share)
    strict = goodput(record, 1e9, 0.0) * lasted
    assert strict == pytest.approx((work.output_length == 1).sum())


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("rate", [0.25, 4.0])
def test_a_trace_is_replayed_at_the_mean_rate_that_is_asked(times, rate, monkeypatch):
    """n requests have n - 1 gaps; rounds are a mean gap apart, not at one time."""
    seen = []

    def run_many(configs, n_jobs, said, measure, trace):
        seen.append(trace)
        return [{"rows": [{}]}]

    monkeypatch.setattr(sys.modules["llminfer.capacity"], "run_many", run_many)
    work = whole_seconds()
    Trials(ENGINE, SLO(ttft=1.0), work, 1, 1, 42)._run(rate, times)
    arrival = seen[0].arrival_time
    assert len(arrival) == times * len(work)
    assert 1.0 / np.diff(arrival).mean() == pytest.approx(rate, rel=1e-12)
    assert seen[0].law()["arrival_rate"] == pytest.approx(rate, rel=1e-12)


def test_the_capacity_of_a_trace_of_whole_seconds_is_found():
    found = capacity(ENGINE, SLO(ttft={"p50": 0.4}), whole_seconds(), n_jobs=1)
    assert 0.1 < found.rate < 100.0


@pytest.mark.parametrize("least", [1, 30])
@pytest.mark.parametrize(
    "alpha",
    [1.0 - 2.0**-53, 1.0 - 1e-12, 1.0 - 1e-8, 1.0, 1.0 + 1e-15, 1.0 + 1e-7, 3.0],
)
def test_a_power_law_is_what_its_density_says_near_alpha_1(least, alpha):
    law = PowerLaw(alpha=alpha, min=least, max=1000)
    whole, _ = quad(lambda x: x**-alpha, least, 1000)
    for k in (least + 1, 2 * least + 5, 700):
        beyond, _ = quad(lambda x: x**-alpha, k, 1000)
        assert law.survival(np.array([k - 1.0]))[0] == pytest.approx(beyond / whole)
        at = 1.0 - beyond / whole
        assert law._quantile(np.array([at]))[0] == pytest.approx(k, rel=1e-9)


@pytest.mark.parametrize(
    "times",
    [
        np.array(["2020-01-01", "2020-01-02"], "M8[s]"),
        np.array([1, 2], "m8[us]"),
        pd.to_datetime(["2020-01-01", "2020-01-02"]),
        pd.to_timedelta([1, 2], "s"),
        [datetime(2020, 1, 1), datetime(2020, 1, 2)],
        [timedelta(1), timedelta(2)],
        [1 + 2j, 2.0],
        [False, True],
        ["1", "2"],
        [1, 10**400],
    ],
)
def test_what_are_no_numbers_is_no_column(times):
    with pytest.raises(TraceError, match=r"^arrival_time: must be numbers"):
        Workload.from_arrays(times, [1, 1], [1, 1])
    with pytest.raises(TraceError, match=r"^output_length: must be"):
        Workload.from_arrays([0, 1], [1, 1], times)


def test_a_masked_number_is_not_known():
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    with pytest.raises(TraceError, match=r"^arrival_time\[1\]=nan: must be finite"):
        Workload.from_arrays(masked, [1] * 3, [1] * 3)
    with pytest.raises(TraceError, match=r"^prompt_length\[1\]=nan: must be a whole"):
        Workload.from_arrays([0, 1, 2], masked, [1] * 3)
    with pytest.raises(TraceError, match=r"^segments: must be a path"):
        Workload.from_arrays([0], [9], [9], segments=[[(1.5, 2.5)]])


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["20231116", "20231117"], "must be as 2023-11-16"),
        (["20231116181546", "20231116181559"], "must be as 2023-11-16"),
        (["now", "now"], "must be seconds"),
        (["1500-01-01", "1500-01-02"], "must be seconds"),
        (["2262-04-12", "1677-09-21"], "must be seconds"),
        (["2023-11-16", "today"], "must be a date"),
    ],
)
def test_a_clock_that_no_trace_has_is_named(tmp_path, cells, says):
    path = tmp_path / "azure.csv"
    rows = "".join(f"{cell},9,2\n" for cell in cells)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    with pytest.raises(TraceError, match=rf"^azure.csv, row \d, TIMESTAMP=.*{says}"):
        Workload.from_csv(path)
    if cells[0] == "20231116":  # who says what they are is believed
        assert Workload.from_csv(path, unit="s").arrival_time.tolist() == [0.0, 1.0]


def test_seconds_since_1970_are_no_years(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n1700000000,9,2\n1700000004.5,9,2\n"
    )
    assert Workload.from_csv(path).arrival_time.tolist() == [0.0, 4.5]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"random_seed": [1, 2]}, "random_seed=1: must be left to random_seed_start"),
        ({"a": {"x": {"random_seed": 3}}}, "random_seed=3: must be left to"),
        ({"seed": {"x": {}}}, "seed: must be renamed"),
        ({"replication": {"x": {}}}, "replication: must be renamed"),
        ({"avg_latency": {"x": {}}}, "avg_latency: must be renamed"),
        ({"quantiles_ttft": {"x": {}}}, "quantiles_ttft: must be renamed"),
        ({5: [1]}, "over="),
        (5, "over=5"),
    ],
)
def test_a_sweep_keeps_its_seeds_and_its_columns(over, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        sweep(FEW, over, replications=1, n_jobs=1)


POLICY = """
from llminfer import SchedulingPolicy, register_policy

@register_policy
class Mine(SchedulingPolicy):
    name = "Mine"
    def sort_requests(self, requests, current_time):
        return sorted(requests, key=lambda r: ({sign}r.prompt_length, r.id))

def last(config, record):
    return {{"last": {sign}float(record.processing_end_time.max())}}
"""


def test_workers_run_a_module_as_it_was_loaded_last(tmp_path, monkeypatch):
    """They had the edition that they imported when the first sweep began."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "mine_and_edited.py"
    found = []
    for sign in ("", "-"):
        path.write_text(POLICY.format(sign=sign))
        loaded = sys.modules.get("mine_and_edited")
        mine = (
            importlib.reload(loaded) if loaded else importlib.import_module(path.stem)
        )
        for policy in ("Mine", mine.Mine()):
            base = FEW.replace(
                arrival_rate=3.0, num_requests=60, scheduling_policy=policy
            )
            over = {"batch_size": [2, 4]}
            by_workers = [
                [
                    sweep(base, over, 1, n)["avg_latency"].tolist(),
                    sweep(base, over, 1, n, measure=mine.last)["last"].tolist(),
                ]
                for n in (1, 2)
            ]
            assert by_workers[0] == by_workers[1]
            found.append(by_workers[0])
    assert found[0] == found[1] != found[2] == found[3]


@pytest.mark.parametrize("name", ["01_alpha0.5", "../../x", "a/b", "", "x" * 200, 5])
def test_a_figure_has_its_own_name_in_its_own_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("LLMINFER_FIGURES", str(tmp_path / "a" / "figures"))
    with pytest.raises(ConfigError, match=r"^name="):
        figures.save(Figure(), name)
    assert not [its for its in tmp_path.rglob("*") if its.is_file()]


@pytest.mark.filterwarnings("ignore", category=OverloadWarning)
@pytest.mark.parametrize("server", ["static", "continuous"])
def test_a_run_that_memory_has_no_room_for_is_refused(server, monkeypatch):
    config = SimulationConfig(server=server, num_requests=2 * 10**13)
    for make in (simulate, Workload.generate):
        with pytest.raises(ConfigError, match=r"^num_requests=2\d*: .* takes .* GiB"):
            make(config)
    monkeypatch.setattr(arrays.os, "sysconf", lambda name: 1000)
    few = FEW.replace(server=server, arrival_rate=0.01)
    assert simulate(few.replace(num_requests=2_500)) is not None
    with pytest.raises(ConfigError, match="must be at most"):
        simulate(few.replace(num_requests=5_300))


def test_a_ramp_that_is_over_before_the_first_look_raises_no_alarm():
    config = SimulationConfig(batch_size=4, random_seed=1, warmup_requests=0)
    picture = RampPicture()
    said = picture.update(load_ramp(config, 0.1, 1.3, 1.0, lasts=1.0))
    assert {text for its in said.values() for text in its.values()} == {"never", "none"}


def test_averages_are_of_stretches_that_ascend():
    series = StepSeries(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert series.means([0.0, 1.0, 3.0]).tolist() == [1.0, 2.0]
    for edges in ([0, 2, 1], [0, 0], [0, math.nan], [0], []):
        with pytest.raises(ConfigError, match=r"^edges="):
            series.means(edges)


def test_mser_5_has_no_use_for_what_is_not_known():
    with pytest.raises(ConfigError, match="finite"):
        mser5([1.0] * 99 + [math.nan])


def test_turns_of_none_are_no_conversation():
    """Zero was read as one."""
    for turns in (0, False, "", []):
        with pytest.raises(ConfigError, match=r"^turns"):
            SimulationConfig(clients=2, turns=turns)


@pytest.mark.filterwarnings("ignore", category=OverloadWarning)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arrival_rate", 1e-307),
        ("alpha", 1e308),
        ("gamma", 1e306),
        ("block_size", 10**9),
        ("batch_size", 10**400),
        pytest.param("random_seed", 10**5000, id="random_seed"),
        ("alpha", np.timedelta64(5, "s")),
        ("think_time", {"dist": "lognormal", "mu": 1000, "sigma": 1}),
        ("arrival_gaps", [1e308, 1e308]),
    ],
)
def test_a_value_that_would_break_a_run_is_refused(field, value):
    with pytest.raises(ConfigError, match=rf"^{field}[.\w]*="):
        SimulationConfig(**{field: value})


@pytest.mark.parametrize(
    "text", [b"\x80\xff\x00{", b'{"a":' * 10**5, b"\xff\xfe{}", b'{"cls": 1}']
)
def test_a_file_that_is_no_configuration_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        SimulationConfig.from_json(path)
    assert "\n" not in str(caught.value)
