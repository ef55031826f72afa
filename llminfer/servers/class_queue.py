"""Waiting requests in one queue a class, and which class is served next."""

import copy
import heapq
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What has an order, the earlier to arrive being less."""

    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=Ordered)  # a request, or its number in the workload

_AROUND = 2**41  # places in one round: more than there are class numbers


class Turns(ABC):
    """Gives every waiting class a place; the class with the least one is next.

    A class keeps its place from when it begins to wait, or was last served, until it
    is served again.
    """

    @abstractmethod
    def enter(self, number: int, least: float | None) -> float:
        """The place of a class of which nobody waited until now.

        Args:
            number: The class.
            least: The least place of the classes that wait; None if none does.
        """

    @abstractmethod
    def serve(self, number: int, place: float, tokens: int) -> float:
        """The place of class ``number`` after ``tokens`` of service at ``place``."""


class RoundRobin(Turns):
    """Classes in turn, by their numbers, round after round."""

    def __init__(self) -> None:
        self.last: float = -1  # whole numbers, so that no round is lost to rounding

    def enter(self, number: int, least: float | None) -> float:
        ahead = self.last + 1
        return ahead + (number - ahead) % _AROUND

    def serve(self, number: int, place: float, tokens: int) -> float:
        self.last = place
        return place + _AROUND


class FairShare(Turns):
    """The class with the least service so far over its weight.

    A class that comes back from idleness has saved nothing up: it starts at the least
    of those that wait or, if none does, at the one served last.

    Source: the virtual token counter, Sheng et al. (2024).

    Args:
        weights: By class number; a class beyond them has weight 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = dict(enumerate(weights))
        self.served: dict[int, float] = {}
        self.last = 0.0

    def enter(self, number: int, least: float | None) -> float:
        return max(self.served.get(number, 0.0), self.last if least is None else least)

    def serve(self, number: int, place: float, tokens: int) -> float:
        weight = self.weights.get(number, 1.0)
        self.last = self.served[number] = place + tokens / weight
        return self.last


class ClassQueue(Generic[T]):
    """Waiting requests by class, first come first served within each.

    Args:
        turns: Whose turn it is.
        class_of: The class of a request.
        tokens_of: The service a request takes, tokens.
    """

    can_overtake, time_dependent = True, False

    def __init__(
        self, turns: Turns, class_of: Callable[[T], int], tokens_of: Callable[[T], int]
    ) -> None:
        self._turns = turns
        self._class_of = class_of
        self._tokens_of = tokens_of
        self._queues: dict[int, deque[T]] = defaultdict(deque)
        self._heap: list[tuple[float, T, int]] = []  # place, first in queue, class
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, request: T) -> None:
        """``request`` joins."""
        number = self._class_of(request)
        queue, heap = self._queues[number], self._heap
        if not queue:
            place = self._turns.enter(number, heap[0][0] if heap else None)
            heapq.heappush(heap, (place, request, number))
        queue.append(request)
        self._waiting += 1

    def peek(self, now: float) -> T:
        """The next to serve; it stays."""
        return self._heap[0][1]

    def take(self, most: int, now: float) -> list[T]:
        """The next requests to serve, at most ``most``, leave."""
        heap, queues = self._heap, self._queues
        serve, tokens_of = self._turns.serve, self._tokens_of
        batch = []
        for _ in range(min(most, self._waiting)):
            place, request, number = heap[0]
            batch.append(request)
            place = serve(number, place, tokens_of(request))
            queue = queues[number]
            queue.popleft()
            if queue:
                heapq.heapreplace(heap, (place, queue[0], number))
            else:
                heapq.heappop(heap)
        self._waiting -= len(batch)
        return batch

    def discard(self, request: T) -> None:
        """``request`` leaves without having been served."""
        self._queues[self._class_of(request)].remove(request)
        self._waiting -= 1
        queues = self._queues
        self._heap = [(p, queues[n][0], n) for p, _, n in self._heap if queues[n]]
        heapq.heapify(self._heap)

    def oldest(self) -> T:
        """The earliest to arrive of those that wait."""
        return min(request for _, request, _ in self._heap)

    def in_order(self) -> list[T]:
        """All that wait, in the order they would be taken if nobody came."""
        trial = copy.copy(self)
        trial._turns = copy.deepcopy(self._turns)
        trial._heap = list(self._heap)
        trial._queues = {number: deque(queue) for number, queue in self._queues.items()}
        return trial.take(len(trial), 0.0)
