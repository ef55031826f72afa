"""Fleet size: the fewest replicas that keep an SLO at a rate, and their cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from llminfer.base.errors import number, whole
from llminfer.capacity import SLO, Plan, Trials, tried
from llminfer.config import SimulationConfig
from llminfer.experiment import Metrics, Row
from llminfer.workload import Workload


@dataclass(frozen=True, eq=False)
class Fleet:
    """The fewest replicas that serve a rate within limits.

    Attributes:
        replicas: How many.
        gpus: In all of them.
        metrics: As those of ``Capacity``, with so many.
        evaluated: A row a number of ``replicas``: that, the metrics, and ``meets``.
        cost_per_hour: In the currency of the price; None without one.
        cost_per_million_tokens: Of output; None without a price.
        kilowatts: Of all GPUs; None without a wattage.
        kwh_per_million_tokens: Of output; None without a wattage.
    """

    replicas: int
    gpus: int
    metrics: Metrics
    evaluated: pd.DataFrame
    cost_per_hour: float | None
    cost_per_million_tokens: float | None
    kilowatts: float | None
    kwh_per_million_tokens: float | None


def fewest_replicas(
    config: SimulationConfig,
    rate: float,
    slo: SLO,
    workload: Workload | None = None,
    *,
    gpus_per_replica: int = 1,
    price_per_gpu_hour: float | None = None,
    watts_per_gpu: float | None = None,
    replications: int = 10,
    n_jobs: int | None = None,
    random_seed_start: int = 42,
) -> Fleet:
    """The fewest replicas that keep ``slo`` at a rate; one fewer does not.

    The search starts from the capacity of one. A run of n replicas has n times the
    requests of the configuration (a trace has its own), so that each serves as many
    as one alone does. GPUs cost and draw the same, busy or idle.

    Args:
        config: One replica, and the router; ``server="continuous"`` to have several.
        rate: Mean arrival rate of all together, requests a second.
        slo: The limits.
        workload: A trace to replay at this rate instead, once.
        gpus_per_replica: GPUs that make one replica.
        price_per_gpu_hour: In any currency.
        watts_per_gpu: What a GPU draws, with its part of the machine around it.
        replications: Runs a number of replicas; their requests are judged together.
        n_jobs: Processes; None takes one a core. The answer does not depend on it.
        random_seed_start: First seed.

    Raises:
        ConfigError: As ``capacity``; or a rate, price or wattage that is not above 0.

    >>> server = SimulationConfig(server="continuous", batch_size=4, num_requests=2500)
    >>> few = {"replications": 1, "n_jobs": 1, "price_per_gpu_hour": 2.0}
    >>> fleet = fewest_replicas(server, 4.0, SLO(ttft=3.0), **few)
    >>> fleet.replicas, fleet.cost_per_hour
    (6, 12.0)
    """
    number("rate", rate, above=0.0)
    whole("gpus_per_replica", gpus_per_replica, 1)
    price = _above_zero("price_per_gpu_hour", price_per_gpu_hour)
    watts = _above_zero("watts_per_gpu", watts_per_gpu)
    plan = Plan(workload, replications, n_jobs, random_seed_start)
    n, rows = _search(config.replace(replicas=1), rate, slo, plan)
    metrics = {name: value for name, value in rows[n].items() if name != "meets"}
    gpus = n * gpus_per_replica
    million = rate * metrics["avg_output_length"] * 3600.0 / 1e6  # tokens an hour
    cost = None if price is None else gpus * price
    power = None if watts is None else gpus * watts / 1000.0
    each_cost, energy = (None if x is None else x / million for x in (cost, power))
    evaluated = tried("replicas", rows)
    return Fleet(n, gpus, metrics, evaluated, cost, each_cost, power, energy)


def _above_zero(name: str, value: float | None) -> float | None:
    return None if value is None else number(name, value, above=0.0)


def _search(
    one: SimulationConfig, rate: float, slo: SLO, plan: Plan
) -> tuple[int, dict[float, Row]]:
    """The fewest replicas, and what came of each number that was tried."""
    rows: dict[float, Row] = {}

    def meets(n: int) -> bool:
        trials = Trials(_several(one, n, plan), slo, plan)
        kept = trials.meets(rate)
        rows[n] = trials.rows[rate]
        return kept

    alone, _ = Trials(one, slo, plan).search()
    n = math.ceil(rate / alone)
    while not meets(n):
        n += 1
    while n > 1 and n - 1 not in rows and meets(n - 1):
        n -= 1
    return n, rows


def _several(config: SimulationConfig, n: int, plan: Plan) -> SimulationConfig:
    """``n`` replicas, and unless a trace is replayed as many requests for each."""
    if plan.workload is not None:
        return config.replace(replicas=n)
    requests, skipped = n * config.num_requests, n * config.warmup_requests
    return config.replace(replicas=n, num_requests=requests, warmup_requests=skipped)
