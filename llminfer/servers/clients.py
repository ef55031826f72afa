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
from collections.abc import Iterator
from dataclasses import replace
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Protocol, TypeVar, final

import numpy as np

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import fail
from llminfer.base.streams import stream
from llminfer.config import SimulationConfig
from llminfer.laws.lengths import drawn_lengths
from llminfer.laws.people import seconds_law, turns_law
from llminfer.record import COMPLETED, GIVEN_UP, REFUSED
from llminfer.servers.event_log import RequestTimes, columns_of
from llminfer.servers.prefixes import Paths
from llminfer.workload import Workload

_UNANSWERED = -1
_NEVER = (math.inf, -1)
_FEW = 64  # deadlines that are kept whoever was answered
_AT_ONCE = 16  # requests of a user that are drawn together
_MANY = 2**17  # and of all users, at the beginning
Path = tuple[tuple[int, int], ...]
# Think time, prompt, output, turns of a conversation, what begins it, and two limits
Ask = tuple[float, int, int, int, Path, float, float]


class User:
    """One user: what he asks next, drawn as he goes.

    His k-th request is the same in every configuration with these laws and this seed.

    Args:
        config: Laws and seed.
        number: Which of the users he is.
        ready: Is his first request drawn at once, and not together with others'?

    Attributes:
        think: Seconds from his last answer to this request.
        prompt: Its tokens, with all that was said before in the conversation.
        output: Tokens of its answer.
        said: Both together.
        limits: Seconds to the first token and to the last that he waits at most.
        start: The path of (id, tokens) that the conversation begins with.
        conversation: Its number, unlike any other's.
    """

    def __init__(
        self, config: SimulationConfig, number: int, ready: bool = True
    ) -> None:
        self._config, self._users, self._left = config, config.clients or 1, 0
        self.rng = stream(config.random_seed, "users", number)
        shares = np.cumsum([its.share for its in config.classes] or [1.0])
        place = self.rng.random() * shares[-1]
        self.request_class = int(np.searchsorted(shares, place, side="right"))
        self.conversation = number - self._users
        self.asks: Iterator[Ask] = iter(())  # drawn ahead
        if ready:
            self.go_on()

    def go_on(self) -> None:
        """Turn to the next request."""
        if (ask := next(self.asks, None)) is None:
            kinds = np.full(_AT_ONCE, self.request_class)
            u = self.rng.random((_AT_ONCE, 7))
            self.asks = _rows(_drawn(self._config, u, kinds), 0, _AT_ONCE)
            ask = next(self.asks)
        self.think, question, output, turns, start, soon, late = ask
        if not self._left:
            self.start, self._left, self.said = start, turns, 0
            self.conversation += self._users
        elif start:  # which was said already
            question -= start[0][1]
        self._left -= 1
        self.prompt = prompt = self.said + question
        self.said, self.output, self.limits = prompt + output, output, (soon, late)


def _drawn(config: SimulationConfig, u: FloatArray, kinds: IntArray) -> list[Any]:
    """What requests of these classes ask, each drawn from a row of ``u``: columns."""
    u, shared = u.T, config.prefixes
    laws = config.prompts, config.outputs
    prompts, outputs = drawn_lengths(laws, kinds, u[1], u[2])
    starts = [()] * len(prompts) if shared is None else shared.segments(u[6])
    return [
        _thinking(config, u[0], kinds),
        prompts,
        outputs,
        turns_law(config.turns or 1).tokens(u[3]),
        np.fromiter(starts, dtype=object),
        *limits_of(config, u[4:6]),
    ]


def _rows(columns: list[Any], low: int, high: int) -> Iterator[Ask]:
    """Rows of columns; a few at a time are numbers of Python's own."""
    for begin in range(low, high, 4 * _AT_ONCE):
        some = slice(begin, min(begin + 4 * _AT_ONCE, high))
        yield from zip(*(column[some].tolist() for column in columns), strict=True)


def _thinking(config: SimulationConfig, u: FloatArray, kinds: IntArray) -> FloatArray:
    """Seconds that users of these classes think."""
    seconds = seconds_law("think_time", config.think_time)(u)
    for kind, its in enumerate(config.request_classes.values()):
        if (own := its.get("think_time")) is not None:
            of = kinds == kind
            seconds[of] = seconds_law("think_time", own)(u[of])
    return seconds


def all_users(config: SimulationConfig) -> list[User]:
    """The users of a run; their first requests are drawn together."""
    users = [User(config, i, ready=False) for i in range(config.clients or 0)]
    if users:
        each = 1 + 5 * min(config.num_requests, _MANY) // (4 * len(users))
        u = np.concatenate([user.rng.random((each, 7)) for user in users])
        kinds = np.repeat([user.request_class for user in users], each)
        columns = _drawn(config, u, kinds)
        for i, user in enumerate(users):
            user.asks = _rows(columns, i * each, (i + 1) * each)
            user.go_on()
    return users


def limits_of(config: SimulationConfig, u: FloatArray) -> FloatArray:
    """Seconds to the first token and to the last that requests wait at most.

    Args:
        config: The laws of both.
        u: Uniform numbers, shape (2, n), as what comes back.
    """
    limits = np.full(u.shape, math.inf)
    for k, name in enumerate(("patience", "request_timeout")):
        if (law := getattr(config, name)) is not None:
            limits[k] = seconds_law(name, law)(u[k])
    return limits


S = TypeVar("S", bound="Senders")


def own_clients(
    kind: type[S], config: SimulationConfig, workload: Workload | None
) -> S | None:
    """Those of a run; None if its requests come by the clock and stay until answered.

    Args:
        kind: Those of a continuous server, or of a static one.
        config: Users, gate, limits and seed.
        workload: Requests by the clock, or what the users take one after the other;
            None lets the users draw their own.
    """
    asked = config.clients or config.max_concurrency or config.sheds
    return kind(config, workload) if asked else None


def not_sent(config: SimulationConfig, workload: Workload | None) -> Workload:
    """The requests of a run before it; users' have no lengths yet.

    Where an answer may have to come first, none has been sent; else it is known when.

    Raises:
        ConfigError: Conversations are to be made of a workload.
    """
    if workload is not None and config.turns is not None:
        must = "None beside a workload, whose prompts are what they are"
        raise fail("turns", config.turns, must)
    if workload is None:
        n = config.num_requests
        return Workload(np.full(n, math.inf), *np.zeros((3, n), dtype=np.int64))
    sent = workload.arrival_time.copy()
    if config.clients or config.max_concurrency:
        sent[:] = math.inf
    return replace(workload, arrival_time=sent)


class Senders:
    """Who sends the requests of a run, whatever the server.

    Args:
        config: Users, gate, limits and seed.
        workload: As for ``own_clients``.

    Attributes:
        sent: The requests as the server sees them: they arrive when they are sent.
        draws: Do users draw what they ask?
        wanted: When each arrived at the client, seconds.
        entered: When those that were not refused were sent, seconds.
    """

    def __init__(self, config: SimulationConfig, workload: Workload | None) -> None:
        self.sent, self.draws = not_sent(config, workload), workload is None
        self._n = n = len(self.sent)
        self.entered, self.wanted = array("d"), array("d", [math.nan]) * n
        self._users, self._user_of = all_users(config), list[int]()
        self._at, *self._asked = columns_of(self.sent)
        self._soon, self._late = array("d"), array("d")  # limits: first token, last
        self._impatient = (config.patience, config.request_timeout) != (None, None)
        if workload is not None and not self._users:
            self.wanted = array("d", workload.arrival_time.tobytes())
            if self._impatient:
                u = stream(config.random_seed, "patience").random((n, 2)).T
                own = (array("d", its.tobytes()) for its in limits_of(config, u))
                self._soon, self._late = own

    def _ask(self, i: int, number: int, time: float) -> User:
        """Request ``i`` is what this user asks at a time, seconds."""
        user = self._users[number]
        self.wanted[i] = time
        self._user_of.append(number)
        if self._impatient:
            self._soon.append(user.limits[0])
            self._late.append(user.limits[1])
        if self.draws:
            prompt, output, kind = self._asked
            prompt[i], output[i], kind[i] = user.prompt, user.output, user.request_class
        return user


class Desk(Protocol):
    """Where clients meet a server."""

    def receive(self, i: int, time: float) -> bool:
        """Let request ``i`` in at ``time``, seconds; False refuses it."""

    def drop(self, i: int) -> None:
        """Request ``i`` has been given up."""


@final  # so that a type checker knows that it is true
class Clients(Senders):
    """The senders of a run of a continuous server.

    A server sets ``desk``, which receives or refuses a request and drops those who
    gave up; it tells ``answer`` who completes.

    Args:
        config: Users, gate, limits and seed.
        workload: As for ``own_clients``.

    Attributes:
        times: When things happened to them in the server; NaN if they did not.
        wasted: Tokens computed for those who gave up.
    """

    desk: Desk

    def __init__(self, config: SimulationConfig, workload: Workload | None) -> None:
        super().__init__(config, workload)
        self.times = RequestTimes.of(self.sent, config, math.nan)
        shares = config.turns is not None or config.prefixes is not None
        if self.draws and shares and config.prefix_caching:
            self.times.paths = Paths(config.block_size)
        self._paths = self.times.paths if self.draws else None
        n, self._talks = self._n, config.turns is not None
        self.end = array("d", [math.nan]) * n
        self.outcome, self.wasted = array("b", [_UNANSWERED] * n), array("q", [0] * n)
        self._most = config.max_concurrency or math.inf
        self._unanswered = self._arrived = 0
        # At the gate: who waits there, and a heap of when answers open it
        self._held, self._answers = deque[int](), list[float]()
        self._deadlines: list[tuple[float, int, bool]] = []  # is it for the last token?
        self._many = _FEW  # of these
        coming = [(user.think, i) for i, user in enumerate(self._users)]
        self._coming = coming or [(self.wanted[0], 0)]
        heapify(self._coming)

    # Time

    def _next_left(self) -> float:
        """When the next one gives up who is not answered before, seconds."""
        deadlines, outcome, times = self._deadlines, self.outcome, self.times
        while deadlines:
            time, i, last = deadlines[0]
            if outcome[i] != _UNANSWERED:
                heappop(deadlines)
            elif last or not times.first[i] <= time:
                return time
            else:  # it has its first token
                heapreplace(deadlines, (times.arrival[i] + self._late[i], i, True))
        return math.inf

    def advance(self, now: float) -> tuple[float, float]:
        """Let happen what happens up to ``now``, seconds.

        Returns:
            No request is sent before this; and when somebody gives up next, seconds.
        """
        coming, deadlines, answers = self._coming, self._deadlines, self._answers
        held = self._held
        while True:
            time, who = coming[0] if coming else _NEVER
            opens = False
            if held and answers and answers[0] <= time:
                opens, time = True, answers[0]
            if deadlines and (time > now or deadlines[0][0] <= time):
                left, i, last = deadlines[0]
                if not last or self.outcome[i] != _UNANSWERED:
                    left = self._next_left()
                if left <= now and (left < time or (left == time and not opens)):
                    self.answer(i := heappop(deadlines)[1], left, GIVEN_UP)
                    self.desk.drop(i)
                    continue
            if time > now:
                return time, left if deadlines else math.inf
            if opens:
                heappop(answers)
                self._unanswered -= 1
                self._send(held.popleft(), time)
                continue
            while answers and answers[0] <= time:
                heappop(answers)
                self._unanswered -= 1
            heappop(coming)
            self._arrive(who, time)

    def shut(self) -> bool:
        """Will nobody send any more?"""
        return self._arrived == self._n and not self._held

    # What happens

    def _arrive(self, who: int, time: float) -> None:
        """The clock or a user wants to send the next request."""
        i = self._arrived
        self._arrived = after = i + 1
        if self._users:
            user = self._ask(i, who, time)
            if self._paths is not None:
                said = user.said if self._talks else 0
                self._paths.say(i, user.start, user.conversation, said)
            if after == self._n:  # nobody else will ask
                self._coming.clear()
        elif after < self._n:
            heappush(self._coming, (self.wanted[after], after))
        if self._unanswered < self._most:
            self._send(i, time)
        else:
            self._held.append(i)

    def _send(self, i: int, time: float) -> None:
        self.times.arrival[i] = time
        self._unanswered += 1
        if not self.desk.receive(i, time):
            self.answer(i, time, REFUSED)
            return
        self.entered.append(time)
        if self._impatient:
            soon, late = self._soon[i], self._late[i]
            least = soon if soon < late else late
            heappush(self._deadlines, (time + least, i, late <= soon))
            if len(self._deadlines) > self._many:
                self._forget_the_answered()

    def _forget_the_answered(self) -> None:
        """Keep deadlines of the others only; to take them off one by one is slower."""
        deadlines, outcome = self._deadlines, self.outcome
        deadlines[:] = [its for its in deadlines if outcome[its[1]] == _UNANSWERED]
        heapify(deadlines)
        self._many = 2 * len(deadlines) + _FEW

    def user_of(self, i: int) -> int:
        """The number of the user who sends request ``i``; -1 by the clock."""
        return self._user_of[i] if self._users else -1

    def answer(self, i: int, end: float, outcome: int = COMPLETED) -> bool:
        """A request ends at ``end``, seconds; False if it was given up before.

        Its user goes on, and the gate opens.
        """
        if outcome == COMPLETED:
            if self.outcome[i] != _UNANSWERED:
                return False
            if self._deadlines and self._deadlines[0][0] < end:  # it may be his
                since, first = self.times.arrival[i], self.times.first[i]
                if first > since + self._soon[i] or end > since + self._late[i]:
                    return False
        self.outcome[i], self.end[i] = outcome, end
        if self._most < math.inf:
            heappush(self._answers, end)
        if self._users and self._arrived < self._n:
            user = self._users[number := self._user_of[i]]
            user.go_on()
            heappush(self._coming, (end + user.think, number))
        return True

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
