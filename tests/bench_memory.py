"""Memory and time of one run by its number of requests, each in a process of its own.

``python tests/bench_memory.py`` tries 10^3 to 10^6 requests; ``--most 10000000
--figure`` goes to 10^7, some minutes, and draws ``figures/bench_memory`` and a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import pandas as pd

from llminfer import SimulationConfig, SimulationRunner
from llminfer.base.arrays import BYTES_A_REQUEST
from llminfer.report import figures
from llminfer.report.tables import save_table

LIMITS = {"static": 2e9, "continuous": 4e9}  # bytes, of 10^7 requests
RUNS = {
    "static": SimulationConfig(arrival_rate=5.0, batch_timeout=0.0, random_seed=42),
    "continuous": SimulationConfig(
        server="continuous",
        arrival_rate=2.0,
        batch_size=64,
        output_length_dist="geometric",
        output_dist_params={"mean": 100},
        alpha=1e-4,
        beta=0.0,
        gamma=0.01,
        delta=5e-5,
        kappa=1e-7,
        random_seed=42,
    ),
}


def run(server, requests):
    """Peak resident bytes of this process, and CPU seconds of a run and its metrics."""
    warnings.simplefilter("ignore")
    before = _peak()
    start = time.process_time()
    config = RUNS[server].replace(num_requests=requests, warmup_requests=0)
    SimulationRunner(config).run()
    return {"bytes": _peak(), "empty": before, "seconds": time.process_time() - start}


def _peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(server, requests):
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--run", server, str(requests)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def table(servers, most):
    """A row a run: requests, gigabytes, bytes a request, seconds."""
    rows = []
    for server in servers:
        requests = 1000
        while requests <= most:
            its = measured(server, requests)
            rows.append(
                {
                    "server": server,
                    "requests": requests,
                    "gigabytes": its["bytes"] / 1e9,
                    "bytes_a_request": (its["bytes"] - its["empty"]) / requests,
                    "seconds": its["seconds"],
                    "us_a_request": 1e6 * its["seconds"] / requests,
                }
            )
            print(pd.DataFrame(rows[-1:]).to_string(header=len(rows) == 1, index=False))
            requests *= 10
    return pd.DataFrame(rows)


def draw(runs):
    """Memory, and time, by requests."""
    fig, axes = figures.new(1, 2)
    for i, (server, its) in enumerate(runs.groupby("server", sort=False)):
        for ax, column in zip(axes, ("gigabytes", "seconds"), strict=True):
            ax.loglog(its["requests"], its[column], label=server, **figures.look(i))
        axes[0].axhline(LIMITS[server] / 1e9, color=figures.GHOST, linewidth=0.6)
    for ax, says in zip(axes, ("peak memory, GB", "CPU time, s"), strict=True):
        ax.set(xlabel="requests in one run", ylabel=says)
    axes[0].set_yticks([0.1, 0.2, 0.5, 1, 2, 4], minor=False)
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[1].legend()
    return fig


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", nargs=2)
    parser.add_argument("--most", type=int, default=10**6)
    parser.add_argument("--servers", nargs="+", default=list(RUNS))
    parser.add_argument("--figure", action="store_true")
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(run(asked.run[0], int(asked.run[1]))))
        sys.exit()
    found = table(asked.servers, asked.most)
    worst = found.groupby("server")["bytes_a_request"].last()
    for name, its in worst.items():
        print(f"{name}: {its:.0f} bytes a request, {BYTES_A_REQUEST[name]} said")
    if asked.figure:
        figures.save(draw(found), "bench_memory", found)
        save_table(found, "bench_memory_table", "Memory and time of one run.")
