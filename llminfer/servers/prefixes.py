"""The blocks that requests have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common; here 2 of 3 blocks of 4 tokens:

>>> paths = Paths(block_size=4)
>>> paths.add(0, [(7, 8), (1, 4)])
>>> paths.add(1, [(7, 8), (2, 4)])
>>> list(paths.between(0, 0, 9)), list(paths.between(1, 0, 9))
([range(0, 3)], [range(0, 2), range(3, 4)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Path = Sequence[tuple[int, int]]
_APART = 2**40  # names that each conversation has for itself


class Paths:
    """The names of each request's full blocks: whole numbers, neighbours in order.

    Args:
        block_size: Tokens in a block.

    Attributes:
        blocks: How many each request's path has.
    """

    def __init__(self, block_size: int) -> None:
        self.blocks: dict[int, int] = {}
        self._size = block_size
        self._names: dict[int, list[range]] = {}
        self._tree: dict[tuple[int, int, int], tuple[int, range]] = {}
        self._named = 0

    @classmethod
    def of(cls, segments: Sequence[Path], block_size: int) -> Paths:
        """Those of all requests; who comes late goes on where others ended."""
        paths = cls(block_size)
        for i in reversed(range(len(segments))):
            paths.add(i, segments[i])
        return paths

    def add(
        self, request: int, path: Path, conversation: int = 0, said: int = 0
    ) -> None:
        """Name the blocks on the path of a request.

        Args:
            request: Its number.
            path: What it shares with any other.
            conversation: The number of what only its own conversation shares.
            said: Tokens of that with those of the path, as they are so far.
        """
        tree, size, node, end = self._tree, self._size, 0, 0
        mine: list[range] = []
        for segment, tokens in path:
            begin, end = end // size, end + tokens
            if (at := (node, segment, tokens)) not in tree:
                first, self._named = self._named, self._named + end // size - begin
                tree[at] = len(tree) + 1, range(first, self._named)
            node, names = tree[at]
            if mine and mine[-1].stop == names.start:
                names = range(mine.pop().start, names.stop)
            if names:
                mine.append(names)
        begin, end = end // size, max(end, said) // size
        if begin < end:
            first = (conversation + 1) * _APART
            mine.append(range(first + begin, first + end))
        self._names[request], self.blocks[request] = mine, end

    def between(self, request: int, begin: int, end: int) -> Iterator[range]:
        """The names of a request's blocks from number ``begin`` to before ``end``."""
        for names in self._names[request]:
            if end <= 0:
                return
            if begin < (size := len(names)):
                yield names[begin:end] if begin > 0 else names[:end]
            begin, end = begin - size, end - size
