"""The continuous server of DESIGN 4 as a plain loop over steps, tokens and blocks.

Written from the rules alone. It shares with the server it judges the configuration, the
workload, the policies and the laws of batch control, and nothing else.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field

from twin import step_seconds

from llminfer.config import SimulationConfig
from llminfer.request import Request
from llminfer.servers.batch_control import BatchLimit, Observed
from llminfer.workload import Workload

ENOUGH = 5000  # blocks, if there is no limit


@dataclass(eq=False)
class Sequence:
    """One request in the server."""

    request: Request
    made: int = 0  # output tokens, those of the step in progress too
    computed: int = 0  # tokens in its KV cache
    decoding: bool = False
    last: bool = False  # the step that makes its last token is composed
    blocks: list[int] = field(default_factory=list)
    path: tuple[tuple[int, int], ...] = ()
    cached: int = 0  # tokens found when it was first admitted
    start: float | None = None
    token_times: list[float] = field(default_factory=list)
    preempted_at: list[float] = field(default_factory=list)
    resumed_at: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Prompt and the tokens made: what must be computed before the next one."""
        return self.request.prompt_length + self.made

    @property
    def done(self) -> bool:
        return len(self.token_times) == self.request.expected_output_length


@dataclass
class Step:
    """One step."""

    start: float
    end: float
    makes: list[Sequence]  # who gets a token at its end
    prefilled: int  # tokens
    decoding: int  # sequences
    size: int  # sequences in it
    kv_tokens: int
    blocks: int  # held while it ran


class StepTwin:
    """One server."""

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.policy = config.policy()
        self.now = 0.0  # when the next step is composed
        self.runs: Step | None = None  # the step in progress at ``now``
        self.running: list[Sequence] = []  # in order of admission
        self.preempted: list[Sequence] = []  # the next to return first
        self.waiting: list[Sequence] = []  # in order of arrival
        self.everyone: list[Sequence] = []
        self.steps: list[Step] = []
        self.entered = array("d")
        seen = Observed(self.entered, config.stable_rate)
        self.control = BatchLimit(config.controller(), config.batch_size, seen)
        self.limit = config.batch_size
        blocks = config.kv_blocks
        if blocks is None and config.prefix_caching:
            blocks = ENOUGH
        self.free = None if blocks is None else deque(range(blocks))
        self.content: dict[int, tuple] = {}  # what is in a block, in order of filling
        self.filled: dict[int, float] = {}  # when it was
        self.users: Counter[int] = Counter()  # requests that hold a block

    # Time

    def advance(self, until: float) -> None:
        """Run every step that starts before ``until``."""
        while self.busy and self.now < until:
            self.step()

    def arrive(self, request: Request, path=()) -> None:
        if not self.busy:
            self.now = max(self.now, request.arrival_time)
        request.queue_entry_time = request.arrival_time
        self.entered.append(request.arrival_time)
        sequence = Sequence(request, path=path)
        self.waiting.append(sequence)
        self.everyone.append(sequence)

    @property
    def busy(self) -> bool:
        return bool(self.runs or self.running or self.preempted or self.waiting)

    def load(self, now: float) -> int:
        """What a router sees of this server: requests, or tokens, not yet complete."""
        left = [
            s.request for s in self.everyone if not s.done or s.token_times[-1] >= now
        ]
        if self.config.router in ("least_loaded", "longest_prefix"):
            return len(left)
        return sum(r.prompt_length + r.expected_output_length for r in left)

    def step(self) -> None:
        """Compose a step, and go to when the next is to be composed.

        That is when this one ends; under asynchronous scheduling, when it begins.
        """
        before, self.runs = self.runs, None
        free = self.now if before is None else before.end  # when it can begin
        made = self.compose(free)
        if before is not None:
            self.end(before)
        self.now = free
        if made is None:
            return  # nobody can run: again when that step has ended
        self.steps.append(made)
        if self.config.async_scheduling:
            self.runs = made
        else:
            self.end(made)
            self.now = made.end

    def compose(self, start: float) -> Step | None:
        """The step that begins at ``start``, as of ``now``; None without anybody."""
        self.stops = start
        self.limit = self.control.at(self.now)
        if self.control.every_dispatch and (self.waiting or self.preempted):
            self.limit = self.control.act(self.now)
        work: dict[Sequence, int] = {}  # tokens computed for each in this step
        if self.config.chunked_prefill:
            if not self.schedule_running(work):
                self.admit(work)
        else:
            self.admit(work)
            if not work:
                self.schedule_running(work)
        if not work:
            return None
        decoding = [s for s in work if s.decoding]
        chunks = [(s.computed, n) for s, n in work.items() if not s.decoding]
        prefilled = sum(n for _, n in chunks)
        pairs = sum(n * (before + n / 2) for before, n in chunks)
        kv_tokens = sum(s.computed for s in decoding)
        b, k = len(decoding), kv_tokens
        took = step_seconds(self.config, prefilled, pairs, b, k)
        blocks = len({block for s in self.running if not s.last for block in s.blocks})
        # who decodes gives up its blocks first, by number, if they leave together
        order = sorted(decoding, key=lambda s: s.request.id)
        order += [s for s in work if not s.decoding]
        makes = [s for s in order if self.compute(s, work[s])]
        return Step(
            start,
            start + took,
            makes,
            prefilled,
            len(decoding),
            len(work),
            kv_tokens,
            blocks,
        )

    def end(self, step: Step) -> None:
        """Its tokens come out; who has them all leaves."""
        for sequence in step.makes:
            sequence.token_times.append(step.end)
            if sequence.done:
                if sequence in self.running:
                    self.running.remove(sequence)
                self.fill(sequence, sequence.computed, step.end)
                self.release(sequence)
                latency = step.end - sequence.request.arrival_time
                if self.answers(sequence):
                    self.control.seen.finish(step.end, [latency])

    def answers(self, sequence: Sequence) -> bool:
        """Does anybody wait for its last token?"""
        return True

    # Rules 1 and 2

    def schedule_running(self, work: dict[Sequence, int]) -> bool:
        """Give tokens to those that run; was someone preempted?"""
        budget = self.config.max_batched_tokens
        someone = False
        place = 0
        while place < len(self.running):
            sequence = self.running[place]
            if sequence.last:
                place += 1
                continue
            tokens = min(sequence.tokens - sequence.computed, budget)
            assert tokens > 0
            while not self.allocate(sequence, sequence.computed + tokens):
                someone = True
                victim = self.running.pop()
                self.preempt(victim)
                if victim is sequence:
                    return True
            if not sequence.decoding:
                self.fill(sequence, sequence.computed + tokens)
            work[sequence] = tokens
            budget -= tokens
            place += 1
        return someone

    def preempt(self, sequence: Sequence) -> None:
        sequence.preempted_at.append(self.stops)  # its step in progress ends first
        self.fill(sequence, sequence.computed)
        self.release(sequence)
        if sequence.last:  # and makes its last token: it need not return
            sequence.resumed_at.append(self.stops)
            return
        sequence.computed = 0
        sequence.decoding = False
        self.preempted.insert(0, sequence)
        self.control.seen.take(-1)

    # Rule 3

    def admit(self, work: dict[Sequence, int]) -> None:
        chunked = self.config.chunked_prefill
        budget = self.config.max_batched_tokens - sum(work.values())
        while budget > 0 and len(self.running) < self.limit:
            if not self.preempted and not self.waiting:
                return
            sequence = self.preempted[0] if self.preempted else self.next_of_policy()
            kept = self.still_there(sequence)
            known = len(kept) * self.config.block_size
            tokens = sequence.tokens - known
            if chunked:
                tokens = min(tokens, budget)
            elif tokens > budget and work:
                return
            if self.free is not None:
                whole = self.config.reserve_full_prompt
                must_hold = sequence.tokens if whole else known + tokens
                idle = sum(not self.users[block] for block in kept)
                if self.blocks_for(must_hold) - len(kept) > len(self.free) - idle:
                    return
            if self.preempted:
                self.preempted.remove(sequence)
                sequence.resumed_at.append(self.now)
            else:
                self.waiting.remove(sequence)
                sequence.start = self.now
                sequence.cached = known
            self.control.seen.take(1)
            for block in kept:
                if not self.users[block]:
                    self.free.remove(block)
                self.users[block] += 1
            sequence.blocks = kept
            sequence.computed = known
            assert self.allocate(sequence, known + tokens)
            self.fill(sequence, known + tokens)
            self.running.append(sequence)
            work[sequence] = tokens
            budget -= tokens

    def next_of_policy(self) -> Sequence:
        requests = [s.request for s in self.waiting]
        first = self.policy.sort_requests(requests, self.now)[0]
        return next(s for s in self.waiting if s.request is first)

    # Rule 5

    def compute(self, sequence: Sequence, tokens: int) -> bool:
        """The step will have computed so many tokens; does it make a new one?"""
        sequence.computed += tokens
        if sequence.computed < sequence.tokens:
            return False
        sequence.made += 1
        sequence.decoding = True
        sequence.last = sequence.made == sequence.request.expected_output_length
        return True

    # Blocks

    def blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.config.block_size)

    def allocate(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for so many tokens of ``sequence``, or change nothing."""
        if self.free is None:
            return True
        more = self.blocks_for(tokens) - len(sequence.blocks)
        if more > len(self.free):
            return False
        for _ in range(more):
            block = self.free.popleft()  # an empty one, or the one freed longest ago
            self.content.pop(block, None)
            self.users[block] = 1
            sequence.blocks.append(block)
        return True

    def release(self, sequence: Sequence) -> None:
        for block in reversed(sequence.blocks):
            self.users[block] -= 1
            if self.users[block]:
                continue
            if block in self.content:
                self.free.append(block)
            else:  # nobody will look for it
                self.free.appendleft(block)
        sequence.blocks = []

    # Rule 7

    def fill(self, sequence: Sequence, tokens: int, at: float | None = None) -> None:
        """The blocks full with the first so many tokens of ``sequence`` have names."""
        if self.config.prefix_caching:
            for place in range(len(sequence.blocks)):
                if (place + 1) * self.config.block_size <= tokens:
                    block = sequence.blocks[place]
                    if block not in self.content:
                        self.content[block] = self.name(sequence, place)
                        self.filled[block] = self.now if at is None else at

    def name(self, sequence: Sequence, place: int) -> tuple:
        """What is in a full block: all segments up to its end, or its own tokens."""
        end = 0
        for i, (_, tokens) in enumerate(sequence.path):
            end += tokens
            if (place + 1) * self.config.block_size <= end:
                return sequence.path[: i + 1], place
        return sequence.request.id, place

    def still_there(self, sequence: Sequence, now: float = math.inf) -> list[int]:
        """The leading blocks of ``sequence`` that nobody has taken, all but its last.

        Of several with the same content the one that was filled first.
        """
        where: dict[tuple, int] = {}
        for block, name in self.content.items():
            if self.filled[block] < now:
                where.setdefault(name, block)
        kept: list[int] = []
        while (len(kept) + 1) * self.config.block_size < sequence.tokens:
            name = self.name(sequence, len(kept))
            if name not in where:
                break
            kept.append(where[name])
        return kept


def run_twins(config: SimulationConfig, workload: Workload) -> list[StepTwin]:
    """Serve ``workload`` by stepping: one server, or several behind a router."""
    servers = [StepTwin(config) for _ in range(config.replicas)]
    sessions: list[int] = []
    for i, request in enumerate(workload.requests()):
        path = workload.segments[i] if workload.segments else ()
        now = request.arrival_time
        for server in servers:
            server.advance(now)
        if config.router == "round_robin" or config.replicas == 1:
            place = i % config.replicas
        elif config.router == "session":
            session = path[0][0] if path else -1 - i
            if session not in sessions:
                sessions.append(session)
            place = sessions.index(session) % config.replicas
        else:
            loads = [(server.load(now),) for server in servers]
            if config.router == "longest_prefix":
                asks = Sequence(request, path=path)
                found = [len(server.still_there(asks, now)) for server in servers]
                loads = [(-f, *load) for f, load in zip(found, loads, strict=True)]
            place = loads.index(min(loads))
        servers[place].arrive(request, path)
    for server in servers:
        server.advance(math.inf)
        server.control.at(server.steps[-1].end if server.steps else 0.0)
    return servers
