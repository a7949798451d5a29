"""What a training step holds besides what is kept, moment by moment: the locals of this library's backward, in floats.

All along, the caller holds the head's dx and a block its dz, which becomes its dx in place: 2·N·d. On top of these come

    the MLP            dh, dgate and dup, N·f each, while two dx of N·d are computed and added up
    attention          dx of the MLP and of its norm, 2·N·d; do, dq, dk, dv; then whichever is most of
                       a block of scores and its gradients, the rotation back, three dx of N·d
    an adapter         one more dx, until it is added to the frozen path's; with dropout that times the mask
    a quantised W      all of it, decoded, beside the dx that is computed with it, and gone before the adapter's

The letters are those of activations.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ops.attention import BLOCK
from ..quantization import CHUNK
from .activations import Work, keeps_x
from .anatomy import Half, Layer


def moments(work: Work) -> Iterator[tuple[int, int]]:
    """(floats held besides what is kept, gradients that are there by then), through forward and backward."""
    N, d, body = work.tokens, work.body.hidden, work.body
    head = body.head
    yield last_forward(work) - work.kept_at_the_top(), 0
    # the head's forward: its input, and a bypass before it is added to the logits
    yield N * d * (not keeps_x(head)) + N * body.vocabulary * (head.r > 0), 0
    gradients = gradient_numbers(head) + d * body.norm_trained
    yield max(3, 1 + extra_dx(head)) * N * d * body.trainable_below_the_head, gradients
    for half, need_dx in reversed(body.walk()):
        if not (need_dx or half.trainable):
            break
        gradients += sum(map(gradient_numbers, (*half.reads, half.writes))) + d * half.norm_trained
        held = attention_moment if half.is_attention else mlp_moment
        yield 2 * N * d + held(work, half, need_dx), gradients
    if body.embedding_trained:  # dE becomes a gradient, or is added to the tied head's
        yield 2 * N * d + body.vocabulary * d, gradients


def last_forward(work: Work) -> int:
    """The last MLP's input, its f features and its output, where they are not kept: the most if only the head trains."""
    N, d, mlp = work.tokens, work.body.hidden, work.body.blocks[-1][-1]
    normed = N * d * (not any(map(keeps_x, mlp.reads)))
    return normed + N * mlp.writes.in_ * (not keeps_x(mlp.writes)) + through(mlp.writes, N * d, mlp.writes.r > 0)


def mlp_moment(work: Work, half: Half, need_dx: bool) -> int:
    """The most of: dy through the layer that writes; dx of those that read, beside their dy; dx of the norm."""
    N, d, f = work.tokens, work.body.hidden, half.writes.in_
    if not (need_dx or half.reads_trainable):
        return N * half.writes.r
    writes = through(half.writes, N * f, extra_dx(half.writes))
    inner = N * f + sum(N * layer.out for layer in half.reads)  # dh, dgate, dup
    reads = need_dx * max(i * N * d + through(layer, N * d, extra_dx(layer)) for i, layer in enumerate(half.reads))
    return max(writes, inner + reads, need_dx * 3 * N * d)


def attention_moment(work: Work, half: Half, need_dx: bool) -> int:
    """The same, and between them the scores and the rotation."""
    N, d, q, body = work.tokens, work.body.hidden, half.writes.in_, work.body
    before = 2 * N * d
    if not (need_dx or half.reads_trainable):
        return before + N * half.writes.r
    kv = body.kv_heads * body.head_dim
    writes = through(half.writes, N * q, extra_dx(half.writes))
    inner = N * (2 * q + 2 * kv)  # do, dq, dk, dv
    rotation = max(2 * N * q, N * (q + 2 * kv))  # dq turned, in two buffers; then dk beside it
    reads = [
        N * layer.out + need_dx * (i * N * d + through(layer, N * d, extra_dx(layer)))
        for i, layer in enumerate(half.reads)
    ]
    return before + max(writes, inner + max(scores_moment(work), rotation, *reads), need_dx * 2 * N * d)


def scores_moment(work: Work) -> int:
    """A block of queries in attention_backward: its dz beside that of the block before, or beside its share of dk."""
    body, largest, before = work.body, 0, 0
    for start in range(0, work.seq, BLOCK):
        seen = min(start + BLOCK, work.seq)
        rows = work.batch * body.heads * (seen - start)
        dz, queries = rows * seen, rows * body.head_dim  # its do is as large as its queries
        share = work.batch * body.kv_heads * seen * body.head_dim
        largest = max(largest, dz + queries + max(before, queries + share))
        before = dz
    return largest


def through(layer: Layer, product: int, extra: int) -> int:
    """While a product of so many floats is made with W, and as many again by the adapter, `extra` times.

    A quantised W is decoded first, a piece at a time through the piece's indices of 8 bytes.
    """
    W = layer.out * layer.in_ * layer.quantized
    decoding = W + 2 * min(CHUNK, (W + 1) // 2)
    return max(decoding, W + product, (1 + extra) * product)


def extra_dx(layer: Layer) -> int:
    """How many dx an adapter makes beside the frozen path's: none without one, its own, and with dropout that ∘ mask."""
    return (layer.r > 0) + layer.dropout


def gradient_numbers(layer: Layer) -> int:
    """Those of W, or of A and B."""
    numbers = layer.in_ * layer.A_trained + layer.out  # for each of the r directions
    return layer.out * layer.in_ * layer.trained + layer.r * numbers * layer.trainable


def update_moment(work: Work) -> int:
    """AdamW updates an array at a time, in two buffers of its size: the most for the largest that is trained."""
    body = work.body
    sizes = [layer.out * layer.in_ * layer.trained for layer in body.layers()]
    sizes += [layer.r * max(layer.out, layer.in_ * layer.A_trained) * layer.trainable for layer in body.layers()]
    return 2 * max(*sizes, body.vocabulary * body.hidden * body.embedding_trained)
