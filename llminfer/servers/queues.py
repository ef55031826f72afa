"""The waiting queue of a server under each kind of policy, by request numbers."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from llminfer import policies
from llminfer.request import Request
from llminfer.workload import Workload


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
    sorts = type(policy).sort_requests
    if (
        isinstance(policy, policies.KeyedPolicy)
        and sorts is policies.KeyedPolicy.sort_requests
    ):
        if every and type(policy).keys is policies.FCFSPolicy.keys:
            return _ArrivalQueue()
        return _KeyedQueue(policy, workload, live)
    if (
        isinstance(policy, policies.ClassPolicy)
        and sorts is policies.ClassPolicy.sort_requests
    ):
        _, *lengths, classes = _columns(workload)
        service = policies.service_tokens
        if live:
            return policy.queues(
                classes.__getitem__,
                lambda i: int(service(*(its[i] for its in lengths))),
            )
        tokens = service(workload.prompt_length, workload.output_length)
        return policy.queues(
            classes.__getitem__, array("q", tokens.tobytes()).__getitem__
        )
    return _SortedQueue(policy, workload)


def _columns(workload: Workload) -> list[Any]:
    """The columns of a workload, to be read one by one, also while they are filled."""
    return [memoryview(column) for column in list(vars(workload).values())[:4]]


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
    """Requests under a fixed key: a heap of their ranks, or of keys as they come.

    Args:
        policy: Has the keys.
        workload: The requests.
        live: Are its columns filled in as requests come?
    """

    can_overtake, time_dependent = True, False

    def __init__(
        self, policy: policies.KeyedPolicy, workload: Workload, live: bool
    ) -> None:
        columns = list(vars(workload).values())[:4]

        def keyed(i: int) -> tuple[float, int]:
            its = (column[i : i + 1] for column in columns)
            key = policy.keys(policies.Waiting(np.array([i]), *its))
            return float(key[0]), i

        self.entry: Callable[[int], Any] = keyed
        self.number: Callable[[Any], int] = itemgetter(1)
        if type(policy).keys is policies.FCFSPolicy.keys:
            self.entry = self.number = int
        elif not live:
            numbers = np.arange(len(workload))
            keys = policy.keys(policies.Waiting(numbers, *columns))
            order = np.argsort(keys, kind="stable")
            rank = np.empty_like(order)
            rank[order] = numbers
            self.entry = array("q", rank.tobytes()).__getitem__
            self.number = array("q", order.tobytes()).__getitem__
        self.heap: list[Any] = []  # some may have left
        self.left = 0  # how many of these
        self.waits = bytearray(len(workload))
        self.first = 0

    def __len__(self) -> int:
        return len(self.heap) - self.left

    def add(self, i: int) -> None:
        heapq.heappush(self.heap, self.entry(i))
        self.waits[i] = 1

    def peek(self, now: float) -> int:
        while not self.waits[i := self.number(self.heap[0])]:
            heapq.heappop(self.heap)
            self.left -= 1
        return i

    def take(self, most: int, now: float) -> Sequence[int]:
        heap, number, waits, pop = self.heap, self.number, self.waits, heapq.heappop
        batch: list[int] = []
        most = min(most, len(self))
        while len(batch) < most:
            batch += [number(pop(heap)) for _ in range(most - len(batch))]
            if self.left:
                here = [i for i in batch if waits[i]]
                self.left -= len(batch) - len(here)
                batch = here
        for i in batch:
            waits[i] = 0
        return batch

    def discard(self, i: int) -> None:
        self.waits[i] = 0
        self.left += 1

    def oldest(self) -> int:
        self.first = self.waits.index(1, self.first)
        return self.first


class _SortedQueue:
    """Requests under an order that may change: sorted anew at every dispatch.

    The policy is asked once for an instant and a queue, so that looking at the next
    request does not change who it is.
    """

    can_overtake = time_dependent = True

    def __init__(self, policy: policies.SchedulingPolicy, workload: Workload) -> None:
        self.policy = policy
        self.columns = _columns(workload)
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
