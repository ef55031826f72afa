"""KV memory in blocks: how many are free, who needs one when, what can be found again.

Blocks are counted; those that requests may share have names as well. A sequence that
decodes needs a new block whenever its KV tokens fill the last one, every ``block_size``
steps, so a histogram of the places in that cycle says how many blocks any number of
steps takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from llminfer.config import SimulationConfig
from llminfer.servers.prefixes import Paths


class BlockPool:
    """The KV blocks of one server.

    To take blocks is to lower ``free``.

    A step is named by the number of decode steps before it. A sequence that decodes is
    counted at ``(step - its KV tokens) % block_size``, which stays while it decodes: it
    needs a block in the steps that leave this remainder.

    Args:
        blocks: How many there are.
        block_size: Tokens in each.

    Attributes:
        free: Blocks that nobody holds.
        cycle: Sequences that decode, by the place at which they are counted.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.free = blocks
        self.cycle = [0] * block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def needed_in(self, step: int, steps: int, sequences: int) -> int:
        """Blocks that all that decode, ``sequences``, need in ``steps`` steps."""
        size, cycle = self.block_size, self.cycle
        place = step % size
        if (end := place + steps) <= size:
            return sum(cycle[place:end])
        cycles, rest = divmod(steps, size)
        end = place + rest
        need = cycles * sequences + sum(cycle[place:end])
        return need + sum(cycle[: end - size]) if end > size else need

    def lasts(self, step: int, most: int, sequences: int) -> int:
        """Steps from ``step`` on for which the free blocks last, up to ``most``."""
        cycles, left = divmod(self.free, sequences)
        steps = cycles * self.block_size
        if steps >= most:
            return most
        place = step % self.block_size
        cycle = self.cycle[place:] + self.cycle[:place]
        return min(most, steps + bisect_right(list(accumulate(cycle)), left))

    def give_back(self, request: int, tokens: int, returns: bool = False) -> None:
        """A request gives up the blocks that hold its tokens.

        Args:
            request: Its number.
            tokens: Those computed.
            returns: Was it preempted?
        """
        self.free += self.blocks_for(tokens)


@dataclass(slots=True, eq=False)
class Span:
    """Neighbouring blocks that the same requests hold, or that came free together.

    Args:
        start: The name of the first; the others' follow. -1 if they have no names.
        blocks: How many there are.
        holders: The requests that hold them.
        freed: If nobody does, all that came free together, in order.
    """

    start: int
    blocks: int
    holders: set[int]
    freed: list[Span]


class CachingPool(BlockPool):
    """Blocks whose contents can be found again until somebody takes them.

    The free blocks stand in a queue; who takes blocks takes those at its head. A
    request gives its last block back first, and one that is not full goes to the head:
    nobody will look for it. The blocks on its path have names, and anybody finds them;
    if several have computed the same, the first copy that is still there. The others it
    finds itself if it was preempted and returns. Who has a block also has those before
    it on the path, so that what is left of a path in the queue is always its beginning.

    Args:
        blocks: How many there are.
        block_size: Tokens in each.
        paths: The names of the requests' blocks; None has no names.

    Attributes:
        shares: Are there names?
    """

    def __init__(self, blocks: int, block_size: int, paths: Paths | None) -> None:
        super().__init__(blocks, block_size)
        self.shares = paths is not None
        self._names = (paths or Paths(block_size)).names
        # What came free together, or a number of blocks that nobody will look for
        self._queue = deque[list[Span] | int]()
        self._standing = 0  # all of these; some were taken since it was looked at
        self._kept = 0  # those that nobody took; more are free: not full, or new
        self._first: dict[int, Span] = {}  # that begin with a name and are found
        self._copies: dict[int, list[Span]] = {}  # of a named block, by age
        self._held: dict[int, list[Span]] = {}  # named, by request
        self._named: dict[int, int] = {}  # how many blocks these are
        self._left: dict[int, Span] = {}  # others
        self._seen: tuple[list[tuple[Span, int]], int, int] = [], 0, 0

    def give_back(self, request: int, tokens: int, returns: bool = False) -> None:
        blocks = rest = tokens // self.block_size
        freed: list[Span] = []
        queue = self._queue
        if (mine := self._held.get(request)) is not None:
            rest -= self._reach(request, mine, self._named.pop(request), blocks)
            del self._held[request]
            for span in mine:
                (holders := span.holders).discard(request)
                if holders:
                    blocks -= span.blocks
                else:
                    span.freed = freed
                    freed.append(span)
        if returns:
            freed.append(span := Span(-1, rest, set(), freed))
            self._left[request] = span
        else:
            self._names.pop(request, None)
            if not freed and queue and isinstance(last := queue[-1], int):
                queue[-1] = last + rest
            elif rest:
                queue.append(rest)
        if freed:
            queue.append(freed)
        free, kept = self.free, self._kept  # those not full are taken first
        self._kept = (kept if kept < free else free) + blocks
        self._standing += blocks
        self.free = free + blocks + (tokens % self.block_size > 0)

    def look(self, request: int, tokens: int) -> tuple[int, int]:
        """Full blocks that a request finds, and how many of these somebody holds.

        Args:
            request: Its number.
            tokens: Those to be computed; the last one is, whatever it finds.
        """
        if self.free < self._kept:
            self._kept = self.free
        if self._kept < self._standing:
            self._catch_up()
        first, most = self._first, (tokens - 1) // self.block_size
        seen: list[tuple[Span, int]] = []
        found = held = own = 0
        for end, ahead in self._names.get(request, ()):
            upto = end if end < most else most
            while found < upto and (span := first.get(found + ahead)):
                blocks = span.blocks if span.blocks < upto - found else upto - found
                seen.append((span, blocks))
                found += blocks
                if span.holders:
                    held += blocks
            if found < end:
                break
        if self._left and (left := self._left.get(request)):
            own = left.blocks
        self._seen = seen, found, own
        return found + own, held

    def hold(self, request: int, tokens: int) -> None:
        """A request takes the blocks that it found when it last looked.

        Args:
            request: Its number.
            tokens: Those in its cache after this step, which others find.
        """
        seen, named, taken = self._seen
        if self._left and (left := self._left.pop(request, None)):
            left.blocks -= taken
        self._held[request] = mine = []
        for span, blocks in seen:
            if blocks < span.blocks:
                self._split(span, blocks)
            if not span.holders:
                span.freed.remove(span)
                taken += blocks
            span.holders.add(request)
            mine.append(span)
        self._kept -= taken
        self._standing -= taken
        self.free -= taken
        full = tokens // self.block_size
        self._named[request] = self._reach(request, mine, named, full)

    def publish(self, request: int, tokens: int) -> None:
        """Let others find the full blocks of the first so many tokens of a request."""
        if (mine := self._held.get(request)) is not None:
            named, full = self._named[request], tokens // self.block_size
            self._named[request] = self._reach(request, mine, named, full)

    def _reach(self, request: int, mine: list[Span], begin: int, full: int) -> int:
        """A request that holds its first named blocks computes more: how many now."""
        first = self._first
        for end, ahead in self._names.get(request, ()):
            if begin >= (upto := end if end < full else full):
                continue
            name, stop, begin = begin + ahead, upto + ahead, upto
            if name in first:
                name = self._copy(request, mine, name, stop)
            if (
                mine
                and name == (start := (last := mine[-1]).start) + last.blocks
                and len(last.holders) == 1  # it can reach on, and is found as one
                and first.get(start) is last
                and name - 1 not in self._copies
            ):
                last.blocks += stop - name
            elif name < stop:
                first[name] = span = Span(name, stop - name, {request}, mine)
                mine.append(span)
        return begin

    def _copy(self, request: int, mine: list[Span], name: int, end: int) -> int:
        """Compute blocks that others have computed; the name of the next one."""
        while name < end and (there := self._first.get(name)):
            if there.blocks > 1:
                self._split(there, 1)
            mine.append(Span(name, 1, {request}, mine))
            self._copies.setdefault(name, []).append(mine[-1])
            name += 1
        return name

    def _split(self, span: Span, blocks: int) -> None:
        """Make a span of its own of what is behind the first so many blocks."""
        name = span.start + blocks
        rest = Span(name, span.blocks - blocks, set(span.holders), span.freed)
        span.blocks, self._first[name] = blocks, rest
        for each in [self._held[its] for its in span.holders] or [span.freed]:
            each.insert(each.index(span) + 1, rest)

    def _catch_up(self) -> None:
        """Take off the queue what was taken."""
        queue, first, copies = self._queue, self._first, self._copies
        short, self._standing = self._standing - self._kept, self._kept
        while short > 0:
            if isinstance(freed := queue[0], int):
                if (short := short - freed) < 0:
                    queue[0] = -short
                    return
            else:
                while freed and short:
                    span = freed[-1]
                    blocks = short if short < span.blocks else span.blocks
                    short -= blocks
                    span.blocks -= blocks
                    if not span.blocks:
                        freed.pop()
                        if first.get(span.start) is span:
                            del first[span.start]
                    if copies and span.start >= 0:
                        self._lose(span, blocks)
                if freed:
                    return
            queue.popleft()

    def _lose(self, span: Span, blocks: int) -> None:
        """The last blocks of a span were taken: the next copies are found now."""
        end = span.start + span.blocks
        for name in range(end, end + blocks):
            if others := self._copies.get(name):
                if span in others:
                    others.remove(span)
                else:
                    self._first[name] = others.pop(0)
                if not others:
                    del self._copies[name]


class EndlessCache(BlockPool):
    """Named blocks that nobody ever takes: all that was computed is found.

    Of the blocks that follow one another by name those that are computed come first, so
    that their number says which.

    Args:
        paths: The names of the requests' blocks.
    """

    shares = True

    def __init__(self, paths: Paths) -> None:
        super().__init__(0, paths.block_size)
        self._names = paths.names
        self._computed: dict[int, int] = {}  # by what is added to get a name

    def give_back(self, request: int, tokens: int, returns: bool = False) -> None:
        self.hold(request, tokens)
        del self._names[request]

    def look(self, request: int, tokens: int) -> tuple[int, int]:
        """Full blocks that a request finds; nobody needs to hold them."""
        most, found = (tokens - 1) // self.block_size, 0
        for end, ahead in self._names[request]:
            upto = end if end < most else most
            if (known := self._computed.get(ahead, 0)) < upto:
                return (known if known > found else found), 0
            found = upto
        return found, 0

    def hold(self, request: int, tokens: int) -> None:
        """Let others find the full blocks of the first so many tokens of a request."""
        computed, full = self._computed, tokens // self.block_size
        for end, ahead in self._names[request]:
            upto = end if end < full else full
            if computed.get(ahead, 0) < upto:
                computed[ahead] = upto

    publish = hold


def block_pools(
    config: SimulationConfig, paths: Paths | None
) -> tuple[BlockPool | None, CachingPool | EndlessCache | None]:
    """The blocks of a server, if there is a limit; and those to be found again, if any.

    Args:
        config: Its memory.
        paths: What its requests share, or None.
    """
    blocks, size = config.kv_blocks, config.block_size
    if not config.prefix_caching:
        return None if blocks is None else BlockPool(blocks, size), None
    if blocks is None:
        return None, None if paths is None else EndlessCache(paths)
    return (cache := CachingPool(blocks, size, paths)), cache
