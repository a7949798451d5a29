"""A key/value cache whose rows come and go: what continuous batching (Orca, Yu et al. 2022) needs of the cache.

    columns      start                      end
    row 0          ├── 0 0 0 a a a a a a a a┤         every row ends at `end`, so that a step appends one column to all;
    row 1          ├── b b b b b b b b b b b┤         what lies left of a shorter row is masked, and a column that is
    row 2          ├── 0 0 0 0 0 0 0 0 0 c c┤         masked for all is left out

A key was turned by its place in its own row (`Context.position_ids`), so a row may lie in any columns.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module
from ..transformer import KeyValueCache, TransformerConfig
from ..transformer.cache import LayerCache


class RowsLayer(LayerCache):
    """One layer's keys and values, (rows, g, columns, d) each, of which `rows` and the columns start … end are in use."""

    def __init__(self, max_rows: int) -> None:
        super().__init__()
        self.max_rows, self.rows, self.start, self.end = max_rows, 0, 0, 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """As LayerCache's, for all rows at once."""
        rooms = self.make_room(k, v, 0, k.shape[2])
        for room, new in zip(rooms, (k, v), strict=True):
            room[: self.rows, :, self.end : self.end + k.shape[2]] = new
        self.end += k.shape[2]
        self.length = self.end - self.start
        keys, values = (room[: self.rows, :, self.start : self.end] for room in rooms)
        return keys, values

    def join(self, k: Array, v: Array) -> None:
        """k and v (1, g, s, d) become the last row."""
        s = k.shape[2]
        for room, new in zip(self.make_room(k, v, s, 0), (k, v), strict=True):
            room[self.rows, :, self.end - s : self.end] = new[0]
        self.rows += 1
        self.start = min(self.start, self.end - s)
        self.length = self.end - self.start

    def leave(self, row: int, longest: int) -> None:
        """The last row takes the place of `row`; the longest that stays has `longest` columns."""
        self.rows -= 1
        for room in self.buffers or ():
            room[row, :, self.start : self.end] = room[self.rows, :, self.start : self.end]
        self.start = self.end - longest
        self.length = longest

    def make_room(self, k: Array, v: Array, before: int, after: int) -> tuple[Array, Array]:
        """Room for `before` columns up to `end`, and for `after` from there on; where it is short, for twice as much.

        Zeros, not whatever was there: a masked score must be a number, and so must a value that counts 0 times.
        """
        if self.buffers is not None and self.end >= before and self.end + after <= self.buffers[0].shape[2]:
            return self.buffers
        width = self.end - self.start
        end = max(width, before)
        rooms = []
        for old, x in zip(self.buffers or (None, None), (k, v), strict=True):
            new = array_module(x).zeros((self.max_rows, x.shape[1], 2 * (end + after), x.shape[3]), x.dtype)
            if old is not None:
                new[: self.rows, :, end - width : end] = old[: self.rows, :, self.start : self.end]
            rooms.append(new)
        self.buffers, self.start, self.end = (rooms[0], rooms[1]), end - width, end
        return self.buffers


class RowsCache(KeyValueCache):
    """A KeyValueCache that rows join and leave between two calls of `forward`. `lengths` are the rows' own."""

    layers: list[RowsLayer]

    def __init__(self, config: TransformerConfig, max_rows: int) -> None:
        self.layers = [RowsLayer(max_rows) for _ in range(config.num_hidden_layers)]
        self.lengths: list[int] = []

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    def join(self, past: KeyValueCache) -> None:
        """What one sequence, read alone, has left in `past` becomes the last row."""
        for layer, read in zip(self.layers, past.layers, strict=True):
            layer.join(*(room[:, :, : read.length] for room in read.buffers or ()))
        self.lengths.append(len(past))

    def leave(self, row: int) -> None:
        """`row` goes, and the last row takes its place."""
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        for layer in self.layers:
            layer.leave(row, max(self.lengths, default=0))

    def next_step(self) -> tuple[np.ndarray, np.ndarray | None]:
        """`position_ids` (b, 1) and `attention_mask` (b, columns + 1) of one more token a row, which it takes as read."""
        places = np.array(self.lengths)[:, None]
        columns = len(self) + 1
        self.lengths = [length + 1 for length in self.lengths]
        mask = np.arange(columns) >= columns - 1 - places
        return places, None if mask.all() else mask
