"""The blocks that requests have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common; here 2 of 3 blocks of 4 tokens:

>>> paths = Paths([[(7, 8), (1, 4)], [(7, 8), (2, 4)]], block_size=4)
>>> list(paths.between(0, 0, 9)), list(paths.between(1, 0, 9))
([range(0, 3)], [range(0, 2), range(3, 4)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Path = Sequence[tuple[int, int]]


class Paths:
    """The names of each request's full blocks: whole numbers, neighbours in order.

    Args:
        segments: A path a request.
        block_size: Tokens in a block.
    """

    def __init__(self, segments: Sequence[Path], block_size: int) -> None:
        self._names = [[range(0)] for _ in segments]
        tree: dict[tuple[int, int, int], tuple[int, range]] = {}
        blocks = 0
        for path, mine in zip(segments, self._names, strict=True):
            node = end = 0
            for segment, tokens in path:
                begin, end = end // block_size, end + tokens
                if (at := (node, segment, tokens)) not in tree:
                    first, blocks = blocks, blocks + end // block_size - begin
                    tree[at] = len(tree) + 1, range(first, blocks)
                node, names = tree[at]
                if mine[-1].stop == names.start:
                    mine[-1] = range(mine[-1].start, names.stop)
                else:
                    mine.append(names)

    def between(self, request: int, begin: int, end: int) -> Iterator[range]:
        """The names of a request's blocks from number ``begin`` to before ``end``."""
        for names in self._names[request]:
            some = names[max(begin, 0) : max(end, 0)]
            if some:
                yield some
            begin, end = begin - len(names), end - len(names)
