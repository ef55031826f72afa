"""Replications and sweeps: tidy, repeatable, resumable, never from a stale store."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import LongestFirst

import llminfer.base.cache
import llminfer.experiment
from llminfer import (
    PRESETS,
    ConfigError,
    ExperimentConfig,
    ExperimentRunner,
    OverloadWarning,
    SimulationConfig,
    SimulationRunner,
    Workload,
    save_results,
    simulate,
    stats,
    sweep,
)
from llminfer.base.cache import RunStore, digest_of_source
from llminfer.experiment import metrics_of, run_key, run_many
from llminfer.servers.overload import described, warn_of_growth

BASE = SimulationConfig(
    arrival_rate=2,
    num_requests=150,
    warmup_requests=20,
    prompt_dist_params={"mu": 4, "sigma": 1},
    output_length_dist="constant",  # no time between tokens: NaN must come through
    output_dist_params={"value": 1},
)
OVER = {"batch_size": [1, 4], "scheduling_policy": ["FCFS", "SJF"]}


@pytest.fixture
def runs(monkeypatch):
    """The configurations that are really simulated, in order."""
    simulated = []
    run = llminfer.experiment._simulated

    def counted(config):
        simulated.append(config)
        return run(config)

    monkeypatch.setattr(llminfer.experiment, "_simulated", counted)
    return simulated


def assert_same_table(one, two):
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_a_sweep_is_tidy():
    table = sweep(BASE, OVER, replications=3, n_jobs=1, random_seed_start=7)
    assert list(table)[:4] == ["batch_size", "scheduling_policy", "replication", "seed"]
    assert len(table) == 2 * 2 * 3
    assert table["replication"].tolist() == [0, 1, 2] * 4
    assert (table["seed"] == table["replication"] + 7).all()
    assert table["batch_size"].tolist() == [1] * 6 + [4] * 6
    for row in table.to_dict("records"):
        config = BASE.replace(
            batch_size=row["batch_size"],
            scheduling_policy=row["scheduling_policy"],
            random_seed=row["seed"],
        )
        metrics = SimulationRunner(config).run()
        np.testing.assert_equal({name: row[name] for name in metrics}, metrics)


def test_a_sweep_is_the_same_to_the_last_bit_for_any_number_of_processes(
    monkeypatch, tmp_path, runs
):
    tables = {}
    for n_jobs in (1, 2, -1):
        monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path / f"jobs{n_jobs}"))
        tables[n_jobs] = sweep(BASE, OVER, replications=3, n_jobs=n_jobs)
    assert_same_table(tables[1], tables[2])
    assert_same_table(tables[1], tables[-1])  # one a core
    runs.clear()
    assert_same_table(sweep(BASE, OVER, replications=3, n_jobs=1), tables[2])
    assert runs == []  # all of it came from the store


def test_dotted_names_sweep_one_parameter():
    table = sweep(BASE, {"prompt_dist_params.sigma": [0.0, 1.5]}, 2, 1)
    assert table["prompt_dist_params.sigma"].tolist() == [0.0, 0.0, 1.5, 1.5]
    narrow, wide = table.groupby("prompt_dist_params.sigma")["p99_latency"].mean()
    assert narrow < wide


def test_labelled_alternatives_are_configurations_or_changes():
    servers = {
        "as it is": {},
        "rtx4090": PRESETS["llama-3.1-8b-rtx4090"].coefficients,
        "small batch": BASE.replace(batch_size=2),
    }
    table = sweep(BASE, {"batch_size": [8], "server": servers}, 1, 1)
    assert table["server"].tolist() == list(servers)
    expected = [
        BASE.replace(batch_size=8, random_seed=42),
        BASE.replace(batch_size=8, random_seed=42, **servers["rtx4090"]),
        BASE.replace(batch_size=8, random_seed=42),  # the plain axis has the last word
    ]
    latencies = [SimulationRunner(config).run()["avg_latency"] for config in expected]
    assert table["avg_latency"].tolist() == latencies


def test_axes_can_be_arrays_and_ranges():
    table = sweep(
        BASE, {"arrival_rate": np.arange(1, 3), "batch_size": range(1, 3)}, 1, 1
    )
    assert table["arrival_rate"].tolist() == [1, 1, 2, 2]
    assert table["batch_size"].tolist() == [1, 2, 1, 2]


def test_a_sweep_over_servers_compares_them_and_drops_nothing_that_is_swept():
    engine = BASE.replace(server="continuous", kv_blocks=700)
    table = sweep(engine, {"server": ["static", "continuous"]}, 1, 1)
    expected = [BASE.replace(random_seed=42), engine.replace(random_seed=42)]
    latencies = [SimulationRunner(config).run()["avg_latency"] for config in expected]
    assert table["avg_latency"].tolist() == latencies
    for blocks in ([64], {"tight": {"kv_blocks": 64}}):
        axes = {"kv_blocks": blocks, "server": ["static"]}
        for over in (axes, dict(reversed(axes.items()))):
            with pytest.raises(
                ConfigError, match=r"^kv_blocks=64: must be None unless"
            ):
                sweep(engine, over, 1, 1)


def test_a_bad_value_stops_a_sweep_before_anything_runs(runs):
    with pytest.raises(ConfigError, match=r"^batch_size=0"):
        sweep(BASE, {"batch_size": [1, 2, 0]}, replications=2, n_jobs=1)
    assert runs == []


def test_a_sweep_warns_once_of_what_is_overloaded():
    with pytest.warns(
        OverloadWarning, match="1 of 2 overloaded: 40 requests/s"
    ) as seen:
        sweep(BASE, {"arrival_rate": [1, 40]}, replications=3, n_jobs=1)
    assert len(seen) == 1


CAPPED = {"prompt_dist_params": {"mu": 4, "sigma": 1.5, "max": 8192}}
REAL = PRESETS["llama-3.1-8b-rtx4090"].coefficients
AT_LOAD = {
    "one by one": {"batch_size": 1},
    "at once": {"batch_size": 8, "batch_timeout": 0.0},
    "until full": {},
    "bursts": {"batch_size": 8, "batch_timeout": 0.0, "arrival_cv": 2.0},
    "continuous": {"server": "continuous", "batch_size": 16, **REAL},
}


def at_load(load, **changes):
    config = SimulationConfig(**CAPPED, warmup_requests=0, **changes)
    return config.replace(arrival_rate=load * config.max_stable_rate)


def test_a_trace_that_overloads_its_server_is_said_with_its_own_numbers():
    drawn = Workload.generate(at_load(1.5, num_requests=2_000, random_seed=7))
    config = at_load(0.1)  # its own rate and lengths are not used
    own = described(drawn, config)
    assert own.arrival_rate == pytest.approx(1_999 / np.ptp(drawn.arrival_time))
    assert own.prompts.expectation() == pytest.approx(drawn.prompt_length.mean())
    assert own.outputs.expectation() == pytest.approx(drawn.output_length.mean())
    said = (
        f"overloaded: {own.arrival_rate:.3g} requests/s arrive where batch_size=32 "
        f"carries at most {own.max_stable_rate:.3g} (load {own.offered_load:.2f})"
    )
    for run in (lambda: simulate(config, drawn), SimulationRunner(config, drawn).run):
        with pytest.warns(OverloadWarning) as caught:
            run()
        assert len(caught) == 1
        assert str(caught[0].message).startswith(said)
        assert caught[0].filename == __file__


def test_a_burst_and_a_handful_have_no_rate_to_warn_of():
    some = Workload.generate(at_load(0.5, num_requests=600, random_seed=7))
    burst = Workload.from_arrays(np.zeros(600), some.prompt_length, some.output_length)
    few = Workload.from_arrays([0.0, 0.1, 0.2], [900] * 3, [90] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(at_load(0.1), burst)
        simulate(at_load(0.1), few)


def grown(config):
    """How many wait at the end, as the warning of a run's own queue says, or None."""
    record = llminfer.experiment._simulated(config, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_growth(config, record)
    found = [
        re.search(r"([\d,]+) of ([\d,]+) requests wait", str(w.message)) for w in caught
    ]
    return int(found[0][1].replace(",", "")) if found else None


@pytest.mark.parametrize("name", AT_LOAD)
def test_a_queue_that_grows_is_told_from_one_that_is_long(name):
    stable = at_load(0.9, num_requests=1_000, **AT_LOAD[name])
    false = [grown(stable.replace(random_seed=seed)) for seed in range(50)]
    assert false == [None] * 50
    over = at_load(1.3, num_requests=5_000, **AT_LOAD[name])
    true = [grown(over.replace(random_seed=seed)) for seed in range(5)]
    assert None not in true
    assert np.mean(true) == pytest.approx(5_000 * (1 - 1 / 1.3), rel=0.25)


def test_a_queue_that_no_rate_foretells_is_said_at_the_end():
    config = SimulationConfig.from_preset(
        "llama-3.1-8b-rtx4090",
        server="continuous",
        batch_size=64,
        kv_blocks=600,
        prompt_dist_params={"mu": 5, "sigma": 0.8, "max": 2000},
        output_length_dist="geometric",
        output_dist_params={"mean": 120},
        num_requests=20_000,
        random_seed=1,
    )
    config = config.replace(arrival_rate=0.99 * config.max_stable_rate)
    with pytest.warns(OverloadWarning, match=r"wait when the last one comes") as caught:
        SimulationRunner(config).run()
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_queue_that_shrinks_at_the_end_does_not_grow():
    some = Workload.generate(at_load(0.5, num_requests=2_000, random_seed=7))
    rush, calm = np.linspace(0.0, 15.0, 1_500), np.linspace(15.5, 215.0, 500)
    work = dataclasses.replace(some, arrival_time=np.concatenate([rush, calm]))
    config = at_load(0.1)
    record = llminfer.experiment._simulated(config, work)
    assert np.sum(record.processing_start_time > record.arrival_time[-1]) > 600
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_growth(config, record)


def test_an_interrupted_sweep_resumes_where_it_stopped(monkeypatch, runs):
    counted = llminfer.experiment._simulated

    def fails_in_the_middle(config):
        if len(runs) == 5:
            raise KeyboardInterrupt
        return counted(config)

    monkeypatch.setattr(llminfer.experiment, "_simulated", fails_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        sweep(BASE, OVER, replications=3, n_jobs=1)
    assert len(runs) == 5
    monkeypatch.setattr(llminfer.experiment, "_simulated", counted)
    resumed = sweep(BASE, OVER, replications=3, n_jobs=1)
    assert len(runs) == 12
    assert len(set(runs)) == 12
    monkeypatch.setenv("LLMINFER_CACHE", "/dev/null/nowhere")
    assert_same_table(resumed, sweep(BASE, OVER, replications=3, n_jobs=1))


def test_replications_differ_in_their_seed_alone():
    plan = ExperimentConfig("plan", "five runs", BASE, num_replications=5)
    configs = plan.get_replication_configs()
    assert [config.random_seed for config in configs] == [42, 43, 44, 45, 46]
    assert {config.replace(random_seed=None) for config in configs} == {BASE}


def test_run_all_gives_metrics_in_order_and_an_interval_for_each():
    plan = ExperimentConfig("plan", "", BASE, num_replications=4)
    results = ExperimentRunner(plan, n_jobs=1).run_all()
    alone = [SimulationRunner(c).run() for c in plan.get_replication_configs()]
    np.testing.assert_equal(results, alone)
    assert ExperimentRunner(plan.get_replication_configs(), n_jobs=1).run_all()
    interval = ExperimentRunner.aggregate_results(results)["avg_latency"]
    values = [metrics["avg_latency"] for metrics in results]
    assert interval["mean"] == pytest.approx(np.mean(values))
    assert interval["ci_lower"] < np.mean(values) < interval["ci_upper"]


# The store


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        BASE.replace(random_seed=1, scheduling_policy=LongestFirst()),
    ],
    ids=["no seed", "a policy of one's own"],
)
def test_what_cannot_be_repeated_is_never_stored(config, runs):
    for _ in range(2):
        ExperimentRunner([config, config], n_jobs=1).run_all()
    assert len(runs) == 4
    assert run_key(config, metrics_of) is None


CHANGES = {
    "arrival_rate": 3,
    "arrival_pattern": "ramp",
    "arrival_pattern_params": {"end_rate": 3, "duration": 9},
    "arrival_cv": 2,
    "prompt_length_dist": "constant",
    "prompt_dist_params": {"mu": 4, "sigma": 1.1},
    "output_length_dist": "geometric",
    "output_dist_params": {"value": 2},
    "batch_size": 3,
    "batch_timeout": 0,
    "scheduling_policy": "Priority",
    "scheduling_policy_params": {"aging_rate": 3},
    "alpha": 1,
    "beta": 1,
    "gamma": 1,
    "delta": 1,
    "kappa": 1,
    "num_requests": 151,
    "warmup_requests": 21,
    "random_seed": 2,
}
GO_TOGETHER = {
    "arrival_pattern": ["arrival_pattern_params"],
    "arrival_pattern_params": ["arrival_pattern"],
    "scheduling_policy_params": ["scheduling_policy"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_is_part_of_the_key(name):
    config = BASE.replace(random_seed=1)
    changed = {name: CHANGES[name]}
    changed |= {other: CHANGES[other] for other in GO_TOGETHER.get(name, [])}
    if name == "prompt_length_dist":
        changed["prompt_dist_params"] = {"value": 9}
    if name == "output_length_dist":
        changed["output_dist_params"] = {"mean": 9}
    assert run_key(config.replace(**changed), metrics_of) != run_key(config, metrics_of)
    assert run_key(config.replace(), metrics_of) == run_key(config, metrics_of)


def test_every_edit_but_of_a_drawing_makes_old_results_unknown(tmp_path):
    package = tmp_path / "llminfer"
    shutil.copytree(Path(llminfer.__file__).parent, package)
    files = [path.relative_to(package) for path in package.rglob("*.py")]
    assert len(files) > 50
    original = digest_of_source(package)
    for file in files:
        text = (package / file).read_text()
        (package / file).write_text(text + "# changed\n")
        only_draws = file.parts[0] in ("panels", "report")
        assert (digest_of_source(package) == original) is only_draws, file
        (package / file).write_text(text)
    assert digest_of_source(package) == original
    (package / "new_model.py").write_text("more = 1\n")
    with_one_more = digest_of_source(package)
    assert with_one_more != original
    (package / "new_model.py").write_text("more = 2\n")
    assert digest_of_source(package) not in (original, with_one_more)


def test_a_key_follows_the_source(monkeypatch):
    config = BASE.replace(random_seed=1)
    key = run_key(config, metrics_of)
    monkeypatch.setattr(llminfer.experiment, "SOURCE", "another")
    assert run_key(config, metrics_of) != key


def test_the_store_gives_back_exactly_what_was_put(store_folder):
    metrics = {"a": 0.1 + 0.2, "b": float("nan"), "c": 7, "d": 5e-324}
    store = RunStore()
    assert store.get("a run") is None
    store.put("a run", metrics)
    store.put(None, metrics)
    store.close()
    again = RunStore(store_folder)
    np.testing.assert_equal(again.get("a run"), metrics)
    assert again.get("another run") is None
    assert again.get(None) is None
    again.close()
    assert (store_folder / "runs.sqlite").exists()


def test_without_a_store_runs_are_made_all_the_same(monkeypatch, tmp_path, runs):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path / "cache"))
    first = sweep(BASE, {"batch_size": [2]}, replications=2, n_jobs=1)
    assert_same_table(first, sweep(BASE, {"batch_size": [2]}, replications=2, n_jobs=1))
    assert len(runs) == 4


# Results on disk


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_a_table_survives_csv_and_json_to_the_last_digit(tmp_path):
    table = sweep(BASE, OVER, replications=2, n_jobs=1)
    for rows in (
        read_csv(save_results(table, tmp_path / "sweep.csv")),
        read_json(save_results(table, tmp_path / "sweep.json")),
    ):
        policies = table["scheduling_policy"].tolist()
        assert [row["scheduling_policy"] for row in rows] == policies
        numbers = [name for name in table if not name.startswith("quantiles_")]
        assert list(rows[0]) == numbers
        for name in set(numbers) - {"scheduling_policy"}:
            blank = ("", None)  # in CSV and in JSON
            column = [np.nan if row[name] in blank else row[name] for row in rows]
            column = np.array(column, dtype=np.float64)
            np.testing.assert_array_equal(column, table[name], err_msg=name)


def test_metrics_of_runs_survive_csv_and_json(tmp_path):
    results = ExperimentRunner(ExperimentConfig("e", "", BASE, 2), n_jobs=1).run_all()
    latencies = [metrics["p99_latency"] for metrics in results]
    for rows in (
        read_csv(save_results(results, tmp_path / "runs.csv")),
        read_json(save_results(results, tmp_path / "runs.json")),
    ):
        assert [float(row["p99_latency"]) for row in rows] == latencies
        assert not rows[0]["avg_tpot"]
    one = read_json(save_results(results[0], tmp_path / "run.json"))
    assert one == read_json(tmp_path / "runs.json")[:1]


def test_intervals_are_written_a_row_a_metric(tmp_path):
    intervals = ExperimentRunner.aggregate_results(
        [{"a": 1.0, "b": 3}, {"a": 2.0, "b": 4}]
    )
    rows = read_csv(save_results(intervals, tmp_path / "x.csv"))
    assert list(rows[0]) == ["metric", "mean", "ci_lower", "ci_upper"]
    assert [(row["metric"], row["mean"]) for row in rows] == [
        ("a", "1.5"),
        ("b", "3.5"),
    ]


def made_by(path):
    return read_json(path.with_name(f"{path.name}.made_by.json"))


def test_results_say_what_made_them(tmp_path, monkeypatch):
    table = sweep(BASE, OVER, replications=2, n_jobs=1)
    some = table[table["batch_size"] == 4].reset_index(drop=True)
    for kept in (table, some, pd.concat([table, table])):
        its = made_by(save_results(kept, tmp_path / "sweep.csv"))
        assert eval(its["configuration"]) == BASE
        assert eval(its["over"]) == OVER
        assert its["code"] == llminfer.base.cache.SOURCE
        assert its["numpy"] == np.__version__
        assert {"python", "scipy", "simpy", "pandas", "llminfer"} < set(its)
    plan = ExperimentConfig("e", "", BASE, 2, random_seed_start=7)
    results = ExperimentRunner(plan, n_jobs=1).run_all()
    its = made_by(save_results(results, tmp_path / "runs.json", plan))
    assert eval(its["configuration"]) == plan
    odd = {"a": {"scheduling_policy": LongestFirst()}, ("b", 1): {}}
    sweep(BASE, {"order": odd}, 1, 1).attrs["made_by"]  # whatever labels there are


def test_a_run_is_a_pure_function_of_its_configuration():
    config = BASE.replace(random_seed=5)
    once = SimulationRunner(config).run()
    SimulationRunner(config.replace(random_seed=6)).run()
    np.testing.assert_equal(SimulationRunner(config).run(), once)


def test_a_sweep_measures_what_it_is_told_and_remembers_it_apart():
    def longest(config, record):
        return {"longest": float(record.prompt_length.max())}

    table = sweep(BASE, {"batch_size": [1, 2]}, replications=2, n_jobs=1)
    own = sweep(BASE, {"batch_size": [1, 2]}, replications=2, n_jobs=1, measure=longest)
    assert list(own.columns) == ["batch_size", "replication", "seed", "longest"]
    assert "longest" not in table
    assert run_key(BASE.replace(random_seed=1), longest) is None


def test_a_sweep_serves_a_workload_as_all_that_run_one_do():
    base = BASE.replace(warmup_requests=0)
    work = Workload.generate(base.replace(random_seed=9))
    table = sweep(base, {"batch_size": [2, 8]}, n_jobs=1, workload=work)
    assert table[["batch_size", "replication"]].values.tolist() == [[2, 0], [8, 0]]
    configs = [base.replace(batch_size=size, random_seed=42) for size in (2, 8)]
    alone = run_many(configs, n_jobs=1, workload=work)
    for name in ("avg_latency", "p99_ttft", "total_requests"):
        assert table[name].tolist() == [row[name] for row in alone]
    assert table["avg_latency"].tolist() == [
        SimulationRunner(config, work).run()["avg_latency"] for config in configs
    ]
    assert "memories" not in table  # of its own requests; those of these nobody knows
    summary = stats.summarize(table, "batch_size", "p99_latency")
    pooled = pytest.approx(table["p99_latency"].tolist(), rel=1e-6)
    assert summary["mean"].tolist() == pooled
    assert summary["ci_lower"].isna().all()  # one run has no interval
    assert sweep(base, {"batch_size": [2]}, 1, n_jobs=1)["memories"].notna().all()


def test_a_workload_of_the_wrong_kind_is_named():
    config = SimulationConfig(num_requests=20, warmup_requests=0, arrival_rate=1.0)
    with pytest.raises(ConfigError, match=r"workload='trace.csv': must be a Workload"):
        simulate(config, "trace.csv")
    with pytest.raises(ConfigError, match=r"workload='trace.csv': must be a Workload"):
        sweep(config, {"batch_size": [4]}, workload="trace.csv")
    with pytest.raises(ConfigError, match="over"):
        sweep(config, ["batch_size"])
