"""The temporary arrays of a training step, moment by moment, in floats: what the backward holds besides the forward's caches.

All along, the caller holds the head's dx and a block its dz, which becomes its dx in place: 2·N·d. On top of these come

    the MLP            dh, dgate and dup, N·f each, while two dx of N·d are computed and added up
    attention          dx of the MLP and of its norm, 2·N·d; do, dq, dk, dv; then whichever is most of
                       a block of scores and its gradients, the rotation back, three dx of N·d
    an adapter         one more dx, until it is added to the frozen path's, and what AdapterCost.backward_temporaries says
    a prefix           its gradient, layer by layer, and then in one piece, twice
    a quantised W      all of it, decoded, beside the dx that is computed with it, and gone before the adapter's

The letters are those of activations.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ops.attention import BLOCK
from ..quantization.four_bits import CHUNK
from .activations import TrainingStep
from .structure import Layer, Sublayer


def peak_candidates(step: TrainingStep) -> Iterator[tuple[int, int]]:
    """(floats held besides what is kept, gradients that are there by then), through forward and backward."""
    N, d, body = step.tokens, step.structure.hidden, step.structure
    head, prefix = body.head, body.prefix
    yield last_mlp_forward(step) - step.saved_by_head(), 0
    # the head's forward: its input, and what its adapter makes of the logits
    yield N * d * (not head.keeps_x) + forward_temporaries(head, N), 0
    gradients = head.gradients + d * body.norm_trained
    yield max(3 * N * d, backward_temporaries(head, N, True)) * body.trainable_below_the_head, gradients
    for sublayer, need_dx in reversed(body.sublayers()):
        if not (need_dx or sublayer.trainable):
            break
        gradients += (
            sum(layer.gradients for layer in (*sublayer.input_layers, sublayer.output_layer))
            + d * sublayer.norm_trained
        )
        gradients += 2 * prefix.v * prefix.kv if prefix and sublayer.prefix_trained else 0
        held = attention_peak if sublayer.is_attention else mlp_peak
        yield 2 * N * d + held(step, sublayer, need_dx), gradients
    if prefix and prefix.trained:  # what has come back to the layers, in one array and then in order, or an MLP's
        yield max(prefix.v * prefix.width, prefix.gradients), gradients
    if body.embedding_trained:  # dE becomes a gradient, or is added to the tied head's
        yield 2 * N * d + body.vocabulary * d, gradients


def last_mlp_forward(step: TrainingStep) -> int:
    """The last MLP's input, its f features and its output, where they are not kept: the most if only the head trains."""
    N, d, mlp = step.tokens, step.structure.hidden, step.structure.blocks[-1][-1]
    normed = N * d * (not any(layer.keeps_x for layer in mlp.input_layers))
    inner = N * mlp.output_layer.in_ * (not mlp.output_layer.keeps_x)
    return normed + inner + max(product_peak(mlp.output_layer, N * d), N * d + forward_temporaries(mlp.output_layer, N))


def mlp_peak(step: TrainingStep, sublayer: Sublayer, need_dx: bool) -> int:
    """The most of: dy through the layer that writes; dx of those that read, beside their dy; dx of the norm."""
    N, d, f = step.tokens, step.structure.hidden, sublayer.output_layer.in_
    if not (need_dx or sublayer.inner_trainable):
        return backward_temporaries(sublayer.output_layer, N, False)
    writes = backward_temporaries(sublayer.output_layer, N, True)
    inner = N * f + sum(N * layer.out for layer in sublayer.input_layers)  # dh, dgate, dup
    reads = max(
        need_dx * i * N * d + backward_temporaries(layer, N, need_dx) for i, layer in enumerate(sublayer.input_layers)
    )
    return max(writes, inner + reads, need_dx * 3 * N * d)


def attention_peak(step: TrainingStep, sublayer: Sublayer, need_dx: bool) -> int:
    """The same, and between them the scores and the rotation."""
    N, d, q, body = step.tokens, step.structure.hidden, sublayer.output_layer.in_, step.structure
    before = 2 * N * d
    if not (need_dx or sublayer.inner_trainable):
        return before + backward_temporaries(sublayer.output_layer, N, False)
    kv = body.kv_heads * body.head_dim
    writes = backward_temporaries(sublayer.output_layer, N, True)
    inner = 2 * N * q + 2 * step.batch * (body.virtual_tokens + step.seq) * kv  # do, dq, dk, dv
    rotation = max(2 * N * q, N * (q + 2 * kv))  # dq turned, in two buffers; then dk beside it
    reads = [
        N * layer.out + need_dx * i * N * d + backward_temporaries(layer, N, need_dx)
        for i, layer in enumerate(sublayer.input_layers)
    ]
    return before + max(writes, inner + max(scores_peak(step), rotation, *reads), need_dx * 2 * N * d)


def scores_peak(step: TrainingStep) -> int:
    """A block of queries in attention_backward: its dz beside that of the block before, or beside its share of dk."""
    body, largest, before = step.structure, 0, 0
    for start in range(0, step.seq, BLOCK):
        stop = min(start + BLOCK, step.seq)
        rows, seen = step.batch * body.heads * (stop - start), body.virtual_tokens + stop
        dz, queries = rows * seen, rows * body.head_dim  # its do is as large as its queries
        share = step.batch * body.kv_heads * seen * body.head_dim
        largest = max(largest, dz + queries + max(before, queries + share))
        before = dz
    return largest


def product_peak(layer: Layer, product: int) -> int:
    """While a product of so many floats is made with W.

    A quantised W is decoded first, a piece at a time through the piece's indices of 8 bytes.
    """
    W = layer.out * layer.in_ * layer.quantized
    return max(W + 2 * min(CHUNK, (W + 1) // 2), W + product)


def forward_temporaries(layer: Layer, N: int) -> int:
    """Beside y, while the layer's adapter does its part."""
    return layer.adapter.forward_temporaries(N, layer.out, layer.in_) if layer.adapter else 0


def backward_temporaries(layer: Layer, N: int, need_dx: bool) -> int:
    """The most beside dy in a layer's backward: dx, what it is made of, and what its adapter adds."""
    frozen = product_peak(layer, N * layer.in_) if need_dx else 0
    return layer.adapter.backward_temporaries(N, layer.out, layer.in_, need_dx, frozen) if layer.adapter else frozen


def update_peak(step: TrainingStep) -> int:
    """AdamW updates an array at a time, in two buffers of its size: the most for the largest that is trained."""
    body = step.structure
    sizes = [layer.largest_array for layer in body.layers()] + [body.prefix.largest_array if body.prefix else 0]
    return 2 * max(*sizes, body.vocabulary * body.hidden * body.embedding_trained)
