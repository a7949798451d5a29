"""The output head and the loss together, in blocks of rows: the logits of all tokens never exist at the same time.

With a large vocabulary, the logits (n, v) are the largest array of a training step. The gradient of the logits is
needed only once. So for each block of rows, the function computes this gradient in the memory of the logits, uses it to
compute dx, and keeps only dx:

    z = head(x),   L += Σ share·(log Σ exp z − z_target),   dz = share·(softmax(z) − [target]),   dx = dz W

This method is known as fused linear cross-entropy (Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

from ..backend import Array, array_module
from ..nn import Linear
from ..ops.loss import cross_entropy_in_place, shares
from .gemma import SoftcappedHead

LOGITS = 2**22  # the number of logits in a block
# A block has at least about this many rows, because each product reads all of W. For SmolLM2 and 256 tokens, blocks of 128
# rows take 1.2 times as long as all rows at once, blocks of 43 rows twice as long.
ROWS = 256

Head: TypeAlias = Linear | SoftcappedHead


class BlocksCache(NamedTuple):
    """The cache of a loss in blocks."""

    x: Array | None  # (n, d); None if the forward pass has computed dx
    targets: Array  # (n,)
    ignore_index: int
    dx: list[Array]  # ∂L/∂x (n, d), until the backward pass takes it


def works_in_blocks(head: Linear) -> bool:
    """Return True for a frozen head without adapters. Any other head computes all rows at once.

    A trained head would add a gradient of the size of W in each block, and a four-bit head would decode W in each
    block. An adapter needs all rows at once if it draws a dropout mask, or selects rows by their index in the batch.
    """
    return type(head) is Linear and not head.trainable


def block_rows(n: int, vocabulary: int) -> int:
    """Return the number of rows in a block: all n rows if they have few logits, else an equal part of the n rows."""
    blocks = math.ceil(n / max(ROWS, LOGITS // vocabulary))
    return math.ceil(n / blocks)


def loss_in_blocks_forward(
    head: Head, x: Array, targets: Array, ignore_index: int, need_dx: bool
) -> tuple[Array, BlocksCache]:
    """Compute the loss () of hidden states x (n, d) and targets (n,).

    `need_dx` is True if a backward pass follows. Then dx is computed here, so that the backward pass need not compute
    the logits again.
    """
    loss, dx = _blocks(head, x, targets, ignore_index, 1.0, need_dx)
    return loss, BlocksCache(x if dx is None else None, targets, ignore_index, [] if dx is None else [dx])


def loss_in_blocks_backward(dloss: float, cache: BlocksCache, head: Head) -> Array:
    """Return dx (n, d). If the forward pass did not compute dx, compute the logits of each block again."""
    if cache.x is not None:
        dx = _blocks(head, cache.x, cache.targets, cache.ignore_index, dloss, True)[1]
        assert dx is not None
        return dx
    if not cache.dx:
        raise RuntimeError("a cache allows only one backward pass; run the forward pass again")
    dx = cache.dx.pop()
    dx *= dloss
    return dx


def _blocks(
    head: Head, x: Array, targets: Array, ignore_index: int, dloss: float, need_dx: bool
) -> tuple[Array, Array | None]:
    """Return dloss·L and, if needed, dloss·∂L/∂x (n, d)."""
    safe, share = shares(targets, ignore_index, x)
    share *= dloss
    dx = array_module(x).empty(x.shape, x.dtype) if need_dx else None
    losses = []
    size = block_rows(len(x), head.out_features)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        z, cache = head.forward(x[rows])
        losses.append(cross_entropy_in_place(z, safe[rows], share[rows], need_dx))
        if dx is not None:
            dx[rows] = head.backward(z, cache)
        del z, cache  # before the next block, which needs the memory
    return sum(losses[1:], losses[0]), dx
