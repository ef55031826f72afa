"""Several servers behind a router: which of them takes a request."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from llminfer.base.arrays import IntArray
from llminfer.base.streams import stream
from llminfer.config import SimulationConfig
from llminfer.laws.prefixes import Segments
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

    Whoever finds most of a prompt was sent one that begins alike: the longer, the
    sooner it is looked at, and the least loaded first, until none can find more.

    Args:
        config: What it looks for.
        replicas: The servers, which tell it when requests leave.
        paths: How each request's tokens begin; None if that is not known yet.
    """

    def __init__(
        self,
        config: SimulationConfig,
        replicas: Sequence[Replica],
        paths: Segments | None,
    ) -> None:
        self._replicas, self._paths, self._size = replicas, paths, config.block_size
        self._longest = config.router == "longest_prefix"
        self._load = LOADS[config.router]
        self._loads = [0] * len(replicas)  # except where they have changed since
        self._changed: list[int] = []
        everybody = (1 << len(replicas)) - 1
        self._sent = [everybody]  # by beginning of a path: bits of those it was sent to
        self._tree: dict[tuple[int, tuple[int, int]], int] = {}  # beginnings, numbered
        for place, replica in enumerate(replicas):
            replica.scheduler.left = partial(self._changed.append, place)

    def choose(self, i: int, time: float) -> int:
        """The server that request ``i`` is sent to at ``time``, seconds."""
        loads, replicas = self._loads, self._replicas
        for place in self._changed:
            loads[place] = self._load(replicas[place])
        self._changed.clear()
        place = self._finds_most(i, time) if self._longest else loads.index(min(loads))
        self._changed.append(place)
        return place

    def _finds_most(self, i: int, time: float) -> int:
        """The server where most blocks of a request are, of these the least loaded."""
        best, left, sent = (-1, 0, 0), self._sent[0], self._sent
        beginnings = self._beginnings(i)
        for node, blocks in reversed(beginnings):
            if best[0] > blocks:
                break
            those, left = sent[node] & left, left & ~sent[node]
            here = [p for p in range(len(self._loads)) if those >> p & 1]
            for load, place in sorted((self._loads[p], p) for p in here):
                found = self._replicas[place].scheduler.found(i, time) if blocks else 0
                best = max(best, (found, -load, -place))
                if found == blocks:
                    break  # of these nobody is better
        for node, _ in beginnings:
            sent[node] |= 1 << -best[2]
        return -best[2]

    def _beginnings(self, i: int) -> list[tuple[int, int]]:
        """All that a request's path begins with, and full blocks found there at most.

        Without a path it may be found wherever somebody is.
        """
        most = (self._replicas[0].scheduler.prompt[i] - 1) // self._size
        if self._paths is None:
            return [(0, most)]
        node, end, found = 0, 0, [(0, 0)]
        for its in self._paths[i]:
            node = self._tree.setdefault((node, its), len(self._sent))
            end += its[1]
            if node == len(self._sent):
                self._sent.append(0)
            found.append((node, min(end // self._size, most)))
        return found
