"""The blocks that requests have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common; here 2 of 3 blocks of 4 tokens:

>>> paths = Paths(4, [[(7, 8), (1, 4)], [(7, 8), (2, 4)]])

Blocks 0 and 1 have these names in both. Block 2 of the second has another than that of
the first, which goes on where those end:

>>> paths.names[0], paths.names[1]
([(3, 0)], [(2, 0), (3, 2000000000000)])
"""

from __future__ import annotations

from collections.abc import Sequence

Path = Sequence[tuple[int, int]]
Pieces = list[tuple[int, int]]
_APART = 10**12  # names of each chain: of blocks that follow one another


class Paths:
    """The names of each request's full blocks: whole numbers, neighbours in order.

    Args:
        block_size: Tokens in a block.
        segments: The paths of requests that are known already.

    Attributes:
        names: Of each request the pieces of its path: the number of the block behind a
            piece, and what is to be added to a block's number to get its name.
    """

    def __init__(self, block_size: int, segments: Sequence[Path] = ()) -> None:
        self.block_size, self._chains = block_size, 0
        self._tree: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._begun: dict[Path, tuple[Pieces, int]] = {}
        self._ended = {0}  # nodes behind which another chain begins
        self.names = {i: self._along(path)[0] for i, path in enumerate(segments)}

    def say(self, request: int, path: Path, conversation: int, said: int) -> None:
        """Name the blocks of a request in a conversation that begins with a path.

        Args:
            request: Its number.
            path: One of a few.
            conversation: The number of what only its own conversation shares.
            said: Tokens of that with those of the path, as they are so far.
        """
        if (begun := self._begun.get(path)) is None:
            begun = self._begun[path] = self._along(path)
        names, blocks = begun
        if blocks < (full := said // self.block_size):
            names = [*names, (full, (2 * conversation + 1) * _APART)]
        self.names[request] = names

    def _along(self, path: Path) -> tuple[Pieces, int]:
        """The pieces of a path, and the full blocks on it."""
        tree, size, node, end, ahead = self._tree, self.block_size, 0, 0, 0
        mine: Pieces = []
        for segment, tokens in path:
            begin, end = end // size, end + tokens
            if (at := (node, segment, tokens)) not in tree:
                if node in self._ended:
                    ahead, self._chains = self._chains * _APART, self._chains + 2
                self._ended.add(node)
                tree[at] = len(tree) + 1, ahead
            node, ahead = tree[at]
            if begin < end // size:
                if mine and mine[-1][1] == ahead:
                    mine.pop()
                mine.append((end // size, ahead))
        return mine, end // size
