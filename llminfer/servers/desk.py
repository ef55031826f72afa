"""Who sends to a static server, and who gives up, between one batch and the next.

When a batch begins it is known when all in it are answered, or give up. So only to send
a request, and to lose patience in the queue, are events. What happens at one instant
happens in the order of ``servers.clients``; who was held back at the gate is sent as
soon as it opens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.config import SimulationConfig
from llminfer.record import COMPLETED, GIVEN_UP, REFUSED
from llminfer.servers.batch_control import Observed
from llminfer.servers.clients import Senders
from llminfer.servers.queues import WaitingQueue
from llminfer.workload import Workload


class StaticDesk(Senders):
    """Where the clients of a static server meet its queue.

    Args:
        config: Users, gate, limits and seed.
        workload: As for ``own_clients``.

    Attributes:
        queue: Where requests wait; the server's, as ``seen`` is.
        seen: What a controller of the batch limit sees.
        rests_until: Where a tick comes first, when the next thing happens, seconds.
    """

    queue: WaitingQueue
    seen: Observed
    rests_until: float

    def __init__(self, config: SimulationConfig, workload: Workload | None) -> None:
        super().__init__(config, workload)
        self._coming = [(user.think, i) for i, user in enumerate(self._users)]
        heapify(self._coming)
        self._places: float = config.max_concurrency or math.inf  # free at the gate
        self._gated = self._places < math.inf
        self._room, self._timeout = config.queue_limit or math.inf, config.batch_timeout
        self._next = 0  # the next request to be sent
        self._opened = -math.inf  # when the gate did last, seconds
        self._end, self._answers = math.inf, 0  # of the batch in progress
        self._deadlines: list[tuple[float, int]] = []  # some may have been answered
        self._waiting: set[int] = set()  # of the impatient
        self._left: dict[int, float] = {}  # when those of the batch will give up
        self._refused: list[int] = []
        steered = config.batch_control != "static"
        self._reacts = bool(steered or self._gated or self._users)

    def dispatch(self, free: float, limit: int, tick: float) -> float:
        """When the server dispatches its next batch, seconds; ``tick`` at most.

        Without a timeout a batch need not be full if nobody can come before an answer.

        Args:
            free: When it has no work any more, seconds.
            limit: Requests of a full batch.
            tick: When that changes next, seconds.

        Returns:
            Infinity when all is over.
        """
        now, timeout, self.rests_until = free, self._timeout, free
        while True:
            self._advance(now)
            if (waiting := len(self.queue)) >= limit:
                return now
            sends = due = math.inf  # when the next is sent, and when who waits is due
            if self._places > 0 and self._next < self._n:
                sends = self._coming[0][0] if self._coming else math.inf
                sends = sends if self._users else self.wanted[self._next]
            soon = min(sends, self._deadlines[0][0]) if self._deadlines else sends
            last = sends == math.inf if timeout is None else self._next == self._n
            if waiting and last:
                return now
            if waiting and timeout is not None:
                due = self._at[self.queue.oldest()] + timeout
            if due <= now:
                return now
            if due == soon == math.inf or due < min(soon, tick):
                return due
            if tick <= (rest := min(soon, due)):
                self.rests_until = rest
                return tick
            now = soon

    def serve(self, batch: Sequence[int], first: float, end: float) -> Sequence[int]:
        """A batch has its first tokens and ends, seconds; who of it is answered."""
        done = batch
        if self._impatient:
            self._waiting.difference_update(batch)
        if self._impatient and self._reacts:
            done = [i for i in batch if not self._gives_up(i, first, end)]
        if self._users:
            for i in done:
                self._go_on(i, end)
        if self._gated:
            self._end, self._answers = end, len(done)
        return done

    def columns(self, times: FloatArray) -> dict[str, Any]:
        """What the record of a run has of the clients.

        Args:
            times: When each request's batch began, had its first tokens, and ended,
                seconds; infinity of those that never were in one.
        """
        start, first, end = times
        sent, served = self.sent.arrival_time, start < math.inf
        soon = late = np.full(len(sent), math.inf)
        if self._impatient:
            soon, late = sent + self._soon, sent + self._late
        left = np.where(first > soon, soon, math.inf)
        np.minimum(left, late, out=left, where=end > late)
        over, gone = np.minimum(end, left), left < math.inf
        outcome = np.where(gone, GIVEN_UP, COMPLETED).astype(np.int8)
        outcome[self._refused], over[self._refused] = REFUSED, sent[self._refused]
        tokens = self.sent.prompt_length + self.sent.output_length
        return {
            "arrival_time": np.array(self.wanted),
            "queue_entry_time": sent,
            "processing_start_time": np.where(served, start, math.nan),
            "first_token_time": np.where(first <= over, first, math.nan),
            "processing_end_time": over,
            "outcome": outcome,
            "wasted_tokens": np.where(gone & served, tokens, 0),
        }

    # What happens

    def _advance(self, now: float) -> None:
        """Let happen what happens up to ``now``, seconds."""
        coming, wanted, at, users = self._coming, self.wanted, self._at, self._users
        due, waiting, left = self._deadlines, self._waiting, self._left
        queue, join, enter = self.queue, self.queue.add, self.entered.append
        i, n, places, opened = self._next, self._n, self._places, self._opened
        room, impatient = self._room, self._impatient
        while True:
            while due and (who := due[0][1]) not in waiting and who not in left:
                heappop(due)  # it has been answered
            until = min(self._end, due[0][0]) if due else self._end
            while places > 0 and i < n and (coming or not users):
                time = coming[0][0] if users else wanted[i]
                if time > now or time >= until:
                    break
                at[i] = sent = opened if opened > time else time
                if users:
                    self._ask(i, heappop(coming)[1], time)
                if room < math.inf and len(queue) >= room:
                    self._refused.append(i)
                    self._go_on(i, sent)
                else:
                    join(i)
                    enter(sent)
                    places -= 1
                    if impatient:
                        waiting.add(i)
                        deadline = sent + min(self._soon[i], self._late[i])
                        heappush(due, (deadline, i))
                        if deadline < until:
                            until = deadline
                i += 1
            if until > now:
                break
            if until == self._end:
                places, opened, self._end = places + self._answers, until, math.inf
            elif self._leaves(heappop(due)[1], until):
                places, opened = places + 1, until
        self._next, self._places, self._opened = i, places, opened

    def _leaves(self, i: int, time: float) -> bool:
        """Does request ``i`` give up at ``time``, seconds? It may have done so."""
        if i in self._waiting:
            self._waiting.remove(i)
            self.queue.discard(i)
            self.seen.left.append(time)
            self._go_on(i, time)
            return True
        gone: bool = self._left[i] == time
        if gone:
            del self._left[i]
        return gone

    def _gives_up(self, i: int, first: float, end: float) -> bool:
        """Does request ``i`` of a batch give up before its first token, or its last?"""
        soon, late = self._at[i] + self._soon[i], self._at[i] + self._late[i]
        time = min(soon if first > soon else math.inf, late if end > late else math.inf)
        if time == math.inf:
            return False
        if self._gated:
            self._left[i] = time
            heappush(self._deadlines, (time, i))
        self._go_on(i, time)
        return True

    def _go_on(self, i: int, time: float) -> None:
        """A request has ended at ``time``, seconds, and its user goes on, if any."""
        if self._users:
            user = self._users[number := self._user_of[i]]
            user.go_on()
            heappush(self._coming, (time + user.think, number))
