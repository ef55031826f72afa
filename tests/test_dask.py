"""A sweep on a cluster: the same to the last bit, whatever happens to its workers."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest

import llminfer
from llminfer import SLO, SimulationConfig, Workload, capacity, sweep
from llminfer.base.cache import RunStore
from llminfer.experiment import poolable_metrics, replicated, run_many

try:
    import distributed
except ModuleNotFoundError:
    if os.environ.get("CI"):
        raise
    pytest.skip("needs pip install .[dask]", allow_module_level=True)

CONFIG = SimulationConfig(arrival_rate=2.0, num_requests=300, warmup_requests=10)
OVER = {"batch_size": [2, 8]}


@pytest.fixture(scope="module")
def client():
    many = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**many) as cluster,
        distributed.Client(cluster) as its,
    ):
        yield its


@pytest.fixture
def on_cluster(client):
    # one that the test before has killed comes back
    client.wait_for_workers(2, timeout=120)
    with joblib.parallel_config(backend="dask"):
        yield client


def alone(monkeypatch, run):
    """What ``run`` gives in this process, with nothing remembered."""
    with monkeypatch.context() as context, joblib.parallel_config(n_jobs=1):
        context.setenv("LLMINFER_CACHE", "/dev/null/nowhere")
        return run()


@contextmanager
def in_mid_sweep(monkeypatch, action):
    """Do something as soon as the third run has come back; gives what has come."""
    put, stored = RunStore.put, []

    def and_then(store, key, metrics):
        put(store, key, metrics)
        stored.append(key)
        if len(stored) == 3:
            action()

    with monkeypatch.context() as context:
        context.setattr(RunStore, "put", and_then)
        yield stored


def test_a_sweep_with_a_worker_killed_is_complete_and_the_same(on_cluster, monkeypatch):
    def run():
        return sweep(CONFIG, OVER, replications=10)

    pids = list(on_cluster.run(os.getpid).values())
    assert len(pids) == 2

    def kill():
        os.kill(pids[0], signal.SIGKILL)

    with in_mid_sweep(monkeypatch, kill) as stored:
        table = run()
    assert len(stored) == len(set(stored)) == 20  # each came back once
    pd.testing.assert_frame_equal(table, alone(monkeypatch, run), check_exact=True)


def test_a_trace_is_sent_once_and_again_if_it_is_lost(on_cluster, monkeypatch):
    trace = Workload.generate(CONFIG.replace(num_requests=20_000, random_seed=1))
    configs, sizes, sent = replicated(CONFIG, 40), [], []
    submit, scatter = distributed.Client.submit, distributed.Client.scatter

    def weighed(client, *args, **given):
        sizes.append(len(cloudpickle.dumps(args)))
        return submit(client, *args, **given)

    def kept(client, *args, **given):
        sent.append(scatter(client, *args, **given))
        return sent[-1]

    def lose():
        on_cluster.cancel(sent[0], force=True)

    def run():
        return run_many(configs, measure=poolable_metrics, workload=trace)

    monkeypatch.setattr(distributed.Client, "submit", weighed)
    monkeypatch.setattr(distributed.Client, "scatter", kept)
    with (
        in_mid_sweep(monkeypatch, lose) as stored,
        pytest.warns(UserWarning, match="a worker died: what it did is done again"),
    ):
        runs = run()
    assert len(sent) == 2
    assert len(stored) == 40
    assert max(sizes) < 5_000 < 100 * 5_000 < len(cloudpickle.dumps(trace))
    np.testing.assert_equal(runs, alone(monkeypatch, run))


def test_a_run_that_no_worker_survives_ends_the_sweep_and_not_the_others(
    on_cluster, monkeypatch
):
    def deadly(config, record):
        if config.batch_size == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"measured": 1.0}

    scheduler = on_cluster.cluster.scheduler
    monkeypatch.setattr(scheduler, "allowed_failures", 0)  # blames all that waited too
    with pytest.raises(RuntimeError, match="1 of 7 runs are left, the others are kept"):
        sweep(CONFIG, {"batch_size": [1, 2, 3, 4, 5, 6, 8]}, 1, measure=deadly)


def test_a_capacity_is_that_of_one_process(on_cluster, monkeypatch):
    config = SimulationConfig(batch_size=4, num_requests=800, batch_timeout=0.0)

    def run():
        return capacity(config, SLO(latency={"mean": 2.0}), tolerance=0.5)

    cluster, one = run(), alone(monkeypatch, run)
    assert (cluster.rate, cluster.interval) == (one.rate, one.interval)


def test_workers_with_other_code_are_refused(on_cluster):
    def edited(source):
        llminfer.experiment.SOURCE = source

    on_cluster.run(edited, "another")
    with pytest.raises(RuntimeError, match="restart the kernel and the cluster"):
        sweep(CONFIG, OVER, replications=2)
    on_cluster.run(edited, llminfer.experiment.SOURCE)  # a restart may wait for ever


def test_a_process_that_is_asked_for_is_this_one(on_cluster, monkeypatch):
    monkeypatch.setattr(distributed.Client, "submit", None)
    assert len(sweep(CONFIG, OVER, replications=2, n_jobs=1)) == 4
