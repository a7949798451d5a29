"""The temporary arrays of a training step, moment by moment, in floats: what the backward holds besides the forward's caches.

All along, the caller holds the head's dx and a block its dz, which becomes its dx in place: 2·N·d. On top of these come

    the MLP            dh, dgate and dup, N·f each, while two dx of N·d are computed and added up
    attention          dx of the MLP and of its norm, 2·N·d; do, dq, dk, dv; then whichever is most of
                       a block of scores and its gradients, the rotation back, three dx of N·d
    an adapter         one more dx, until it is added to the frozen path's, and what AdapterCost.backward_held says
    a prefix           its gradient, layer by layer, and then in one piece, twice
    a quantised W      all of it, decoded, beside the dx that is computed with it, and gone before the adapter's

The letters are those of activations.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ops.attention import BLOCK
from ..quantization.four_bits import CHUNK
from .activations import Work
from .anatomy import Half, Layer


def moments(work: Work) -> Iterator[tuple[int, int]]:
    """(floats held besides what is kept, gradients that are there by then), through forward and backward."""
    N, d, body = work.tokens, work.body.hidden, work.body
    head, prefix = body.head, body.prefix
    yield last_forward(work) - work.kept_at_the_top(), 0
    # the head's forward: its input, and what its adapter makes of the logits
    yield N * d * (not head.keeps_x) + forward_held(head, N), 0
    gradients = head.gradients + d * body.norm_trained
    yield max(3 * N * d, backward_held(head, N, True)) * body.trainable_below_the_head, gradients
    for half, need_dx in reversed(body.walk()):
        if not (need_dx or half.trainable):
            break
        gradients += sum(layer.gradients for layer in (*half.reads, half.writes)) + d * half.norm_trained
        gradients += 2 * prefix.v * prefix.kv if prefix and half.past_trained else 0
        held = attention_moment if half.is_attention else mlp_moment
        yield 2 * N * d + held(work, half, need_dx), gradients
    if prefix and prefix.trained:  # what has come back to the layers, in one array and then in order, or an MLP's
        yield max(prefix.v * prefix.width, prefix.gradients), gradients
    if body.embedding_trained:  # dE becomes a gradient, or is added to the tied head's
        yield 2 * N * d + body.vocabulary * d, gradients


def last_forward(work: Work) -> int:
    """The last MLP's input, its f features and its output, where they are not kept: the most if only the head trains."""
    N, d, mlp = work.tokens, work.body.hidden, work.body.blocks[-1][-1]
    normed = N * d * (not any(layer.keeps_x for layer in mlp.reads))
    inner = N * mlp.writes.in_ * (not mlp.writes.keeps_x)
    return normed + inner + max(through(mlp.writes, N * d), N * d + forward_held(mlp.writes, N))


def mlp_moment(work: Work, half: Half, need_dx: bool) -> int:
    """The most of: dy through the layer that writes; dx of those that read, beside their dy; dx of the norm."""
    N, d, f = work.tokens, work.body.hidden, half.writes.in_
    if not (need_dx or half.inner_trainable):
        return backward_held(half.writes, N, False)
    writes = backward_held(half.writes, N, True)
    inner = N * f + sum(N * layer.out for layer in half.reads)  # dh, dgate, dup
    reads = max(need_dx * i * N * d + backward_held(layer, N, need_dx) for i, layer in enumerate(half.reads))
    return max(writes, inner + reads, need_dx * 3 * N * d)


def attention_moment(work: Work, half: Half, need_dx: bool) -> int:
    """The same, and between them the scores and the rotation."""
    N, d, q, body = work.tokens, work.body.hidden, half.writes.in_, work.body
    before = 2 * N * d
    if not (need_dx or half.inner_trainable):
        return before + backward_held(half.writes, N, False)
    kv = body.kv_heads * body.head_dim
    writes = backward_held(half.writes, N, True)
    inner = 2 * N * q + 2 * work.batch * (body.virtual_tokens + work.seq) * kv  # do, dq, dk, dv
    rotation = max(2 * N * q, N * (q + 2 * kv))  # dq turned, in two buffers; then dk beside it
    reads = [
        N * layer.out + need_dx * i * N * d + backward_held(layer, N, need_dx) for i, layer in enumerate(half.reads)
    ]
    return before + max(writes, inner + max(scores_moment(work), rotation, *reads), need_dx * 2 * N * d)


def scores_moment(work: Work) -> int:
    """A block of queries in attention_backward: its dz beside that of the block before, or beside its share of dk."""
    body, largest, before = work.body, 0, 0
    for start in range(0, work.seq, BLOCK):
        stop = min(start + BLOCK, work.seq)
        rows, seen = work.batch * body.heads * (stop - start), body.virtual_tokens + stop
        dz, queries = rows * seen, rows * body.head_dim  # its do is as large as its queries
        share = work.batch * body.kv_heads * seen * body.head_dim
        largest = max(largest, dz + queries + max(before, queries + share))
        before = dz
    return largest


def through(layer: Layer, product: int) -> int:
    """While a product of so many floats is made with W.

    A quantised W is decoded first, a piece at a time through the piece's indices of 8 bytes.
    """
    W = layer.out * layer.in_ * layer.quantized
    return max(W + 2 * min(CHUNK, (W + 1) // 2), W + product)


def forward_held(layer: Layer, N: int) -> int:
    """Beside y, while the layer's adapter does its part."""
    return layer.adapter.forward_held(N, layer.out, layer.in_) if layer.adapter else 0


def backward_held(layer: Layer, N: int, need_dx: bool) -> int:
    """The most beside dy in a layer's backward: dx, what it is made of, and what its adapter adds."""
    frozen = through(layer, N * layer.in_) if need_dx else 0
    return layer.adapter.backward_held(N, layer.out, layer.in_, need_dx, frozen) if layer.adapter else frozen


def update_moment(work: Work) -> int:
    """AdamW updates an array at a time, in two buffers of its size: the most for the largest that is trained."""
    body = work.body
    sizes = [layer.largest for layer in body.layers()] + [body.prefix.largest if body.prefix else 0]
    return 2 * max(*sizes, body.vocabulary * body.hidden * body.embedding_trained)
