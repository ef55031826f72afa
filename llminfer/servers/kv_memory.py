"""KV memory in blocks: how many are free, who needs one when, what can be found again.

Blocks are counted; those that requests share have names as well. A sequence that decodes needs a new block whenever its
KV tokens fill the last one, every ``block_size`` steps, so a histogram of the places
in that cycle says how many blocks any number of steps takes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import accumulate, count

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
        shares: Can requests find blocks of others?
        cycle: Sequences that decode, by the place at which they are counted.
    """

    shares = False

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

    def look(self, request: int, tokens: int) -> tuple[int, int]:
        """Full blocks that a request finds, and how many of these somebody holds.

        Args:
            request: Its number.
            tokens: Those to be computed; the last one is, whatever it finds.
        """
        return 0, 0

    def hold(self, request: int) -> None:
        """A request takes the blocks that it found when it last looked."""

    def publish(self, request: int, tokens: int) -> None:
        """Let others find the full blocks of the first so many tokens of a request."""


class CachingPool(BlockPool):
    """Blocks whose contents can be found again until somebody takes them.

    The free blocks stand in a queue; who takes blocks takes those at its head. A
    request gives its last block back first. The blocks on its path have names, and
    anybody finds them; several may hold one, and if two have computed the same, the
    first copy that is still there is found. The rest of its blocks stand in the queue
    as one run, whose end is taken first, for the request alone to find if it returns.

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
        self._paths = paths
        # Copies of named blocks: the first has the block's name as its number, others
        # and runs have numbers that are no names
        self._numbers = count(0 if paths is None else paths.blocks)
        self._queue = OrderedDict({next(self._numbers): blocks})  # blocks by number
        self._queued = blocks  # all that stand there
        self._first: dict[int, int] = {}  # by name, the copy to be found
        self._others: dict[int, list[int]] = {}  # by name, those after it
        self._name: dict[int, int] = {}  # of these others
        self._holders: dict[int, int] = {}  # by copy, how many requests hold it
        self._held: dict[int, tuple[list[int], list[int]]] = {}  # names, copies it has
        self._left: dict[int, tuple[int, int]] = {}  # its run, full blocks in that
        self._seen: tuple[list[int], list[int], int] = [], [], 0

    def give_back(self, request: int, tokens: int, returns: bool = False) -> None:
        self._catch_up()
        self.publish(request, tokens)
        queue, holders = self._queue, self._holders
        _, copies = self._held.pop(request, _NOTHING)
        freed = self.blocks_for(tokens) - len(copies)
        if freed:
            run = next(self._numbers)
            queue[run] = freed
            if returns:
                self._left[request] = run, tokens // self.block_size - len(copies)
        for copy in reversed(copies):
            holders[copy] = left = holders[copy] - 1
            if not left:
                queue[copy] = 1
                freed += 1
        self._queued += freed
        self.free += freed

    def look(self, request: int, tokens: int) -> tuple[int, int]:
        self._catch_up()
        first, most = self._first, (tokens - 1) // self.block_size
        names = [] if self._paths is None else self._paths.names(request)
        # who has a block has those before it, and they are taken later
        there = bisect_left(names[:most], True, key=lambda name: name not in first)
        copies = [first[name] for name in names[:there]]
        run, full = self._left.get(request, (-1, 0))
        own = min(self._queue.get(run, 0), full)
        self._seen = names, copies, own
        holders = self._holders
        return there + own, sum([holders[copy] > 0 for copy in copies])

    def hold(self, request: int) -> None:
        queue, holders = self._queue, self._holders
        names, copies, taken = self._seen
        if taken:
            queue[self._left[request][0]] -= taken
        self._left.pop(request, None)
        for copy in copies:
            if not holders[copy]:
                del queue[copy]
                taken += 1
            holders[copy] += 1
        if names:
            self._held[request] = names, copies
        self._queued -= taken
        self.free -= taken

    def publish(self, request: int, tokens: int) -> None:
        names, copies = self._held.get(request, _NOTHING)
        first = self._first
        for name in names[len(copies) : tokens // self.block_size]:
            copy = name
            if name in first:
                copy = next(self._numbers)
                self._others.setdefault(name, []).append(copy)
                self._name[copy] = name
            else:
                first[name] = name
            self._holders[copy] = 1
            copies.append(copy)

    def _catch_up(self) -> None:
        """Take off the queue what was taken."""
        queue = self._queue
        while self._queued > self.free:
            number, there = next(iter(queue.items()))
            taken = min(self._queued - self.free, there)
            self._queued -= taken
            if taken < there:
                queue[number] = there - taken
            else:
                del queue[number]
                if self._holders.pop(number, None) is not None:
                    self._forget(number)

    def _forget(self, copy: int) -> None:
        """A copy of a named block has been taken: the next one is found now."""
        name = self._name.pop(copy, copy)
        others = self._others.get(name)
        if self._first[name] != copy:
            assert others
            others.remove(copy)
        elif others:
            self._first[name] = others.pop(0)
        else:
            del self._first[name]


_NOTHING: tuple[list[int], list[int]] = [], []  # of a request without a path
_ENDLESS = 2**62  # blocks


def block_pool(config: SimulationConfig, paths: Paths | None) -> BlockPool | None:
    """The blocks of a server; None if nobody need count them.

    Args:
        config: Its memory.
        paths: What its requests share; None is nothing, and without a limit of blocks
            there is nothing to be found then.
    """
    blocks = config.kv_blocks
    if config.prefix_caching and (blocks is not None or paths is not None):
        return CachingPool(blocks or _ENDLESS, config.block_size, paths)
    return None if blocks is None else BlockPool(blocks, config.block_size)
