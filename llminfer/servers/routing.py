"""Several servers behind a router: which of them takes a request."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llminfer.base.arrays import IntArray
from llminfer.base.streams import stream
from llminfer.config import SimulationConfig
from llminfer.servers.scheduler import Scheduler


@dataclass(slots=True, eq=False)
class Replica:
    """One server and what was sent to it.

    Args:
        scheduler: Its batch.
        number: The requests sent to it, in order of arrival.
        time: When each arrived, seconds; then infinity.
        tokens: Prompt and output tokens of all these.
        closed: Will no request be sent any more?
    """

    scheduler: Scheduler
    number: Sequence[int]
    time: array[float]
    tokens: int = 0
    closed: bool = True

    def send(self, i: int, time: float, tokens: int) -> None:
        """Request ``i``, of so many tokens, is sent to it at ``time``, seconds."""
        assert isinstance(self.number, array)
        self.number.append(i)
        self.time[-1] = time
        self.time.append(math.inf)
        self.tokens += tokens

    def unfinished_requests(self) -> int:
        """Requests sent to it that are not complete."""
        inside = len(self.scheduler.running) + len(self.scheduler.preempted)
        return len(self.number) - self.scheduler.admitted + inside

    def unfinished_tokens(self) -> int:
        """Prompt and output tokens of these, those already computed too."""
        return self.tokens - self.scheduler.tokens_done


LOADS: Mapping[str, Callable[[Replica], int]] = {
    "least_loaded": Replica.unfinished_requests,
    "shortest_queue": Replica.unfinished_tokens,
}


def routes(config: SimulationConfig, requests: int) -> IntArray | None:
    """The server of each request, shape (requests,); None if it must be seen then.

    Whether a request goes to one server or another, it draws the same number.
    """
    if config.router == "random":
        u = stream(config.random_seed, "routing").random(requests)
        return np.asarray(u * config.replicas, dtype=np.int64)
    if config.router in LOADS and config.replicas > 1:
        return None
    return np.arange(requests) % config.replicas


def least(replicas: Sequence[Replica], router: str) -> int:
    """The server with the least load under ``router``; ties go to the first."""
    loads = [LOADS[router](replica) for replica in replicas]
    return loads.index(min(loads))
