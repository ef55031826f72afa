"""Users, gates and impatience as plainly as they can be written: lists, and a scan.

``Senders`` is a list of what is to come. The two servers are driven one event at a
time; at one instant answers come first, then who gives up, then who sends, and then
the server decides. The draws of users are shared with what is judged, nothing else.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from step_twin import Sequence, StepTwin
from twin import sorted_queue, step_seconds

from llminfer.base.streams import stream
from llminfer.laws.people import seconds_law
from llminfer.policies import ClassPolicy
from llminfer.request import Request
from llminfer.servers.clients import User

ANSWER, GIVE_UP, ARRIVAL = range(3)


@dataclasses.dataclass(eq=False)
class Asked:
    """One request at the client."""

    id: int
    user: int | None
    wanted: float
    prompt: int
    output: int
    request_class: int
    limits: tuple[float, float]
    sent: float = math.nan
    outcome: str = "unanswered"
    ended: float = math.nan
    started: float = math.nan
    first: float = math.inf  # when its first token comes out, as soon as that is known
    last: float = math.inf
    wasted: int = 0


class Senders:
    """All who send; ``receive(asked, time)`` of the server says whether it has room."""

    def __init__(self, config, workload, receive):
        self.config, self.workload, self.receive = config, workload, receive
        self.n = config.num_requests if workload is None else len(workload)
        self.asked: list[Asked] = []
        self.events: list[tuple[float, int, int]] = []
        self.held: list[Asked] = []
        self.unanswered = 0
        self.users = [User(config, i) for i in range(config.clients or 0)]
        for i, user in enumerate(self.users):
            self.events.append((user.think, ARRIVAL, i))
        if not self.users:
            self.events = [
                (time, ARRIVAL, i) for i, time in enumerate(workload.arrival_time)
            ]
            u = stream(config.random_seed, "patience").random((self.n, 2))
            laws = config.patience, config.request_timeout
            self.limits = [
                tuple(
                    math.inf
                    if law is None
                    else float(seconds_law("x", law)(v[None])[0])
                    for law, v in zip(laws, row, strict=True)
                )
                for row in u
            ]

    def next(self):
        return min(self.events)[0] if self.events else math.inf

    def happen(self):
        """The next event."""
        event = min(self.events)
        self.events.remove(event)
        time, kind, who = event
        if kind == ARRIVAL:
            if len(self.asked) < self.n:
                self.arrive(time, who)
            return
        its = self.asked[who]
        if kind == ANSWER and its.outcome == "unanswered":
            self.over(its, time, "completed")
        if kind == GIVE_UP and its.outcome == "unanswered":
            late = its.sent + its.limits[1] <= time and its.last > time
            if late or (its.sent + its.limits[0] <= time and its.first > time):
                self.over(its, time, "given up")

    def arrive(self, time, who):
        i = len(self.asked)
        limits = self.users[who].limits if self.users else self.limits[i]
        if self.workload is None:
            user = self.users[who]
            lengths = user.prompt, user.output, user.request_class
        else:
            work = self.workload
            lengths = [
                int(column[i])
                for column in (
                    work.prompt_length,
                    work.output_length,
                    work.request_class,
                )
            ]
        its = Asked(i, who if self.users else None, time, *lengths, limits)
        self.asked.append(its)
        most = self.config.max_concurrency
        if most is not None and self.unanswered >= most:
            self.held.append(its)
        else:
            self.send(its, time)

    def send(self, its, time):
        its.sent = time
        self.unanswered += 1
        if not self.receive(its, time):
            self.over(its, time, "refused")
            return
        for limit in its.limits:
            if limit < math.inf:
                self.events.append((time + limit, GIVE_UP, its.id))

    def over(self, its, time, outcome):
        its.outcome, its.ended = outcome, time
        if its.user is not None:
            user = self.users[its.user]
            user.go_on()
            self.events.append((time + user.think, ARRIVAL, its.user))
        self.unanswered -= 1
        if self.held:
            self.send(self.held.pop(0), time)

    @property
    def coming(self):
        """Will anybody arrive without an answer before?"""
        some = any(kind == ARRIVAL for _, kind, _ in self.events)
        return some and len(self.asked) < self.n


# The continuous server


class ClosedTwin(StepTwin):
    """A server that requests leave before they are complete."""

    def __init__(self, config):
        super().__init__(config)
        self.asked: dict[Sequence, Asked] = {}
        self.dropped: set[Sequence] = set()

    def room(self, limit):
        gone = [self.asked[s].outcome != "unanswered" for s in self.queued]
        return limit is None or gone.count(False) < limit

    @property
    def queued(self):
        return self.waiting + self.preempted

    def let_in(self, its, time):
        request = Request(its.id, time, its.prompt, its.output, its.request_class)
        self.arrive(request)
        if isinstance(self.policy, ClassPolicy):  # a class has its place from now on
            self.policy.sort_requests([s.request for s in self.waiting], time)
        self.asked[self.everyone[-1]] = its

    def compose(self, start):
        for sequence, its in self.asked.items():
            if its.outcome == "given up" and sequence in self.queued + self.running:
                self.drop(sequence, its)
        return super().compose(start)

    def answers(self, sequence):
        its, times = self.asked[sequence], sequence.token_times
        first, last = (its.sent + limit for limit in its.limits)
        return times[0] <= first and times[-1] <= last

    def drop(self, sequence, its):
        its.wasted = sequence.computed
        self.dropped.add(sequence)
        if sequence in self.preempted and sequence.made:
            its.wasted = sequence.tokens - 1
        if sequence in self.waiting + self.preempted:
            self.control.seen.left.append(its.ended)
        if sequence in self.waiting and isinstance(self.policy, ClassPolicy):
            self.policy.sort_requests([s.request for s in self.waiting], self.now)
            self.policy._queue.discard(sequence.request)
        for those in (self.waiting, self.preempted, self.running):
            if sequence in those:
                those.remove(sequence)
        self.release(sequence)

    def step(self):
        super().step()
        for sequence, its in self.asked.items():
            its.started = math.nan if sequence.start is None else sequence.start
            its.first = (sequence.token_times or [math.inf])[0]
            if sequence.done and its.last == math.inf:
                its.last = sequence.token_times[-1]
                self.senders.events.append((its.last, ANSWER, its.id))


def run_closed(config, workload):
    """Servers with their steps, and senders with what they asked."""
    servers = [ClosedTwin(config) for _ in range(config.replicas)]
    draws = stream(config.random_seed, "routing").random(10_000) * config.replicas

    def place(its, time):
        if config.replicas == 1 or config.router == "round_robin":
            return servers[its.id % config.replicas]
        if config.router == "random":
            return servers[int(draws[its.id])]
        loads = [load(server, time, config.router) for server in servers]
        return servers[loads.index(min(loads))]

    def receive(its, time):
        server = place(its, time)
        if not server.room(config.queue_limit):
            return False
        server.let_in(its, time)
        return True

    senders = Senders(config, workload, receive)
    for server in servers:
        server.senders = senders
    while True:
        busy = [server for server in servers if server.busy]
        due = min((server.now for server in busy), default=math.inf)
        if senders.next() == due == math.inf:
            break
        if senders.next() <= due:
            senders.happen()
        else:
            next(server for server in busy if server.now == due).step()
    for server in servers:
        for sequence, its in server.asked.items():
            if its.outcome == "given up" and sequence.done:
                its.wasted = sequence.computed
        server.control.at(server.steps[-1].end if server.steps else 0.0)
    return servers, senders


def load(server, now, router):
    """Requests, or their tokens, in a server: with tokens to come, and not dropped."""
    left = [
        s.request
        for s in server.everyone
        if s not in server.dropped and not (s.done and s.token_times[-1] <= now)
    ]
    if router == "least_loaded":
        return len(left)
    return sum(r.prompt_length + r.expected_output_length for r in left)


# The static server


def run_closed_static(config, workload):
    """The senders with what they asked, and the batches as they ran."""
    queue: list[Asked] = []
    batches: list[tuple[float, float, int]] = []

    def receive(its, time):
        if config.queue_limit is not None and len(waiting()) >= config.queue_limit:
            return False
        queue.append(its)
        return True

    def waiting():
        return [its for its in queue if its.outcome == "unanswered"]

    senders = Senders(config, workload, receive)
    noise = stream(config.random_seed, "prediction").standard_normal(senders.n)
    now = 0.0
    while True:
        while senders.next() <= now:
            senders.happen()
        if must_dispatch(config, senders, waiting(), now):
            requests = [
                Request(i.id, i.sent, i.prompt, i.output, i.request_class)
                for i in waiting()
            ]
            for request in requests:
                request.queue_entry_time = request.arrival_time
            order = sorted_queue(config, requests, now, noise)[: config.batch_size]
            batch = [senders.asked[r.id] for r in order]
            end = serve(config, batch, now)
            for its in batch:
                queue.remove(its)
                senders.events.append((end, ANSWER, its.id))
            batches.append((now, end, len(batch)))
            now = end
            continue
        later = [senders.next()]
        if waiting() and config.batch_timeout is not None:
            later.append(waiting()[0].sent + config.batch_timeout)
        now = min(later)
        if now == math.inf:
            break
    for its in senders.asked:
        if its.outcome == "given up" and not math.isnan(its.started):
            its.wasted = its.prompt + its.output
    return senders, batches


def must_dispatch(config, senders, waiting, now):
    if not waiting:
        return False
    if len(waiting) >= config.batch_size:
        return True
    if len(senders.asked) == senders.n and not senders.held:
        return True
    if config.batch_timeout is None:
        most = config.max_concurrency
        return not senders.coming or (most is not None and senders.unanswered >= most)
    return now >= waiting[0].sent + config.batch_timeout


def serve(config, batch, start):
    prompts = sum(its.prompt for its in batch)
    pairs = sum(its.prompt**2 / 2 for its in batch)
    first = end = start + step_seconds(config, prompts, pairs, 0, 0)
    kv_tokens = prompts
    for _ in range(max(its.output for its in batch)):
        end += step_seconds(config, 0, 0, len(batch), kv_tokens)
        kv_tokens += len(batch)
    for its in batch:
        its.started, its.first, its.last = start, first, end
    return end


def columns(senders):
    """What the senders saw, as arrays by name."""
    asked = senders.asked
    names = ("completed", "refused", "given up")
    return {
        "arrival_time": np.array([its.wanted for its in asked]),
        "queue_entry_time": np.array([its.sent for its in asked]),
        "processing_start_time": np.array([its.started for its in asked]),
        "first_token_time": np.array(
            [its.first if its.first <= its.ended else math.nan for its in asked]
        ),
        "processing_end_time": np.array([its.ended for its in asked]),
        "prompt_length": np.array([its.prompt for its in asked]),
        "output_length": np.array([its.output for its in asked]),
        "outcome": np.array([names.index(its.outcome) for its in asked]),
        "wasted_tokens": np.array([its.wasted for its in asked]),
    }
