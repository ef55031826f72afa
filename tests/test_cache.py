"""The store of finished runs: nothing stale, nothing wrong, whatever befalls it."""

import dataclasses
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import llminfer
from llminfer import SimulationConfig, sweep
from llminfer.base import cache
from llminfer.base.cache import RunStore, code_of
from llminfer.experiment import metrics_of, run_key
from llminfer.policies import SJFPolicy

CONFIG = SimulationConfig(
    arrival_rate=2.0, num_requests=60, warmup_requests=10, batch_size=4
)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path / "store"))
    return tmp_path / "store"


def filled(folder, rows=40):
    store = RunStore(folder)
    for i in range(rows):
        store.put(f"run {i}", {"mean": i / 3.0, "name": "x" * 200})
    store.close()
    return folder / "runs.sqlite"


def wrong_answers(folder, rows=40):
    """Answers that are not what was put; an unknown run is no wrong answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = RunStore(folder)
        found = [store.get(f"run {i}") for i in range(rows)]
        store.put("another", {"mean": 1.0})
        known = store.get("another")
        store.close()
    assert known == {"mean": 1.0}
    truth = [{"mean": i / 3.0, "name": "x" * 200} for i in range(rows)]
    return [
        got for got, its in zip(found, truth, strict=True) if got not in (None, its)
    ]


def test_flipped_bits_cost_runs_and_never_give_another_number(tmp_path):
    whole = filled(tmp_path / "whole").read_bytes()
    rng, lost = random.Random(1), 0
    for i in range(80):
        folder = tmp_path / str(i)
        folder.mkdir()
        data = bytearray(whole)
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / "runs.sqlite").write_bytes(data)
        assert not wrong_answers(folder)
        lost += (folder / "runs.damaged").exists()
    assert lost > 5  # some were beyond reading, and moved aside


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_costs_its_runs(tmp_path, share):
    file = filled(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert not wrong_answers(tmp_path)


def test_another_file_under_an_open_store_gives_no_other_runs(tmp_path):
    one, other = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    for i in range(40):
        one.put(f"run {i}", {"mean": float(i)})
        other.put(f"run {i + 7}", {"mean": -1.0})
    other.close()
    shutil.copy(tmp_path / "b" / "runs.sqlite", tmp_path / "a" / "runs.sqlite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [one.get(f"run {i}") for i in range(40)]
    one.close()
    assert all(got in (None, {"mean": float(i)}) for i, got in enumerate(found))


def test_a_row_under_anothers_key_is_not_believed(tmp_path):
    file = sqlite3.connect(filled(tmp_path))
    with file:
        file.execute("DELETE FROM runs_2 WHERE key = 'run 1'")
        file.execute("UPDATE runs_2 SET key = 'run 1' WHERE key = 'run 2'")
    file.close()
    store = RunStore(tmp_path)
    assert store.get("run 1") is None
    assert store.get("run 3") == {"mean": 1.0, "name": "x" * 200}
    store.close()


def test_a_full_disk_ends_the_remembering_and_not_the_sweep(folder, monkeypatch):
    opened = RunStore._open

    def small(store):
        opened(store)
        store._file.execute("PRAGMA max_page_count = 8")

    monkeypatch.setattr(RunStore, "_open", small)
    with pytest.warns(UserWarning, match="full: from here on runs are not remembered"):
        runs = sweep(CONFIG, {"batch_size": [2, 4]}, replications=30, n_jobs=1)
    assert len(runs) == 60
    assert runs["avg_latency"].notna().all()


def test_runs_of_old_code_are_removed(tmp_path, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr(cache, "SOURCE", "newer code")
    monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path))
    assert cache.info()["runs"] == 0


def test_a_file_over_the_limit_loses_its_oldest_runs(tmp_path, monkeypatch):
    filled(tmp_path, rows=400)
    monkeypatch.setattr(cache, "_LARGEST", 10_000)
    store = RunStore(tmp_path)
    assert store.get("run 0") is None
    assert store.get("run 399") is not None
    store.close()
    monkeypatch.setattr(cache, "_LARGEST", 2**30)
    monkeypatch.setenv("LLMINFER_CACHE", str(tmp_path))
    assert cache.info()["runs"] == 200


def test_what_is_remembered_can_be_seen_and_forgotten(folder):
    sweep(CONFIG, {"batch_size": [2, 4]}, replications=2, n_jobs=1)
    found = llminfer.cache.info()
    assert found["runs"] == 4
    assert found["file"] == str(folder / "runs.sqlite")
    assert found["bytes"] == os.path.getsize(found["file"])
    llminfer.cache.clear()
    assert llminfer.cache.info()["runs"] == 0


def test_where_nothing_can_be_remembered_nothing_is(monkeypatch):
    monkeypatch.setenv("LLMINFER_CACHE", "/dev/null/nowhere")
    llminfer.cache.clear()
    found = llminfer.cache.info()
    assert (found["runs"], found["bytes"]) == (0, 0)


def test_the_code_of_an_edited_package_is_that_which_was_imported(tmp_path):
    """The kernel imported, then somebody edited: the key stays that of what runs."""
    package = tmp_path / "llminfer"
    shutil.copytree(Path(llminfer.__file__).parent, package)
    script = (
        "import pathlib, llminfer\n"
        "from llminfer.experiment import run_key, metrics_of\n"
        "config = llminfer.SimulationConfig(random_seed=1)\n"
        "key = run_key(config, metrics_of)\n"
        "file = pathlib.Path('llminfer/timing.py').resolve(strict=True)\n"
        "assert file.parent == pathlib.Path(llminfer.__file__).parent\n"
        "file.write_text(file.read_text() + '# edited\\n')\n"
        "print(key == run_key(config, metrics_of), key)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    first, second = (
        subprocess.check_output(
            [sys.executable, "-c", script], env=env, cwd=tmp_path, text=True
        ).split()
        for _ in range(2)
    )
    assert first[0] == second[0] == "True"
    assert first[1] != second[1]


def test_a_method_of_a_policy_replaced_by_hand_is_not_remembered(monkeypatch):
    config = CONFIG.replace(random_seed=1, scheduling_policy="SJF")
    assert run_key(config, metrics_of) is not None
    monkeypatch.setattr(SJFPolicy, "keys", lambda self, *given: given)
    assert run_key(config, metrics_of) is None


def made_of(inside):
    """A function of this package with another one inside."""
    space = {"__name__": "llminfer.made_up"}
    exec(
        f"def outer(x):\n    return [lambda y: {inside}, x in {{1, 'a', None}}]", space
    )
    return space["outer"]


def test_the_code_inside_code_is_told_by_what_it_does_not_by_where_it_is():
    one, again = (code_of(made_of("y + 1")) for _ in range(2))
    assert one == again
    assert " at 0x" not in one
    others = [
        code_of(made_of(inside)) for inside in ("y - 1", "y + 2", "y + x", "id(y)")
    ]
    assert len({one, *others}) == 5


def test_what_python_gives_a_dataclass_is_no_foreign_code(monkeypatch):
    """From 3.13 on each has ``__replace__``: without this nothing was remembered."""
    name = "__replace__"
    monkeypatch.setattr(SJFPolicy, name, dataclasses.replace, raising=False)
    config = CONFIG.replace(random_seed=1, scheduling_policy="SJF")
    assert run_key(config, metrics_of) is not None


def test_no_home_is_no_error(monkeypatch):
    monkeypatch.delenv("LLMINFER_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: "/proc/nowhere")
    runs = sweep(CONFIG, {"batch_size": [2]}, replications=1, n_jobs=1)
    assert np.isfinite(runs["avg_latency"]).all()
