"""A key/value cache for continuous batching (Orca, Yu et al. 2022): rows are added and removed between two steps.

    columns      start                      end
    row 0          ├── 0 0 0 a a a a a a a a┤         every row ends at `end`, so that a step appends one column to all rows;
    row 1          ├── b b b b b b b b b b b┤         the columns left of a shorter row are masked, and columns that are
    row 2          ├── 0 0 0 0 0 0 0 0 0 c c┤         masked for all rows are left out

A key is already rotated by its position in its own row (`Context.position_ids`), so a row may be stored in any columns.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module
from ..transformer import KeyValueCache, TransformerConfig
from ..transformer.cache import LayerCache

SPARE = 256  # largest number of unused columns: a long row needs little more than its own memory


class BatchLayerCache(LayerCache):
    """The keys and the values of one layer: two arrays of shape (max_rows, g, columns, d), with g key/value heads of
    size d.

    Only the first `rows` rows and the columns from `start` to `end` are used.
    """

    def __init__(self, max_rows: int) -> None:
        super().__init__()
        self.max_rows, self.rows, self.start, self.end = max_rows, 0, 0, 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append the keys k and the values v, both (b, g, t, d), to the b rows; return all keys and all values (b, g, s, d)."""
        rooms = self.reserve(k, v, 0, k.shape[2])
        for room, new in zip(rooms, (k, v), strict=True):
            room[: self.rows, :, self.end : self.end + k.shape[2]] = new
        self.end += k.shape[2]
        self.length = self.end - self.start
        keys, values = (room[: self.rows, :, self.start : self.end] for room in rooms)
        return keys, values

    def add_row(self, k: Array, v: Array) -> None:
        """Add a row with the keys k and the values v, both (1, g, s, d), after the last row."""
        s = k.shape[2]
        for room, new in zip(self.reserve(k, v, s, 0), (k, v), strict=True):
            room[self.rows, :, self.end - s : self.end] = new[0]
        self.rows += 1
        self.start = min(self.start, self.end - s)
        self.length = self.end - self.start

    def remove_row(self, row: int, longest: int) -> None:
        """Remove `row`, and move the last row to its place. `longest` is the length of the longest row that remains."""
        self.rows -= 1
        for room in self.buffers or ():
            room[row, :, self.start : self.end] = room[self.rows, :, self.start : self.end]
        self.start = self.end - longest
        self.length = longest

    def reserve(self, k: Array, v: Array, before: int, after: int) -> tuple[Array, Array]:
        """Return the two arrays with at least `before` columns before `end` and `after` columns after `end`.

        If the arrays are too small, new arrays replace them, with twice as many columns as necessary, but at most SPARE
        more. New columns are zeros, because uninitialised memory can contain NaN, and a masked value of NaN times a
        probability of 0 is NaN.
        """
        if self.buffers is not None and self.end >= before and self.end + after <= self.buffers[0].shape[2]:
            return self.buffers
        width = self.end - self.start
        end = max(width, before)
        rooms = []
        for old, x in zip(self.buffers or (None, None), (k, v), strict=True):
            columns = end + after + min(end + after, SPARE)
            new = array_module(x).zeros((self.max_rows, x.shape[1], columns, x.shape[3]), x.dtype)
            if old is not None:
                new[: self.rows, :, end - width : end] = old[: self.rows, :, self.start : self.end]
            rooms.append(new)
        self.buffers, self.start, self.end = (rooms[0], rooms[1]), end - width, end
        return self.buffers


class BatchCache(KeyValueCache):
    """A KeyValueCache to which rows can be added, and from which rows can be removed, between two calls of `forward`.

    `lengths` contains the number of tokens of each row.
    """

    layers: list[BatchLayerCache]

    def __init__(self, config: TransformerConfig, max_rows: int) -> None:
        self.layers = [BatchLayerCache(max_rows) for _ in range(config.num_hidden_layers)]
        self.lengths: list[int] = []

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def add_row(self, past: KeyValueCache, row: int, length: int) -> None:
        """Add the last `length` tokens of one row of the cache `past` after the last row.

        If memory is full, the call raises MemoryError before any row is added.
        """
        kept = slice(len(past) - length, len(past))
        added = [tuple(room[row : row + 1, :, kept] for room in source.buffers or ()) for source in past.layers]
        for layer, (k, v) in zip(self.layers, added, strict=True):
            layer.reserve(k, v, k.shape[2], 0)
        for layer, (k, v) in zip(self.layers, added, strict=True):
            layer.add_row(k, v)
        self.lengths.append(length)

    def remove_row(self, row: int) -> None:
        """Remove `row`, and move the last row to its place."""
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        for layer in self.layers:
            layer.remove_row(row, max(self.lengths, default=0))

    def next_step(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return `position_ids` (b, 1) and `attention_mask` (b, columns + 1) for one more token per row.

        The lengths of all rows grow by 1. The mask is None if no column is masked.
        """
        positions = np.array(self.lengths)[:, None]
        columns = len(self) + 1
        self.lengths = [length + 1 for length in self.lengths]
        mask = np.arange(columns) >= columns - 1 - positions
        return positions, None if mask.all() else mask
