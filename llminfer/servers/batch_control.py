"""Batch-size control: laws that set the batch limit as a run goes on."""

import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import build, choice, fail, number, whole

_SHORTEST = 0.001  # s; a finer clock would outnumber the requests
_LARGEST_TABLE = 4096  # batch sizes whose capacity a rate controller works out


class Observed:
    """What a controller may see of a server, as of any moment since its last action.

    Args:
        entered: When each request entered the queue, seconds, ascending; those after
            the moment in question are not looked at.
        stable_rate: lambda*(B), requests a second, of a batch limit B.
        began: When the run began, seconds.

    Attributes:
        left: When those who gave up while they waited did, seconds.
    """

    def __init__(
        self,
        entered: Sequence[float],
        stable_rate: Callable[[int], float],
        began: float = 0.0,
    ) -> None:
        self.stable_rate = stable_rate
        self.began = began
        self._entered = entered
        self.left = array("d")
        self._taken = 0
        self._ends, self._latencies = array("d"), array("d")

    def take(self, requests: int) -> None:
        """So many leave the queue; a negative number comes back."""
        self._taken += requests

    def finish(self, end: float, latencies: Iterable[float]) -> None:
        """Requests with these latencies, seconds, are complete at ``end``.

        Batches that end earlier are told earlier; ``end`` may still be to come.
        """
        self._latencies.extend(latencies)
        self._ends.extend([end] * (len(self._latencies) - len(self._ends)))

    def rests_until(self, now: float, window: float) -> float:
        """When there is something new to see, seconds; ``now`` if a window holds some.

        Args:
            now: Seconds.
            window: All that is seen, but who waits, is of the last so many seconds.
        """
        entered = bisect_right(self._entered, now)
        last = self._entered[entered - 1] if entered else self.began
        if self._ends:
            last = max(last, self._ends[-1])
        if last > now - window or now - self.began < window:
            return now
        times = (entered, self._entered), (bisect_right(self.left, now), self.left)
        return min((its[i] for i, its in times if i < len(its)), default=math.inf)

    def waiting(self, now: float) -> int:
        """How many wait."""
        entered = bisect_right(self._entered, now)
        return entered - bisect_right(self.left, now) - self._taken

    def arrivals(self, since: float, now: float) -> int:
        """How many entered the queue in (since, now]."""
        return bisect_right(self._entered, now) - bisect_right(self._entered, since)

    def latencies(self, since: float, now: float) -> FloatArray:
        """Latencies of the requests that were complete in (since, now], seconds."""
        first, end = bisect_right(self._ends, since), bisect_right(self._ends, now)
        return np.array(self._latencies[first:end])


@dataclass
class BatchController(ABC):
    """A law of the batch limit.

    Args:
        min_size: Least limit, B_min.
        max_size: Greatest limit, B_max.
        interval: Seconds from one action to the next; 0 acts at every dispatch, just
            before the batch leaves.
    """

    min_size: int = 1
    max_size: int = 128
    interval: float = 300.0

    @property
    def looks_back(self) -> float:
        """What it sees is of the last so many seconds; 0 sees who waits."""
        return 0.0

    def __post_init__(self) -> None:
        self.min_size = whole("min_size", self.min_size, 1)
        self.max_size = whole("max_size", self.max_size, 1)
        if self.max_size < self.min_size:
            raise fail("max_size", self.max_size, f"at least min_size={self.min_size}")
        if 0.0 < number("interval", self.interval, least=0.0) < _SHORTEST:
            must = f"0 (at every dispatch) or at least {_SHORTEST:g}"
            raise fail("interval", self.interval, must)

    @abstractmethod
    def wanted(self, now: float, seen: Observed, size: float) -> float:
        """The limit from now on, before it is clamped and made whole.

        Args:
            now: Seconds.
            seen: What there is to see.
            size: The limit until now, clamped but not made whole.
        """

    def clamped(self, size: float) -> float:
        """``size`` within [min_size, max_size]."""
        return min(max(size, self.min_size), self.max_size)


@dataclass
class QueueController(BatchController):
    """B = min_size + ``k`` times the number waiting."""

    k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("k", self.k, least=0.0)

    def wanted(self, now: float, seen: Observed, size: float) -> float:
        return self.min_size + self.k * seen.waiting(now)


@dataclass
class _WindowController(BatchController):
    """Shared by laws that look back: ``window`` seconds; None is one interval."""

    window: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            number("window", self.window, above=0.0)
        elif self.interval == 0.0:
            raise fail("window", None, "given where interval is 0, seconds")

    @property
    def looks_back(self) -> float:
        """The window, seconds."""
        return self.interval if self.window is None else self.window


@dataclass
class RateController(_WindowController):
    """The least B with lambda*(B) of ``headroom`` times the window's arrival rate.

    If there is none, the B that carries most. It leaves the limit alone until a
    whole window has passed.
    """

    headroom: float = 1.25
    _carries: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        number("headroom", self.headroom, above=0.0)
        self._carries = np.empty(0)
        if self.max_size > _LARGEST_TABLE:
            must = f"at most {_LARGEST_TABLE} for control rate"
            raise fail("max_size", self.max_size, must)

    def wanted(self, now: float, seen: Observed, size: float) -> float:
        if now - seen.began < self.looks_back:
            return size
        if not len(self._carries):
            sizes = range(self.min_size, self.max_size + 1)
            self._carries = np.array([seen.stable_rate(b) for b in sizes])
        arrivals = seen.arrivals(now - self.looks_back, now)
        enough = self._carries >= self.headroom * arrivals / self.looks_back
        best = np.argmax(enough) if enough.any() else np.argmax(self._carries)
        return self.min_size + int(best)


@dataclass(kw_only=True)
class LatencyController(_WindowController):
    """``step`` more while the window's p99 latency meets ``target``, else ``backoff``.

    A window without completions leaves the limit alone.

    Source: additive increase, multiplicative decrease, Chiu and Jain (1989).
    """

    target: float  # s
    step: float = 1.0
    backoff: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        number("target", self.target, above=0.0)
        number("step", self.step, least=0.0)
        number("backoff", self.backoff, above=0.0, most=1.0)

    def wanted(self, now: float, seen: Observed, size: float) -> float:
        latencies = seen.latencies(now - self.looks_back, now)
        if not len(latencies):
            return size
        meets = np.percentile(latencies, 99.0) <= self.target
        return size + self.step if meets else size * self.backoff


@dataclass
class _NoController:
    """A limit that stays as it is; takes no parameters."""


CONTROLLERS: Mapping[str, type[BatchController] | type[_NoController]] = {
    "static": _NoController,
    "queue": QueueController,
    "rate": RateController,
    "latency": LatencyController,
}


def batch_controller(name: str, params: Mapping[str, Any]) -> BatchController | None:
    """A fresh controller by name (DESIGN section 6); None for ``static``.

    Raises:
        ConfigError: Unknown controller or parameter, or a bad value.
    """
    law = CONTROLLERS[choice("batch_control", name, CONTROLLERS)]
    made = build(law, f"control {name}", params, "batch_control_params")
    return made if isinstance(made, BatchController) else None


class BatchLimit:
    """The batch limit of a run, as it is and as it was.

    A server calls ``at`` before it looks at the limit (or ``act`` at each ``tick``),
    ``act`` at a dispatch if ``every_dispatch``, and tells ``seen`` what happens while
    ``controlled``.

    Args:
        controller: Its law; None keeps it.
        size: The limit at the start; a controller clamps it.
        seen: What the controller sees; ticks count from when its run began.
    """

    def __init__(
        self, controller: BatchController | None, size: int, seen: Observed
    ) -> None:
        self.seen = seen
        self.controlled = controller is not None
        self.every_dispatch = controller is not None and controller.interval == 0.0
        self.tick = math.inf  # when it acts next, seconds
        self._controller = controller
        self._ticks = 0
        self._exact = float(size) if controller is None else controller.clamped(size)
        self.times = array("d", [seen.began])
        self.sizes = array("q", [int(self._exact)])
        self._wind(seen.began, 0.0)

    @property
    def size(self) -> int:
        """The limit now, requests."""
        return self.sizes[-1]

    def at(self, now: float) -> int:
        """The limit at ``now``, seconds, after all that was to be done by then."""
        while self.tick <= now:
            self.act(self.tick, now)
        return self.size

    def act(self, now: float, until: float = 0.0) -> int:
        """Let the controller set the limit as of ``now``, and return it.

        Ticks at which it would see what it sees now are left out, if the limit stays:
        with another one a batch may leave that did not before.

        Args:
            now: Seconds.
            until: Nobody is taken before that, seconds, and who enters is known.
        """
        if (law := self._controller) is not None:
            self._exact = law.clamped(law.wanted(now, self.seen, self._exact))
            if (size := int(self._exact)) != self.size:
                self.times.append(now)
                self.sizes.append(size)
                until = now
            self._wind(now, until)
        return self.size

    def rest(self, now: float, until: float) -> None:
        """Leave out the ticks between these times, at which nobody comes or goes."""
        self._ticks -= 1
        self._wind(now, until)

    def _wind(self, now: float, until: float) -> None:
        """Set the next tick."""
        self._ticks += 1
        if (law := self._controller) is not None and not self.every_dispatch:
            began = self.seen.began
            rest = min(until, self.seen.rests_until(now, law.looks_back)) - began
            if now - began < rest < math.inf:
                self._ticks = max(self._ticks, int(rest // law.interval))
            self.tick = began + self._ticks * law.interval

    def path(self) -> dict[str, Any]:
        """The limit over the run, as the columns of a record."""
        return {
            "limit_time": np.array(self.times),
            "batch_limit": np.array(self.sizes),
        }
