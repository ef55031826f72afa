"""The batch of a continuous server: who enters it, is preempted, and completes.

The rules are those of vLLM's V1 scheduler (Kwon et al. 2023), as DESIGN section 4 has
them. A request is its number in the workload.

When does the next sequence complete? All that decode make one token a step, so the
batch counts decode steps over the whole run (``decoded``), and a sequence with 5 tokens
left at step 100 completes after step 105. A heap holds these steps, each packed into
one whole number with the request's number in its low bits, here 4 bits of them:

>>> entry = (100 + 5) << 4 | 3  # request 3
>>> entry >> 4, entry & 0b1111
(105, 3)

The least entry is the next to complete, and nothing is updated from step to step. The
heap is lazy: a preempted request's entry stays in it until it comes to the head, where
it no longer is the one that ``running`` has of this request, and is dropped.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from llminfer.config import SimulationConfig
from llminfer.servers.batch_control import BatchLimit
from llminfer.servers.event_log import Log, RequestTimes
from llminfer.servers.kv_memory import BlockPool, CachingPool, EndlessCache, block_pools
from llminfer.servers.queues import WaitingQueue


@dataclass(slots=True, eq=False)
class Batch:
    """The requests that one server runs, and those that wait for it.

    Args:
        config: Limits.
        requests: The run's requests, to be read and filled in.
        queue: Where new requests wait.
        control: What sets the batch limit; None leaves it at ``batch_size``.
        answer: Hears of each request when its last token comes out, seconds, and says
            whether anybody waits for it still.
        left: Hears when requests have left.
    """

    config: SimulationConfig
    requests: RequestTimes
    queue: WaitingQueue
    control: BatchLimit | None = None
    answer: Callable[[int, float], bool] | None = None
    left: Callable[[], None] | None = None
    log: Log = field(init=False)
    # Settings
    limit: int = field(init=False)  # sequences at most
    budget: int = field(init=False)  # tokens a step at most
    chunked: bool = field(init=False)
    pool: BlockPool | None = field(init=False)  # if there is a limit
    cache: CachingPool | EndlessCache | None = field(init=False)  # where all is found
    prompt: memoryview[int] = field(init=False)
    output: memoryview[int] = field(init=False)
    start: array[float] = field(init=False)
    first: array[float] = field(init=False)
    finished: array[float] = field(init=False)
    shift: int = field(init=False)  # bits of a request's number
    ahead: int = field(init=False)  # steps that are scheduled before they begin: 0 or 1
    # Who runs, in order of admission. While one decodes: the decode step after which it
    # is complete, counted over the whole run, with its own number in the low bits.
    running: dict[int, int] = field(default_factory=dict)
    # The same, and some who decode no more, but the least still does.
    heap: list[int] = field(default_factory=list)
    gone: int = 0  # how many of these do not
    decoded: int = 0  # decode steps so far
    decoding: int = 0  # sequences that decode
    kv_tokens: int = 0  # in their caches
    partial: int = -1  # running request with a prompt not yet prefilled; -1 is none
    computed: int = 0  # tokens in its cache
    # Whose prefill ends in this step
    prefilled: list[int] = field(default_factory=list)
    pairs: float = 0.0  # of a token that is prefilled in it and one it attends to
    # With the last token out, or made by the step in progress, but a place and the
    # blocks of so many tokens until that ends; 0 if it had to give them up before
    leaving: dict[int, int] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)  # of these, those given up before
    # Who waits, or is gone
    admitted: int = 0  # how many have left the queue
    preempted: list[int] = field(default_factory=list)  # the last returns first
    must_be_free: int = 0  # blocks, or the next to enter is known not to fit
    made: dict[int, int] = field(default_factory=dict)  # tokens of the preempted
    # Where the log has when they are back
    row: dict[int, int] = field(default_factory=dict)
    tokens_done: int = 0  # prompt and output tokens of complete requests

    def __post_init__(self) -> None:
        config = self.config
        self.limit, self.budget = config.batch_size, config.max_batched_tokens
        self.chunked = config.chunked_prefill
        requests = self.requests
        self.pool, self.cache = block_pools(config, requests.paths)
        self.log = Log(config.kv_blocks)
        self.prompt, self.output = requests.prompt, requests.output
        self.start, self.first = requests.start, requests.first
        self.finished = requests.end
        self.shift = len(self.prompt).bit_length()
        self.ahead = int(config.async_scheduling)

    # Who runs

    def make_room(self, now: float) -> bool:
        """Take the blocks of all that decode; had someone to be preempted for them?"""
        pool, short = self.pool, False
        assert pool is not None
        while (need := pool.cycle[self.decoded % pool.block_size]) > pool.free:
            self.preempt(now)
            short = True
        pool.free -= need
        return short

    def prefill_on(self, now: float) -> int:
        """Prefill what the budget allows of the prompt in progress, tokens.

        Returns 0 if there are too few blocks for it, and it had to preempt itself.
        """
        rest = self.still_to_prefill()
        tokens = min(rest, self.budget - self.decoding)
        if (pool := self.pool) is not None:
            held = pool.blocks_for(self.computed)
            more = pool.blocks_for(self.computed + tokens) - held
            if more > pool.free:
                self.preempt(now)
                return 0
            pool.free -= more
        if self.cache is not None:
            self.cache.publish(self.partial, self.computed + tokens)
        self.pairs += tokens * (self.computed + tokens / 2.0)
        self.computed += tokens
        if tokens == rest:
            self.prefilled.append(self.partial)
            self.partial = -1
        return tokens

    def still_to_prefill(self) -> int:
        """Tokens of the prompt in progress that are not in its cache."""
        i = self.partial
        return self.prompt[i] + self.made.get(i, 0) - self.computed

    def preempt(self, now: float) -> None:
        """The one admitted last gives up its blocks, and waits at the head."""
        pool = self.pool
        assert pool is not None
        i = next(i for i in reversed(self.running) if self.leaving.get(i, 1))
        self.must_be_free = 0
        if tokens := self.leaving.get(i):  # its last token is made: it needs no return
            self.leaving[i] = 0
            pool.give_back(i, tokens)
            self.log.preempt(i, now, back=now)
            return
        pool.give_back(i, self._stop(i), returns=True)
        self.preempted.append(i)
        if self.control is not None:
            self.control.seen.take(-1)
        self.row[i] = self.log.preempt(i, now)

    def _stop(self, i: int) -> int:
        """A request runs no more, before its last token; the tokens in its cache."""
        entry = self.running.pop(i)
        if i == self.partial:
            self.partial = -1
            self.made.setdefault(i, 0)
            return self.computed
        self.made[i] = made = self.output[i] - (entry >> self.shift) + self.decoded
        tokens = self.prompt[i] + made - 1
        self.decoding -= 1
        self.kv_tokens -= tokens
        if self.pool is not None:
            self.pool.cycle[(self.decoded - tokens) % self.pool.block_size] -= 1
        self.gone += 1
        self._forget_the_gone()
        return tokens

    def cancel(self, i: int, time: float) -> int:
        """A request leaves for good, given up at ``time``; the tokens computed for it.

        Its tokens of the step in progress are lost, and its blocks are free; they are
        already if that step was its last.
        """
        pool, made = self.pool or self.cache, self.made.get(i, self.output[i])
        tokens = self.prompt[i] + made - 1 if made else 0
        self.must_be_free = held = 0
        waits = math.isnan(self.start[i])
        if self.control is not None and (waits or i in self.preempted):
            self.control.seen.left.append(time)
        if waits:
            self.queue.discard(i)
            self.admitted += 1
            tokens = 0
        elif i in self.preempted:
            self.preempted.remove(i)
        elif i in self.leaving:
            self.running.pop(i)
            held = self.leaving.pop(i)
        elif i in self.running:
            tokens = held = self._stop(i)
        else:
            return tokens
        if held and pool is not None:
            pool.give_back(i, held)
        self.made.pop(i, None)
        self.row.pop(i, None)
        self.tokens_done += self.prompt[i] + self.output[i]
        if self.left is not None:
            self.left()
        return tokens

    # Who waits

    def may_enter(self, waiting: int) -> bool:
        """True if a request waits, of ``waiting`` in the queue, and a slot is free."""
        if not (waiting or self.preempted) or len(self.running) >= self.limit:
            return False
        return self.pool is None or self.must_be_free <= self.pool.free

    def admit(self, now: float, waiting: int, budget: int) -> int:
        """Admit requests that fit, in order; the tokens to prefill for them.

        Args:
            now: Seconds.
            waiting: How many are in the queue.
            budget: Tokens that may be prefilled in this step.
        """
        total = self._readmit(now, budget) if self.preempted else 0
        if self.preempted:
            return total
        queue, running, limit = self.queue, self.running, self.limit
        control, can_overtake = self.control, queue.can_overtake
        while waiting and total < budget and len(running) < limit:
            i = queue.peek(now) if can_overtake else self.admitted
            tokens = self._enter(i, self.prompt[i], budget - total, total)
            if not tokens:
                break
            if can_overtake:
                queue.take(1, now)
            total += tokens
            waiting -= 1
            self.admitted += 1
            self.start[i] = now
            if control is not None:
                control.seen.take(1)
        return total

    def _readmit(self, now: float, budget: int) -> int:
        """Admit preempted requests that fit; the tokens to prefill for them."""
        preempted, total = self.preempted, 0
        while preempted and total < budget and len(self.running) < self.limit:
            i = preempted[-1]
            whole = self.prompt[i] + self.made[i]
            if not (tokens := self._enter(i, whole, budget - total, total)):
                break
            total += tokens
            self.log.preemptions[self.row[preempted.pop()]] = now
            if self.control is not None:
                self.control.seen.take(1)
        return total

    def _enter(self, i: int, whole: int, budget: int, others: int) -> int:
        """Let a request run if it fits; its tokens to prefill in this step, or 0.

        Args:
            i: The request.
            whole: Tokens to be computed before its next one comes out.
            budget: Tokens that may be prefilled for it.
            others: Tokens that are prefilled for others who enter.
        """
        cache, pool, found, held = self.cache, self.pool, 0, 0  # full blocks
        if cache is not None and not (cache.shares or self.preempted):
            cache = None  # there is nothing for it
        if cache is not None:
            found, held = cache.look(i, whole)
        known = found * self.config.block_size if found else 0
        tokens = whole - known
        if tokens > budget:
            if self.chunked:
                tokens = budget
            elif others:
                return 0
        if pool is not None and not self._fits(whole, known + tokens, held):
            return 0
        if cache is not None:
            cache.hold(i, known + tokens)
            if known and not self.preempted:
                self.requests.cached[i] = known
        if pool is not None:
            pool.free -= pool.blocks_for(known + tokens) - found
        self.running[i] = -1
        self.pairs += tokens * (known + tokens / 2.0)
        if known + tokens == whole:
            self.prefilled.append(i)
        else:
            self.partial, self.computed = i, known + tokens
        return tokens

    def _fits(self, whole: int, now: int, held: int) -> bool:
        """Is there room for a request that has ``held`` blocks in common with others?

        Args:
            whole: Tokens to be computed before its next one comes out.
            now: Those in its cache after this step.
            held: Blocks.
        """
        pool = self.pool
        assert pool is not None
        fully = self.config.reserve_full_prompt or not self.chunked
        need = pool.blocks_for(whole if fully else now) - held
        if fits := need <= pool.free:
            self.must_be_free = 0
        elif fully and (self.preempted or not self.queue.can_overtake):
            # others may come to hold more of the blocks that it shares
            self.must_be_free = 0 if self.requests.paths else need
        return fits

    # When tokens come out

    def complete(self, end: float) -> None:
        """At ``end``, those that decode and whose last token is out decode no more."""
        heap, pool = self.heap, self.pool
        mask, later = (1 << self.shift) - 1, (self.decoded + 1) << self.shift
        while heap and heap[0] < later:
            i = heappop(heap) & mask
            tokens = self.prompt[i] + self.output[i] - 1
            self.decoding -= 1
            self.kv_tokens -= tokens
            self._leave(i, end)
            if pool is not None:
                pool.cycle[(self.decoded - tokens) % pool.block_size] -= 1
            if self.gone and self.running.get(heap[0] & mask) != heap[0]:
                self._forget_the_gone()

    def _forget_the_gone(self) -> None:
        """Drop entries of requests that decode no more from the head of the heap."""
        heap, running, mask = self.heap, self.running, (1 << self.shift) - 1
        while self.gone and running.get(heap[0] & mask) != heap[0]:
            heappop(heap)
            self.gone -= 1

    def emit(self, end: float) -> None:
        """At ``end``, a token for each whose prefill is complete: it decodes now."""
        pool, made_by, decoded, shift = self.pool, self.made, self.decoded, self.shift
        for i in self.prefilled:
            made = 1
            if i in made_by:
                made += made_by.pop(i)
                self.log.preemptions[self.row.pop(i) + 1] = end
            if made == 1:
                self.first[i] = end
            tokens = self.prompt[i] + made - 1
            if left := self.output[i] - made:
                self.running[i] = entry = (decoded + left) << shift | i
                heappush(self.heap, entry)
                self.decoding += 1
                self.kv_tokens += tokens
                if pool is not None:
                    pool.cycle[(decoded - tokens) % pool.block_size] += 1
            else:
                self._leave(i, end)
        self.prefilled.clear()

    def _leave(self, i: int, end: float) -> None:
        """A request has its last token at ``end``."""
        self.finished[i] = end
        if self.answer is not None and not self.answer(i, end):
            self.late.add(i)
        self.running[i] = -1  # no entry of the heap is its own any more
        self.leaving[i] = self.prompt[i] + self.output[i] - 1

    def let_go(self) -> int:
        """Those whose last token is out give up place and blocks; how many of these."""
        pool, control = self.pool or self.cache, self.control
        free = 0 if pool is None else pool.free
        for i, tokens in self.leaving.items():
            del self.running[i]
            self.tokens_done += self.prompt[i] + self.output[i]
            if tokens and pool is not None:
                pool.give_back(i, tokens)
            if control is not None and i not in self.late:
                end = self.finished[i]
                control.seen.finish(end, [end - self.requests.arrival[i]])
        self.leaving.clear()
        if self.left is not None:
            self.left()
        return 0 if pool is None else pool.free - free
