"""Made-up services, and runs that are watched, some of which cross a load of 1."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

RNG = np.random.default_rng(11)
TIME = np.arange(10.0, 210.0, 10.0)

# Requests of an engine whose coefficients are known, and that leaves a log.
REQUESTS = {
    "batch_size": 16,
    "prompt_length_dist": "empirical",
    "prompt_dist_params": {"values": [50, 200, 800]},
    "output_length_dist": "empirical",
    "output_dist_params": {"values": [20, 100]},
    "num_requests": 300,
    "warmup_requests": 0,
    "random_seed": 5,
}


@dataclass
class Listed:
    """Service times of a finite list, with their chances."""

    seconds: np.ndarray
    chance: np.ndarray

    def moment(self, power):
        return float(self.chance @ self.seconds**power)

    def transform(self, s):
        return np.array([self.chance @ np.exp(-self.seconds * one) for one in s])


def made_up_runs(replications=6):
    """Runs that cross at 155 s and runs that stay below; whole numbers, so ties."""
    rows = []
    for replication, top in itertools.product(range(replications), (0.8, 0.9, 1.1)):
        level = 5.0 * (top > 1.0) * (TIME > 100.0)
        values = np.floor(level + RNG.normal(0.0, 4.0, len(TIME)))
        values[3 + replication] = np.nan  # a signal that says nothing
        load = np.minimum(0.4 + 0.6 * (TIME - 10.0) / 145.0, top)
        columns = {"time": TIME, "load": load, "queue": values}
        lists = {name: column.tolist() for name, column in columns.items()}
        rows.append({"top": top, "replication": replication, **lists})
    return pd.DataFrame(rows)


RUNS = made_up_runs()
