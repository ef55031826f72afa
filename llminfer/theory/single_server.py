"""A server that takes one request at a time, first come first served: M/G/1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail, number
from llminfer.theory.service_time import ComplexArray, Service, WaitLaw, invert


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
    def memory(self) -> float:
        """Requests until a wait says little of later ones, about.

        The relaxation time of the queue in heavy traffic, 2 rho^2 (1 + c^2) /
        (1 - rho)^2 in requests, where c is the services' coefficient of variation.

        Source: reflected Brownian motion, Kingman (1962), Whitt (1989).
        """
        square = self.service.moment(2) / self.service.moment(1) ** 2
        return 2.0 * self.load**2 * square / (1.0 - self.load) ** 2

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
