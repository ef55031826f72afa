"""Iteration-level scheduling, compressed: how many steps until the batch changes.

Between two changes of the batch every step follows from the one before, so the
scheduler goes from change to change, a stretch of steps at a time. It has no clock and
no events: a server tells it when a stretch begins, and hears when it will end.

A stretch is a number of steps in which no request enters, leaves or is preempted. With
b sequences that decode, each step is longer than the one before by growth = kappa b,
since each sequence attends to one KV token more. So m steps, the first of which takes
``step`` seconds, last

    m step + growth m (m - 1) / 2.

Two sequences with 10 KV tokens together, gamma = 1 s and kappa = 0.1 s, have steps of
2.0, 2.2 and 2.4 s. If 3 tokens are left to the shorter output, the stretch is 3 steps:

>>> steps, step, growth = 3, 1.0 + 0.1 * 10, 0.1 * 2
>>> round(steps * step + growth * (steps * (steps - 1) // 2), 9)
6.6

A request that arrives 3.0 s after the start, and finds room, ends the stretch with the
step in progress, the second: at 4.2 s. No step in between was an event.

Scheduled ahead (``async_scheduling``), a step is composed when the one before begins.
Then the third step, from 4.2 to 6.6 s, was composed at 2.0 s, without that request; the
next stretch is due at 4.2 s, when the last step of this one begins, and begins at
6.6 s. Who has its last token in the step in progress is left out of the next one, and
gives up its place and blocks when its step ends.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from llminfer.servers.batch import Batch
from llminfer.timing import StepTime


@dataclass(slots=True, eq=False)
class Scheduler(Batch):
    """A batch as it goes from stretch to stretch of steps.

    Iteration-level scheduling is from Yu et al. (2022), prefill in chunks beside
    sequences that decode from Agrawal et al. (2024).
    """

    law: StepTime = field(init=False)
    pack: Callable[..., bytes] = field(init=False)
    note: Callable[[bytes], None] = field(init=False)
    # The stretch in progress
    began: float = 0.0
    end: float = 0.0
    due: float = 0.0  # when the next one is to be scheduled
    steps: int = 0
    step: float = 0.0  # seconds of the first step
    growth: float = 0.0  # by which each is longer than the one before
    decodes: int = 0  # sequences that decode in it
    tokens: int = 0  # prefilled in each step
    open: bool = False  # does an arrival end it?
    pressed: bool = False  # may a change of limit, or somebody giving up, end it?
    latest: float = math.inf  # when it is to be scheduled whatever happens, seconds
    first_free: int = 0  # blocks that are free in the first step
    settled: bool = False  # are its steps counted, and the next ones not composed?

    def __post_init__(self) -> None:
        Batch.__post_init__(self)
        self.law = self.config.step_time
        self.pressed = self.control is not None or self.config.sheds
        self.pack, self.note = self.log.pack, self.log.rows.extend

    def begin(self, now: float, arrived: int, arrival: float) -> float:
        """Schedule a stretch of steps; when the next one is due, seconds.

        Args:
            now: Seconds.
            arrived: How many have joined the queue so far.
            arrival: When the next one will, seconds.

        Returns:
            Infinity if nobody runs or waits.
        """
        waiting = arrived - self.admitted
        if self.control is not None:
            self._ask_control(now, waiting)
        self.began = began = now if now > self.end else self.end
        self.pairs = 0.0
        pool, room = self.pool, len(self.running) < self.limit
        plain = pool is None and self.partial < 0 and not (waiting and room)
        if plain:  # nothing to schedule: a short way, since most stretches take it
            alone, self.decodes, self.tokens = False, self.decoding, 0
        elif self.chunked:
            alone = self._mixed(now, waiting)
        else:
            alone = self._apart(now, waiting)
        if not (self.decodes or self.tokens):
            return self._nobody()
        self.step = step = self._first_step()
        if pool is not None:
            self.first_free = pool.free
        if alone or (self.leaving and self._missed(waiting)):
            self.steps, self.open = 1, False
            self.end = end = began + step
            self.due = began if self.ahead else end
            return self.due
        if plain and self.control is None:
            steps = (self.heap[0] >> self.shift) - self.decoded
            self.open = room or bool(self.leaving)
        else:
            steps = self._steps_alike(waiting)
        chunk = self.tokens if self.partial >= 0 else 0
        self.steps, self.growth = steps, self.law.growth(self.decodes, chunk)
        self.end = self.end_after(steps)
        self.due = due = self.end_after(steps - 1) if self.ahead else self.end
        if self.pressed:
            return self._in_time(arrival)
        return self.shorten(arrival) if self.open and arrival < due else due

    def _first_step(self) -> float:
        """Seconds of a step with the batch as it is."""
        decodes, tokens, law = self.decodes, self.tokens, self.law
        step = law.beta + law.epsilon * self.pairs if tokens else 0.0
        if law.step_law == "roofline":
            many = tokens + decodes
            large = law.launch if many > law.graph_tokens else 0.0
            step += max(law.gamma, law.alpha * many, large)
        else:
            step += law.alpha * tokens + (law.gamma if decodes else 0.0)
        if decodes:
            step += law.delta * decodes + law.kappa * self.kv_tokens
        return step

    def _nobody(self) -> float:
        """No step can be scheduled: when to try again, seconds.

        When the step in progress ends; else, infinity, when somebody arrives.
        """
        self.due = self.end if self.ahead and self.steps else math.inf
        self.steps, self.open = 0, False
        return self.due

    def _missed(self, waiting: int) -> bool:
        """Does somebody see those go who leave now: a request that waits, a router?"""
        return bool(waiting or self.preempted) or self.config.replicas > 1

    def shorten(self, time: float) -> float:
        """End the stretch with the step to be scheduled next at ``time``, or then.

        Returns:
            When that is, seconds: at the end of a step, or where steps are scheduled
            ahead at the beginning of the stretch's last one.
        """
        growth, least = self.growth, 1 - self.ahead
        steps, wait = least, time - self.began
        if wait > 0.0:
            half = self.step - growth / 2.0
            root = math.sqrt(half * half + 2.0 * growth * wait)
            steps = max(least, math.ceil(2.0 * wait / (half + root)))
        # The root is right to rounding; which step it is, the closed form decides.
        due = self.end_after(steps)
        while due < time:
            steps += 1
            due = self.end_after(steps)
        while steps > least and (sooner := self.end_after(steps - 1)) >= time:
            steps, due = steps - 1, sooner
        self.due, self.steps, self.open = due, steps + self.ahead, False
        self.end = self.end_after(self.steps) if self.ahead else due
        return due

    def end_after(self, steps: int) -> float:
        """When the first so many steps of the stretch end, seconds."""
        grown = self.growth * (steps * (steps - 1) // 2)
        return self.began + steps * self.step + grown

    def finish(self) -> None:
        """The stretch has ended, or its last step has begun: its tokens are known."""
        if self.leaving:
            self.first_free += self.let_go()
        if not (steps := self.steps):
            return
        decodes, end = self.decodes, self.end
        prefilled, partial = self.prefilled, self.partial >= 0
        size = decodes + len(prefilled) + partial
        if (pool := self.pool) is None:
            self.note(self.pack(self.began, end, steps, size, decodes, self.tokens))
        else:
            first = pool.blocks - self.first_free
            if steps > 1:
                pool.free -= self._later_blocks(steps - 1)
            last = pool.blocks - pool.free
            row = self.began, end, steps, size, decodes, self.tokens, first, last
            self.note(self.pack(*row))
        if partial and steps > 1:
            self.computed += (steps - 1) * self.tokens
            if self.cache is not None:
                self.cache.publish(self.partial, self.computed)
        if decodes:
            self.decoded = decoded = self.decoded + steps
            self.kv_tokens += steps * decodes
            if self.heap[0] >> self.shift <= decoded:
                self.complete(end)
        if prefilled:
            self.emit(end)
        if self.leaving and not self.ahead:
            self.let_go()

    def found(self, i: int, time: float) -> int:
        """Full blocks that a request would find here at ``time``, seconds."""
        if (cache := self.cache) is None:
            return 0
        # steps scheduled by then, after the first
        ends = range(1, 1 if self.settled else self.steps)
        later = bisect_left(ends, time, key=lambda k: self.end_after(k - self.ahead))
        if self.partial >= 0:
            cache.publish(self.partial, self.computed + later * self.tokens)
        taken = 0 if self.pool is None else self._later_blocks(later)
        cache.free -= taken
        blocks, _ = cache.look(i, self.prompt[i])
        cache.free += taken
        return blocks

    # Who is in the next step

    def _ask_control(self, now: float, waiting: int) -> None:
        """Set the batch limit for the step that begins now."""
        control = self.control
        assert control is not None
        self.limit = control.at(now)
        if control.every_dispatch and (waiting or self.preempted):
            self.limit = control.act(now)

    def _in_time(self, arrival: float) -> float:
        """End the stretch early enough for an arrival, a give-up or another limit."""
        open_ended, latest = self.open, self.latest
        if self.control is not None:
            latest = min(latest, self.control.tick)
        soon = arrival if open_ended and arrival < latest else latest
        if soon < self.due:
            self.shorten(soon)
        self.open = open_ended  # who is sent meanwhile may end it still earlier
        return self.due

    def _mixed(self, now: float, waiting: int) -> bool:
        """Schedule a mixed step; True if the stretch is this one step."""
        short, tokens = self.pool is not None and self.make_room(self.began), 0
        if self.partial >= 0:
            tokens = self.prefill_on(self.began)
            short = not tokens
        alone = short or (tokens > 0 and self.partial < 0)
        if not short and self.may_enter(waiting):
            more = self.admit(now, waiting, self.budget - self.decoding - tokens)
            if more:
                tokens += more
                alone = True
        self.decodes, self.tokens = self.decoding, tokens
        return alone

    def _apart(self, now: float, waiting: int) -> bool:
        """Schedule a step of one phase; True if the stretch is this one step."""
        tokens = 0
        if self.may_enter(waiting):
            tokens = self.admit(now, waiting, self.budget)
        short = not tokens and self.pool is not None and self.make_room(self.began)
        self.decodes, self.tokens = 0 if tokens else self.decoding, tokens
        return short or tokens > 0

    # For how long

    def _steps_alike(self, waiting: int) -> int:
        """Steps from this one on in which nobody enters or leaves, arrivals apart."""
        stay = len(self.running) - len(self.leaving)
        room = stay < self.limit and not self.preempted
        if self.partial >= 0:  # it takes all that the budget has left
            room = False
            steps = 1 + (self.still_to_prefill() - 1) // self.tokens
            if self.decodes:
                steps = min(steps, (self.heap[0] >> self.shift) - self.decoded)
        else:
            steps = (self.heap[0] >> self.shift) - self.decoded
        self.open = room and (not waiting or self.queue.can_overtake)
        if room and waiting and self.queue.time_dependent:
            return 1
        if self.control is not None and self.control.every_dispatch:
            if waiting or self.preempted:
                return 1
            self.open = True
        pool = self.pool
        if pool is None or steps == 1:
            return steps
        if self.partial < 0:
            return 1 + pool.lasts(self.decoded + 1, steps - 1, self.decodes)
        return bisect_right(range(1, steps), pool.free, key=self._later_blocks) + 1

    def _later_blocks(self, steps: int) -> int:
        """Blocks that so many steps like the first take after it."""
        pool = self.pool
        assert pool is not None
        blocks = pool.needed_in(self.decoded + 1, steps, self.decodes)
        if self.partial >= 0:
            later = pool.blocks_for(self.computed + steps * self.tokens)
            blocks += later - pool.blocks_for(self.computed)
        return blocks
