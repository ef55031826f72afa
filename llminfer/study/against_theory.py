"""Simulation beside theory: configurations with a number that is known exactly."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr

from llminfer import PRESETS, Estimate, RunRecord, SimulationConfig, theory
from llminfer.base.errors import OverloadWarning
from llminfer.experiment import run_many
from llminfer.theory.service_time import WaitLaw

Statistic = Callable[[RunRecord, int], float]  # of a run, less so many of warm-up
_SAID = ("name", "metric", "source", "exact")  # of a comparison, in a table


@dataclass(frozen=True)
class Comparison:
    """A quantity that a run estimates and theory knows.

    Attributes:
        name: The configuration in words.
        metric: The quantity in words; times in seconds.
        source: The law behind the exact value.
        config: What to simulate, under seeds of the reader's choice.
        exact: The value.
        measure: The estimate from a run's record and its number of warm-up requests.
    """

    name: str
    metric: str
    source: str
    config: SimulationConfig
    exact: float
    measure: Statistic

    def estimate(self, record: RunRecord) -> float:
        """The quantity in one run of ``config``."""
        return self.measure(record, self.config.warmup_requests)


@lru_cache(maxsize=1)
def comparisons() -> tuple[Comparison, ...]:
    """All cases, those of one configuration next to each other."""
    parts = (_singles, _priorities, _bulks, _continuous, _limits, _without_batch_limit)
    return tuple(
        Comparison(name, metric, source, config, exact, *(own or [_MEASURES[metric]]))
        for part in parts
        for name, config, cases in part()
        for metric, (source, exact, *own) in cases.items()
    )


def estimates(config: SimulationConfig, record: RunRecord) -> dict[str, float]:
    """All that theory knows of a configuration here, as one run has it: a measure."""
    own = config.replace(random_seed=None)
    cases = (case for case in comparisons() if case.config == own)
    return {case.metric: case.estimate(record) for case in cases}


def beside_theory(
    replications: int = 30, first_seed: int = 42, n_jobs: int | None = None
) -> pd.DataFrame:
    """Every exact value, and what replications of its own say of it.

    No seed is used twice. On shared ones all configurations would face the same
    requests, and a sample that is unlucky for one would be so for all.

    Args:
        replications: Runs a comparison.
        first_seed: Of the first; each comparison takes the next ``replications``.
        n_jobs: Processes; None takes one a core. The numbers do not depend on it.

    Returns:
        A row a comparison: ``name``, ``metric``, ``source``, ``exact``; ``mean``,
        ``ci_lower`` and ``ci_upper`` of the replications; ``t``, their distance in
        standard errors, and ``z``, the normal number that is as rare.
    """
    runs = [case.config for case in comparisons() for _ in range(replications)]
    configs = [run.replace(random_seed=n) for n, run in enumerate(runs, first_seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OverloadWarning)  # the floods are meant
        found = iter(run_many(configs, n_jobs, "comparisons", estimates))
    rows = []
    for case in comparisons():
        values = np.array([next(found)[case.metric] for _ in range(replications)])
        error = values.std(ddof=1) / math.sqrt(replications)
        t = (values.mean() - case.exact) / error
        said = {name: getattr(case, name) for name in _SAID}
        z = float(ndtri(stdtr(replications - 1, t)))
        rows.append({**said, **Estimate.of_mean(values).row(), "t": t, "z": z})
    return pd.DataFrame(rows)


_CHAT = {"mu": 4, "sigma": 1.0, "max": 2048}  # tokens
_LONG = SimulationConfig(
    prompt_dist_params=_CHAT, num_requests=12_000, warmup_requests=2_000
)
_SHORT = _LONG.replace(num_requests=6_000, warmup_requests=1_000)
_RTX4090, _A100, _H100 = "llama-3.1-8b-rtx4090", "opt-13b-a100", "llama-2-70b-dgx-h100"


def _run(load: float, **changes: Any) -> SimulationConfig:
    """A configuration at a load, long enough to be near its steady state."""
    config = (_SHORT if load <= 0.6 else _LONG).replace(**changes)  # it forgets sooner
    return config.replace(arrival_rate=load * config.max_stable_rate)


def _real(preset: str, load: float, **changes: Any) -> SimulationConfig:
    own = {**PRESETS[preset].coefficients, "epsilon": 0.0}  # of which no law knows
    return _run(load, **own | changes)


def _mean(of: Callable[[RunRecord], Any]) -> Statistic:
    """The mean over requests of what each has in a record."""
    return lambda record, skip: float(of(record)[skip:].mean())


def _longer_than(seconds: float) -> Statistic:
    return _mean(lambda record: record.wait > seconds)


def _work_waiting(record: RunRecord) -> Any:
    return (record.processing_end_time - record.processing_start_time) * record.wait


def _short_wait(record: RunRecord, skip: int) -> float:
    return float(record.wait[skip:][record.prompt_length[skip:] <= 100].mean())


def _later_batches(record: RunRecord, skip: int) -> Any:
    return record.batch_start >= record.arrival_time[skip]


def _mean_batch(record: RunRecord, skip: int) -> float:
    later = _later_batches(record, skip)
    steps = None if record.steps is None else record.steps.batch_steps[later]
    return float(np.average(record.batch_size[later], weights=steps))


def _busy_share(record: RunRecord, skip: int) -> float:
    later = _later_batches(record, skip)
    starts, ends = record.batch_start[later], record.batch_end[later]
    return float((ends - starts).sum() / (ends[-1] - starts[0]))


def _throughput(record: RunRecord, skip: int) -> float:
    return float(len(record.arrival_time) / record.batch_end.max())


_MEASURES: dict[str, Statistic] = {
    "mean wait": _mean(lambda record: record.wait),
    "mean squared wait": _mean(lambda record: record.wait**2),
    "mean TTFT": _mean(lambda record: record.ttft),
    "mean latency": _mean(lambda record: record.latency),
    "mean wait of prompts to 100": _short_wait,
    "mean service x wait": _mean(_work_waiting),
    "share that waits": _longer_than(0.0),
    "mean batch": _mean_batch,
    "busy share": _busy_share,
    "throughput": _throughput,
}
_THEORYS = {  # names of what queues of ``theory`` know
    "mean wait": "mean",
    "mean TTFT": "mean_ttft",
    "mean latency": "mean_latency",
    "mean batch": "mean_batch",
    "busy share": "utilization",
}
Cases = dict[str, Any]  # by metric: law, exact value, and a measure of its own
Named = Iterator[tuple[str, SimulationConfig, Cases]]


def _means(queue: object, law: str, *metrics: str) -> Cases:
    """What a queue of ``theory`` knows."""
    return {metric: (law, getattr(queue, _THEORYS[metric])) for metric in metrics}


def _beyond(queue: WaitLaw, name: str, share: float) -> Cases:
    """The share of waits beyond a quantile."""
    longer = _longer_than(queue.quantile(1.0 - share))
    return {f"share over the {name} wait": ("inversion", share, longer)}


def _singles() -> Named:
    """Batch size 1 under FCFS."""
    kinds = {
        "one by one, report, load 0.6": _run(0.6, batch_size=1),
        "one by one, RTX 4090, load 0.75": _real(_RTX4090, 0.75, batch_size=1),
    }
    for name, config in kinds.items():
        queue, law = theory.mg1(config), "M/G/1"
        cases = _means(queue, "Pollaczek, Khinchine", "mean wait")
        cases["mean squared wait"] = "Takacs", queue.variance + queue.mean**2
        cases["share that waits"] = law, queue.load
        cases |= _beyond(queue, "median", 0.5) | _beyond(queue, "p95", 0.05)
        cases |= _means(queue, law, "mean latency")
        yield name, config, cases | {"busy share": (law, queue.load)}


def _priorities() -> Named:
    """Batch size 1 under a fixed key."""
    base = _run(0.75, batch_size=1)
    sjf = base.replace(scheduling_policy="SJF")
    known = theory.priority(sjf)
    short = known.key <= 100
    wait = float(known.share[short] @ known.wait[short] / known.share[short].sum())
    cases = _means(known, "Phipps", "mean wait")
    cases["mean wait of prompts to 100"] = "Phipps", wait
    cases["mean service x wait"] = "Kleinrock", theory.conserved_work(base)
    yield "one by one, SJF, load 0.75", sjf, cases
    noisy = _real(_A100, 0.75, batch_size=1, scheduling_policy="Predicted-SJF")
    for sigma in (0.0, 1.0):
        config = noisy.replace(scheduling_policy_params={"prediction_sigma": sigma})
        name = f"one by one, A100, predictions with noise {sigma:g}, load 0.75"
        yield name, config, _means(theory.priority(config), "Phipps", "mean wait")


def _bulks() -> Named:
    """Batches under FCFS, greedy and full."""
    greedy: dict[str, Any] = {"batch_timeout": 0}
    kinds = {
        "greedy, B = 8, report, load 0.7": _run(0.7, batch_size=8, **greedy),
        "greedy, B = 32, A100, load 0.6": _real(_A100, 0.6, batch_size=32, **greedy),
        "full, B = 8, report, load 0.7": _run(0.7, batch_size=8),
        "full, B = 4, DGX H100, load 0.5": _real(_H100, 0.5, batch_size=4),
    }
    for name, config in kinds.items():
        queue, law = theory.bulk_queue(config), "Bailey, Neuts"
        cases = _means(queue, law, "mean wait", "mean TTFT", "mean latency")
        cases |= _beyond(queue, "p90", 0.1)
        if queue.utilization < 0.99:  # a server that never rests says nothing
            cases |= _means(queue, law, "busy share")
        if queue.least == 1:
            cases |= _means(queue, law, "mean batch")
        yield name, config, cases


_CONTINUOUS = {"server": "continuous", "max_batched_tokens": 10**6}


def _geometric(mean: int) -> dict[str, Any]:
    params = {"mean": mean}
    return {"output_length_dist": "geometric", "output_dist_params": params}


def _continuous() -> Named:
    """Iteration-level batches under FCFS, with geometric outputs."""
    steps = {**_CONTINUOUS, **_geometric(50), "batch_size": 8}
    real = _real(_RTX4090, 0.85, **steps, kappa=0.0)
    kinds = {
        "continuous, B = 8, report, load 0.5": _run(0.5, **steps),
        "continuous, B = 8, RTX 4090 (κ = 0), load 0.85": real,
    }
    for name, config in kinds.items():
        chain = theory.continuous(config)
        yield name, config, _means(chain, "chain of steps, Neuts", *_THEORYS)


def _limits() -> Named:
    """What no queue is needed for."""
    idle = _run(0.5, batch_size=6)
    idle = idle.replace(arrival_rate=4.0, alpha=0.0, beta=0.0, gamma=0.0)
    least = theory.assembly_bound(idle)
    yield "full, B = 6, no service time", idle, {"mean wait": ("assembly", least)}
    short = {"batch_size": 16, "num_requests": 8_000, "warmup_requests": 0}
    for name in ("report", _A100):
        flood = _real(name, 1e4, **short)
        cases = {"throughput": ("B / E[T_B]", flood.max_stable_rate)}
        yield f"flooded, B = 16, {name}", flood, cases
    flood = _run(1e4, **_CONTINUOUS, **_geometric(50), **short)
    cases = {"throughput": ("saturation", flood.max_stable_rate)}
    yield "flooded, continuous, B = 16, report", flood, cases


def _without_batch_limit() -> Named:
    """All who wait in one batch; and a decoder that slows down as requests join."""
    alike = {"output_length_dist": "constant", "output_dist_params": {"value": 100}}
    config = _run(0.4, batch_size=64, batch_timeout=0, **alike)
    size = theory.bulk_queue(config).mean_batch  # the limit is hardly ever reached
    cases = {"mean latency": ("Inoue", theory.inoue_latency(config, size))}
    yield "greedy, no limit, constant outputs, load 0.4", config, cases
    decode = {"alpha": 0.0, "beta": 0.0, "gamma": 0.02, "delta": 0.0005}
    config = _LONG.replace(
        arrival_rate=2.5, batch_size=512, **_CONTINUOUS, **_geometric(400), **decode
    )
    cases = {"mean latency": ("product form", theory.product_form_latency(config))}
    yield "continuous, no limit, decode only", config, cases
