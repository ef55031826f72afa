"""The static server as plain as it can be written: the oracle of the real one.

A SimPy event an arrival, a timer a request, an event a decode step, ``Request``
objects, and the whole queue sorted at every dispatch. It shares no code with
``llminfer.servers.static``, ``llminfer.policies`` or ``llminfer.timing``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import simpy

from llminfer import Request, SchedulingPolicy
from llminfer.base.streams import stream


@dataclass
class Twin:
    """Serves ``requests`` under ``config``; afterwards each carries its times."""

    env: simpy.Environment
    config: object
    requests: list[Request]
    queue: list[Request] = field(default_factory=list)
    overdue: set[int] = field(default_factory=set)
    arrived: int = 0
    served: int = 0
    batches: list[list[Request]] = field(default_factory=list)

    def __post_init__(self):
        self.news = self.env.event()
        self.noise = stream(self.config.random_seed, "prediction").standard_normal(
            len(self.requests)
        )
        self.env.process(self.client())
        self.env.process(self.server())

    def client(self):
        by_time = itertools.groupby(self.requests, lambda r: r.arrival_time)
        for arrival_time, together in by_time:
            yield self.env.timeout(max(arrival_time - self.env.now, 0.0))
            for request in together:
                request.queue_entry_time = self.env.now
                self.queue.append(request)
                self.arrived += 1
                if self.config.batch_timeout is not None:
                    self.env.process(self.timer(request))
            self.tell()

    def timer(self, request):
        yield self.env.timeout(self.config.batch_timeout)
        self.overdue.add(request.id)
        self.tell()

    def tell(self):
        if not self.news.triggered:
            self.news.succeed()

    def server(self):
        while self.served < len(self.requests):
            yield self.env.timeout(0)  # who arrives at this instant is in first
            if not self.may_dispatch():
                yield self.news
                self.news = self.env.event()
                continue
            batch = sorted_queue(self.config, self.queue, self.env.now, self.noise)
            batch = batch[: self.config.batch_size]
            for request in batch:
                self.queue.remove(request)
            yield from self.serve(batch)

    def may_dispatch(self):
        if not self.queue:
            return False
        return (
            len(self.queue) >= self.config.batch_size
            or self.queue[0].id in self.overdue
            or self.arrived == len(self.requests)
        )

    def serve(self, batch):
        c = self.config
        for request in batch:
            request.processing_start_time = self.env.now
        prompts = sum(request.prompt_length for request in batch)
        pairs = sum(request.prompt_length**2 / 2 for request in batch)
        yield self.env.timeout(step_seconds(c, prompts, pairs, 0, 0))
        for request in batch:
            request.first_token_time = self.env.now
        kv_tokens = prompts
        for _ in range(max(request.expected_output_length for request in batch)):
            yield self.env.timeout(step_seconds(c, 0, 0, len(batch), kv_tokens))
            kv_tokens += len(batch)
        for request in batch:
            request.processing_end_time = self.env.now
            request.actual_output_length = request.expected_output_length
        self.served += len(batch)
        self.batches.append(batch)


def step_seconds(c, p, q, b, k):
    """A step that prefills p tokens in q pairs, b decoding in k tokens (DESIGN 1)."""
    own = c.beta * (p > 0) + c.delta * b + c.kappa * k + c.epsilon * q
    if c.step_law == "roofline":
        launch = c.launch if p + b > c.graph_tokens else 0.0
        return max(c.gamma, c.alpha * (p + b), launch) + own
    return c.alpha * p + c.gamma * (b > 0) + own


def sorted_queue(config, queue, now, noise):
    """The queue, next first, by the rules of DESIGN section 5."""
    policy, given = config.scheduling_policy, config.scheduling_policy_params
    if isinstance(policy, SchedulingPolicy):
        return policy.sort_requests(list(queue), now)

    def estimate(request, output):
        work = config.alpha * request.prompt_length + config.beta
        return work + config.gamma * output

    def predicted(request):
        error = given.get("prediction_sigma", 0.0) * noise[request.id]
        return estimate(
            request, request.expected_output_length * 2.718281828459045**error
        )

    def priority(request):
        seconds = estimate(request, request.expected_output_length)
        ageing = given.get("aging_rate", 0.1) * (now - request.arrival_time)
        urgency = given.get("urgency_weight", 1.0) / seconds
        return given.get("base_priority", 0.0) + ageing + urgency

    rank = {
        "FCFS": lambda request: request.arrival_time,
        "SJF": lambda request: request.prompt_length,
        "Predicted-SJF": predicted,
        "Priority": lambda request: -priority(request),
    }[policy]
    return sorted(queue, key=lambda request: (rank(request), request.id))


def run_twin(config, workload):
    """The served requests, in order of arrival, and the batches as they ran."""
    env = simpy.Environment()
    twin = Twin(env, config, list(workload.requests()))
    env.run()
    return twin.requests, twin.batches
