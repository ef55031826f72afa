"""Killed in the middle: nothing that was finished is lost, nothing is left running.

``python tests/test_kill.py 50`` does by hand what runs here a few times: so many
sweeps killed in one process and in two, and so many with a worker killed. It prints
what was found each time, and stops at the first fault.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import joblib
import pandas as pd
import psutil
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

import llminfer
from llminfer import SimulationConfig, register_policy, sweep
from llminfer.base.cache import RunStore

CONFIG = SimulationConfig(arrival_rate=2.0, num_requests=500, warmup_requests=10)
SWEEP = {"base": CONFIG, "over": {"batch_size": [2, 4, 8]}, "replications": 20}
RUNS = 60
CHILD = """
import sys
from llminfer import SimulationConfig, sweep
base = SimulationConfig(arrival_rate=2.0, num_requests=500, warmup_requests=10)
sweep(base, {"batch_size": [2, 4, 8]}, replications=20, n_jobs=int(sys.argv[1]))
"""
LONG = """
from llminfer import SimulationConfig
from llminfer.experiment import run_many
base = SimulationConfig(arrival_rate=2.0, random_seed=1)
sizes = [5_000_000] + [1000] * 9
run_many([base.replace(num_requests=n, random_seed=i) for i, n in enumerate(sizes)], 2)
"""


@contextlib.contextmanager
def started(code, folder, *args):
    """A process that runs ``code`` with its store in ``folder``."""
    home = str(Path(llminfer.__file__).parents[1])
    env = {**os.environ, "LLMINFER_CACHE": str(folder), "PYTHONPATH": home}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code, *args], env=env, **quiet) as its:
        try:
            yield its
        finally:
            its.kill()


def stored(folder):
    """The runs in the store: row numbers by key. A row written anew has another."""
    with contextlib.suppress(sqlite3.Error):
        file = sqlite3.connect(f"file:{folder}/runs.sqlite?mode=ro", uri=True)
        with contextlib.closing(file):
            return dict(file.execute("SELECT key, rowid FROM runs_2"))
    return {}


def wait_until(condition, seconds=300.0):
    """Wait for something that must come; the time is for a machine that hangs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def in_store(folder, **given):
    with mock.patch.dict(os.environ, {"LLMINFER_CACHE": str(folder)}):
        return sweep(**SWEEP, **given)


def uninterrupted():
    return in_store("/dev/null/nowhere", n_jobs=1)


def kill_a_sweep(folder, n_jobs, after, truth):
    """Kill a sweep once so many runs are stored; gives how many were kept."""
    with started(CHILD, folder, str(n_jobs)) as child:
        wait_until(lambda: len(stored(folder)) >= after or child.poll() is not None)
        workers = [p for p in psutil.Process(child.pid).children(recursive=True)]
        child.kill()
        child.wait()
    psutil.wait_procs(workers, timeout=60)
    assert not [p for p in workers if p.is_running()]
    kept = stored(folder)
    assert len(kept) >= after
    pd.testing.assert_frame_equal(in_store(folder, n_jobs=1), truth, check_exact=True)
    now = stored(folder)
    assert len(now) == RUNS
    assert kept.items() <= now.items()  # what was finished did not run again
    return len(kept)


def kill_a_worker(folder, after, truth):
    """Kill one of two workers once so many runs are back; gives how many that were."""
    put, killed = RunStore.put, []

    def and_kill(store, key, metrics):
        put(store, key, metrics)
        if len(stored(folder)) >= after and not killed:
            children = psutil.Process().children(recursive=True)
            workers = [p for p in children if "LokyProcess" in " ".join(p.cmdline())]
            killed.append(len(stored(folder)))
            random.choice(workers).send_signal(signal.SIGKILL)

    with mock.patch.object(RunStore, "put", and_kill):
        table = in_store(folder, n_jobs=2)
    pd.testing.assert_frame_equal(table, truth, check_exact=True)
    assert sorted(stored(folder).values()) == list(range(1, RUNS + 1))  # each once
    return killed[0]


@pytest.fixture(scope="module")
def truth():
    return uninterrupted()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path, n_jobs, truth):
    assert kill_a_sweep(tmp_path, n_jobs, 11, truth) < RUNS


@pytest.mark.filterwarnings("ignore:a worker died")
def test_a_killed_worker_costs_its_own_runs_alone(tmp_path, truth):
    assert kill_a_worker(tmp_path, 9, truth) < RUNS


def test_runs_that_finish_before_the_first_one_are_stored_at_once(tmp_path):
    """And the workers end with their parent, the busy one too."""
    with started(LONG, tmp_path) as child:
        wait_until(lambda: len(stored(tmp_path)) == 9 or child.poll() is not None)
        workers = psutil.Process(child.pid).children(recursive=True)
        assert child.poll() is None
        assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.parametrize(
    ("finished", "replications", "left", "rounds"),
    [
        # two results before the first death, one before the third, and no more
        ({1: 2, 3: 1}, 10, "17 of 20", [20, 18, 18, 17, 17, 17]),
        ({}, 2, "4 of 4", [4, 4, 4]),
    ],
)
def test_workers_that_die_three_times_with_nothing_finished_end_a_sweep_in_words(
    finished, replications, left, rounds, monkeypatch
):
    tried = []

    def dying(n, backend, calls, shared):
        tried.append(len(calls))
        for i, *_ in calls[: finished.get(len(tried), 0)]:
            yield i, {"measured": 1.0}
        raise TerminatedWorkerError

    monkeypatch.setattr(llminfer.base.workers, "_started", dying)
    with (
        pytest.warns(UserWarning, match="a worker died: what it did is done again"),
        pytest.raises(RuntimeError, match=rf"\? {left} runs are left, the others are"),
    ):
        sweep(CONFIG, {"batch_size": [2, 4]}, replications, 2)
    assert tried == rounds


@pytest.mark.parametrize("backend", ["threading", "multiprocessing", "sequential"])
def test_another_backend_gives_the_same(backend, truth):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        table = in_store("/dev/null/nowhere")
    pd.testing.assert_frame_equal(table, truth, check_exact=True)


def test_as_many_processes_as_joblib_is_told_of(monkeypatch):
    seen = []
    here = llminfer.base.workers._started
    spied = lambda n, *given: seen.append(n) or here(n, *given)  # noqa: E731
    monkeypatch.setattr(llminfer.base.workers, "_started", spied)
    for told, asked, most in ({"n_jobs": 2}, None, 2), ({"n_jobs": 1}, None, None):
        seen.clear()
        with joblib.parallel_config(backend="threading", **told):
            sweep(CONFIG, {"batch_size": [2, 4]}, 1, asked)
        assert seen == [most] * (most is not None)


def test_workers_run_the_policy_as_it_is_now_and_not_as_they_imported_it(
    tmp_path, monkeypatch
):
    file = tmp_path / "my_policy.py"
    text = (
        "from llminfer import SchedulingPolicy\n"
        "class Mine(SchedulingPolicy):\n"
        "    name = 'mine'\n"
        "    def sort_requests(self, requests, current_time):\n"
        "        return sorted(requests, key=lambda r: SIGN * r.prompt_length)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tables = []
    for sign in (1, -1):
        file.write_text(text.replace("SIGN", f"{sign:+d}"))
        importlib.invalidate_caches()
        sys.modules.pop("my_policy", None)
        module = importlib.import_module("my_policy")
        register_policy(module.Mine)
        for policy in ("mine", module.Mine()):
            config = CONFIG.replace(scheduling_policy=policy)
            tables += [sweep(config, {"batch_size": [2, 4]}, 1, n) for n in (1, 2)]
    first, *same, other = *tables[:4], tables[4]
    for table in same:
        pd.testing.assert_frame_equal(table, first, check_exact=True)
    for table in tables[5:]:
        pd.testing.assert_frame_equal(table, other, check_exact=True)
    assert not first["avg_latency"].equals(other["avg_latency"])


def test_workers_with_other_code_than_the_kernel_are_refused(monkeypatch):
    monkeypatch.setattr(llminfer.experiment, "SOURCE", "as it was before an edit")
    with pytest.raises(RuntimeError, match=r"another llminfer.*restart the kernel"):
        sweep(CONFIG, {"batch_size": [2, 4]}, 1, 2)


if __name__ == "__main__":
    whole, times = uninterrupted(), int(sys.argv[1])
    for what in (1, 2, "worker"):
        found = []
        for _ in range(times):
            after = random.randrange(1, RUNS - 15)
            with tempfile.TemporaryDirectory() as folder:
                if what == "worker":
                    found.append(kill_a_worker(folder, after, whole))
                else:
                    found.append(kill_a_sweep(folder, what, after, whole))
        print(f"{what}: {times} kills; {min(found)} to {max(found)} of {RUNS} stored")
