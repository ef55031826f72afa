"""Continuous batching: the batch changes from step to step, as vLLM schedules it."""

import math
from array import array

import numpy as np
import simpy

from llminfer.base.arrays import IntArray
from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.servers.clients import Clients, own_clients
from llminfer.servers.event_log import RequestTimes, write_up
from llminfer.servers.routing import LOADS, Replica, Router, routes
from llminfer.servers.scheduler import Scheduler
from llminfer.servers.server import (
    At,
    Due,
    Moment,
    Process,
    Requests,
    WorkloadServer,
    batch_limit,
)
from llminfer.workload import Workload

_AFTER_ENDS, _LAST = 2, 3  # priorities: SimPy's own are 0 and 1


class ContinuousBatchingServer(WorkloadServer):
    """A server, or several behind a router, that schedules anew at every step.

    SimPy sees an event where the batch changes, and none a token or an arrival; where
    a router looks at its servers, one an arrival if something happens before.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, limits and policy.
        workload: Requests to serve; None where users draw their own.

    Raises:
        ConfigError: A request can never fit into the KV memory.
    """

    def __init__(
        self, env: simpy.Environment, config: SimulationConfig, workload: Requests
    ) -> None:
        self.clients = own_clients(Clients, config, workload)
        super().__init__(env, config, workload, self.clients and self.clients.sent)
        _refuse_what_never_fits(config, self.workload)
        clients, work = self.clients, self.workload
        self._requests = clients.times if clients else RequestTimes.of(work, config)
        entered = clients.entered if clients else self._requests.arrival
        self._limit = batch_limit(env, config, entered)
        self._most_tokens = config.block_size * (config.kv_blocks or math.inf) + 1
        self._routes = routes(config, work)
        self._replicas = [self._replica(i) for i in range(config.replicas)]
        self._stretches = [Due(env) for _ in self._replicas]  # each one's in progress
        self._asleep: dict[int, simpy.Event] = {}
        self._several = config.replicas > 1
        self._gone: list[list[int]] = [[] for _ in self._replicas]  # but not yet let go
        self._armed = -math.inf  # when the clients are to be asked, seconds
        if clients is not None:
            clients.desk = self

    def _replica(self, i: int) -> Replica:
        config = self.config
        queue = self.waiting_queue(every=config.replicas == 1)
        control = self._limit if self._limit.controlled else None
        answer = None if self.clients is None else self.clients.answer
        scheduler = Scheduler(config, self._requests, queue, control, answer)
        if answer is not None or self._routes is None:  # they are sent one by one
            one = config.replicas == 1
            return Replica(scheduler, array("q"), array("d", [math.inf]), closed=one)
        members = np.flatnonzero(self._routes == i)
        times = array("d", self.workload.arrival_time[members].tobytes())
        times.append(math.inf)
        return Replica(scheduler, array("q", members.tobytes()), times)

    def run(self) -> Process:
        """SimPy process: serve until nothing is left."""
        servers = range(self.config.replicas)
        processes = [self.env.process(self._serve(place)) for place in servers]
        if self._routes is None:
            self._routes = np.zeros(len(self.workload), dtype=np.int64)
            paths = self.workload.segments
            self._router = Router(self.config, self._replicas, paths)
            if self.clients is None:
                self.env.process(self._route(self._routes))
        if self.clients is not None:
            self._arm()
        yield self.env.all_of(processes)
        self._limit.at(max(replica.scheduler.end for replica in self._replicas))
        own = self.clients.columns() if self.clients else {}
        self._record = write_up(
            self.config,
            self.workload,
            self._requests,
            [replica.scheduler.log for replica in self._replicas],
            replica=self._routes,
            more=self._limit.path() | own,
        )

    def _serve(self, place: int) -> Process:
        replica = self._replicas[place]
        scheduler, number, time = replica.scheduler, replica.number, replica.time
        begin, finish, queue = scheduler.begin, scheduler.finish, scheduler.queue
        can_overtake, join = queue.can_overtake, queue.add  # else the scheduler counts
        env, schedule, clients = self.env, self.env.schedule, self.clients
        several, gone = self._several, self._gone[place]
        arrived, now, stretches = 0, env.now, self._stretches
        while True:
            if clients is not None:
                arrival, scheduler.latest = clients.advance(now)
            if clients is not None and not several:  # they have joined already
                arrived = len(number)
            else:
                while (arrival := time[arrived]) <= now:
                    if can_overtake:
                        join(number[arrived])
                    arrived += 1
            if gone:
                self._let_go(scheduler, gone, now)
            due = begin(now, arrived, arrival)
            if due < math.inf:
                stretch = stretches[place]
                stretch.callbacks = []
                schedule(stretch, delay=At(due))
                yield stretch
                now = scheduler.due  # sooner if somebody was sent who finds room
                finish()
                if several and clients is not None:
                    yield from self._settle(scheduler, now)
            elif arrival < math.inf:
                now = arrival
            elif replica.closed:
                return
            else:
                self._asleep[place] = env.event()
                yield self._asleep[place]

    def _route(self, routes: IntArray) -> Process:
        """SimPy process: send every request to a server as it arrives."""
        for i, time in enumerate(self._requests.arrival):
            if self._asleep or self.env.peek() <= time:  # else nothing happens before
                yield Moment(self.env, time, simpy.events.URGENT)
            place = self._router.choose(i, time)
            routes[i] = place
            self._send(i, time, place)
        self._close()

    def _close(self) -> None:
        """Nothing more will be sent."""
        for place, replica in enumerate(self._replicas):
            replica.closed = True
            if place in self._asleep:
                self._asleep.pop(place).succeed()

    def _send(self, i: int, time: float, place: int) -> None:
        replica, requests = self._replicas[place], self._requests
        replica.number.append(i)
        replica.time[-1:] = array("d", [time, math.inf])
        replica.tokens += requests.prompt[i] + requests.output[i]
        scheduler = replica.scheduler
        if place in self._asleep:
            self._asleep.pop(place).succeed()
        elif scheduler.open and time < scheduler.due:
            scheduler.shorten(time)
            due, late = Due(self.env).again(scheduler.due), self._stretches[place]
            self._stretches[place] = due  # the other one will be nobody's
            due.callbacks, late.callbacks = late.callbacks, []

    # Clients

    def receive(self, i: int, time: float) -> bool:
        """Take request ``i`` at ``time``, seconds; False if too many wait there."""
        requests, most, place = self._requests, self._most_tokens, 0
        several, room = self._several, self.config.queue_limit
        if most < math.inf and requests.prompt[i] + requests.output[i] > most:
            _refuse_what_never_fits(self.config, self.workload, slice(i, i + 1))
        if several:
            place = self._place(i, time)
        batch = (replica := self._replicas[place]).scheduler
        if room is not None:
            waiting = len(replica.number) - batch.admitted + len(batch.preempted)
            if waiting >= room and waiting - self._given_up(place) >= room:
                return False
        if several:
            self._send(i, time, place)
        else:  # which has asked for this, and is about to schedule a step
            replica.number.append(i)
            batch.queue.add(i)
        return True

    def _place(self, i: int, time: float) -> int:
        """The server that request ``i`` goes to at ``time``, seconds."""
        assert self.clients is not None
        assert self._routes is not None
        if self.config.router in LOADS:
            end = self._requests.end
            for batch in (replica.scheduler for replica in self._replicas):
                if batch.leaving and end[next(iter(batch.leaving))] <= time:
                    batch.first_free += batch.let_go()
            self._routes[i] = self._router.choose(i, time)
        elif self.config.router == "session" and (its := self.clients.user_of(i)) >= 0:
            self._routes[i] = its % len(self._replicas)
        return int(self._routes[i])

    def _given_up(self, place: int) -> int:
        """Of the requests that wait at a server, those that were given up."""
        start, away = self._requests.start, self._replicas[place].scheduler.preempted
        return sum(math.isnan(start[i]) or i in away for i in self._gone[place])

    def drop(self, i: int) -> None:
        """Request ``i`` has been given up; it leaves when the next step is composed."""
        assert self._routes is not None
        self._gone[self._routes[i]].append(i)

    def _let_go(self, scheduler: Scheduler, gone: list[int], now: float) -> None:
        """All that were given up, and have joined by ``now``, leave a server."""
        assert self.clients is not None
        sent = self._requests.arrival
        for i in gone:
            if sent[i] <= now:
                self.clients.wasted[i] = scheduler.cancel(i, self.clients.end[i])
        gone[:] = [i for i in gone if sent[i] > now]

    def _settle(self, scheduler: Scheduler, now: float) -> Process:
        """SimPy process: all that clients do now comes before a server's next step."""
        scheduler.open, scheduler.settled = False, True
        self._arm()
        yield Moment(self.env, now, _LAST)
        scheduler.settled = False

    def _arm(self, now: float = -math.inf) -> None:
        """Let the clients of several servers act up to ``now``, and when they act next.

        Args:
            now: Seconds; nothing happens before the beginning.
        """
        assert self.clients is not None
        soon = min(self.clients.advance(now))
        if not self._several or soon == self._armed:
            return
        self._armed = soon
        if soon < math.inf:
            moment = Moment(self.env, soon, _AFTER_ENDS)
            moment.callbacks.append(lambda _: self._arm(soon))
        if self.clients.shut():
            self._close()


def _refuse_what_never_fits(
    config: SimulationConfig, workload: Workload, some: slice = slice(None)
) -> None:
    if config.kv_blocks is None:
        return
    prompt, output = workload.prompt_length[some], workload.output_length[some]
    blocks = -(-(prompt + output - 1) // config.block_size)
    if int(blocks.max()) <= config.kv_blocks:
        return
    i = int(np.argmax(blocks > config.kv_blocks))
    asks = f"prompt {prompt[i]}, output {output[i]} tokens"
    which = f"request {i + (some.start or 0)} ({asks})"
    must = f"at least {blocks.max()}: {which} needs {blocks[i]}"
    raise fail("kv_blocks", config.kv_blocks, must)
