"""A batch in pieces: which rows a worker computes at a time, and the dropout masks of these rows.

A piece needs less memory than the whole batch, and more of its activations stay in the processor's caches. But the
Python code of each piece takes some milliseconds, and the other workers wait during this time. The best size depends on
the processor. With a second-level cache of 0.5 MB, pieces of 512 tokens are best. With 2 MB, pieces of 512 tokens take
1.1 times as long as the whole batch (measured with Python's switch interval of 5 ms; see parallel.py).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from ..nn import Trainable


def pieces(rows: int, seq_len: int, workers: int, tokens_at_once: int | None) -> list[list[slice]]:
    """Return for each worker the rows of its pieces, in order.

    A piece has at most `tokens_at_once` tokens; if one row has more tokens, the piece is this row. If `tokens_at_once`
    is None, each worker has one piece. Workers without rows are left out.
    """
    shards = [shard for shard in np.array_split(np.arange(rows), workers) if shard.size]
    at_once = rows if tokens_at_once is None else max(1, tokens_at_once // seq_len)
    parts = [np.array_split(shard, math.ceil(shard.size / at_once)) for shard in shards]
    return [[slice(int(part[0]), int(part[-1]) + 1) for part in each] for each in parts]


def tokens_at_once(model: Trainable) -> int | None:
    """Return how many tokens of a batch the model should compute at a time; None stands for the whole batch.

    A GPU needs large pieces. A model without the attribute `tokens_at_once` may have a fixed cost per call, so this
    model gets the whole batch.
    """
    on_cpu = any(isinstance(p.value, np.ndarray) for _, p in model.named_parameters())
    return getattr(model, "tokens_at_once", None) if on_cpu else None


class RowsOfMasks(np.random.Generator):
    """Draws dropout masks for some rows of a batch. These masks equal the same rows of the masks of the whole batch.

    The result of a step then depends neither on the size of the pieces nor on the number of workers.

    Parameters
    ----------
    rng : numpy.random.Generator
        The generator of the whole batch. It is copied and not changed.
    rows : slice
        The rows of the batch that are computed now.
    counted : ndarray, shape (b,), int
        The number of counted tokens in each row of the batch. An adapter of the output head draws one row of a mask per
        counted token.
    """

    def __init__(self, rng: np.random.Generator, rows: slice, counted: np.ndarray) -> None:
        super().__init__(copy.deepcopy(rng.bit_generator))
        before, after = np.cumsum([0, *counted])[[rows.start, rows.stop]]
        self.rows = rows.start, rows.stop, len(counted)
        self.tokens = int(before), int(after), int(counted.sum())

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Return the numbers that `rng.random` would return for these rows: shape (rows, t, …) or (counted tokens, d).

        If `size` is not a tuple, the result is the same for all rows.
        """
        if not isinstance(size, tuple):
            return super().random(size, dtype)
        start, stop, total = self.tokens if len(size) == 2 else self.rows
        numbers = math.prod(size[1:])
        # One step of the generator gives two float32 numbers. After an odd number of numbers, it keeps the second one for the
        # next mask, and `advance` would lose it.
        keeps_one = self.bit_generator.state.get("has_uint32")
        if numbers % 2 or keeps_one or dtype != np.float32 or not hasattr(self.bit_generator, "advance"):
            return super().random((total, *size[1:]), dtype)[start:stop]
        self.bit_generator.advance(start * numbers // 2)
        mask = super().random(size, dtype)
        self.bit_generator.advance((total - stop) * numbers // 2)
        return mask
