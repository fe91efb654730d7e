"""Features of a batch, block by block: a block is the dense part of a layer, or one routed expert.

With many experts, most of a short answer's features are zeros: no token of it was sent to that expert. Blocks that no
token reached take no memory here and no space on disk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class BlockFeatures:
    """Contributions of a batch: (rows, regions, columns), of which only the blocks that were added are stored."""

    def __init__(self, rows: int, regions: int, columns: int, *, sparse: bool) -> None:
        self.shape = (rows, regions, columns)
        self._all = None if sparse else np.zeros(self.shape, dtype=np.float32)
        self._blocks: dict[int, tuple[NDArray[np.intp], Floats]] = {}

    def add(self, start: int, rows: NDArray[np.intp], values: Floats) -> None:
        """Store a block: `values` (len(rows), regions, width) belong to columns from `start` on; rows ascend."""
        if self._all is not None:
            self._all[rows, :, start : start + values.shape[-1]] = values
        else:
            self._blocks[start] = (rows, values.copy())

    def dense(self) -> Floats:
        """All columns: (rows, regions, columns); 0 where nothing was added."""
        if self._all is not None:
            return self._all
        out = np.zeros(self.shape, dtype=np.float32)
        for start, (rows, values) in self._blocks.items():
            out[rows, :, start : start + values.shape[-1]] = values
        return out

    def of(self, row: int, region: int) -> Iterator[tuple[int, Floats]]:
        """(first column, values) of the blocks that are not all zero in that row and region, by column."""
        assert self._all is None
        for start in sorted(self._blocks):
            rows, values = self._blocks[start]
            place = int(np.searchsorted(rows, row))
            if place < len(rows) and rows[place] == row and values[place, region].any():
                yield start, values[place, region]
