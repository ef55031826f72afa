"""The blocks that requests have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common; here 2 of 3 blocks of 4 tokens:

>>> paths = Paths(block_size=4)
>>> paths.add(0, [(7, 8), (1, 4)])
>>> paths.add(1, [(7, 8), (2, 4)])
>>> paths.blocks(0), paths.blocks(1)
([0, 1, 2], [0, 1, 3])
"""

from __future__ import annotations

from collections.abc import Sequence

Path = Sequence[tuple[int, int]]
_APART = 2**40  # names that each conversation has for itself


class Paths:
    """The names of each request's full blocks: whole numbers, neighbours in order.

    Args:
        block_size: Tokens in a block.

    Attributes:
        names: Of each request pieces of its path: the number of the block behind a
            piece, and what is to be added to a block's number to get its name.
    """

    def __init__(self, block_size: int) -> None:
        self.names: dict[int, list[tuple[int, int]]] = {}
        self._size = block_size
        self._tree: dict[tuple[int, int, int], tuple[int, int]] = {}
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
        self.names[request] = mine = list[tuple[int, int]]()
        for segment, tokens in path:
            begin, end = end // size, end + tokens
            if (at := (node, segment, tokens)) not in tree:
                tree[at] = len(tree) + 1, self._named - begin
                self._named += end // size - begin
            node, ahead = tree[at]
            if begin < end // size:
                if mine and mine[-1][1] == ahead:
                    mine.pop()
                mine.append((end // size, ahead))
        if end // size < said // size:
            mine.append((said // size, (conversation + 1) * _APART))

    def blocks(self, request: int) -> list[int]:
        """The names of a request's blocks."""
        ends = [end for end, _ in self.names[request]]
        pieces = zip([0, *ends], self.names[request], strict=False)
        return [b + ahead for begin, (end, ahead) in pieces for b in range(begin, end)]
