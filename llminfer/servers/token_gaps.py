"""Gaps between the tokens of all requests, pooled, without a list of tokens.

Within a stretch of steps every sequence that decodes gets a token a step, and each step
is longer than the one before by the same amount. So all gaps of a run are a few
arithmetic progressions, each of which stands for several sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llminfer.base.arrays import FloatArray, IntArray
from llminfer.record import RunRecord, StepLog
from llminfer.timing import StepTime

_LISTED = 8192  # gaps that are listed one by one rather than narrowed down further
_SAMPLED = 4096  # gaps that say where a quantile will be
_AT_ONCE = 2**14  # stretches; what is worked out on the way stays small


class Gaps(NamedTuple):
    """Gaps as progressions ``first + j growth``, 0 <= j < ``steps``, shape (n,) each.

    Attributes:
        first: Seconds.
        growth: Seconds, not negative.
        steps: How many there are.
        weight: How many sequences each of them stands for.
    """

    first: FloatArray
    growth: FloatArray
    steps: IntArray
    weight: IntArray

    def mean(self) -> float:
        """Seconds; NaN if there are none."""
        gaps = self.steps * self.weight
        middle = self.first + self.growth * (self.steps - 1) / 2.0
        return float(gaps @ middle / gaps.sum()) if gaps.sum() else np.nan

    def quantiles(self, shares: npt.ArrayLike) -> FloatArray:
        """Quantiles by linear interpolation, as of the list of all gaps, seconds.

        Args:
            shares: From 0 to 1, shape (k,).

        Returns:
            Shape (k,); NaN if there are no gaps.
        """
        gaps = self.there()
        ranks = np.asarray(shares, dtype=np.float64) * (gaps.number() - 1)
        if not len(gaps.first):
            return np.full(ranks.shape, np.nan)
        sample = gaps.sample(_SAMPLED)
        place = len(sample) * ranks / gaps.number()
        err = 2.0 * len(sample) ** 0.5
        ends = [(place + err + 1.0).astype(np.int64), (place - err).astype(np.int64)]
        guesses = sample[np.clip(ends, 0, len(sample) - 1)].T.tolist()
        pairs = zip(ranks, guesses, strict=True)
        return np.array([_at_rank(gaps, rank, near) for rank, near in pairs])

    def there(self) -> Gaps:
        """Those progressions that have gaps, and sequences whose gaps they are."""
        some = (self.steps > 0) & (self.weight > 0)
        return self if some.all() else self._rows(np.flatnonzero(some))

    def number(self) -> int:
        """How many gaps there are."""
        return int(self.steps @ self.weight)

    def up_to(self, value: float) -> IntArray:
        """How many of each progression are at most ``value``, shape (n,)."""
        upto = [self.steps[:0]]
        for part in self._parts():
            some = np.where(part.first <= value, part.steps, 0)
            across = np.flatnonzero((some > 0) & (part._last() > value))
            reached = np.floor((value - part.first[across]) / part.growth[across])
            some[across] = np.minimum(reached + 1.0, part.steps[across])
            upto.append(some)
        return np.concatenate(upto)

    def _parts(self) -> Iterator[Gaps]:
        """All of them, some at a time: what is worked out of them stays small."""
        for low in range(0, len(self.first), _AT_ONCE):
            yield self._rows(slice(low, low + _AT_ONCE))

    def _head(self, some: IntArray) -> Gaps:
        """The first ``some`` of each progression, which may be none."""
        return self._replace(steps=some)

    def _tail(self, some: IntArray) -> Gaps:
        """All but the first ``some`` of each."""
        rows = np.flatnonzero(some < self.steps)
        rest, gone = self._rows(rows), some[rows]
        first = rest.first + gone * rest.growth
        return rest._replace(first=first, steps=rest.steps - gone)

    def _rows(self, rows: IntArray | slice) -> Gaps:
        columns: Any = self
        return Gaps(*(column[rows] for column in columns))

    def _last(self) -> FloatArray:
        return self.first + self.growth * (self.steps - 1)

    def sample(self, least: int) -> FloatArray:
        """So many of the gaps at least, evenly over the run, in ascending order."""
        upto = np.cumsum(self.steps * self.weight)
        at = np.arange(0, upto[-1], max(1, upto[-1] // least))
        row = np.searchsorted(upto, at, side="right")
        left = (upto[row] - 1 - at) // self.weight[row]
        those = self._rows(row)
        return np.sort(those._last() - left * those.growth)

    def _listed(self) -> tuple[FloatArray, IntArray]:
        """Every gap by itself, ascending, and how many stand there up to it."""
        steps = self.steps
        place = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
        values = np.repeat(self.first, steps) + place * np.repeat(self.growth, steps)
        order = np.argsort(values)
        return values[order], np.cumsum(np.repeat(self.weight, steps)[order])


def _at_rank(gaps: Gaps, rank: float, guesses: list[float]) -> float:
    """The gap of this rank in ascending order, from 0; between two, on a line.

    The ranks below and above are narrowed down to an interval (low, high], first by
    the guesses, then by halves, until the gaps in it can be listed.
    """
    below, passed, total = int(rank), 0, gaps.number()
    low = float(gaps.first.min()) - 1.0
    high = max(float(part._last().max()) for part in gaps._parts())
    while gaps.steps.sum() > _LISTED + np.count_nonzero(gaps.steps):
        middle = (low + high) / 2.0
        if not low < middle < high:
            return high  # as near as numbers get
        near = guesses.pop(0) if guesses else middle
        cut = near if low < near < high else middle
        some = gaps.up_to(cut)
        upto = passed + int(some @ gaps.weight)
        if upto > below + 1 or upto == total:
            gaps, high = gaps._head(some), cut
        elif upto <= below:
            gaps, low, passed = gaps._tail(some), cut, upto
        else:  # between the two ranks
            one, other = gaps._head(some).there()._last(), gaps._tail(some).first
            return _on_line(rank, one.max(), other.min())
    values, upto_each = gaps._listed()
    at = np.searchsorted(passed + upto_each, [below, below + 1], side="right")
    return _on_line(rank, *values[at.clip(max=len(values) - 1)])


def _on_line(rank: float, one: float, other: float) -> float:
    return float(one + (rank - int(rank)) * (other - one))


def _single(values: FloatArray, weight: Any) -> Gaps:
    """Gaps one by one, each for ``weight`` sequences."""
    one: Any = np.ones(len(values), dtype=np.int32)
    return Gaps(values, np.zeros(len(values)), one, np.int64(1) * one * weight)


def _short(steps: IntArray) -> Any:
    """The same numbers in as little memory as holds them."""
    return steps.astype(np.min_scalar_type(-int(steps.max(initial=1))))


def _joined(parts: list[Gaps]) -> Gaps:
    """All of them; ``parts`` is emptied, since both at once would be much."""
    columns = [list(column) for column in zip(*parts, strict=True)]
    parts.clear()
    return Gaps(*(np.concatenate(columns.pop(0)) for _ in Gaps._fields))


def token_gaps(record: RunRecord, law: StepTime, warmup_requests: int = 0) -> Gaps:
    """The gaps between the tokens of all measured requests of a run.

    A static server gives a request of a batch one token a decode step until it has
    them all; the padding that follows makes none. So the gaps of a request may add up
    to less than the time from its first token to its end, which TPOT counts.

    Args:
        record: A finished run.
        law: Of step times.
        warmup_requests: The first so many by arrival are left out.
    """
    log = record.steps
    some = np.arange(len(record.arrival_time))[record.measured(warmup_requests)]
    if log is None:
        return _static_gaps(record, law.kappa, some)
    parts: list[Gaps] = []
    for server in range(log.replicas):
        parts += _server_gaps(record, log, server, law, some)
    # Steps that take no time hold gaps of no time, which no clock tells apart.
    gaps = int((record.output_length[some] - 1).sum())
    unseen = gaps - sum(part.number() for part in parts)
    if unseen or not parts:
        parts.append(_single(np.zeros(1), unseen))
    return _joined(parts)


def _static_gaps(record: RunRecord, kappa: float, some: IntArray) -> Gaps:
    batch = np.searchsorted(record.batch_start, record.processing_start_time)
    longest = np.zeros(len(record.batch_start), dtype=np.int64)
    served = batch < len(longest)
    np.maximum.at(longest, batch[served], record.output_length[served])
    mine = some[record.output_length[some] > 1]
    batch = batch[mine]
    growth = np.asarray(kappa * record.batch_size[batch], dtype=np.float64)
    time = record.processing_end_time[mine] - record.first_token_time[mine]
    first = _first_step(time, longest[batch], growth)
    if not kappa:
        growth = np.broadcast_to(0.0, growth.shape)  # which takes no memory
    one = np.broadcast_to(np.int64(1), growth.shape)
    return Gaps(first, growth, record.output_length[mine] - 1, one)


def _first_step(time: FloatArray, steps: IntArray, growth: FloatArray) -> FloatArray:
    """Seconds of the first of ``steps`` steps that take ``time`` together."""
    return (time - growth * (steps * (steps - 1) / 2.0)) / steps


def _server_gaps(
    record: RunRecord, log: StepLog, server: int, law: StepTime, asked: IntArray
) -> Iterator[Gaps]:
    """The gaps of those of the requests asked for that one server took."""
    rows = np.flatnonzero((log.batch_replica == server) & (log.batch_decoding > 0))
    mine = asked[log.replica[asked] == server]
    begin, last, away = _decoding_times(record, log, mine, record.batch_end[rows])
    yield _single(away, 1)
    some = last > begin
    begin, last = np.sort(begin[some]), np.sort(last[some])
    before, seen = -np.inf, 0  # the last decode step's end; how many began by then
    for low in range(0, len(rows), _AT_ONCE):
        these = rows[low : low + _AT_ONCE]
        steps = log.batch_steps[these]
        start, end = record.batch_start[these], record.batch_end[these]
        longer = law.growth(log.batch_decoding[these], log.batch_prefill[these])
        growth = np.where(steps > 1, longer, 0.0)
        first = _first_step(end - start, steps, growth)
        ends = np.concatenate(([before], end[:-1]))
        begun = np.searchsorted(begin, start, side="right")
        weight = begun - np.searchsorted(last, ends, side="right")

        # Between two tokens that the prefill of others parts: of those who decoded
        # before it, and of those who just began.
        late = start > ends
        new = begin[seen : begun[-1]]
        row = np.searchsorted(start, new)
        waited = ((start + first)[row] - new)[late[row]]
        old = weight - np.bincount(row[late[row]], minlength=len(start))
        parted = late & (old > 0)
        yield Gaps(first + growth * late, growth, _short(steps - late), weight).there()
        yield _single((start + first - ends)[parted], old[parted])
        yield _single(waited, 1)
        before, seen = end[-1], begun[-1]


def _decoding_times(
    record: RunRecord, log: StepLog, mine: IntArray, row_end: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """When requests decoded: from a first token, or the one after a preemption, on.

    Args:
        record: A finished run.
        log: Its steps.
        mine: Requests of one server, ascending.
        row_end: When that server's stretches with decode steps ended, ascending.

    Returns:
        When the first and the last token in a row appeared, and the gaps between two
        tokens that a preemption parts, seconds.
    """
    first, end = record.first_token_time[mine], record.processing_end_time[mine]
    if not len(log.preempted_request):
        return first, end, np.empty(0)
    done = record.processing_end_time[log.preempted_request]
    some = np.isin(log.preempted_request, mine) & (log.preempted_time < done)
    who, time = log.preempted_request[some], log.preempted_time[some]
    order = np.lexsort((time, who))
    who, time = who[order], time[order]
    next_token = log.caught_up_time[some][order]
    # Preempted again before it had caught up: all that is one return.
    ends = ~np.isnan(next_token)
    begins = np.concatenate((ends[:1] | True, ends[:-1]))
    who, time, next_token = who[begins], time[begins], next_token[ends]
    place = np.searchsorted(mine, who)
    later = next_token > first[place]  # else it had no token yet
    who, time, next_token, place = (x[later] for x in (who, time, next_token, place))
    # Its last token before: from its last decode step, or from its prefill.
    before = first[place]
    again = np.flatnonzero(who[1:] == who[:-1]) + 1
    before[again] = next_token[again - 1]
    row = np.searchsorted(row_end, time, side="right")
    decoded = np.concatenate(([-np.inf], row_end))[row]
    last = np.maximum(before, decoded)
    begin = np.insert(first, place + 1, next_token)
    return begin, np.insert(end, place, last), next_token - last
