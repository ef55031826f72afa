"""Who goes next: scheduling policies over the whole waiting queue."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import build, choice, fail
from llminfer.base.streams import stream
from llminfer.laws.fields import POLICY_CHECKS
from llminfer.request import Request, RequestClass
from llminfer.servers import class_queue

T = TypeVar("T", bound=class_queue.Ordered)


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
class _Checked(SchedulingPolicy):
    """A policy of ours, whose parameters are checked."""

    def __post_init__(self) -> None:
        for name in POLICY_CHECKS.keys() & vars(self):
            POLICY_CHECKS[name](name, getattr(self, name))


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
    """First come, first served.

    >>> queue = [Request(0, 0.0, 30, 5), Request(1, 0.5, 10, 5), Request(2, 0.7, 20, 5)]
    >>> [r.id for r in FCFSPolicy().sort_requests(queue, current_time=1.0)]
    [0, 1, 2]
    """

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
class _EstimatingPolicy(_Checked, KeyedPolicy):
    """Shared by policies that estimate a request's time alone, in seconds."""

    alpha: float = 0.001  # s per prompt token
    beta: float = 0.05  # s per prefill
    gamma: float = 0.0005  # s per decode step

    def estimated_time(
        self, prompt: IntArray, output: FloatArray | IntArray
    ) -> FloatArray:
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
        super().__post_init__()

    def keys(self, waiting: Waiting) -> FloatArray:
        predicted = waiting.output_length.astype(np.float64)
        if self.prediction_sigma > 0.0 and len(waiting.id):
            most = int(waiting.id.max()) + 1
            if most > len(self._noise):
                noise = stream(self.random_seed, "prediction")
                self._noise = noise.standard_normal(2 * most)
            predicted *= np.exp(self.prediction_sigma * self._noise[waiting.id])
        return self.estimated_time(waiting.prompt_length, predicted)


@dataclass(eq=False)
class PriorityPolicy(_EstimatingPolicy):
    """Highest ``base_priority + aging_rate wait + urgency_weight/time`` first.

    Every request ages at the same rate, so the order of two requests never changes
    and ``arrival`` stands in for the wait (Kleinrock 1964). A request class with a
    ``base_priority`` of its own has that one.
    """

    name: ClassVar[str] = "Priority"
    base_priority: float = 0.0
    aging_rate: float = 0.1  # priority gained a second of waiting
    urgency_weight: float = 1.0  # priority times second of estimated time
    request_classes: tuple[RequestClass, ...] = ()  # by class number

    def keys(self, waiting: Waiting) -> FloatArray:
        time = self.estimated_time(waiting.prompt_length, waiting.output_length)
        urgency = self.urgency_weight / np.maximum(time, 1e-300)
        base = np.full(len(time), self.base_priority)
        for i, its in enumerate(self.request_classes):
            if its.base_priority is not None:
                base[waiting.request_class == i] = its.base_priority
        return self.aging_rate * waiting.arrival_time - (base + urgency)


@dataclass(eq=False)
class SJFAgingPolicy(_EstimatingPolicy):
    """Least ``estimated_time - aging_rate wait`` first.

    As in ``PriorityPolicy`` all age alike, and ``arrival`` stands in for the wait.
    """

    name: ClassVar[str] = "SJF-Aging"
    aging_rate: float = 0.1  # seconds of estimated time forgiven a second of waiting

    def keys(self, waiting: Waiting) -> FloatArray:
        time = self.estimated_time(waiting.prompt_length, waiting.output_length)
        return time + self.aging_rate * waiting.arrival_time


@dataclass(eq=False)
class ClassPolicy(_Checked):
    """A policy that chooses among the classes, first come first served within each.

    Whose turn it is depends on what was served so far; the server keeps such a queue
    in one queue a class.
    """

    request_classes: tuple[RequestClass, ...] = ()  # by class number
    _queue: class_queue.ClassQueue[Request] | None = field(
        default=None, init=False, repr=False
    )

    @abstractmethod
    def turns(self) -> class_queue.Turns:
        """Whose turn it is, when nobody has been served yet."""

    def queues(
        self, class_of: Callable[[T], int], tokens_of: Callable[[T], int]
    ) -> class_queue.ClassQueue[T]:
        """An empty queue under this policy."""
        return class_queue.ClassQueue(self.turns(), class_of, tokens_of)

    def sort_requests(
        self, requests: Sequence[Request], current_time: float
    ) -> list[Request]:
        """The queue in turn; who waited last time and does not now has been served."""
        if self._queue is None:
            self._queue = self.queues(lambda r: r.request_class, _service)
        queue, here = self._queue, set(requests)
        while len(queue) and queue.peek(current_time) not in here:
            queue.take(1, current_time)
        for request in requests[len(queue) :]:  # in arrival order: the new ones
            queue.add(request)
        return queue.in_order()


def service_tokens(prompt: Any, output: Any) -> Any:
    """Service as WFQ counts it: prompt tokens plus twice the output tokens.

    >>> service_tokens(100, 20)
    140
    """
    return prompt + 2 * output


def _service(request: Request) -> int:
    return int(service_tokens(request.prompt_length, request.expected_output_length))


@dataclass(eq=False)
class ClassRoundRobinPolicy(ClassPolicy):
    """Classes in turn, by their numbers."""

    name: ClassVar[str] = "Class-RR"

    def turns(self) -> class_queue.Turns:
        return class_queue.RoundRobin()


@dataclass(eq=False)
class WFQPolicy(ClassPolicy):
    """The waiting class with the least service so far over its weight.

    Service is ``service_tokens``, counted in full when a request is taken. Ties go to
    the class whose first request came earlier (Sheng et al. 2024).
    """

    name: ClassVar[str] = "WFQ"

    def turns(self) -> class_queue.Turns:
        return class_queue.FairShare([its.weight for its in self.request_classes])


POLICIES: dict[str, type[SchedulingPolicy]] = {
    policy.name: policy
    for policy in (
        FCFSPolicy,
        SJFPolicy,
        PredictedSJFPolicy,
        PriorityPolicy,
        SJFAgingPolicy,
        ClassRoundRobinPolicy,
        WFQPolicy,
    )
}
_OURS = frozenset(POLICIES)
P = TypeVar("P", bound=type[SchedulingPolicy])


def register_policy(policy: P) -> P:
    """Make a policy of your own known by its ``name``; use it as a decorator.

    Sweeps make it known to their worker processes. Registering a name again replaces
    the policy, so that a notebook's cell can be run twice.

    Raises:
        ConfigError: No subclass of ``SchedulingPolicy``, no name, or one of ours.
    """
    if not (isinstance(policy, type) and issubclass(policy, SchedulingPolicy)):
        raise fail("policy", policy, "a subclass of SchedulingPolicy")
    name = getattr(policy, "name", None)
    if not isinstance(name, str) or not name or name in _OURS:
        must = "a name of your own, none of " + ", ".join(sorted(_OURS))
        raise fail(f"{policy.__name__}.name", name, must)
    POLICIES[name] = policy
    return policy


def registered_policy(name: object) -> type[SchedulingPolicy] | None:
    """The policy of the user's own that ``name`` stands for, or None."""
    own = isinstance(name, str) and name not in _OURS
    return POLICIES[str(name)] if own else None


def get_policy(name: str, /, **params: Any) -> SchedulingPolicy:
    """A fresh policy by name.

    Args:
        name: One of ``POLICIES``.
        **params: Its parameters (DESIGN section 5).

    Raises:
        ConfigError: Unknown policy or parameter, or a bad value.

    >>> queue = [Request(0, 0.0, 30, 5), Request(1, 0.5, 10, 5), Request(2, 0.7, 20, 5)]
    >>> [r.id for r in get_policy("SJF").sort_requests(queue, current_time=1.0)]
    [1, 2, 0]
    """
    cls = POLICIES[choice("scheduling_policy", name, POLICIES)]
    if "__dataclass_fields__" in vars(cls):
        return build(cls, f"policy {name}", params, "scheduling_policy_params")
    try:
        return cls(**params)
    except TypeError as error:
        raise fail("scheduling_policy_params", params, f"his own: {error}") from None


def ranked(
    policy: SchedulingPolicy, requests: Iterable[Request], now: float
) -> list[Request]:
    """``requests`` in the policy's order, the next to serve first.

    Raises:
        ConfigError: A policy of the reader's loses, repeats or makes up requests.
    """
    waiting = list(requests)
    order: list[Request] = [*(policy.sort_requests(list(waiting), now) or ())]
    if len(order) != len(waiting) or set(order) != set(waiting):
        must = "one whose sort_requests returns each of the waiting requests once"
        raise fail("scheduling_policy", policy.name, must)
    return order
