"""Continuous batching: the batch changes from step to step, as vLLM schedules it."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import simpy

from llminfer.base.arrays import IntArray
from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.servers.event_log import RequestTimes, write_up
from llminfer.servers.queues import waiting_queue
from llminfer.servers.routing import Replica, Router, routes
from llminfer.servers.scheduler import Scheduler
from llminfer.servers.server import Process, WorkloadServer, batch_limit
from llminfer.workload import Workload


class ContinuousBatchingServer(WorkloadServer):
    """A server, or several behind a router, that schedules anew at every step.

    SimPy sees an event where the batch changes, and none a token or an arrival; a
    router that looks at its servers sees every arrival.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, limits and policy.
        workload: Requests to serve.

    Raises:
        ConfigError: A request can never fit into the KV memory.
    """

    def __init__(
        self, env: simpy.Environment, config: SimulationConfig, workload: Workload
    ) -> None:
        super().__init__(env, config, workload)
        _refuse_what_never_fits(config, workload)
        self._requests = RequestTimes.of(workload, config)
        self._limit = batch_limit(env, config, self._requests.arrival)
        self._routes = routes(config, workload)
        self._replicas = [self._replica(i) for i in range(config.replicas)]
        self._processes: list[simpy.Process] = []
        self._asleep: dict[int, simpy.Event] = {}

    def _replica(self, i: int) -> Replica:
        config, workload, n = self.config, self.workload, len(self.workload)
        queue = waiting_queue(config.policy(), workload, every=config.replicas == 1)
        control = self._limit if self._limit.controlled else None
        scheduler = Scheduler(config, self._requests, queue, control)
        if config.replicas == 1:
            return Replica(scheduler, range(n), self._times(slice(None)))
        if self._routes is None:
            return Replica(scheduler, array("q"), array("d", [math.inf]), closed=False)
        members = np.flatnonzero(self._routes == i)
        return Replica(scheduler, array("q", members.tobytes()), self._times(members))

    def _times(self, members: Any) -> array[float]:
        """Arrival times of ``members``, seconds, and infinity after the last."""
        times = array("d", self.workload.arrival_time[members].tobytes())
        times.append(math.inf)
        return times

    def run(self) -> Process:
        """SimPy process: serve until nothing is left."""
        servers = range(self.config.replicas)
        self._processes = [self.env.process(self._serve(place)) for place in servers]
        if self._routes is None:
            self._routes = np.zeros(len(self.workload), dtype=np.int64)
            self.env.process(self._route(self._routes))
        yield self.env.all_of(self._processes)
        self._limit.at(max(replica.scheduler.end for replica in self._replicas))
        self._record = write_up(
            self.config,
            self.workload,
            self._requests,
            [replica.scheduler.log for replica in self._replicas],
            replica=self._routes,
            limit=self._limit.path(),
        )

    def _serve(self, place: int) -> Process:
        replica = self._replicas[place]
        scheduler, number, time = replica.scheduler, replica.number, replica.time
        begin, finish, queue = scheduler.begin, scheduler.finish, scheduler.queue
        can_overtake, join = queue.can_overtake, queue.add  # else the scheduler counts
        env, schedule = self.env, self.env.schedule
        stretch = _Stretch(env)
        now = clock = env.now
        arrived = 0
        while True:
            while (arrival := time[arrived]) <= now:
                if can_overtake:
                    join(number[arrived])
                arrived += 1
            due = begin(now, arrived, arrival)
            if due < math.inf:
                delay = due - clock if due > clock else 0.0
                clock += delay  # what the environment's clock will show
                try:
                    stretch.callbacks = []
                    schedule(stretch, delay=delay)
                    yield stretch
                except simpy.Interrupt:  # somebody was sent who finds room
                    due, stretch = scheduler.due, _Stretch(env)
                    yield env.timeout(max(due - env.now, 0.0))
                    clock = env.now
                finish()
                now = due
            elif arrival < math.inf:
                now = arrival
            elif replica.closed:
                return
            else:
                self._asleep[place] = env.event()
                yield self._asleep[place]
                clock = env.now

    def _route(self, routes: IntArray) -> Process:
        """SimPy process: send every request to a server as it arrives."""
        router = Router(self.config.router, self._replicas)
        for i, time in enumerate(self._requests.arrival):
            yield _Arrival(self.env, time)
            place = router.choose(i, time)
            routes[i] = place
            self._send(i, time, place)
        for place, replica in enumerate(self._replicas):
            replica.closed = True
            if place in self._asleep:
                self._asleep.pop(place).succeed()

    def _send(self, i: int, time: float, place: int) -> None:
        replica, requests = self._replicas[place], self._requests
        replica.send(i, time, requests.prompt[i] + requests.output[i])
        scheduler = replica.scheduler
        if place in self._asleep:
            self._asleep.pop(place).succeed()
        elif scheduler.open and time < scheduler.due:
            scheduler.shorten(time)
            self._processes[place].interrupt()


class _Stretch(simpy.Event):
    """A timeout to be scheduled again and again, in half the time of new ones."""

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None


class _Arrival(_Stretch):
    """An event at a time still to come, seconds, before all others of that instant."""

    def __init__(self, env: simpy.Environment, time: float) -> None:
        super().__init__(env)
        env.schedule(self, simpy.events.URGENT, max(time - env.now, 0.0))


def _refuse_what_never_fits(config: SimulationConfig, workload: Workload) -> None:
    if config.kv_blocks is None:
        return
    tokens = workload.prompt_length + workload.output_length - 1
    blocks = -(-tokens // config.block_size)
    if int(blocks.max()) <= config.kv_blocks:
        return
    i = int(np.argmax(blocks > config.kv_blocks))
    asks = f"prompt {workload.prompt_length[i]}, output {workload.output_length[i]}"
    must = f"at least {blocks.max()}: request {i} ({asks} tokens) needs {blocks[i]}"
    raise fail("kv_blocks", config.kv_blocks, must)
