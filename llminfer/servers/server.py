"""What every server of a workload has: its settings, its record, its statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from llminfer.config import SimulationConfig
from llminfer.record import RunRecord
from llminfer.servers.batch_control import BatchLimit, Observed
from llminfer.servers.queues import WaitingQueue, waiting_queue
from llminfer.workload import Workload

Process = Generator[simpy.Event, Any, None]
Requests = Workload | None  # None where users draw their own


class At(float):
    """A time, seconds, as the delay until then; one that is over is now.

    The clock then shows it to the last bit, which ``now + (time - now)`` may miss.

    >>> 0.3 + (0.9 - 0.3) == 0.9, 0.3 + At(0.9) == 0.9
    (False, True)
    """

    def __radd__(self, now: float) -> float:
        return float(self) if self > now else now


class Due(simpy.Event):
    """An event that will happen; to be scheduled, again and again if it must."""

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None

    def again(self, time: float) -> Due:
        """The same event, which happens at a time, seconds, or now if that is over."""
        self.callbacks = []
        self.env.schedule(self, delay=At(time))
        return self


class Moment(Due):
    """An event at a time still to come, seconds.

    Args:
        env: The SimPy environment.
        time: When it happens.
        priority: Of all events of that instant the least come first.
    """

    def __init__(self, env: simpy.Environment, time: float, priority: Any) -> None:
        super().__init__(env)
        env.schedule(self, priority, At(time))


def batch_limit(
    env: simpy.Environment, config: SimulationConfig, entered: Sequence[float]
) -> BatchLimit:
    """The batch limit of a run that begins now.

    Args:
        env: The SimPy environment.
        config: The controller, and the limit at the start.
        entered: When each request entered the queue, seconds, ascending.
    """
    seen = Observed(entered, config.stable_rate, env.now)
    return BatchLimit(config.controller(), config.batch_size, seen)


class WorkloadServer(ABC):
    """A server, or several behind a router, that serves a workload.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, limits and policy.
        workload: Requests to serve; None where users draw their own.
        sent: What the clients send of it, filled in as they do; None if all is known.
    """

    def __init__(
        self,
        env: simpy.Environment,
        config: SimulationConfig,
        workload: Requests,
        sent: Workload | None,
    ) -> None:
        self.env = env
        self.config = config
        work = sent or workload
        assert work is not None  # without users nobody else can draw it
        self.workload: Workload = work
        self._record: RunRecord | None = None
        self._queue: WaitingQueue | None = None

    def waiting_queue(self, every: bool = True) -> WaitingQueue:
        """An empty queue; ``every``: will all requests join it?"""
        self._queue = waiting_queue(
            self.config.policy(),
            self.workload,
            every=every,
            live=bool(self.config.clients or self.config.max_concurrency),
            leave=self.config.sheds,
            like=self._queue,
        )
        return self._queue

    @abstractmethod
    def run(self) -> Process:
        """SimPy process: serve until nothing is left."""

    @property
    def record(self) -> RunRecord:
        """Everything that happened.

        Raises:
            RuntimeError: The run has not ended yet.
        """
        if self._record is None:
            raise RuntimeError("the run has not ended: call env.run() first")
        return self._record

    def get_statistics(self) -> dict[str, float]:
        """Counts and times of the run: batches, requests, busy seconds, queue.

        A batch of a continuous server is a step, and it counts preemptions too.
        """
        record = self.record
        steps = record.batch_steps
        statistics = {
            "total_batches": int(steps.sum()),
            "total_requests": len(record.arrival_time),
            "avg_batch_size": float(steps @ record.batch_size / steps.sum()),
            "busy_time": float((record.batch_end - record.batch_start).sum()),
            "waiting_requests": 0,
            "max_queue_length": record.max_queue_length,
        }
        if record.steps is not None:
            statistics["preemptions"] = len(record.steps.preempted_request)
        return statistics
