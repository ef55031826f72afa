"""Runs, replications and sweeps."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import joblib
import pandas as pd
import simpy
from tqdm.auto import tqdm

from llminfer.base.arrays import BYTES_A_REQUEST, check_room
from llminfer.base.cache import SOURCE, RunStore, code_of, made_by
from llminfer.base.errors import MOST_SEED, fail, kind, shown, whole
from llminfer.base.settings import check_axes
from llminfer.base.workers import as_finished
from llminfer.config import SimulationConfig
from llminfer.metrics import MetricsCollector, metrics_and_times
from llminfer.policies import SchedulingPolicy, register_policy, registered_policy
from llminfer.record import RunRecord
from llminfer.servers import overload
from llminfer.servers.continuous import ContinuousBatchingServer
from llminfer.servers.static import LLMInferenceServer
from llminfer.stats.pooling import kept
from llminfer.theory.known import measured_memories
from llminfer.workload import Workload

Metrics = dict[str, float]
Row = dict[str, Any]  # a run's numbers by name; lists for series
Measure = Callable[[SimulationConfig, RunRecord], Row]

_GAPS = 2**16  # between tokens, that stand for all of a run when they are pooled

_SERVERS: Mapping[str, type[LLMInferenceServer] | type[ContinuousBatchingServer]] = {
    "static": LLMInferenceServer,
    "continuous": ContinuousBatchingServer,
}


@dataclass(eq=False)
class SimulationRunner:
    """One run of one configuration.

    Args:
        config: What to simulate.
        workload: Requests to serve instead of the configuration's own; they decide
            the number of requests and the arrival rate.

    >>> work = Workload.from_arrays([0.0, 0.5], [100, 50], [20, 10])
    >>> config = SimulationConfig(batch_size=2, warmup_requests=0)
    >>> round(SimulationRunner(config, work).run()["avg_latency"], 3)  # seconds
    0.46
    """

    config: SimulationConfig
    workload: Workload | None = None
    _record: RunRecord | None = field(default=None, init=False, repr=False)

    def run(self) -> Metrics:
        """Simulate, and return the metrics by name; times in seconds.

        Raises:
            ConfigError: The workload has no request beyond the warm-up.

        Warns:
            OverloadWarning: As ``simulate``.
        """
        self._record = _watched(self.config, self.workload)
        return metrics_of(self.config, self._record)

    @property
    def record(self) -> RunRecord:
        """Everything that happened, as columns.

        Raises:
            RuntimeError: Before ``run()``.
        """
        if self._record is None:
            raise RuntimeError("nothing has run yet: call run() first")
        return self._record

    @property
    def requests(self) -> pd.DataFrame:
        """One row a request, warm-up too."""
        return self.record.to_frame()


def simulate(config: SimulationConfig, workload: Workload | None = None) -> RunRecord:
    """The record of one run.

    Warns:
        OverloadWarning: The offered load, of a workload by its own rate and lengths, is
            1 or more, or the queue still grows when the last request comes.

    >>> work = Workload.from_arrays([0.0, 0.5], [100, 50], [20, 10])
    >>> record = simulate(SimulationConfig(batch_size=2, warmup_requests=0), work)
    >>> record.processing_end_time.round(3).tolist()
    [0.71, 0.71]
    """
    return _watched(config, workload)


def _watched(config: SimulationConfig, workload: Workload | None) -> RunRecord:
    """The record of one run, with warnings to whoever asked its caller for it."""
    warned = overload.warn_ahead([config], workload)
    record = _simulated(config, workload)
    overload.warn_of_batches(config, record)
    overload.warn_of_losses(record)
    if not warned:
        overload.warn_of_growth(config, record)
    return record


def _simulated(config: SimulationConfig, workload: Workload | None = None) -> RunRecord:
    env = simpy.Environment()
    if workload is None:
        check_room("num_requests", config.num_requests, BYTES_A_REQUEST[config.server])
    if workload is None and config.clients is None:  # else users draw their own
        workload = Workload.generate(config)
    server = _SERVERS[config.server](env, config, workload)
    env.process(server.run())
    env.run()
    return server.record


def metrics_of(config: SimulationConfig, record: RunRecord) -> Metrics:
    """The metrics of a run without its warm-up."""
    skip, law = config.warmup_requests, config.step_time
    return MetricsCollector.compute_metrics(record, skip, law)


def poolable_metrics(config: SimulationConfig, record: RunRecord) -> Row:
    """The metrics, and what pools their quantiles: what a sweep measures by default."""
    skip = config.warmup_requests
    metrics, times, gaps = metrics_and_times(record, skip, config.step_time)
    found: Row = {"memories": measured_memories(config), **metrics}
    for name, ordered in times.items():
        found |= kept(name, ordered)
    if gaps is not None and (count := gaps.number()):
        found |= kept("itl", gaps.sample(_GAPS), count)
    return found


def _run_quietly(
    source: str, policy: Any, measure: Measure, config: SimulationConfig, *work: Any
) -> Row:
    """In whatever process: what a run gives.

    Args:
        source: The code that this process must have, too.
        policy: The policy, or its class, the user's own, to be made known here.
        measure: Makes the numbers.
        config: What to run.
        *work: What it serves instead of its own requests.
    """
    if source != SOURCE:
        those = "another llminfer, numpy, scipy or simpy than was imported here"
        raise RuntimeError(f"a worker has {those}: restart the kernel and the cluster")
    if isinstance(policy, type):
        register_policy(policy)
    return measure(config, _simulated(config, *work))


def run_many(
    configs: Sequence[SimulationConfig],
    n_jobs: int | None = None,
    description: str = "runs",
    measure: Measure = metrics_of,
    workload: Workload | None = None,
) -> list[Row]:
    """The numbers of every configuration, in order; finished runs are remembered.

    Args:
        configs: What to run.
        n_jobs: Processes; 1 is this one, None takes one a core, or those of the backend
            that ``joblib.parallel_config`` names. The numbers do not depend on it.
        description: What the progress bar says.
        measure: Makes a run's numbers from its record. One of the package's own is
            remembered with them; one from elsewhere runs anew each time.
        workload: What all serve instead of their own requests.

    Warns:
        OverloadWarning: Once, if any offered load is 1 or more.
    """
    overload.warn_ahead(configs, workload)
    work = () if workload is None else (workload,)
    keys = [run_key(config, measure, *work) for config in configs]
    with contextlib.closing(RunStore()) as store:
        done = [store.get(key) for key in keys]
        left = [i for i, known in enumerate(done) if known is None]
        named = [config.scheduling_policy for config in configs]
        own = [registered_policy(its) or its for its in named]
        jobs = {i: (SOURCE, own[i], measure, configs[i]) for i in left}
        # tqdm's bar for notebooks does not heed its own variable
        quiet = not jobs or bool(os.environ.get("TQDM_DISABLE"))
        bar = {"total": len(jobs), "leave": False, "unit": "run", "disable": quiet}
        finished = as_finished(_run_quietly, jobs, n_jobs, *work)
        for i, metrics in tqdm(finished, description, **bar):
            # at once, so that an interrupted sweep resumes
            store.put(keys[i], metrics)
            done[i] = metrics
    return [metrics for metrics in done if metrics is not None]


def run_key(
    config: SimulationConfig, measure: Measure, workload: Workload | None = None
) -> str | None:
    """The key of a run; None if it has no seed or runs code from elsewhere."""
    by_object = isinstance(config.scheduling_policy, SchedulingPolicy)
    if config.random_seed is None or by_object:
        return None
    given = measure.keywords if isinstance(measure, functools.partial) else {}
    measure = measure.func if isinstance(measure, functools.partial) else measure
    code = [code_of(part) for part in (type(config.policy()), measure)]
    if None in code:
        return None
    name = f"{measure.__module__}.{measure.__qualname__}{given}"
    # in order, since it numbers the request classes
    text = json.dumps([SOURCE, name, code, config.to_dict(), joblib.hash(workload)])
    return hashlib.sha256(text.encode()).hexdigest()


def replicated(
    config: SimulationConfig, replications: int, random_seed_start: int = 42
) -> list[SimulationConfig]:
    """The configuration under consecutive seeds, one a replication."""
    first = whole("random_seed_start", random_seed_start, 0, MOST_SEED)
    whole("replications", replications, 1, most=10**6)
    return [config.replace(random_seed=first + i) for i in range(replications)]


Axis = Sequence[Any] | Mapping[str, Any]


def sweep(
    base: SimulationConfig,
    over: Mapping[str, Axis],
    replications: int = 30,
    n_jobs: int | None = None,
    random_seed_start: int = 42,
    *,
    measure: Measure = poolable_metrics,
    workload: Workload | None = None,
) -> pd.DataFrame:
    """Every combination of the swept values, each replicated: a row a run.

    Args:
        base: What does not change.
        over: For each field its values: ``{"batch_size": [1, 2, 4]}``. A dotted name,
            ``prompt_dist_params.sigma``, is one parameter. A mapping gives labelled
            alternatives, each a configuration or a dict of changes to ``base``:
            ``{"server": {"report": {}, "rtx4090": PRESETS[...].coefficients}}``.
        replications: Runs a combination, under seeds ``random_seed_start`` and on;
            all combinations face the same seeds.
        n_jobs: Processes; 1 is this one, None takes one a core, or those of the backend
            that ``joblib.parallel_config`` names, such as ``"dask"``, a cluster. The
            numbers do not depend on it.
        random_seed_start: First seed.
        measure: Makes a run's numbers from its record; by default the metrics.
        workload: What all serve instead of their own requests, once: under another
            seed it would be the same run. ``base.replace(**workload.law())`` draws
            requests like these, and replicates.

    Returns:
        A tidy table: the swept fields, ``replication``, ``seed``, then the numbers. A
        run's ``p99_latency`` is its own; ``stats.summarize`` and the comparisons pool
        them through the columns ``quantiles_latency`` and so on.

    Raises:
        ConfigError: A field or value is unknown or bad; nothing has run then. Or a
            label has the name of a column of the results.

    >>> base = SimulationConfig(arrival_rate=1.0, num_requests=20, warmup_requests=0)
    >>> runs = sweep(base, {"batch_size": [8, 16]}, replications=1, n_jobs=1)
    >>> runs[["batch_size", "replication", "seed", "total_batches"]]
       batch_size  replication  seed  total_batches
    0           8            0    42              3
    1          16            0    42              2
    """
    kind("base", base, SimulationConfig, "a SimulationConfig")
    check_axes(over, ("replication", "seed"))
    runs = replications if workload is None else 1
    rows: list[dict[str, Any]] = []
    configs: list[SimulationConfig] = []
    for labels, config in _combinations(base, over):
        for i, run in enumerate(replicated(config, runs, random_seed_start)):
            rows.append({**labels, "replication": i, "seed": run.random_seed})
            configs.append(run)
    results = run_many(configs, n_jobs, " x ".join(over) or "runs", measure, workload)
    check_axes(over, results[0])
    table = pd.DataFrame([row | m for row, m in zip(rows, results, strict=True)])
    # the configuration knows the memory of its own requests alone
    table = table.drop(columns=[] if workload is None else "memories", errors="ignore")
    table.attrs["made_by"] = made_by(configuration=base, over=repr(over))
    return table


def _combinations(
    base: SimulationConfig, over: Mapping[str, Axis]
) -> Iterator[tuple[dict[str, Any], SimulationConfig]]:
    """The labels of each combination, and its configuration."""
    named = sorted(over, key=lambda name: not isinstance(over[name], Mapping))
    for combination in itertools.product(*over.values()):
        labels = dict(zip(over, combination, strict=True))
        config, changes = base, dict[str, Any]()
        for name in named:  # labelled alternatives first
            value = _alternative(name, labels[name], over[name])
            if isinstance(value, SimulationConfig):
                config, changes = value, {}
            else:
                changes |= value
        yield labels, config.replace(**changes)  # at once: nothing drops another


def _alternative(
    name: str, label: Any, axis: Axis
) -> SimulationConfig | Mapping[str, Any]:
    """A configuration, or changes to one."""
    value = axis[label] if isinstance(axis, Mapping) else {name: label}
    if not isinstance(value, (SimulationConfig, Mapping)):
        must = "a SimulationConfig or a dict of changes"
        raise fail(f"{name}[{shown(label)}]", value, must)
    if isinstance(value, Mapping) and "random_seed" in value:
        must = "left to random_seed_start: all combinations face the same seeds"
        raise fail("random_seed", value["random_seed"], must)
    return value
