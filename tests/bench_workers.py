"""How much faster two workers are than one: ``python tests/bench_workers.py``.

A sweep of about a minute on one core, in this process, in two of this machine and in
two of a Dask cluster, by the clock on the wall. Workers have started before; the
machine's load says how far to believe it. A number of rounds may be given.
"""

from __future__ import annotations

import os
import sys
import time

import joblib
from distributed import Client, LocalCluster

from llminfer import SimulationConfig, sweep

BASE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090", arrival_rate=3.0, num_requests=100_000
)
OVER = {"batch_size": [16, 64, 256]}


def seconds(n_jobs=None, replications=18):
    """Of a sweep, with nothing remembered."""
    start = time.perf_counter()
    sweep(BASE, OVER, replications, n_jobs)
    return time.perf_counter() - start


def main(rounds):
    os.environ["LLMINFER_CACHE"] = "/dev/null/nowhere"
    many = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**many) as cluster, Client(cluster):
        for _ in range(rounds):
            one = seconds(1)
            seconds(2, 1)
            two = seconds(2)
            with joblib.parallel_config(backend="dask"):
                seconds(None, 1)
                dask = seconds()
            load = os.getloadavg()[0]
            print(
                f"one process {one:.1f} s; two {two:.1f} s, {one / two:.2f} times as "
                f"fast; two through Dask {dask:.1f} s, {one / dask:.2f} times "
                f"(load of the machine {load:.1f})"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
