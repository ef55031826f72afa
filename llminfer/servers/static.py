"""Static batching: request-level batches that run to completion."""

import math
from array import array
from typing import Any

import numpy as np
import simpy

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.record import RunRecord
from llminfer.servers.clients import own_clients
from llminfer.servers.desk import StaticDesk
from llminfer.servers.queues import WaitingQueue
from llminfer.servers.server import Due, Process, Requests, WorkloadServer, batch_limit


class LLMInferenceServer(WorkloadServer):
    """A server that forms batches from a queue and runs each to completion.

    It reads the workload's columns, and SimPy sees one event a batch. A process of
    the reader's own drives a ``ServerByHand`` under the same rules.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, batch limit, timeout and policy.
        workload: Requests to serve.

    Raises:
        ConfigError: The configuration is that of another server.

    >>> from llminfer import Workload
    >>> env = simpy.Environment()
    >>> work = Workload.from_arrays([0.0, 0.5], [100, 50], [20, 10])
    >>> server = LLMInferenceServer(env, SimulationConfig(batch_size=2), work)
    >>> _ = env.process(server.run())
    >>> env.run()
    >>> server.get_statistics()["total_batches"]
    1
    """

    def __init__(
        self, env: simpy.Environment, config: SimulationConfig, workload: Requests
    ) -> None:
        if config.server != "static":
            raise fail("server", config.server, "'static' for LLMInferenceServer")
        self._desk = own_clients(StaticDesk, config, workload)
        super().__init__(env, config, workload, self._desk.sent if self._desk else None)
        self._arrival = self._column("arrival_time")
        entered = self._desk.entered if self._desk else self._arrival
        self._limit = batch_limit(env, config, entered)
        self._began, self._sizes, self._members = array("d"), array("q"), array("q")

    def run(self) -> Process:
        """SimPy process: serve until nothing is left."""
        law, arrival = self.config.step_time, self._arrival
        prompt_of = self._column("prompt_length").__getitem__
        output_of = self._column("output_length").__getitem__
        waiting = self.waiting_queue()
        join, take, due = waiting.add, waiting.take, self._due
        began, sizes, members = self._began, self._sizes, self._members
        control = self._limit
        limit, tick, controlled = control.size, control.tick, control.controlled
        if (desk := self._desk) is not None:
            desk.queue, desk.seen = waiting, control.seen
        end, served, n, free = Due(self.env), 0, len(arrival), self.env.now
        arrived = 0 if desk is None else n
        while served < n or desk is not None:  # free: when it has no work any more
            if desk is None:
                start = due(waiting, arrived, served, free, limit)
            elif (start := desk.dispatch(free, limit, tick)) == math.inf:
                break
            if start >= tick:  # the limit changes first, and what is due with it
                limit = control.act(tick, start if desk is None else desk.rests_until)
                free, tick = max(free, tick), control.tick
                continue
            while arrived < n and arrival[arrived] <= start:
                join(arrived)
                arrived += 1
            if controlled and control.every_dispatch:
                limit = control.act(start)
            batch = take(limit, start)
            size, tokens = len(batch), sum(map(prompt_of, batch))
            pairs = sum(prompt_of(i) ** 2 for i in batch) / 2.0 if law.epsilon else 0.0
            first = start + law.prefill(tokens, pairs)
            free = first + law.decode(size, tokens, max(map(output_of, batch)))
            done = batch if desk is None else desk.serve(batch, first, free)
            began.append(start)
            sizes.append(size)
            members.extend(batch)
            served += size
            if controlled:
                control.seen.take(size)
                control.seen.finish(free, (free - arrival[i] for i in done))
            yield end.again(free)
        control.at(free)
        self._record = self._write_up()

    def _due(
        self, waiting: WaitingQueue, arrived: int, served: int, free: float, limit: int
    ) -> float:
        """When the next batch leaves, of requests that come by the clock, seconds.

        Args:
            waiting: Who waits.
            arrived: How many have joined so far.
            served: How many have left.
            free: When the server has no work any more, seconds.
            limit: Requests of a full batch.
        """
        # A full batch is there with the arrival of request served + limit,
        # under any policy; if there is none, the last one ends the wait.
        arrival, timeout = self._arrival, self.config.batch_timeout
        start: float = arrival[min(served + limit, len(arrival)) - 1]
        if timeout is not None and start > free:
            oldest = waiting.oldest() if arrived > served else arrived
            start = min(start, arrival[oldest] + timeout)
        return start if start > free else free

    def _column(self, name: str) -> Any:
        """A column to be read one by one, as it is, or as the clients fill it."""
        column, desk = getattr(self.workload, name), self._desk
        if desk is not None and (desk.draws or name == "arrival_time"):
            return memoryview(column)
        return array(column.dtype.char, column.tobytes())

    def _write_up(self) -> RunRecord:
        """The record of a run, from when each batch began, and who was in it."""
        workload, law = self.workload, self.config.step_time
        start: FloatArray = np.array(self._began)
        size: IntArray = np.array(self._sizes)
        members = np.asarray(self._members)
        heads = np.cumsum(size) - size
        prompt = workload.prompt_length[members]
        tokens = np.add.reduceat(prompt, heads)
        steps = np.maximum.reduceat(workload.output_length[members], heads)
        pairs = np.zeros(len(size))
        if law.epsilon:
            pairs = np.add.reduceat(np.square(prompt, dtype=np.float64) / 2.0, heads)
        first = start + law.prefill(tokens, pairs)
        end = first + law.decode(size, tokens, steps)
        times = np.full((3, len(workload)), math.inf)
        for row, its in zip(times, (start, first, end), strict=True):
            row[members] = np.repeat(its, size)
        more = self._limit.path() | (self._desk.columns(times) if self._desk else {})
        more |= {"batch_start": start, "batch_end": end, "batch_size": size}
        return RunRecord.served(workload, times, more)
