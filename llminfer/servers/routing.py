"""Several servers behind a router: which of them takes a request."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from llminfer.base.arrays import IntArray
from llminfer.base.streams import stream
from llminfer.config import SimulationConfig
from llminfer.servers.scheduler import Scheduler
from llminfer.workload import Workload


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
    number: array[int]
    time: array[float]
    tokens: int = 0
    closed: bool = True

    def send(self, i: int, time: float, tokens: int) -> None:
        """Request ``i``, of so many tokens, is sent to it at ``time``, seconds."""
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
    "longest_prefix": Replica.unfinished_requests,
}


def routes(config: SimulationConfig, workload: Workload) -> IntArray | None:
    """The server of each request, shape (n,); None if it must be seen then.

    Whether a request goes to one server or another, it draws the same number.
    """
    requests, paths = len(workload), workload.segments
    if config.router == "random":
        u = stream(config.random_seed, "routing").random(requests)
        return np.asarray(u * config.replicas, dtype=np.int64)
    if config.router in LOADS and config.replicas > 1:
        return None
    turns = np.arange(requests)
    if config.router == "session" and paths is not None:
        turn: dict[object, int] = {}  # a request without a path is a session of its own
        firsts = (path[0][0] if path else (i,) for i, path in enumerate(paths))
        turns = np.array([turn.setdefault(its, len(turn)) for its in firsts])
    return turns % config.replicas


class Router:
    """Sends requests to servers by what it sees of them; ties go to the first.

    Args:
        name: What it looks for.
        replicas: The servers, which tell it when requests leave.
    """

    def __init__(self, name: str, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._longest, self._load = name == "longest_prefix", LOADS[name]
        self._loads = [0] * len(replicas)  # except where they have changed since
        self._changed: list[int] = []
        for place, replica in enumerate(replicas):
            replica.scheduler.left = partial(self._changed.append, place)

    def choose(self, i: int, time: float) -> int:
        """The server that request ``i`` is sent to at ``time``, seconds."""
        loads, replicas = self._loads, self._replicas
        for place in self._changed:
            loads[place] = self._load(replicas[place])
        self._changed.clear()
        if self._longest:
            found = [replica.scheduler.found(i, time) for replica in replicas]
            most = max(found)
            at = [place for place, blocks in enumerate(found) if blocks == most]
            place = min(at, key=loads.__getitem__)
        else:
            place = loads.index(min(loads))
        self._changed.append(place)
        return place
