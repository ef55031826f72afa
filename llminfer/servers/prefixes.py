"""The blocks that requests have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common; here 2 of 3 blocks of 4 tokens:

>>> paths = Paths([[(7, 8), (1, 4)], [(7, 8), (2, 4)]], block_size=4)
>>> list(paths.between(0, 0, 9)), list(paths.between(1, 0, 9))
([range(0, 2), range(3, 4)], [range(0, 3)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Path = Sequence[tuple[int, int]]


class Paths:
    """The names of each request's full blocks: whole numbers, neighbours in order.

    Args:
        segments: A path a request.
        block_size: Tokens in a block.

    Attributes:
        blocks: How many each request's path has.
    """

    def __init__(self, segments: Sequence[Path], block_size: int) -> None:
        self._names: list[list[range]] = []
        self.blocks: list[int] = []
        tree: dict[tuple[int, int, int], tuple[int, range]] = {}
        named = 0
        for path in reversed(segments):  # who comes late goes on where others ended
            node = end = 0
            mine: list[range] = []
            self._names.append(mine)
            for segment, tokens in path:
                begin, end = end // block_size, end + tokens
                if (at := (node, segment, tokens)) not in tree:
                    first, named = named, named + end // block_size - begin
                    tree[at] = len(tree) + 1, range(first, named)
                node, names = tree[at]
                if mine and mine[-1].stop == names.start:
                    names = range(mine.pop().start, names.stop)
                if names:
                    mine.append(names)
            self.blocks.append(end // block_size)
        self._names.reverse()
        self.blocks.reverse()

    def between(self, request: int, begin: int, end: int) -> Iterator[range]:
        """The names of a request's blocks from number ``begin`` to before ``end``."""
        for names in self._names[request]:
            if end <= 0:
                return
            if begin < (size := len(names)):
                yield names[begin:end] if begin > 0 else names[:end]
            begin, end = begin - size, end - size
