"""Iteration-level scheduling, compressed: who is in the next steps, and how many.

Between two changes of the batch every step follows from the one before, so the
scheduler goes from change to change, a stretch of steps at a time. It has no clock and
no events: a server tells it when a stretch begins and hears when it will end. The
rules are those of vLLM's V1 scheduler (Kwon et al. 2023; chunked prefill after Agrawal
et al. 2024), as DESIGN section 4 writes them down.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from heapq import heappop, heappush

from llminfer.config import SimulationConfig
from llminfer.control import BatchLimit
from llminfer.journal import Log, Requests
from llminfer.kv import BlockPool, block_pool
from llminfer.lines import WaitingLine


@dataclass(slots=True, eq=False)
class Scheduler:
    """The batch of one server, by the rules of DESIGN section 4.

    Args:
        config: Coefficients and limits.
        requests: The run's requests, to be read and filled in.
        line: Where new requests wait.
        control: What sets the batch limit; None leaves it at ``batch_size``.
    """

    config: SimulationConfig
    requests: Requests
    line: WaitingLine
    control: BatchLimit | None = None
    log: Log = field(default_factory=Log)
    pool: BlockPool | None = None
    limit: int = 0  # sequences at most
    budget: int = 0  # tokens a step at most
    # Who runs, in order of admission: while it decodes, the decode step in which it
    # completes, counted from the beginning of the run, over its own number.
    running: dict[int, int] = field(default_factory=dict)
    heap: list[int] = field(default_factory=list)  # the same, and some that are no more
    shift: int = 0  # bits of the number
    decoded: int = 0  # decode steps so far
    decoding: int = 0  # sequences that decode
    kv_tokens: int = 0  # in their caches
    partial: int = -1  # who runs with part of its prompt still to prefill; or nobody
    computed: int = 0  # tokens in its cache
    admitted: int = 0  # how many have left the line
    preempted: list[int] = field(default_factory=list)  # the last returns first
    made: dict[int, int] = field(default_factory=dict)  # their tokens until then
    row: dict[int, int] = field(default_factory=dict)  # in the log
    tokens_done: int = 0  # prompt and output tokens of complete requests
    # The stretch in progress
    began: float = 0.0
    end: float = 0.0
    steps: int = 0
    step: float = 0.0  # seconds of the first step
    growth: float = 0.0  # by which each is longer than the one before
    decodes: int = 0  # sequences that decode in it
    tokens: int = 0  # prefilled in each step
    prefilled: list[int] = field(default_factory=list)  # whose prefill it completes
    open: bool = False  # does an arrival end it?
    first_blocks: int = 0
    # Settings, where they are quickly read
    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    delta: float = 0.0
    kappa: float = 0.0
    chunked: bool = True
    whole: bool = True  # must the whole prompt fit?
    prompt: array[int] = field(default_factory=lambda: array("q"))
    output: array[int] = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        config = self.config
        for name in ("alpha", "beta", "gamma", "delta", "kappa"):
            setattr(self, name, getattr(config, name))
        self.limit, self.budget = config.batch_size, config.max_batched_tokens
        self.chunked = config.chunked_prefill
        self.whole = config.reserve_full_prompt or not self.chunked
        self.pool = block_pool(
            config.kv_blocks, config.block_size, config.prefix_caching
        )
        self.prompt, self.output = self.requests.prompt, self.requests.output
        self.shift = len(self.prompt).bit_length()

    def begin(self, now: float, arrived: int, arrival: float) -> float:
        """Begin a stretch of steps; when it ends, seconds.

        Args:
            now: Seconds.
            arrived: How many have joined the line so far.
            arrival: When the next one will, seconds.

        Returns:
            Infinity if nobody runs or waits.
        """
        waiting = arrived - self.admitted
        if self.control is not None:
            self._ask_control(now, waiting)
        alone = self._mixed(now, waiting) if self.chunked else self._apart(now, waiting)
        decodes, tokens = self.decodes, self.tokens
        step = self.alpha * tokens + self.beta if tokens else 0.0
        if decodes:
            step += self.gamma + self.delta * decodes + self.kappa * self.kv_tokens
        elif not tokens:
            return math.inf
        self.began, self.step = now, step
        if self.pool is not None:
            self.first_blocks = self.pool.blocks - self.pool.free
        if alone:
            self.steps, self.open = 1, False
            self.end = end = now + step
            return end
        self.growth = growth = self.kappa * decodes
        self.steps = steps = self._steps_alike(waiting)
        self.end = end = now + steps * step + growth * (steps * (steps - 1) // 2)
        until = arrival if self.open else math.inf
        if self.control is not None:
            until = min(until, self.control.tick)
        return self.shorten(until) if until < end else end

    def shorten(self, arrival: float) -> float:
        """End the stretch with the step in progress at ``arrival``; when, seconds."""
        began, step, growth = self.began, self.step, self.growth

        def end_of(steps: int) -> float:
            return began + steps * step + growth * (steps * (steps - 1) // 2)

        half = step - growth / 2.0
        wait = arrival - began
        root = math.sqrt(half * half + 2.0 * growth * wait)
        steps = max(1, math.ceil(2.0 * wait / (half + root)))
        while steps > 1 and end_of(steps - 1) >= arrival:
            steps -= 1
        while (end := end_of(steps)) < arrival:
            steps += 1
        self.steps, self.end, self.open = steps, end, False
        return end

    def finish(self) -> None:
        """The stretch has ended: its tokens are out."""
        steps, decodes, log, pool = self.steps, self.decodes, self.log, self.pool
        log.start.append(self.began)
        log.end.append(self.end)
        log.steps.append(steps)
        log.size.append(decodes + len(self.prefilled) + (self.partial >= 0))
        log.decoding.append(decodes)
        if pool is not None:
            log.first_blocks.append(self.first_blocks)
            if steps > 1:
                if self.partial < 0:
                    pool.free -= pool.needed_in(self.decoded + 1, steps - 1, decodes)
                else:
                    pool.free -= self._later_blocks(steps - 1)
            log.last_blocks.append(pool.blocks - pool.free)
        if steps > 1 and self.partial >= 0:
            self.computed += (steps - 1) * self.tokens
        if decodes:
            self.decoded += steps
            self.kv_tokens += steps * decodes
            if self.heap[0] >> self.shift <= self.decoded:
                self._complete()
        if self.prefilled:
            self._emit()

    # Who is in the next step

    def _ask_control(self, now: float, waiting: int) -> None:
        """Set the batch limit for the step that begins now."""
        control = self.control
        assert control is not None
        self.limit = control.at(now)
        if control.every_dispatch and (waiting or self.preempted):
            self.limit = control.act(now)

    def _mixed(self, now: float, waiting: int) -> bool:
        """Schedule a step that decodes and prefills; is it unlike the one after?"""
        pool, short, tokens = self.pool, False, 0
        if pool is not None and self.decoding:
            if (need := pool.cycle[self.decoded % pool.block_size]) > pool.free:
                need, short = self._make_room(now), True
            pool.free -= need
        if self.partial >= 0:
            tokens = self._continue(now)
            short = not tokens
        alone = short or (tokens > 0 and self.partial < 0)
        if (waiting or self.preempted) and not short and len(self.running) < self.limit:
            more = self._admit(now, waiting, self.budget - self.decoding - tokens)
            tokens += more
            alone = alone or more > 0
        self.decodes, self.tokens = self.decoding, tokens
        return alone

    def _apart(self, now: float, waiting: int) -> bool:
        """Schedule a step that prefills or else decodes; is it unlike the one after?"""
        pool, short, tokens = self.pool, False, 0
        if (waiting or self.preempted) and len(self.running) < self.limit:
            tokens = self._admit(now, waiting, self.budget)
        if pool is not None and self.decoding and not tokens:
            if (need := pool.cycle[self.decoded % pool.block_size]) > pool.free:
                need, short = self._make_room(now), True
            pool.free -= need
        self.decodes, self.tokens = 0 if tokens else self.decoding, tokens
        return short or tokens > 0

    def _make_room(self, now: float) -> int:
        """Preempt until the blocks suffice for who decodes now; how many they need."""
        pool = self.pool
        assert pool is not None
        while (need := pool.needed(self.decoded)) > pool.free:
            self._preempt(now)
        return need

    def _preempt(self, now: float) -> None:
        """The one admitted last gives up its blocks, and waits at the head."""
        assert self.pool is not None
        i, entry = self.running.popitem()
        if i == self.partial:
            self.partial = -1
            tokens = self.computed
            self.made.setdefault(i, 0)
        else:
            made = self.output[i] - (entry >> self.shift) + self.decoded
            tokens = self.prompt[i] + made - 1
            self.made[i] = made
            self.decoding -= 1
            self.kv_tokens -= tokens
            self.pool.leave(self.decoded, tokens)
        self.pool.abandon(i, tokens)
        self.preempted.append(i)
        if self.control is not None:
            self.control.seen.take(-1)
        log = self.log
        self.row[i] = len(log.victim)
        log.victim.append(i)
        log.preempted.append(now)
        log.resumed.append(math.nan)
        log.caught_up.append(math.nan)

    def _continue(self, now: float) -> int:
        """Prefill what the budget allows of the prompt in progress, tokens.

        Returns 0 if there are too few blocks for it, and it had to preempt itself.
        """
        i, pool = self.partial, self.pool
        rest = self.prompt[i] + self.made.get(i, 0) - self.computed
        tokens = min(rest, self.budget - self.decoding)
        if pool is not None:
            held = pool.blocks_for(self.computed)
            more = pool.blocks_for(self.computed + tokens) - held
            if more > pool.free:
                self._preempt(now)
                return 0
            pool.free -= more
        self.computed += tokens
        if tokens == rest:
            self.prefilled.append(i)
            self.partial = -1
        return tokens

    # Who waits

    def _admit(self, now: float, waiting: int, budget: int) -> int:
        """Admit who fits, the next in order first; the tokens to prefill for them."""
        total, preempted, line = 0, self.preempted, self.line
        while total < budget and len(self.running) < self.limit:
            if preempted:
                i = preempted[-1]
                tokens = self._enter(i, budget - total, total)
                if not tokens:
                    break
                preempted.pop()
                self.log.resumed[self.row[i]] = now
            elif waiting:
                i = line.peek(now)
                tokens = self._enter(i, budget - total, total)
                if not tokens:
                    break
                line.take(1, now)
                waiting -= 1
                self.admitted += 1
                self.requests.start[i] = now
            else:
                break
            total += tokens
            if self.control is not None:
                self.control.seen.take(1)
        return total

    def _enter(self, i: int, budget: int, others: int) -> int:
        """Let request ``i`` run if it fits; its tokens to prefill in this step, or 0.

        Args:
            i: Its number.
            budget: Tokens that may still be prefilled in this step.
            others: Tokens that others who enter prefill in it.
        """
        pool, whole, known = self.pool, self.prompt[i], 0
        if pool is not None and self.preempted:
            whole += self.made[i]
            known = pool.found(i) * pool.block_size
        tokens = whole - known
        if tokens > budget:
            if self.chunked:
                tokens = budget
            elif others:
                return 0
        if pool is not None:
            size = pool.block_size
            held = -(-(known + tokens) // size)
            if (-(-whole // size) if self.whole else held) > pool.free:
                return 0
            if self.preempted:
                pool.reclaim(i)
            pool.free -= held - known // size
        self.running[i] = -1
        if known + tokens == whole:
            self.prefilled.append(i)
        else:
            self.partial, self.computed = i, known + tokens
        return tokens

    # For how long

    def _steps_alike(self, waiting: int) -> int:
        """Steps from now on in which nobody enters or leaves, arrivals apart."""
        pool, steps, room = self.pool, 0, False
        if self.partial >= 0:  # it takes all the budget, and nobody can enter
            i = self.partial
            rest = self.prompt[i] + self.made.get(i, 0) - self.computed
            steps = 1 + (rest - 1) // self.tokens
        else:
            room = len(self.running) < self.limit and not self.preempted
        if self.decodes:
            left = self._next_completion() - self.decoded
            steps = min(steps, left) if steps else left
        self.open = room and (not waiting or self.line.overtakes)
        if room and waiting and self.line.restless:
            return 1
        if self.control is not None and self.control.every_dispatch:
            if waiting or self.preempted:
                return 1
            self.open = True
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

    def _next_completion(self) -> int:
        """The decode step in which the next request completes."""
        heap, running, shift = self.heap, self.running, self.shift
        mask = (1 << shift) - 1
        while running.get(heap[0] & mask) != heap[0]:
            heappop(heap)
        return heap[0] >> shift

    # When tokens come out

    def _complete(self) -> None:
        """Let go of those that decode and whose last token is out."""
        heap, running, pool = self.heap, self.running, self.pool
        mask, later = (1 << self.shift) - 1, (self.decoded + 1) << self.shift
        while heap and heap[0] < later:
            entry = heappop(heap)
            i = entry & mask
            if running.get(i) != entry:
                continue
            tokens = self.prompt[i] + self.output[i] - 1
            self.decoding -= 1
            self.kv_tokens -= tokens
            if pool is not None:
                pool.leave(self.decoded, tokens)
            self._let_go(i, tokens)

    def _emit(self) -> None:
        """A token for each whose prefill is complete: it decodes now, or is done."""
        pool, decoded, made_by = self.pool, self.decoded, self.made
        for i in self.prefilled:
            made = 1
            if i in made_by:
                made += made_by.pop(i)
                self.log.caught_up[self.row.pop(i)] = self.end
            if made == 1:
                self.requests.first[i] = self.end
            tokens = self.prompt[i] + made - 1
            if made == self.output[i]:
                self._let_go(i, tokens)
                continue
            done = decoded + self.output[i] - made
            self.running[i] = entry = done << self.shift | i
            heappush(self.heap, entry)
            self.decoding += 1
            self.kv_tokens += tokens
            if pool is not None:
                pool.join(decoded, tokens)
        self.prefilled.clear()

    def _let_go(self, i: int, tokens: int) -> None:
        """Request ``i``, with so many tokens in its cache, is complete."""
        del self.running[i]
        self.requests.end[i] = self.end
        self.tokens_done += tokens + 1
        if self.pool is not None:
            self.pool.release(tokens)
        if self.control is not None:
            latency = self.end - self.requests.arrival[i]
            self.control.seen.finish(self.end, [latency])
