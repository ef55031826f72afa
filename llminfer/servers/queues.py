"""The waiting queue of a server under each kind of policy, by request numbers."""

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from llminfer import policies
from llminfer.request import Request
from llminfer.servers.event_log import columns_of
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
    policy: policies.SchedulingPolicy,
    workload: Workload,
    *,
    every: bool,
    live: bool,
    leave: bool = False,
    like: WaitingQueue | None = None,
) -> WaitingQueue:
    """The cheapest queue that keeps ``policy``'s order.

    A subclass that sorts for itself is asked, whatever it is a subclass of.

    Args:
        policy: Who goes next.
        workload: The requests.
        every: Will all of them join? Another server may get some.
        live: Are the columns filled in as requests come?
        leave: May some not join, or leave before they are taken?
        like: The queue of another server of the same run; what both know of the
            requests, they share.
    """
    sorts = type(policy).sort_requests
    if sorts is policies.KeyedPolicy.sort_requests:
        assert isinstance(policy, policies.KeyedPolicy)
        if type(policy).keys is policies.FCFSPolicy.keys:
            return _ArrivalQueue() if every and not leave else _LeavingQueue()
        if live:
            return _LiveQueue(policy, workload)
        ranks = getattr(like, "ranks", None) or _Ranks(policy, workload)
        return _RankedQueue(ranks) if leave else _KeyedQueue(ranks)
    if sorts is policies.ClassPolicy.sort_requests:
        assert isinstance(policy, policies.ClassPolicy)
        _, prompt, output, classes = columns_of(workload)
        class_of, tokens = classes.__getitem__, policies.service_tokens
        if live or not every:
            return policy.queues(class_of, lambda i: int(tokens(prompt[i], output[i])))
        all_tokens = tokens(workload.prompt_length, workload.output_length)
        return policy.queues(class_of, array("q", all_tokens.tobytes()).__getitem__)
    return _SortedQueue(policy, workload)


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
        head, end = self.head, self.head + most
        self.head = end if end < self.tail else self.tail
        return range(head, self.head)

    def oldest(self) -> int:
        return self.head


class _Ranks:
    """What the queues of a run know of its requests under a fixed key.

    Args:
        policy: The key.
        workload: The requests.

    Attributes:
        order: The requests by key, the least first.
        rank: The place of each in that order.
        gone: 1 of those that were taken.
    """

    def __init__(self, policy: policies.KeyedPolicy, workload: Workload) -> None:
        numbers = np.arange(len(workload))
        columns = policies.Waiting(numbers, *workload.columns.values())
        order = np.argsort(policy.keys(columns), kind="stable")
        rank = np.empty_like(order)
        rank[order] = numbers
        self.order = array("q", order.tobytes())
        self.rank = array("q", rank.tobytes())
        self.gone = bytearray(len(workload))


class _KeyedQueue:
    """Requests under a fixed key: a heap of their ranks."""

    can_overtake, time_dependent = True, False

    def __init__(self, ranks: _Ranks) -> None:
        self.ranks = ranks
        self.order, self.rank, self.gone = ranks.order, ranks.rank, ranks.gone
        self.heap: list[int] = []
        self.first = 0

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, i: int) -> None:
        heapq.heappush(self.heap, self.rank[i])

    def peek(self, now: float) -> int:
        return self.order[self.heap[0]]

    def take(self, most: int, now: float) -> Sequence[int]:
        heap, order, pop = self.heap, self.order, heapq.heappop
        batch = [order[pop(heap)] for _ in range(min(most, len(heap)))]
        for i in batch:
            self.gone[i] = 1
        return batch

    def discard(self, i: int) -> None:
        """Nobody leaves this queue before being taken."""

    def oldest(self) -> int:
        while self.gone[self.first]:
            self.first += 1
        return self.first


class _LeavingQueue:
    """Requests in order of arrival, that may leave."""

    can_overtake, time_dependent = True, False

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, Request | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, i: int) -> None:
        self.waiting[i] = None

    def peek(self, now: float) -> int:
        return next(iter(self.waiting))

    def take(self, most: int, now: float) -> Sequence[int]:
        if most == 1 and self.waiting:
            return [self.waiting.popitem(last=False)[0]]
        batch = list(islice(self.waiting, most))
        for i in batch:
            del self.waiting[i]
        return batch

    def discard(self, i: int) -> None:
        del self.waiting[i]

    def oldest(self) -> int:
        return next(iter(self.waiting))


class _RankedQueue(_LeavingQueue):
    """Requests under a fixed key, that may leave: a heap, some of whom have left."""

    def __init__(self, ranks: Any) -> None:
        super().__init__()
        self.ranks = ranks
        self.heap: list[tuple[float, int]] = []

    def add(self, i: int) -> None:
        self.waiting[i] = None
        heapq.heappush(self.heap, (self.ranks.rank[i], i))

    def peek(self, now: float) -> int:
        while self.heap[0][1] not in self.waiting:
            heapq.heappop(self.heap)
        return self.heap[0][1]

    def take(self, most: int, now: float) -> Sequence[int]:
        batch: list[int] = []
        heap, waiting = self.heap, self.waiting
        if waiting:
            self.peek(now)  # then all of them are in the heap
        while waiting and len(batch) < most:
            i = heapq.heappop(heap)[1]
            if i in waiting:
                del waiting[i]
                batch.append(i)
        return batch


class _LiveQueue(_RankedQueue):
    """The same where the key is known when they join.

    Keys are worked out together, of all who have joined since somebody was taken.
    """

    def __init__(self, policy: policies.KeyedPolicy, workload: Workload) -> None:
        super().__init__(None)
        self.policy, self.columns = policy, list(workload.columns.values())
        self.joined: list[int] = []  # and are not in the heap yet

    def add(self, i: int) -> None:
        self.waiting[i] = None
        self.joined.append(i)

    def peek(self, now: float) -> int:
        if self.joined:
            those = np.array(self.joined)
            its = (column[those] for column in self.columns)
            keys = self.policy.keys(policies.Waiting(those, *its)).tolist()
            for entry in zip(keys, self.joined, strict=True):
                heapq.heappush(self.heap, entry)
            self.joined.clear()
        return super().peek(now)


class _SortedQueue(_LeavingQueue):
    """Requests under an order that may change: sorted anew at every dispatch.

    The policy is asked once for an instant and a queue, so that looking at the next
    request does not change who it is.
    """

    time_dependent = True

    def __init__(self, policy: policies.SchedulingPolicy, workload: Workload) -> None:
        super().__init__()
        self.policy = policy
        self.columns = columns_of(workload)
        self.order: list[Request] = []  # the answer, least last
        self.asked = -np.inf

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

    def _sorted(self, now: float) -> list[Request]:
        if now != self.asked or not self.order:
            those = filter(None, self.waiting.values())
            self.order = policies.ranked(self.policy, those, now)[::-1]
            self.asked = now
        return self.order
