"""The waiting queue of a server under each kind of policy, by request numbers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from llminfer import policies
from llminfer.request import Request
from llminfer.workload import Workload

_BY_KEY = policies.KeyedPolicy.sort_requests
_BY_CLASS = policies.ClassPolicy.sort_requests


class WaitingQueue(Protocol):
    """Waiting requests by their numbers in the workload.

    Taking k at once is the same as k times looking at the next one and taking it.

    Attributes:
        can_overtake: True if a new request may be served before those that wait. If
            not, requests leave in order of number, none is missing, and a server that
            counts them need not ask.
        time_dependent: True if the next request may change with time alone.
    """

    can_overtake: bool
    time_dependent: bool

    def __len__(self) -> int:
        """How many wait."""

    def add(self, i: int, /) -> None:
        """Request ``i`` joins; the numbers come in order."""

    def peek(self, now: float) -> int:
        """The next to serve; it stays."""

    def take(self, most: int, now: float) -> Sequence[int]:
        """The next requests to serve, at most ``most``, leave."""

    def discard(self, i: int) -> None:
        """Request ``i`` waits no more; of a queue that requests may leave."""

    def oldest(self) -> int:
        """The earliest to arrive of those that wait."""


def waiting_queue(
    policy: policies.SchedulingPolicy, workload: Workload, *, every: bool, live: bool
) -> WaitingQueue:
    """The cheapest queue that keeps ``policy``'s order.

    A subclass that sorts for itself is asked, whatever it is a subclass of.

    Args:
        policy: Who goes next.
        workload: The requests.
        every: Will all of them join and be taken? Another server may get some.
        live: Are the columns filled in as requests come?
    """
    sorts, columns = type(policy).sort_requests, _columns(workload)
    if isinstance(policy, policies.ClassPolicy) and sorts is _BY_CLASS:
        _, prompt, output, classes = columns
        service = policies.service_tokens
        return policy.queues(
            classes.__getitem__, lambda i: int(service(prompt[i], output[i]))
        )
    if not isinstance(policy, policies.KeyedPolicy) or sorts is not _BY_KEY:
        return _SortedQueue(policy, columns)
    n = len(workload)
    if type(policy).keys is policies.FCFSPolicy.keys:
        return _ArrivalQueue() if every else _KeyedQueue(n, int, int)
    if live:
        return _KeyedQueue(n, partial(_key, policy, columns), itemgetter(1))
    keys = policy.keys(policies.Waiting(np.arange(n), *map(np.asarray, columns)))
    order = np.argsort(keys, kind="stable")
    rank = np.argsort(order).tolist()
    return _KeyedQueue(n, rank.__getitem__, order.tolist().__getitem__)


def _columns(workload: Workload) -> list[Any]:
    """The columns of a workload, to be read one by one, also while they are filled."""
    return [memoryview(column) for column in list(vars(workload).values())[:4]]


def _key(policy: policies.KeyedPolicy, columns: list[Any], i: int) -> tuple[float, int]:
    """The key of request ``i`` alone, and its number."""
    its = (np.array([column[i]]) for column in columns)
    return float(policy.keys(policies.Waiting(np.array([i]), *its))[0]), i


class _ArrivalQueue:
    """Requests in order of arrival, all of whom wait to be taken: two counters."""

    can_overtake = time_dependent = False

    def __init__(self) -> None:
        self.head = self.tail = 0

    def __len__(self) -> int:
        return self.tail - self.head

    def add(self, i: int) -> None:
        self.tail = i + 1

    def peek(self, now: float) -> int:
        return self.head

    def discard(self, i: int) -> None:
        """Nobody leaves this queue before being taken."""

    def take(self, most: int, now: float) -> Sequence[int]:
        head = self.head
        end = head + most
        self.head = end = end if end < self.tail else self.tail
        return range(head, end)

    def oldest(self) -> int:
        return self.head


class _KeyedQueue:
    """Requests under a fixed key, that may leave: a heap, and who is still there.

    Args:
        requests: How many may come.
        key: That of a request that joins, another for each; the least goes first.
        number: The request of a key.
    """

    can_overtake, time_dependent = True, False

    def __init__(
        self, requests: int, key: Callable[[int], Any], number: Callable[[Any], int]
    ) -> None:
        self.key, self.number = key, number
        self.heap: list[Any] = []  # keys; some may have left
        self.here = bytearray(requests)  # 1 for those who wait
        self.waiting = self.first = 0

    def __len__(self) -> int:
        return self.waiting

    def add(self, i: int) -> None:
        heapq.heappush(self.heap, self.key(i))
        self.here[i] = 1
        self.waiting += 1

    def peek(self, now: float) -> int:
        while not self.here[i := self.number(self.heap[0])]:
            heapq.heappop(self.heap)
        return i

    def take(self, most: int, now: float) -> Sequence[int]:
        heap, number, here, pop = self.heap, self.number, self.here, heapq.heappop
        batch: list[int] = []
        left = min(most, self.waiting)
        self.waiting -= left
        while left:
            if here[i := number(pop(heap))]:
                here[i] = 0
                batch.append(i)
                left -= 1
        return batch

    def discard(self, i: int) -> None:
        self.here[i] = 0
        self.waiting -= 1

    def oldest(self) -> int:
        self.first = self.here.index(1, self.first)
        return self.first


class _SortedQueue:
    """Requests under an order that may change: sorted anew at every dispatch.

    The policy is asked once for an instant and a queue, so that looking at the next
    request does not change who it is.
    """

    can_overtake = time_dependent = True

    def __init__(self, policy: policies.SchedulingPolicy, columns: list[Any]) -> None:
        self.policy, self.columns = policy, columns
        self.waiting: dict[int, Request] = {}
        self.order: list[Request] = []  # the answer, least last
        self.asked = -np.inf

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, i: int) -> None:
        request = Request(i, *(column[i] for column in self.columns))
        request.queue_entry_time = request.arrival_time
        self.waiting[i] = request
        self.order = []

    def peek(self, now: float) -> int:
        return self._sorted(now)[-1].id

    def take(self, most: int, now: float) -> Sequence[int]:
        order = self._sorted(now)
        batch = [order.pop().id for _ in range(min(most, len(order)))]
        for i in batch:
            del self.waiting[i]
        return batch

    def discard(self, i: int) -> None:
        del self.waiting[i]
        self.order = []

    def oldest(self) -> int:
        return next(iter(self.waiting))

    def _sorted(self, now: float) -> list[Request]:
        if now != self.asked or not self.order:
            self.order = policies.ranked(self.policy, self.waiting.values(), now)[::-1]
            self.asked = now
        return self.order
