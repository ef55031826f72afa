"""The blocks that prompts have in common, by name.

A workload's *segments* say how each request's tokens begin: a path of (id, tokens)
pairs, over its prompt and, where it goes on, its answer. Requests whose paths begin
alike share the full blocks of what is common, here 2 blocks of 4 tokens of 3:

>>> paths = Paths([[(7, 8), (1, 4)], [(7, 8), (2, 4)], []], block_size=4)
>>> paths.names(0), paths.names(1), paths.names(2)
([0, 1, 2], [0, 1, 3], [])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

Path = Sequence[tuple[int, int]]


class Paths:
    """The names of each request's blocks: whole numbers from 0.

    Args:
        segments: A path a request.
        block_size: Tokens in a block.

    Attributes:
        blocks: How many names there are.
    """

    def __init__(self, segments: Sequence[Path], block_size: int) -> None:
        self.blocks = 0
        self._runs: list[list[range]] = []
        tree: dict[tuple[int, int, int], tuple[int, range]] = {}
        for path in segments:
            node, end, runs = 0, 0, []
            for segment, tokens in path:
                begin, end = end // block_size, end + tokens
                if (at := (node, segment, tokens)) not in tree:
                    first, self.blocks = (
                        self.blocks,
                        self.blocks + end // block_size - begin,
                    )
                    tree[at] = len(tree) + 1, range(first, self.blocks)
                node, run = tree[at]
                runs.append(run)
            self._runs.append(runs)

    def names(self, request: int) -> list[int]:
        """The names of the full blocks on a request's path, in order."""
        return [*chain.from_iterable(self._runs[request])]
