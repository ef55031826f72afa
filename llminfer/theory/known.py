"""What is known exactly about a configuration, without simulating it.

Oracles for the tests and curves beside the simulation. Times are seconds, rates
requests a second, lengths tokens. Every function takes a ``SimulationConfig`` where
that is natural, sums over the true laws of whole tokens, and refuses in one line what
lies outside its assumptions: Poisson arrivals at a constant rate and a load below 1,
unless its docstring says otherwise.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import ConfigError, fail, inside, number
from llminfer.config import SimulationConfig
from llminfer.laws.lengths import ByClass, Geometric, LengthLaw
from llminfer.policies import FCFSPolicy, SJFPolicy
from llminfer.theory import single_server
from llminfer.theory.bulk import BulkQueue, GammaQueue
from llminfer.theory.continuous_chain import ContinuousChain
from llminfer.theory.service_time import Service, batch_moments, time_alone, token_pmf
from llminfer.theory.single_server import MG1, PriorityWaits, check_load, orders_as

REPORTS_STEPS = {"step_law": "sum", "epsilon": 0.0, "async_scheduling": False}
STEADY = {"arrival_pattern": "constant", "batch_control": "static"}
POISSON = {**REPORTS_STEPS, **STEADY, "arrival_cv": 1.0, "arrival_gaps": None}


def mg1(config: SimulationConfig) -> MG1:
    """The wait at batch size 1 under FCFS: mean, variance, survival, quantiles.

    Raises:
        ConfigError: Batch size, policy, arrivals or load are outside the formula. The
            variance and the distribution also need a cap on prompts (``max``).

    >>> config = SimulationConfig(batch_size=1, arrival_rate=3.0)
    >>> round(mg1(config).mean, 3)  # E[W], seconds
    2.368
    """
    single(config)
    first_come(config)
    return MG1(config.arrival_rate, _alone(config))


def bulk_queue(config: SimulationConfig) -> BulkQueue:
    """The static server under FCFS with any batch size, solved once and remembered.

    ``batch_timeout`` 0 is the greedy server, None waits for full batches. With it come
    the means of wait, TTFT, latency and batch size, and the wait's distribution. It
    takes milliseconds without ``delta`` and ``kappa``, and with them up to a second for
    outputs to 500 tokens, in proportion for longer ones.

    Raises:
        ConfigError: Policy, arrivals, timeout or load are outside the chain, or
            prompts have no cap (``max``).

    >>> prompts = {"mu": 4.0, "sigma": 1.0, "max": 2048}
    >>> config = SimulationConfig(
    ...     arrival_rate=8.0,
    ...     batch_size=8,
    ...     batch_timeout=0.0,
    ...     prompt_dist_params=prompts,
    ... )
    >>> round(bulk_queue(config).mean_latency, 3)
    1.168
    """
    least = least_batch(config)
    parts = (config.step_time, listed(config, "prompt"), listed(config, "output"))
    return _solved(config.arrival_rate, *parts, config.batch_size, least)


_solved = lru_cache(maxsize=128)(BulkQueue)


def memory(config: SimulationConfig) -> float:
    """Requests until a wait says little of later ones, about; infinite at load 1.

    The relaxation time of the queue in heavy traffic, 2 rho^2 (ca^2 + cs^2) / (1 -
    rho)^2 in requests, where cs^2 is the dispersion of the work that requests bring;
    exact in that limit, and a guide below it.

    Source: reflected Brownian motion, Kingman (1962), Whitt (1989).

    >>> config = SimulationConfig(batch_size=8, arrival_rate=5.0)
    >>> round(memory(config.replace(prompt_dist_params={"mu": 4.0, "sigma": 1.0})), 1)
    5.5
    """
    load, law, size = config.offered_load, config.step_time, config.largest_batch
    if load >= 1.0:
        return math.inf
    rate = config.max_stable_rate / config.replicas
    output = law.gamma / size + law.delta  # seconds an output token
    prompts, outputs, gaps = config.prompts, config.outputs, config.arrival_gaps
    together = outputs.joint(prompts) - prompts.expectation() * outputs.expectation()
    work = law.alpha**2 * prompts.variance() + output**2 * outputs.variance()
    work += 2.0 * law.alpha * output * together
    cv = config.arrival_cv if gaps is None else np.std(gaps) / np.mean(gaps)
    spread = float(cv**2 + rate**2 * work)
    return config.replicas * 2.0 * load**2 * spread / (1.0 - load) ** 2


def measured_memories(config: SimulationConfig) -> float:
    """How many memories of the queue the measured part of a run lasts: 300 are sound.

    >>> config = SimulationConfig(batch_size=1, arrival_rate=3.0)
    >>> round(measured_memories(config), 1)
    66.0
    """
    measured = config.num_requests - config.warmup_requests
    return measured / max(memory(config), 1e-9)


def long_enough(config: SimulationConfig, memories: float = 300.0) -> SimulationConfig:
    """The configuration with runs of so many memories behind ten of warm-up.

    A run that is longer already stays as it is. At load 1 or more none is long enough.

    >>> config = SimulationConfig(batch_size=1, arrival_rate=3.0)
    >>> long_enough(config).num_requests > 300 * memory(config)
    True
    """
    if not math.isfinite(own := memory(config)):
        return config
    warmup = max(config.warmup_requests, math.ceil(10.0 * own))
    n = max(config.num_requests, warmup + math.ceil(memories * own))
    return config.replace(num_requests=n, warmup_requests=warmup)


def continuous(config: SimulationConfig) -> ContinuousChain:
    """Continuous batching under FCFS with geometric outputs, solved and remembered.

    A step prefills the prompts it admits and decodes everybody else; no token budget
    or KV limit is ever felt, and there is no ``kappa``.

    Raises:
        ConfigError: Server, outputs, ``kappa``, policy, arrivals, batch size or load
            are outside the chain, or prompts have no cap (``max``).

    >>> prompts = {"mu": 4.0, "sigma": 1.0, "max": 2048}
    >>> config = SimulationConfig(
    ...     server="continuous",
    ...     batch_size=4,
    ...     arrival_rate=4.0,
    ...     prompt_dist_params=prompts,
    ...     output_length_dist="geometric",
    ...     output_dist_params={"mean": 50},
    ...     max_batched_tokens=8192,
    ... )
    >>> round(continuous(config).mean_latency, 3)
    0.471
    """
    require(config, server="continuous", **POISSON, kappa=0.0)
    first_come(config)
    outputs = config.outputs
    if not isinstance(outputs, Geometric):
        must = "geometric, alike for all classes"
        raise fail("output_length_dist", config.output_length_dist, must)
    if outputs.max is not None:
        must = "None: the chain forgets how long a request has run"
        raise fail("output_dist_params.max", outputs.max, must)
    if config.batch_size > 64:
        raise fail("batch_size", config.batch_size, "at most 64 for the chain")
    parts = (config.step_time, listed(config, "prompt"), outputs, config.batch_size)
    require(config, kv_blocks=None, replicas=1, chunked_prefill=True)
    largest = config.batch_size * (len(token_pmf(config.prompts)) - 1)
    if config.max_batched_tokens < largest:
        must = f"at least {largest} for the chain, which knows no such limit"
        raise fail("max_batched_tokens", config.max_batched_tokens, must)
    check_load(config.arrival_rate, config.max_stable_rate)
    return _chained(config.arrival_rate, *parts)


_chained = lru_cache(maxsize=32)(ContinuousChain)


def mean_latency(config: SimulationConfig) -> float | None:
    """E[latency], seconds, if theory has it in a moment: for curves behind sliders.

    Exact at batch size 1 under FCFS or SJF, and for ``continuous``; within 5% for
    other static batches under FCFS (``GammaQueue``). None where no theory applies, or
    the load is 1 or more. Up to 50 ms, most of it for 32 continuous seats.

    >>> config = SimulationConfig(batch_size=1, arrival_rate=3.0)
    >>> round(mean_latency(config), 3)
    2.636
    >>> mean_latency(config.replace(arrival_rate=30.0)) is None  # overloaded
    True
    """
    try:
        if config.server == "continuous":
            return continuous(config).mean_latency
        if config.batch_size == 1:
            by_prompt = orders_as(config.policy(), SJFPolicy)
            return (priority if by_prompt else mg1)(config).mean_latency
        least = least_batch(config)
        parts = (config.step_time, config.prompts, config.outputs, config.batch_size)
        return GammaQueue(config.arrival_rate, *parts, least).mean_latency
    except ConfigError:
        return None


def latency_curve(config: SimulationConfig, loads: Sequence[float]) -> FloatArray:
    """``mean_latency`` at each of ``loads``, shape (n,), NaN where there is none.

    Computed once for all rates and seeds, and remembered.

    Args:
        config: Everything but the rate.
        loads: lambda / lambda*.

    >>> latency_curve(SimulationConfig(batch_size=1), [0.5, 0.9, 1.1]).round(2)
    array([0.85, 5.51,  nan])
    """
    try:
        require(config, **STEADY)
        idle = {"num_requests": 1, "warmup_requests": 0, "random_seed": 0}
        return _curve(config.replace(arrival_rate=1.0, **idle), tuple(loads))
    except ConfigError:
        return np.full(len(loads), np.nan)


@lru_cache(maxsize=256)
def _curve(config: SimulationConfig, loads: tuple[float, ...]) -> FloatArray:
    most = config.max_stable_rate
    means = [mean_latency(config.replace(arrival_rate=load * most)) for load in loads]
    curve = np.array([math.nan if mean is None else mean for mean in means])
    curve.flags.writeable = False
    return curve


def priority(config: SimulationConfig) -> PriorityWaits:
    """Waits at batch size 1 under any policy whose key is fixed on arrival.

    FCFS, SJF and Predicted-SJF with its noise; Priority and SJF-Aging without ageing,
    classes included; a ``KeyedPolicy`` of your own. Noisy predictions are taken in 256
    steps of the log of the predicted output, everything else exactly.

    Raises:
        ConfigError: Batch size, policy, arrivals or load are outside the formula, or
            the prompts have no cap (``max``).

    >>> prompts = {"mu": 4.0, "sigma": 1.0, "max": 2048}
    >>> config = SimulationConfig(
    ...     batch_size=1, arrival_rate=3.0, prompt_dist_params=prompts
    ... )
    >>> round(priority(config.replace(scheduling_policy="SJF")).mean, 3)
    0.136
    >>> round(mg1(config).mean, 3)  # first come first served waits longer
    0.172
    """
    single(config)
    check_load(config.arrival_rate, config.max_stable_rate)
    for which in ("prompt", "output"):
        listed(config, which)
    waits = single_server.policy_waits(config)
    if not math.isclose(waits.mean_work, conserved_work(config), rel_tol=1e-6):
        must = "a law whose table keeps E[S W], which no policy changes"
        raise fail("prompt_length_dist", config.prompt_length_dist, must)
    return waits


def conserved_work(config: SimulationConfig) -> float:
    """E[S W], seconds squared, at batch size 1: no non-preemptive policy changes it.

    Raises:
        ConfigError: Batch size, arrivals or load are outside the formula.

    Source: Kleinrock (1965). It does not hold for larger batches.

    >>> round(conserved_work(SimulationConfig(batch_size=1, arrival_rate=3.0)), 4)
    0.6335
    """
    single(config)
    queue = MG1(config.arrival_rate, _alone(config))
    return queue.mean * queue.service.moment(1)


def assembly_bound(config: SimulationConfig) -> float:
    """(B - 1) / (2 lambda), seconds: no less is E[W] where batches must be full.

    Whatever the policy: so many wait on average between two multiples of B arrivals.

    Raises:
        ConfigError: A timeout, or a rate or batch limit that varies.

    >>> config = SimulationConfig(batch_size=8, batch_timeout=None, arrival_rate=2.0)
    >>> assembly_bound(config)
    1.75
    """
    require(config, server="static", batch_timeout=None, **REPORTS_STEPS, **STEADY)
    return (config.batch_size - 1) / (2.0 * config.arrival_rate)


def inoue_latency(config: SimulationConfig, mean_batch: float) -> float:
    """E[latency], seconds, of the greedy server without a batch limit, given E[b].

    All who wait are one batch, outputs are constant: E[T_b] = a b + tau and
    Var T_b = v b, so E[b^2] / E[b] follows from E[b]. ``batch_size`` is not used.

    Args:
        config: Coefficients, prompts, constant outputs, ``batch_timeout=0``.
        mean_batch: E[b], requests a batch.

    Raises:
        ConfigError: Outputs vary, batches wait, or the load lambda a is 1 or more.

    Source: after Inoue (2021), arXiv:1912.06322.

    >>> config = SimulationConfig(batch_size=8, batch_timeout=0.0, arrival_rate=3.0)
    >>> config = config.replace(
    ...     output_length_dist="constant", output_dist_params={"value": 20}
    ... )
    >>> round(inoue_latency(config, mean_batch=2.0), 3)
    1.396
    """
    require(config, server="static", batch_timeout=0.0, **POISSON)
    first_come(config)
    if config.outputs.variance() > 1e-9 * config.outputs.expectation():
        must = "constant, alike for all classes"
        raise fail("output_length_dist", config.output_length_dist, must)
    parts = (config.step_time, config.prompts, config.outputs)
    (one, two), (square, _) = batch_moments(*parts, range(1, 3))
    slope, rate = float(two - one), config.arrival_rate  # a
    check_load(rate, 1.0 / max(slope, 1e-300))
    fixed, spread = float(one) - slope, float(square - one**2)  # tau, v
    once = 2.0 * slope * fixed + spread
    once += fixed**2 / number("mean_batch", mean_batch, least=1.0)
    ratio = (1.0 + rate**2 * once) / (1.0 - (rate * slope) ** 2)
    return slope * ratio + fixed + rate / 2.0 * (slope**2 * ratio + once)


def product_form_latency(config: SimulationConfig) -> float:
    """E[latency], seconds, of a decoder that slows down as requests join it.

    No batch limit, no prefill: with n inside each gets a token every gamma + delta n
    seconds, at once. Latency is proportional to output length, whatever its law. A
    server in steps adds about half a step an arrival: a curve to draw, not an oracle.

    Raises:
        ConfigError: ``alpha``, ``beta`` or ``kappa`` is above 0, or server, arrivals
            or load are outside the form.

    Source: processor sharing with a state-dependent rate, Cohen (1979), Kelly (1979).

    >>> config = SimulationConfig(server="continuous")
    >>> config = config.replace(alpha=0.0, beta=0.0, gamma=0.02, delta=0.001)
    >>> round(product_form_latency(config.replace(arrival_rate=3.0)), 2)
    2.98
    """
    require(config, server="continuous", **POISSON)
    require(config, replicas=1, kv_blocks=None, alpha=0.0, beta=0.0, kappa=0.0)
    mean, rate = config.outputs.expectation(), config.arrival_rate
    check_load(rate, 1.0 / max(mean * config.delta, 1e-300))
    slowed = 1.0 - rate * mean * config.delta
    return mean * (config.gamma + config.delta) / slowed


def _alone(config: SimulationConfig) -> Service:
    return time_alone(config.step_time, config.prompts, listed(config, "output"))


# What the laws take for granted


def require(config: SimulationConfig, **must: Any) -> None:
    """Fields have the values that a law takes for granted."""
    for name, value in must.items():
        if getattr(config, name) != value:
            raise fail(name, getattr(config, name), f"{value} for this law")


def first_come(config: SimulationConfig) -> None:
    """FCFS itself: a subclass may order otherwise."""
    if not orders_as(config.policy(), FCFSPolicy):
        raise fail("scheduling_policy", config.policy().name, "FCFS for this law")


def single(config: SimulationConfig) -> None:
    """A static server that takes one Poisson request at a time."""
    require(config, server="static", **POISSON, batch_size=1)


def least_batch(config: SimulationConfig) -> int:
    """Requests that a static batch waits for, if the bulk queue has an answer."""
    require(config, server="static", **POISSON)
    first_come(config)
    most, timeout = config.batch_size, config.batch_timeout
    if most > 1 and timeout is not None and timeout > 0.0:
        raise fail("batch_timeout", timeout, "0 or None for the bulk queue")
    check_load(config.arrival_rate, config.max_stable_rate)
    return most if timeout is None else 1


def listed(config: SimulationConfig, which: str) -> LengthLaw:
    """The law of ``which`` lengths, prompt or output, if it can be listed."""
    law = config.prompts if which == "prompt" else config.outputs
    names = config.request_classes if isinstance(law, ByClass) else [""]
    for kind, name in enumerate(names):
        owner = f"request_classes.{name}." if name else ""
        with inside(f"{owner}{which}_dist_params"):
            token_pmf(law.of_class(kind))
    return law
