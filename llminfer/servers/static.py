"""Static batching: request-level batches that run to completion."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import simpy

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.config import SimulationConfig
from llminfer.policies import SchedulingPolicy, ranked
from llminfer.record import RunRecord
from llminfer.request import Request
from llminfer.servers.batch_control import BatchLimit, Observed
from llminfer.servers.by_hand import BatchProcessor
from llminfer.servers.queues import waiting_line
from llminfer.workload import Workload

Process = Generator[simpy.Event, Any, None]
_LAST = simpy.events.EventPriority(simpy.events.NORMAL + 1)


class LLMInferenceServer:
    """A server that forms batches from a queue and runs each to completion.

    With a workload, ``run`` reads its columns, and SimPy sees one event a batch.
    Without one, a process of the reader's own calls ``enqueue_request``, and the
    same rules give the same results, a SimPy event for everything that happens.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, batch limit, timeout and policy.
        workload: Requests to serve, or None to be driven by hand.
    """

    def __init__(
        self,
        env: simpy.Environment,
        config: SimulationConfig,
        workload: Workload | None = None,
    ) -> None:
        self.env = env
        self.config = config
        self.workload = workload
        self.policy: SchedulingPolicy = config.policy()
        self.processor = BatchProcessor(*astuple(config.step_time))
        self.queue: list[Request] = []
        self.completed: list[Request] = []
        self._longest_queue = 0
        self._closed = False
        self._news = env.event()
        known = b"" if workload is None else workload.arrival_time.tobytes()
        self._entered = array("d", known)
        seen = Observed(self._entered, config.stable_rate, env.now)
        self._limit = BatchLimit(config.controller(), config.batch_size, seen)
        self._record: RunRecord | None = None

    def run(self) -> Process:
        """SimPy process: serve until nothing is left, or for ever by hand."""
        if self.workload is not None:
            return self._serve_workload(self.workload)
        return self._serve_by_hand()

    # A workload, read as columns

    def _serve_workload(self, workload: Workload) -> Process:
        arrival = self._entered
        prompt_of = array("q", workload.prompt_length.tobytes()).__getitem__
        output_of = array("q", workload.output_length.tobytes()).__getitem__
        waiting = waiting_line(self.policy, workload)
        join, take = waiting.add, waiting.take
        order, starts, sizes = array("q"), array("d"), array("q")
        prefill, decode = (
            self.processor.step_time.prefill,
            self.processor.step_time.decode,
        )
        timeout, control = self.config.batch_timeout, self._limit
        limit, tick = control.size, control.tick
        controlled, every_dispatch = control.controlled, control.every_dispatch
        env, timer, n = self.env, self.env.timeout, len(arrival)
        arrived = served = 0
        free = env.now  # when the server is next without work
        while served < n:
            # A full batch is there with the arrival of request served + limit, under
            # any policy; if there is no such request, the last one ends the wait.
            full = served + limit
            start = arrival[full - 1 if full < n else -1]
            if timeout is not None and start > free:
                oldest = arrival[waiting.oldest() if arrived > served else arrived]
                start = min(start, oldest + timeout)
            if start < free:
                start = free
            if start >= tick:  # the limit changes first, and what is due with it
                limit = control.act(tick)
                free = max(free, tick)
                tick = control.tick
                continue
            while arrived < n and arrival[arrived] <= start:
                join(arrived)
                arrived += 1
            if every_dispatch:
                limit = control.act(start)
            batch = take(limit, start)
            size = len(batch)
            tokens = sum(map(prompt_of, batch))
            steps = max(map(output_of, batch))
            free = start + prefill(tokens) + decode(size, tokens, steps)
            order.extend(batch)
            starts.append(start)
            sizes.append(size)
            served += size
            if controlled:
                control.seen.take(size)
                control.seen.finish(free, (free - arrival[i] for i in batch))
            yield timer(free - env.now if free > env.now else 0.0)
        control.at(free)
        self._record = self._write_up(workload, order, starts, sizes)

    def _write_up(
        self,
        workload: Workload,
        order: array[int],
        starts: array[float],
        sizes: array[int],
    ) -> RunRecord:
        """The record of a run, from who was in each batch and when it began."""
        members: IntArray = np.frombuffer(order, dtype=np.int64)
        size: IntArray = np.frombuffer(sizes, dtype=np.int64)
        start: FloatArray = np.frombuffer(starts)
        heads = np.cumsum(size) - size
        tokens = np.add.reduceat(workload.prompt_length[members], heads)
        steps = np.maximum.reduceat(workload.output_length[members], heads)
        first = start + self.processor.step_time.prefill(tokens)
        end = first + self.processor.step_time.decode(size, tokens, steps)

        def each(column: FloatArray) -> FloatArray:
            times = np.empty(len(members))
            times[members] = np.repeat(column, size)
            return times

        return RunRecord(
            arrival_time=workload.arrival_time,
            prompt_length=workload.prompt_length,
            output_length=workload.output_length,
            request_class=workload.request_class,
            queue_entry_time=workload.arrival_time,
            processing_start_time=each(start),
            first_token_time=each(first),
            processing_end_time=each(end),
            batch_start=start,
            batch_end=end,
            batch_size=size,
            **self._limit.path(),
        )

    # Driven by hand

    def enqueue_request(self, request: Request) -> None:
        """Put ``request`` into the queue, now.

        Raises:
            RuntimeError: The server reads a workload, or was closed.
        """
        if self.workload is not None or self._closed:
            why = "was closed" if self._closed else "serves a workload of its own"
            raise RuntimeError(f"request {request.id} refused: the server {why}")
        request.queue_entry_time = self.env.now
        self._entered.append(self.env.now)
        self.queue.append(request)
        self._longest_queue = max(self._longest_queue, len(self.queue))
        self._tell()

    def close(self) -> None:
        """Say that no request will arrive any more, so that no batch waits for one.

        A server alone in its environment also notices when nothing is left there
        that could bring a request.
        """
        self._closed = True
        self._tell()

    def collect_batch(self) -> list[Request]:
        """Take the next batch out of the whole queue, in the policy's order."""
        order = ranked(self.policy, self.queue, self.env.now)
        batch = order[: self._limit.size]
        chosen = set(batch)
        self.queue = [r for r in self.queue if r not in chosen]
        self._limit.seen.take(len(batch))
        return batch

    def _serve_by_hand(self) -> Process:
        while True:
            # who arrives right now is in the queue first
            yield _LastOfInstant(self.env)
            self._limit.at(self.env.now)
            if not self._must_dispatch():
                yield self._news | self._alarm()
                continue
            if self._limit.every_dispatch:
                self._limit.act(self.env.now)
            batch = self.collect_batch()
            yield from self.processor.process_batch(self.env, batch)
            self.completed += batch
            if self._limit.controlled:
                end = self.env.now
                self._limit.seen.finish(end, (end - r.arrival_time for r in batch))

    def _deadline(self) -> float:
        """When the oldest waiting request has waited long enough, seconds."""
        if self.config.batch_timeout is None or not self.queue:
            return math.inf
        entered = self.queue[0].queue_entry_time
        return (
            self.env.now if entered is None else entered
        ) + self.config.batch_timeout

    def _must_dispatch(self) -> bool:
        if not self.queue:
            return False
        if len(self.queue) >= self._limit.size:
            return True
        if self.env.now >= self._deadline():
            return True
        return self._closed or self._nobody_left()

    def _nobody_left(self) -> bool:
        """Whether servers' alarms are all that is still to happen."""
        return all(isinstance(entry[-1], _Alarm) for entry in self.env._queue)

    def _alarm(self) -> simpy.Event:
        """The deadline or a tick, or what comes before: nobody may be left after it.

        One that rounding lets ring a bit early is set again.
        """
        now, upcoming = self.env.now, self.env.peek()
        due = min(self._deadline(), self._limit.tick)
        wake = min(due, upcoming if upcoming > now else math.inf)
        if not self.queue or wake == math.inf:
            return self.env.event()
        return _Alarm(self.env, wake - now)

    def _tell(self) -> None:
        news, self._news = self._news, self.env.event()
        news.succeed()

    # Results

    @property
    def record(self) -> RunRecord:
        """What has happened so far, by hand; of the whole run, from a workload.

        Raises:
            RuntimeError: A workload's run has not ended yet.
        """
        if self.workload is None:
            served = RunRecord.from_requests(self.completed)
            return replace(served, **self._limit.path())
        if self._record is None:
            raise RuntimeError("the run has not ended: call env.run() first")
        return self._record

    def get_statistics(self) -> dict[str, float]:
        """Counts and times so far: batches, requests, busy seconds, queue."""
        if self.workload is None:
            return {
                **self.processor.get_statistics(),
                "waiting_requests": len(self.queue),
                "max_queue_length": self._longest_queue,
            }
        record = self.record
        return {
            "total_batches": len(record.batch_size),
            "total_requests": len(record.arrival_time),
            "avg_batch_size": float(record.batch_size.mean()),
            "busy_time": float((record.batch_end - record.batch_start).sum()),
            "waiting_requests": 0,
            "max_queue_length": record.max_queue_length,
        }


class _Alarm(simpy.Timeout):
    """Wakes a server that waits; brings no request itself."""


class _LastOfInstant(simpy.Event):
    """An event now, after all others of this instant."""

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, priority=_LAST)
