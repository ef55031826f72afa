"""Who sends the requests of a run, and when: users, a gate, and people who give up.

Without any of these requests come by the clock. With them, who completes decides when
the next one is sent:

- users (``clients``) send a request a think time after their last answer;
- a gate (``max_concurrency``) holds requests back while so many are unanswered;
- a full queue (``queue_limit``) refuses, and who has waited too long gives up.

What happens at one instant happens in this order: answers, then who gives up, then who
sends. A server asks for all that happened up to a time with ``advance``, and must do so
before it decides anything at that time. With one request at a time, the second is sent
when the first is answered:

>>> from llminfer import simulate
>>> work = Workload.from_arrays([0.0, 0.0], [100, 100], [20, 20])
>>> config = SimulationConfig(batch_size=4, max_concurrency=1, warmup_requests=0)
>>> record = simulate(config, work)
>>> record.sent_time.round(3).tolist(), record.latency.round(3).tolist()
([0.0, 0.16], [0.16, 0.16])
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any, Protocol, final

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import fail
from llminfer.base.streams import stream
from llminfer.config import SimulationConfig
from llminfer.laws.people import seconds_law, turns_law
from llminfer.record import COMPLETED, GIVEN_UP, REFUSED
from llminfer.servers.batch_control import Observed
from llminfer.servers.event_log import RequestTimes
from llminfer.servers.prefixes import Paths
from llminfer.servers.queues import WaitingQueue
from llminfer.workload import Workload

_UNANSWERED = -1
_ANSWER, _ARRIVAL = 0, 1
_NEVER = (math.inf, _ARRIVAL, -1)
Path = tuple[tuple[int, int], ...]
_AT_ONCE = 16  # requests of a user that are drawn together


class User:
    """One user: what he asks next, drawn as he goes.

    His k-th request is the same in every configuration with these laws and this seed.

    Args:
        config: Laws and seed.
        number: Which of the users he is.
    """

    def __init__(self, config: SimulationConfig, number: int) -> None:
        self._config, self._number = config, number
        self._rng = stream(config.random_seed, "users", number)
        shares = np.cumsum([its.share for its in config.classes] or [1.0])
        place = self._rng.random() * shares[-1]
        self.request_class = int(np.searchsorted(shares, place, side="right"))
        self._asks = self._drawn()
        self.go_on()

    def go_on(self) -> None:
        """Turn to the next request: its think time, lengths, limits, and its path.

        A path has (id, tokens) of all that was said in the conversation, with this
        question and its answer at the end.
        """
        said = next(self._asks)
        self.think, self.prompt, self.output, self.limits, self.path = said

    def _drawn(self) -> Iterator[tuple[float, int, int, tuple[float, float], Path]]:
        config, size = self._config, _AT_ONCE
        think = seconds_law("think_time", config.think_time)
        turns_of, shared = turns_law(config.turns or 1), config.prefixes
        left, said, name, path = 0, 0, 2 * self._number, Path()
        begin = 0 if shared is None else shared.tokens
        while True:
            u = self._rng.random((size, 7)).T
            prompts = config.prompts.tokens(u[1])
            outputs = config.outputs.beside(config.prompts, u[1], u[2])
            starts = [()] * size if shared is None else shared.segments(u[6])
            for pause, question, answer, turns, its, start in zip(
                think(u[0]).tolist(),
                (prompts - begin).tolist(),
                outputs.tolist(),
                turns_of.tokens(u[3]).tolist(),
                _limits(config, u[4:6]),
                starts,
                strict=True,
            ):
                if not left:
                    path = tuple((-1 - k, tokens) for k, tokens in start)
                    left, said = turns, begin
                if config.turns is not None:
                    path += (name, question), (name + 1, answer)
                yield pause, said + question, answer, its, path
                said, left = said + question + answer, left - 1
                name += 2 * (config.clients or 1)


def _limits(config: SimulationConfig, u: FloatArray) -> list[tuple[float, float]]:
    """Seconds to the first token and to the last that requests wait at most."""
    columns = []
    for place, name in zip(u, ("patience", "request_timeout"), strict=True):
        law = getattr(config, name)
        some = np.full(place.shape, math.inf)
        columns.append(some if law is None else seconds_law(name, law)(place))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def own_clients(config: SimulationConfig, workload: Workload | None) -> Clients | None:
    """Those of a run; None if its requests come by the clock and stay until answered.

    Args:
        config: Users, gate, limits and seed.
        workload: Requests by the clock, or what the users take one after the other;
            None lets the users draw their own.
    """
    gated = config.max_concurrency is not None
    if config.clients is not None or gated or config.sheds:
        return Clients(config, workload)
    return None


def _not_sent(n: int, workload: Workload | None) -> Workload:
    """``n`` requests of which none has been sent; None has no lengths of them yet."""
    never = np.full(n, math.inf)
    if workload is not None:
        return replace(workload, arrival_time=never)
    return Workload(never, *np.zeros((3, n), dtype=np.int64))


class Desk(Protocol):
    """Where clients meet a server."""

    def receive(self, i: int, time: float) -> bool:
        """Let request ``i`` in at ``time``, seconds; False refuses it."""

    def drop(self, i: int) -> None:
        """Request ``i`` has been given up."""


@final  # so that a type checker knows that it is true
class Clients:
    """The senders of a run.

    A server sets ``desk``, which receives or refuses a request and drops those who
    gave up; it tells ``answer`` who completes.

    Args:
        config: Users, gate, limits and seed.
        workload: As for ``own_clients``.

    Attributes:
        sent: The requests as the server sees them: they arrive when they are sent.
        wanted: When each arrived at the client, seconds.
        entered: When those that were not refused were sent, seconds.
        times: When things happened to them in the server; NaN if they did not.
        wasted: Tokens computed for those who gave up.
    """

    desk: Desk

    def __init__(self, config: SimulationConfig, workload: Workload | None) -> None:
        if workload is not None and config.turns is not None:
            must = "None beside a workload, whose prompts are what they are"
            raise fail("turns", config.turns, must)
        self._n = n = config.num_requests if workload is None else len(workload)
        self._draws = workload is None
        self.sent = _not_sent(n, workload)
        self.times = RequestTimes.of(self.sent, config, math.nan)
        shares = config.turns is not None or config.prefixes is not None
        if self._draws and shares and config.prefix_caching:
            self.times.paths = Paths(config.block_size)
        self.entered = array("d")
        self.end, self.wanted = array("d", [math.nan]) * n, array("d", [math.nan]) * n
        self.outcome = array("b", [_UNANSWERED]) * n
        self.wasted = array("q", bytes(8 * n))
        self._most = config.max_concurrency or math.inf
        self.room, self.timeout = config.queue_limit or math.inf, config.batch_timeout
        self._unanswered = self._arrived = 0
        self._held: deque[int] = deque()
        self._deadlines: list[tuple[float, int, bool]] = []
        self._limits: list[tuple[float, float]] = []
        self._user_of: list[int] = []
        self._users = [User(config, i) for i in range(config.clients or 0)]
        self._coming = [(u.think, _ARRIVAL, i) for i, u in enumerate(self._users)]
        if workload is not None and not self._users:
            self.wanted = array("d", workload.arrival_time.tobytes())
            self._coming = [(self.wanted[0], _ARRIVAL, 0)]
            u = stream(config.random_seed, "patience").random((n, 2)).T
            self._limits = _limits(config, u)
        heapify(self._coming)

    # Time

    @property
    def next_sent(self) -> float:
        """No request is sent before this, seconds."""
        return self._coming[0][0] if self._coming else math.inf

    @property
    def next_left(self) -> float:
        """When the next one gives up who is not answered before, seconds."""
        deadlines, outcome, first = self._deadlines, self.outcome, self.times.first
        while deadlines:
            time, i, last = deadlines[0]
            if outcome[i] == _UNANSWERED and (last or not first[i] <= time):
                return time
            heappop(deadlines)
        return math.inf

    def advance(self, now: float) -> None:
        """Let happen what happens up to ``now``, seconds."""
        coming = self._coming
        while True:
            time, kind, who = coming[0] if coming else _NEVER
            if min(time, left := self.next_left) > now:
                return
            if (left, _ARRIVAL) <= (time, kind):
                self._give_up(heappop(self._deadlines)[1], left)
                continue
            heappop(coming)
            if kind == _ARRIVAL:
                self._arrive(who, time)
                continue
            self._unanswered -= 1
            if self._held:
                self._send(self._held.popleft(), time)

    def shut(self, waits: bool) -> bool:
        """Will nobody send any more, or, if ``waits``, nobody before an answer?"""
        if waits and (not self._coming or self._unanswered >= self._most):
            return True
        return self._arrived == self._n and not self._held

    # What happens

    def _arrive(self, who: int, time: float) -> None:
        """The clock or a user wants to send the next request."""
        i, self._arrived = self._arrived, self._arrived + 1
        over = self._arrived == self._n
        if self._users:
            self._ask(i, who, time)
            if over:
                self._coming[:] = [its for its in self._coming if its[1] == _ANSWER]
                heapify(self._coming)
        elif not over:
            heappush(self._coming, (self.wanted[i + 1], _ARRIVAL, i + 1))
        if self._unanswered < self._most:
            self._send(i, time)
        else:
            self._held.append(i)

    def _ask(self, i: int, number: int, time: float) -> None:
        """Request ``i`` is what this user asks."""
        user, sent = self._users[number], self.sent
        self.wanted[i] = time
        self._user_of.append(number)
        self._limits.append(user.limits)
        if self._draws:
            sent.prompt_length[i], sent.output_length[i] = user.prompt, user.output
            sent.request_class[i] = user.request_class
            if self.times.paths is not None:
                self.times.paths.add(i, user.path)

    def _send(self, i: int, time: float) -> None:
        self.times.arrival[i] = time
        if self._most < math.inf:
            self._unanswered += 1
        if not self.desk.receive(i, time):
            self._over(i, time, REFUSED)
            return
        self.entered.append(time)
        first, last = self._limits[i]
        for limit, whole in ((first, False), (last, True)):
            if limit < math.inf:
                heappush(self._deadlines, (time + limit, i, whole))

    def user_of(self, i: int) -> int:
        """The number of the user who sends request ``i``; -1 by the clock."""
        return self._user_of[i] if self._users else -1

    def answer(self, i: int, end: float) -> bool:
        """A request has its last token at ``end``, seconds; False if it is given up."""
        if self.outcome[i] != _UNANSWERED:
            return False
        since, (first, last) = self.times.arrival[i], self._limits[i]
        if self.times.first[i] <= since + first and end <= since + last:
            self._over(i, end, COMPLETED)
        return self.outcome[i] == COMPLETED

    def _give_up(self, i: int, time: float) -> None:
        self._over(i, time, GIVEN_UP)
        self.desk.drop(i)

    def _over(self, i: int, time: float, outcome: int) -> None:
        """A request ends at ``time``; its user goes on, and the gate opens."""
        self.outcome[i], self.end[i] = outcome, time
        if self._most < math.inf:
            heappush(self._coming, (time, _ANSWER, i))
        if self._users and self._arrived < self._n:
            user = self._users[number := self._user_of[i]]
            user.go_on()
            heappush(self._coming, (time + user.think, _ARRIVAL, number))

    def columns(self) -> dict[str, Any]:
        """What the record of a run has of the clients."""
        first, end = np.array(self.times.first), np.array(self.end)
        return {
            "arrival_time": np.array(self.wanted),
            "queue_entry_time": self.sent.arrival_time,
            "processing_start_time": np.array(self.times.start),
            "first_token_time": np.where(first <= end, first, math.nan),
            "processing_end_time": end,
            "outcome": np.array(self.outcome),
            "wasted_tokens": np.array(self.wasted),
        }


@dataclass
class StaticDesk:
    """Where the clients meet a static server: its queue, and what it asks of them.

    Args:
        clients: Who sends.
        queue: Where requests wait.
        seen: What a controller of the batch limit sees.
    """

    clients: Clients
    queue: WaitingQueue
    seen: Observed

    def __post_init__(self) -> None:
        self.clients.desk = self

    def receive(self, i: int, time: float) -> bool:
        if len(self.queue) >= self.clients.room:
            return False
        self.queue.add(i)
        return True

    def drop(self, i: int) -> None:
        clients = self.clients
        if math.isnan(clients.times.start[i]):
            self.queue.discard(i)
            self.seen.take(1)
        else:  # its batch goes on
            clients.wasted[i] = clients.times.prompt[i] + clients.times.output[i]

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
        now, clients, timeout = free, self.clients, self.clients.timeout
        while True:
            clients.advance(now)
            waiting = len(self.queue)
            if waiting >= limit:
                return now
            due, soon = math.inf, min(clients.next_sent, clients.next_left)
            if waiting and clients.shut(timeout is None):
                due = now
            elif waiting and timeout is not None:
                due = max(now, clients.times.arrival[self.queue.oldest()] + timeout)
            if due == soon == math.inf or due < min(soon, tick):
                return due
            if tick <= min(soon, due):
                return tick
            now = soon

    def serve(
        self, batch: Iterable[int], start: float, first: float, end: float
    ) -> list[int]:
        """A batch begins, has its first tokens and ends, seconds; who waits for it."""
        times = self.clients.times
        for i in batch:
            times.start[i], times.first[i] = start, first
        return [i for i in batch if self.clients.answer(i, end)]
