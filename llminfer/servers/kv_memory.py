"""KV memory in blocks: how many are free, who needs one when, what can be found again.

Blocks are counted, not named. A sequence that decodes needs a new block whenever its
KV tokens fill the last one, every ``block_size`` steps, so a histogram of the places
in that cycle says how many blocks any number of steps takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate


class BlockPool:
    """The KV blocks of one server.

    To take blocks is to lower ``free``; who gives some back raises ``released`` too.

    A step is named by the number of decode steps before it. A sequence that decodes is
    counted at ``(step - its KV tokens) % block_size``, which stays while it decodes: it
    needs a block in the steps that leave this remainder.

    Args:
        blocks: How many there are.
        block_size: Tokens in each.

    Attributes:
        free: Blocks that nobody holds.
        released: Blocks that complete requests have given back, since the beginning.
        cycle: Sequences that decode, by the place at which they are counted.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.free = blocks
        self.released = 0
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

    def abandon(self, request: int, tokens: int) -> None:
        """A preempted request gives up the blocks that hold its tokens."""
        self.free += self.blocks_for(tokens)

    def found(self, request: int) -> int:
        """Full blocks that a preempted request would find as it left them."""
        return 0

    def reclaim(self, request: int) -> None:
        """A preempted request takes the blocks it finds."""


class CachingPool(BlockPool):
    """Blocks whose contents can be found again until somebody takes them.

    The free blocks stand in a queue, as runs of blocks that were given back together;
    who takes blocks takes those at its head. A request gives its last block back
    first, so that what is left of a run is always the beginning of its tokens.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size)
        self._queue: deque[list[int]] = deque([[blocks]])
        self._queued = blocks  # all that stand there
        self._known = 0  # of ``released``, those that stand there
        self._left: dict[int, tuple[list[int], int]] = {}  # its run, its full blocks

    def abandon(self, request: int, tokens: int) -> None:
        self._catch_up()
        run = [self.blocks_for(tokens)]
        self._queue.append(run)
        self._queued += run[0]
        self.free += run[0]
        self._left[request] = run, tokens // self.block_size

    def found(self, request: int) -> int:
        self._catch_up()
        run, full = self._left[request]
        return min(run[0], full)

    def reclaim(self, request: int) -> None:
        blocks = self.found(request)
        self._left.pop(request)[0][0] -= blocks
        self._queued -= blocks
        self.free -= blocks

    def _catch_up(self) -> None:
        """Put into the queue what was released, and take off what was taken."""
        self._queue.append([self.released - self._known])
        self._queued += self.released - self._known
        self._known = self.released
        while self._queued > self.free:
            run = self._queue[0]
            taken = min(self._queued - self.free, run[0])
            run[0] -= taken
            self._queued -= taken
            if not run[0]:
                self._queue.popleft()


def block_pool(blocks: int | None, block_size: int, caching: bool) -> BlockPool | None:
    """The blocks of a server; None if there is no limit to them."""
    if blocks is None:
        return None
    return (CachingPool if caching else BlockPool)(blocks, block_size)
