"""What a run warns of: overload, by load or by queue, and steps nobody has fitted."""

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llminfer.base.arrays import IntArray
from llminfer.base.errors import OverloadWarning, kind
from llminfer.config import SimulationConfig
from llminfer.laws.engines import PRESETS
from llminfer.policies import ClassPolicy, FCFSPolicy
from llminfer.record import RunRecord
from llminfer.servers.kv_memory import EndlessCache
from llminfer.servers.prefixes import Paths
from llminfer.timing import StepTime
from llminfer.workload import Workload


def described(workload: Workload, config: SimulationConfig) -> SimulationConfig:
    """``config`` with the mean rate, number and lengths of a workload as its own.

    So it knows what it carries of them, and the load that they are. What a prefix cache
    finds at best, if it loses nothing, is no part of their prompts.

    Raises:
        ConfigError: All come at once: there is no rate.

    >>> work = Workload.from_arrays([0.0, 0.5, 1.0], [100, 50, 200], [20, 10, 30])
    >>> round(described(work, SimulationConfig(batch_size=1)).offered_load, 2)
    0.35
    """
    if config.prefix_caching and workload.segments is not None:
        computed = _computed(workload, Paths(config.block_size, workload.segments))
        workload = replace(workload, prompt_length=computed)
    own = {"num_requests": len(workload), "warmup_requests": 0, "shared_prefixes": {}}
    return config.replace(**own, **workload.law())


def _computed(workload: Workload, paths: Paths) -> IntArray:
    """Prompt tokens that no cache has if each comes when all before are complete."""
    cache, left = EndlessCache(paths), workload.prompt_length.copy()
    for i, whole in enumerate((left + workload.output_length - 1).tolist()):
        left[i] -= cache.look(i, left[i])[0] * cache.block_size
        cache.give_back(i, whole)
    return left


def may_carry_more(config: SimulationConfig) -> bool:
    """Whether lambda* is a lower bound, which some loads above 1 do not overload.

    Static batches carry more where a policy puts requests of like lengths together;
    continuous ones where outputs hardly vary, so that those who begin together end
    together.
    """
    if config.server == "static":
        blind = isinstance(policy := config.policy(), ClassPolicy)
        return config.largest_batch > 1 and not blind and type(policy) is not FCFSPolicy
    outputs = config.outputs
    laws = getattr(outputs, "laws", [outputs])  # of classes
    tokens = [getattr(law, "values", getattr(law, "value", 1)) for law in laws]
    if np.gcd.reduce(np.floor(np.hstack(tokens)).astype(np.int64)) > 1:
        return True  # all are multiples of a number
    return outputs.variance() < (0.1 * outputs.expectation()) ** 2


def warn_ahead(
    configs: Sequence[SimulationConfig], workload: Workload | None = None
) -> bool:
    """Warn once of each: batches no preset was fitted to, and overload; is there any?

    Args:
        configs: What is to run.
        workload: What all serve instead of their own: its rate and lengths count, if
            it comes in more than a few batches and not all at once.

    Raises:
        ConfigError: It is no workload, or they are no configurations.
    """
    for config in configs:
        kind("config", config, SimulationConfig, "a SimulationConfig")
    if workload is not None:
        kind("workload", workload, Workload, "a Workload: of from_csv, log.workload")
    configs = list(dict.fromkeys(c.replace(random_seed=None) for c in configs))
    full = [c for c in configs if c.server == "static"]  # the other need not fill them
    if said := _beyond(full, [c.largest_batch for c in full]):
        _warn(said, UserWarning)
    if workload is not None:
        spread = np.ptp(workload.arrival_time) > 0.0
        many = [c for c in configs if spread and len(workload) > _few(c)]
        configs = [described(workload, config) for config in many]
    over = [c for c in configs if not c.sheds and c.offered_load >= 1.0]
    if over:
        worst = max(over, key=lambda config: config.offered_load)
        rate = worst.arrivals.mean(worst.num_requests)
        share = "" if len(configs) == 1 else f"{len(over)} of {len(configs)} "
        may = "may " if may_carry_more(worst) else ""
        _warn(
            f"{share}{may and 'may be '}overloaded: {rate:.3g} requests/s arrive where "
            f"batch_size={worst.largest_batch} carries at {'least' if may else 'most'} "
            f"{worst.max_stable_rate:.3g} (load {worst.offered_load:.2f}): waits {may}"
            "grow with the length of the run"
        )
    return bool(over)


def _beyond(configs: Sequence[SimulationConfig], sizes: Sequence[int]) -> str:
    """What to say where batches are larger than any that a preset was fitted to."""
    for name, preset in PRESETS.items():
        law, known = StepTime(**preset.coefficients), preset.largest_batch or math.inf
        own = [n for c, n in zip(configs, sizes, strict=True) if c.step_time == law]
        if (largest := max(own, default=0)) > known:
            said = f"batches of {largest}: {name} was fitted to batches of at most"
            return f"{said} {known}; larger ones may take longer than this"
    return ""


def warn_of_batches(config: SimulationConfig, record: RunRecord) -> None:
    """Warn if a continuous server ran batches that no preset was fitted to."""
    largest = int(record.batch_size.max(initial=0))
    if config.server == "continuous" and (said := _beyond([config], [largest])):
        _warn(said, UserWarning)


def warn_of_losses(record: RunRecord) -> None:
    """Warn if over 1% were refused or given up, whom no latency counts."""
    lost = 0.0 if record.outcome is None else float(np.mean(record.outcome > 0))
    if lost > 0.01:
        said = f"{lost:.1%} of all requests were refused or given up: latencies are"
        _warn(f"{said} those of the others, and flatter the server", UserWarning)


def warn_of_growth(config: SimulationConfig, record: RunRecord) -> None:
    """Warn if more wait when the last request comes than a stable queue holds.

    They are over 5% of all, which a load of 1.06 leaves behind; over 8 sqrt(n), as
    chance alone makes a queue of some sqrt(n) in short runs; more than some batches;
    and more than in the middle.
    """
    n, (before, waiting) = len(record.arrival_time), waiting_in(record)
    if waiting > max(0.05 * n, 8.0 * n**0.5, _few(config), before):
        _warn(
            f"overloaded: {waiting:,} of {n:,} requests wait when the last one comes, "
            f"{before:,} in the middle of the run: waits grow with its length"
        )


def waiting_in(record: RunRecord) -> tuple[int, int]:
    """Requests that wait in the middle of a run, and when the last one comes."""
    arrival, start = record.arrival_time, record.processing_start_time
    middle, last = arrival[len(arrival) // 2], arrival[-1]
    before = (arrival <= middle) & (start > middle)
    return int(np.sum(before)), int(np.sum(start > last))


def _few(config: SimulationConfig) -> int:
    """Requests that are no queue yet: some times what the servers hold."""
    return 3 * config.largest_batch * config.replicas


def _warn(said: str, category: type[Warning] = OverloadWarning) -> None:
    """Warn at the line that asked for the run; panels and fits say it their own way."""
    if not sys._getframe(4).f_globals.get("__name__", "").startswith("llminfer."):
        warnings.warn(said, category, stacklevel=5)
