"""A server that takes one request at a time: M/G/1, priority, ageing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llminfer.checks import fail, number
from llminfer.lengths import FloatArray
from llminfer.service import ComplexArray, Service, WaitLaw, invert


def check_load(arrival_rate: float, limit: float) -> None:
    """Refuse a load of 1 or more, with the numbers."""
    if arrival_rate >= limit:
        load = arrival_rate / limit
        must = f"below {limit:.4g} requests a second: the load is {load:.4g}"
        raise fail("arrival_rate", arrival_rate, must)


@dataclass(frozen=True)
class MG1(WaitLaw):
    """The wait in a FCFS queue with one server and Poisson arrivals.

    Args:
        arrival_rate: lambda, requests a second.
        service: Law of service times: a ``BatchTime``, a ``DiscreteService`` or any
            with ``moment`` and ``transform``.

    Raises:
        ConfigError: The load lambda E[S] is 1 or more.

    Source: Pollaczek (1930), Khinchine (1932); the variance: Takacs (1962).
    """

    arrival_rate: float
    service: Service

    def __post_init__(self) -> None:
        number("arrival_rate", self.arrival_rate, above=0.0)
        check_load(self.arrival_rate, 1.0 / max(self.service.moment(1), 1e-300))

    @property
    def load(self) -> float:
        """Busy share of the time, rho = lambda E[S]."""
        return self.arrival_rate * self.service.moment(1)

    @property
    def chance(self) -> float:
        """P(W > 0) = rho."""
        return self.load

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
        return invert(self._transform, t)

    def _transform(self, s: ComplexArray) -> ComplexArray:
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


def ageing(
    arrival_rates: npt.ArrayLike,
    services: npt.ArrayLike,
    second_moments: npt.ArrayLike,
    slopes: npt.ArrayLike,
) -> FloatArray:
    """Mean waits, seconds, of classes whose priority is slope x wait, highest first.

    One server, one request at a time, no preemption. Slopes that are all alike are
    FCFS. One slope for all with a level a class is the fixed key arrival - level /
    slope instead (``Priority``), for which no closed form is known.

    Args:
        arrival_rates: Requests a second, shape (classes,); so are the others.
        services: E[S], seconds.
        second_moments: E[S^2], seconds squared.
        slopes: Priority gained a second of waiting, above 0.

    Raises:
        ConfigError: A slope is not above 0, or the load is 1 or more.

    Source: Kleinrock (1964).
    """
    rate, mean, square, slope = (
        np.asarray(column, dtype=np.float64)
        for column in (arrival_rates, services, second_moments, slopes)
    )
    number("slopes", float(slope.min()), above=0.0)
    load = rate * mean
    total = float(load.sum())
    check_load(float(rate.sum()), float(rate.sum()) / max(total, 1e-300))
    behind_all = float(rate @ square) / 2.0 / (1.0 - total)
    wait = np.zeros(len(rate))
    for p in np.argsort(slope, kind="stable"):
        slower, faster = slope < slope[p], slope > slope[p]
        spared = load[slower] * wait[slower] @ (1.0 - slope[slower] / slope[p])
        passed = load[faster] @ (1.0 - slope[p] / slope[faster])
        wait[p] = (behind_all - spared) / (1.0 - passed)
    return wait
