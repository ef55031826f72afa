"""A server that takes one request at a time: M/G/1, FCFS or with priorities.

``MG1`` is the wait first come first served. ``by_key`` has the mean waits under
priorities without preemption, and ``policy_waits`` makes them for a policy.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from llminfer import policies
from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import fail, number
from llminfer.config import SimulationConfig
from llminfer.laws.lengths import LengthLaw
from llminfer.policies import KeyedPolicy, SchedulingPolicy
from llminfer.theory import service_time

_STEPS = 256  # of the log of a noisy prediction


def check_load(arrival_rate: float, limit: float) -> None:
    """Refuse a load of 1 or more, with the numbers.

    >>> check_load(arrival_rate=3.0, limit=5.0)  # fine: the load is 0.6
    """
    if arrival_rate >= limit:
        load = arrival_rate / limit
        must = f"below {limit:.4g} requests a second: the load is {load:.4g}"
        raise fail("arrival_rate", arrival_rate, must)


def orders_as(policy: SchedulingPolicy, kind: type[KeyedPolicy]) -> bool:
    """Whether a policy orders requests just as ``kind`` does: a subclass may not.

    >>> orders_as(policies.SJFPolicy(), policies.FCFSPolicy)
    False
    """
    own = type(policy)
    sorts = own.sort_requests is kind.sort_requests
    return sorts and getattr(own, "keys", None) is kind.keys


@dataclass(frozen=True)
class MG1(service_time.WaitLaw):
    """The wait in a FCFS queue with one server and Poisson arrivals.

    Args:
        arrival_rate: lambda, requests a second.
        service: Law of service times: a ``BatchTime``, or any with ``moment`` and
            ``transform``.

    Raises:
        ConfigError: The load lambda E[S] is 1 or more.

    Source: Pollaczek (1930), Khinchine (1932); the variance: Takacs (1962).

    >>> from llminfer.laws.lengths import Constant
    >>> from llminfer.timing import StepTime
    >>> one_second = StepTime(alpha=0.0, beta=1.0, gamma=0.0)
    >>> service = service_time.BatchTime(one_second, Constant(9), Constant(9))
    >>> MG1(0.5, service).mean  # M/D/1
    0.5
    """

    arrival_rate: float
    service: service_time.Service

    def __post_init__(self) -> None:
        number("arrival_rate", self.arrival_rate, above=0.0)
        check_load(self.arrival_rate, 1.0 / max(self.service.moment(1), 1e-300))

    @property
    def load(self) -> float:
        """Busy share of the time, rho = lambda E[S]."""
        return self.arrival_rate * self.service.moment(1)

    chance = load  # P(W > 0)

    @property
    def mean(self) -> float:
        """E[W] = lambda E[S^2] / (2 (1 - rho)), seconds."""
        return self.arrival_rate * self.service.moment(2) / (2.0 * (1.0 - self.load))

    @property
    def mean_latency(self) -> float:
        """E[W + S], seconds."""
        return self.mean + self.service.moment(1)

    @property
    def variance(self) -> float:
        """Var[W] = E[W]^2 + lambda E[S^3] / (3 (1 - rho)), seconds squared."""
        third = self.arrival_rate * self.service.moment(3) / (3.0 * (1.0 - self.load))
        return self.mean**2 + third

    def _exceeds(self, t: FloatArray) -> FloatArray:
        return service_time.invert(self._transform, t)

    def _transform(self, s: service_time.ComplexArray) -> service_time.ComplexArray:
        """The transform of P(W > t), from (1-rho) s / (s - lambda + lambda S~(s))."""
        rest = s - self.arrival_rate * (1.0 - self.service.transform(s))
        return np.asarray((1.0 - (1.0 - self.load) * s / rest) / s)


@dataclass(frozen=True, eq=False)
class PriorityWaits:
    """Mean waits under a non-preemptive priority, one a key, least key first.

    Attributes:
        key: Shape (n,), increasing.
        share: Of requests with that key, shape (n,).
        service: E[S | key], seconds, shape (n,).
        wait: E[W | key], seconds, shape (n,).
    """

    key: FloatArray
    share: FloatArray
    service: FloatArray
    wait: FloatArray

    @property
    def mean(self) -> float:
        """E[W] over all requests, seconds."""
        return float(self.share @ self.wait)

    @property
    def mean_latency(self) -> float:
        """E[W + S] over all requests, seconds."""
        return float(self.share @ (self.wait + self.service))

    @property
    def mean_work(self) -> float:
        """E[S W], seconds squared: the same under every order (``conserved_work``)."""
        return float(self.share @ (self.service * self.wait))


def by_key(
    arrival_rate: float,
    key: npt.ArrayLike,
    share: npt.ArrayLike,
    service: npt.ArrayLike,
    second_moment: float,
) -> PriorityWaits:
    """Waits of an M/G/1 queue that serves the least key first, ties FCFS.

    E[W | y] = W0 / ((1 - sigma(y-)) (1 - sigma(y))), W0 = lambda E[S^2] / 2,
    sigma(y) = lambda E[S; key <= y]. A key is anything fixed on arrival: a class, a
    length, a prediction.

    Args:
        arrival_rate: lambda of all requests together, a second.
        key: Possible keys, any order, shape (n,); equal keys are one class.
        share: Probabilities, shape (n,), which sum to 1.
        service: E[S | key], seconds, shape (n,).
        second_moment: E[S^2] of all requests, seconds squared.

    Raises:
        ConfigError: The load is 1 or more.

    Source: Cobham (1954); Phipps (1956) for a continuum of keys.

    Half of the requests have key 1 and take 0.2 s, the others key 2 and 0.6 s:

    >>> found = by_key(1.0, [1, 2], [0.5, 0.5], [0.2, 0.6], second_moment=0.3)
    >>> found.wait.round(3)
    array([0.167, 0.278])
    """
    shares = np.asarray(share, dtype=np.float64)
    work = shares * np.asarray(service, dtype=np.float64)
    check_load(arrival_rate, 1.0 / max(float(work.sum()), 1e-300))
    keys, where = np.unique(np.asarray(key, dtype=np.float64), return_inverse=True)
    merged = np.asarray(np.bincount(where, shares), dtype=np.float64)
    mean = np.bincount(where, work) / np.maximum(merged, 1e-300)
    ahead = np.concatenate(([0.0], np.cumsum(arrival_rate * merged * mean)))
    wait = arrival_rate * second_moment / 2.0 / ((1.0 - ahead[:-1]) * (1.0 - ahead[1:]))
    return PriorityWaits(keys, merged, mean, wait)


class _Outputs(NamedTuple):
    """Outputs as a key sees them, in cells; columns of shape (cells,)."""

    seen: FloatArray | IntArray  # tokens, as the key takes them
    chance: FloatArray
    mean: FloatArray | IntArray  # E[O | cell]
    pairs: FloatArray  # E[O (O - 1) / 2 | cell]


def policy_waits(config: SimulationConfig) -> PriorityWaits:
    """Mean waits by key under a configuration's policy, requests served one by one.

    Raises:
        ConfigError: The policy's key is not fixed on arrival, or looks at the time of
            arrival or the request's number, or the load is 1 or more.
    """
    policy, law, rate = config.policy(), config.step_time, config.arrival_rate
    time = service_time.time_alone(law, config.prompts, config.outputs)
    if orders_as(policy, policies.FCFSPolicy):
        return by_key(rate, [0], [1], [time.moment(1)], time.moment(2))
    shares = [its.share for its in config.classes] or [1.0]
    cells = [_cells(config, policy, kind) for kind in range(len(shares))]
    of_class = [part / sum(shares) for part in shares]
    keys, services = (np.concatenate([its[i] for its in cells]) for i in (0, 2))
    chances = [its[1] * part for its, part in zip(cells, of_class, strict=True)]
    return by_key(rate, keys, np.concatenate(chances), services, time.moment(2))


def _cells(
    config: SimulationConfig, policy: SchedulingPolicy, kind: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Keys of a class's requests, chances, and E[S | key], shape (cells,) each."""
    law = config.step_time
    pmf = service_time.token_pmf(config.prompts.of_class(kind))
    prompt = np.flatnonzero(pmf)[:, None]
    outputs = _outputs(config.outputs.of_class(kind), policy)
    if type(policy) is policies.PredictedSJFPolicy:  # its noise is in the cells
        policy = replace(policy, prediction_sigma=0.0)
    service = law.prefill(prompt) + law.kappa * outputs.pairs
    own = law.gamma + law.delta + law.kappa * prompt
    service = (service + outputs.mean * own).ravel()
    chance = (pmf[prompt] * outputs.chance).ravel()
    return _keys(policy, prompt, outputs.seen, kind), chance, service


def _outputs(law: LengthLaw, policy: SchedulingPolicy) -> _Outputs:
    """Each length a cell, or fewer where a policy does not see the length itself."""
    if orders_as(policy, policies.SJFPolicy):
        mean, pairs = np.array([law.expectation()]), np.array([law.pairs()])
        return _Outputs(np.ones(1), np.ones(1), mean, pairs)
    pmf = service_time.token_pmf(law)
    tokens = np.flatnonzero(pmf)
    exact = _Outputs(tokens, pmf[tokens], tokens, tokens * (tokens - 1.0) / 2.0)
    if type(policy) is policies.PredictedSJFPolicy and policy.prediction_sigma:
        return _predicted(exact, policy.prediction_sigma)
    return exact


def _predicted(true: _Outputs, sigma: float) -> _Outputs:
    """Outputs seen with log-normal noise: steps of the log of what is seen."""
    low, high = math.log(true.seen[0]), math.log(true.seen[-1])
    edge = np.linspace(low - 6.0 * sigma, high + 6.0 * sigma, _STEPS + 1)
    below = ndtr((edge[:, None] - np.log(true.seen)) / sigma)
    joint = true.chance * np.diff(below, axis=0)
    chance = joint.sum(axis=1)
    some = np.maximum(chance, 1e-300)
    means = (joint @ of / some for of in (true.mean, true.pairs))
    seen = np.exp((edge[1:] + edge[:-1]) / 2.0)
    return _Outputs(seen, chance / chance.sum(), *means)


def _keys(
    policy: SchedulingPolicy, prompt: IntArray, output: FloatArray | IntArray, kind: int
) -> FloatArray:
    """The key of each prompt and output of a class, shape (prompts x outputs,)."""
    sorts = type(policy).sort_requests is KeyedPolicy.sort_requests
    if not isinstance(policy, KeyedPolicy) or not sorts:
        raise fail("scheduling_policy", policy.name, "one whose key never changes")
    tokens, longer = (its.ravel() for its in np.broadcast_arrays(prompt, output))
    one, now = np.zeros_like(tokens), np.zeros(len(tokens))
    waiting = policies.Waiting(one, now, tokens, longer, one + kind)
    keys = policy.keys(waiting)
    another = waiting._replace(arrival_time=now + 1e6, id=one + 977)
    if (policy.keys(another) != keys).any():
        must = "one whose key looks at nothing but lengths and class"
        raise fail("scheduling_policy", policy.name, must)
    return keys
