"""Static batching by hand: a process of the reader's own sends each request."""

import math
import warnings
from array import array
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

import simpy

from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.policies import SchedulingPolicy, ranked
from llminfer.record import RunRecord
from llminfer.request import Request
from llminfer.servers.server import Due, Moment, Process, batch_limit
from llminfer.timing import StepTime

_LAST = 2  # after SimPy's own priorities, 0 and 1
# what whoever sends the requests decides, or another server has
_NOT_HERE = "server max_concurrency clients queue_limit patience request_timeout"


class BatchProcessor:
    """Times static batches, and serves them as a SimPy process.

    Args:
        alpha: Seconds a prompt token.
        beta: Seconds a prefill.
        gamma: Seconds a decode step.
        **law: The rest of a ``StepTime``: delta, kappa, epsilon, step_law, launch and
            graph_tokens.

    Raises:
        ConfigError: A coefficient is negative or not finite.
    """

    def __init__(self, alpha: float, beta: float, gamma: float, **law: Any) -> None:
        self.step_time = StepTime(alpha, beta, gamma, **law)
        self._batches = 0
        self._requests = 0
        self._busy_time = 0.0

    def compute_prefill_time(self, batch: Sequence[Request]) -> float:
        """Seconds to prefill all prompts of ``batch`` together."""
        prompts = [r.prompt_length for r in batch]
        pairs = sum(prompt * prompt / 2.0 for prompt in prompts)
        return float(self.step_time.prefill(sum(prompts), pairs))

    def compute_decode_time(self, batch: Sequence[Request]) -> float:
        """Seconds to decode ``batch``, padded to its longest output."""
        prompt_tokens = sum(r.prompt_length for r in batch)
        steps = max(r.expected_output_length for r in batch)
        return float(self.step_time.decode(len(batch), prompt_tokens, steps))

    def process_batch(
        self, env: simpy.Environment, batch: Sequence[Request]
    ) -> Generator[Any, Any, None]:
        """SimPy process: prefill, then decode; stamps the requests as it goes."""
        prefill_time = self.compute_prefill_time(batch)
        decode_time = self.compute_decode_time(batch)
        for request in batch:
            request.processing_start_time = env.now
        yield env.timeout(prefill_time)
        for request in batch:
            request.first_token_time = env.now
        yield env.timeout(decode_time)
        for request in batch:
            request.processing_end_time = env.now
            request.actual_output_length = request.expected_output_length
        self._batches += 1
        self._requests += len(batch)
        self._busy_time += prefill_time + decode_time

    def get_statistics(self) -> dict[str, float]:
        """Batches and requests processed so far, and the seconds they took."""
        return {
            "total_batches": self._batches,
            "total_requests": self._requests,
            "avg_batch_size": self._requests / max(self._batches, 1),
            "busy_time": self._busy_time,
        }


class ServerByHand:
    """A static server whose requests are sent one by one with ``enqueue_request``.

    The rules and the results are those of ``LLMInferenceServer``, with a SimPy event
    for everything that happens. ``close`` alone says that no request will come any
    more: until then the last ones wait for a full batch or for their timeout.

    Args:
        env: The SimPy environment; ``env.process(server.run())`` starts the server.
        config: Coefficients, batch limit, timeout and policy.

    Raises:
        ConfigError: The configuration has clients, or is that of another server.

    >>> env = simpy.Environment()
    >>> server = ServerByHand(env, SimulationConfig(batch_size=2))
    >>> _ = env.process(server.run())
    >>> server.enqueue_request(Request(0, 0.0, 100, 20))
    >>> server.close()
    >>> env.run()
    >>> server.completed[0].processing_end_time  # 100 alpha + beta + 20 gamma
    0.16000000000000003
    """

    def __init__(self, env: simpy.Environment, config: SimulationConfig) -> None:
        usual = SimulationConfig()
        for name in _NOT_HERE.split():
            if (value := getattr(config, name)) != getattr(usual, name):
                must = f"{getattr(usual, name)!r} where you send the requests by hand"
                raise fail(name, value, must)
        self.env = env
        self.config = config
        self.policy: SchedulingPolicy = config.policy()
        self.processor = BatchProcessor(**asdict(config.step_time))
        self.queue: list[Request] = []
        self.completed: list[Request] = []
        self._longest_queue = 0
        self._closed = False
        self._news = env.event()
        self._entered = array("d")
        self._limit = batch_limit(env, config, self._entered)

    def run(self) -> Process:
        """SimPy process: serve for ever."""
        while True:
            # requests that arrive right now are in the queue first
            yield Moment(self.env, self.env.now, _LAST)
            ticks = self._limit.tick == self.env.now
            self._limit.at(self.env.now)
            if (due := self._due()) > self.env.now:
                if ticks:  # and will see the same until something happens
                    self._limit.rest(self.env.now, min(due, self.env.peek()))
                yield self._news | self._alarm(due)
                continue
            if self._limit.every_dispatch:
                self._limit.act(self.env.now)
            batch = self.collect_batch()
            yield from self.processor.process_batch(self.env, batch)
            self.completed += batch
            if self._limit.controlled:
                end = self.env.now
                self._limit.seen.finish(end, (end - r.arrival_time for r in batch))

    def enqueue_request(self, request: Request) -> None:
        """Put ``request`` into the queue, now.

        Raises:
            RuntimeError: The server was closed.
        """
        if self._closed:
            raise RuntimeError(f"request {request.id} refused: the server was closed")
        request.queue_entry_time = self.env.now
        self._entered.append(self.env.now)
        self.queue.append(request)
        self._longest_queue = max(self._longest_queue, len(self.queue))
        self._tell()

    def close(self) -> None:
        """Say that no request will arrive any more, so that no batch waits for one."""
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

    def _due(self) -> float:
        """When the next batch leaves if nothing happens before, seconds."""
        if not self.queue:
            return math.inf
        if self._closed or len(self.queue) >= self._limit.size:
            return self.env.now
        entered, timeout = self.queue[0].queue_entry_time, self.config.batch_timeout
        assert entered is not None
        return math.inf if timeout is None else entered + timeout

    def _alarm(self, due: float) -> simpy.Event:
        """The timeout of the oldest request, or the next change of the batch limit.

        Where nothing else is to happen, a change of the limit is none to wake for: it
        would recur for ever.
        """
        idle = due == math.inf and self.env.peek() == math.inf
        wake = min(due, self._limit.tick)
        if not self.queue or idle or wake == math.inf:
            return self.env.event()
        return Due(self.env).again(wake)

    def _tell(self) -> None:
        news, self._news = self._news, self.env.event()
        news.succeed()

    @property
    def record(self) -> RunRecord:
        """What has happened so far.

        Warns:
            UserWarning: Nothing else will happen, and requests wait for a full batch.
        """
        waiting = len(self.queue)
        if waiting and not self._closed and self.env.peek() == math.inf:
            one = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
            what = f"{one} for a full batch: call close() when no more will come"
            warnings.warn(what, stacklevel=2)
        served = RunRecord.from_requests(self.completed)
        return replace(served, **self._limit.path())

    def get_statistics(self) -> dict[str, float]:
        """Counts and times so far: batches, requests, busy seconds, queue."""
        return {
            **self.processor.get_statistics(),
            "waiting_requests": len(self.queue),
            "max_queue_length": self._longest_queue,
        }
