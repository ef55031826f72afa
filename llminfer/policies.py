"""Who goes next: scheduling policies over the whole waiting queue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from llminfer.checks import build, choice, number
from llminfer.lengths import FloatArray, IntArray
from llminfer.request import Request
from llminfer.streams import stream


class Waiting(NamedTuple):
    """Waiting requests as columns, each of shape (n,)."""

    id: IntArray
    arrival_time: FloatArray
    prompt_length: IntArray
    output_length: IntArray
    request_class: IntArray


class SchedulingPolicy(ABC):
    """An order on the waiting requests; the server takes its batch from the front.

    A policy of your own needs a ``name`` and ``sort_requests``; hand an instance to
    ``scheduling_policy``, or make its name known with ``register_policy``.
    """

    name: ClassVar[str]

    @abstractmethod
    def sort_requests(
        self, requests: Sequence[Request], current_time: float
    ) -> list[Request]:
        """All of ``requests``, the next to serve first.

        Args:
            requests: The whole queue in arrival order.
            current_time: Now, seconds.
        """


@dataclass(eq=False)
class KeyedPolicy(SchedulingPolicy):
    """A policy whose order never changes while requests wait: least key first.

    Ties go to the earlier arrival. The server keeps such a queue as a heap.
    """

    @abstractmethod
    def keys(self, waiting: Waiting) -> FloatArray:
        """One fixed key a request, shape (n,)."""

    def sort_requests(
        self, requests: Sequence[Request], current_time: float
    ) -> list[Request]:
        del current_time  # a fixed key does not look at the clock
        columns = Waiting(
            np.array([r.id for r in requests], dtype=np.int64),
            np.array([r.arrival_time for r in requests], dtype=np.float64),
            np.array([r.prompt_length for r in requests], dtype=np.int64),
            np.array([r.expected_output_length for r in requests], dtype=np.int64),
            np.array([r.request_class for r in requests], dtype=np.int64),
        )
        order = np.lexsort((columns.id, columns.arrival_time, self.keys(columns)))
        return [requests[i] for i in order]


@dataclass(eq=False)
class FCFSPolicy(KeyedPolicy):
    """First come, first served."""

    name: ClassVar[str] = "FCFS"

    def keys(self, waiting: Waiting) -> FloatArray:
        return waiting.arrival_time


@dataclass(eq=False)
class SJFPolicy(KeyedPolicy):
    """Shortest prompt first."""

    name: ClassVar[str] = "SJF"

    def keys(self, waiting: Waiting) -> FloatArray:
        return waiting.prompt_length.astype(np.float64)


@dataclass(eq=False)
class _EstimatingPolicy(KeyedPolicy):
    """Shared by policies that estimate a request's time alone, in seconds."""

    alpha: float = 0.001  # s per prompt token
    beta: float = 0.05  # s per prefill
    gamma: float = 0.0005  # s per decode step

    def estimated_time(self, prompt: IntArray, output: FloatArray) -> FloatArray:
        """``alpha prompt + beta + gamma output``, seconds, same shape."""
        return self.alpha * prompt + self.beta + self.gamma * output


@dataclass(eq=False)
class PredictedSJFPolicy(_EstimatingPolicy):
    """Least predicted time first, the prediction right up to log-normal noise.

    Args:
        prediction_sigma: Standard deviation of the log of predicted over true
            output length; 0 predicts perfectly.
        random_seed: Seed of the noise; each request keeps its own draw.
    """

    name: ClassVar[str] = "Predicted-SJF"
    prediction_sigma: float = 0.0
    random_seed: int | None = None
    _noise: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._noise = np.empty(0)
        if self.random_seed is None:  # one draw for good, so that noise stays put
            self.random_seed = int(np.random.default_rng().integers(2**63))
        number("prediction_sigma", self.prediction_sigma, least=0.0, most=20.0)

    def keys(self, waiting: Waiting) -> FloatArray:
        predicted = waiting.output_length.astype(np.float64)
        if self.prediction_sigma > 0.0 and len(waiting.id):
            most = int(waiting.id.max()) + 1
            if most > len(self._noise):
                self._noise = stream(self.random_seed, "prediction").standard_normal(
                    2 * most
                )
            predicted *= np.exp(self.prediction_sigma * self._noise[waiting.id])
        return self.estimated_time(waiting.prompt_length, predicted)


@dataclass(eq=False)
class PriorityPolicy(_EstimatingPolicy):
    """Highest ``base_priority + aging_rate wait + urgency_weight/time`` first.

    Every request ages at the same rate, so the order of two requests never changes
    and ``arrival`` stands in for the wait (Kleinrock 1964).
    """

    name: ClassVar[str] = "Priority"
    base_priority: float = 0.0
    aging_rate: float = 0.1  # priority gained a second of waiting
    urgency_weight: float = 1.0  # priority times second of estimated time

    def __post_init__(self) -> None:
        number("base_priority", self.base_priority)
        number("aging_rate", self.aging_rate, least=0.0)
        number("urgency_weight", self.urgency_weight, least=0.0)

    def keys(self, waiting: Waiting) -> FloatArray:
        outputs = waiting.output_length.astype(np.float64)
        time = self.estimated_time(waiting.prompt_length, outputs)
        urgency = self.urgency_weight / np.maximum(time, 1e-300)
        level = self.base_priority + urgency
        return self.aging_rate * waiting.arrival_time - level


POLICIES: dict[str, type[SchedulingPolicy]] = {
    policy.name: policy
    for policy in (FCFSPolicy, SJFPolicy, PredictedSJFPolicy, PriorityPolicy)
}


def get_policy(name: str, **params: Any) -> SchedulingPolicy:
    """A fresh policy by name.

    Args:
        name: One of ``POLICIES``.
        **params: Its parameters (DESIGN section 5).

    Raises:
        ConfigError: Unknown policy or parameter, or a bad value.
    """
    cls = POLICIES[choice("scheduling_policy", name, POLICIES)]
    if not hasattr(cls, "__dataclass_fields__"):
        return cls(**params)
    return build(cls, f"policy {name}", params, "scheduling_policy_params")
