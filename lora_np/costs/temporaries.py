"""The temporary arrays of a training step, in floats.

All arrays are temporary except the weights, the gradients, the optimizer state and the saved activations.

Two arrays of N·d floats exist during the whole backward pass. The first array is the gradient that the output head
returned; if the loss is computed in blocks of rows, this gradient counts as a saved activation instead. The second
array is the gradient that each block passes down to the block below. The other temporary arrays are:

    the MLP            dh of N·f, which is freed before two dx of N·d are computed and added
    attention          dx of the MLP and of its norm, 2·N·d; do, dq, dk, dv; and the largest of
                       a block of scores and its gradients, the rotated gradients, three dx of N·d
    an adapter         one more dx, until it is added to the frozen path's dx, and AdapterCost.backward_temporaries
    a prefix           its gradient, first per layer and then in one array
    a quantised W      the decoded W, next to the dx that is computed with it; it is freed before the adapter's products

The letters have the same meaning as in activations.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ops.attention import BLOCK
from ..ops.parts import rows_at_once
from ..quantization.four_bits import CHUNK
from .activations import TrainingStep
from .structure import Layer, Sublayer


def peak_candidates(step: TrainingStep, checkpointing: bool = False) -> Iterator[tuple[int, int]]:
    """Yield the numbers of temporary floats and of gradient floats, for each point where the memory can be largest."""
    N, d, structure = step.tokens, step.structure.hidden, step.structure
    head, prefix = structure.head, structure.prefix
    yield last_mlp_forward(step) - step.saved_by_head(), 0
    gradients, reaches = head.gradients, structure.trainable_below_the_head
    if step.rows_of_logits < N:
        # one block: its logits, with a soft cap three times, and its dx; the input of the head
        n = step.rows_of_logits
        yield N * d + n * structure.vocabulary * (1 + 2 * structure.capped_logits) + n * d * reaches, 0
        held = N * d  # the head's dx is among the saved floats
    else:
        capped = N * structure.vocabulary * structure.capped_logits  # logits without the cap, or their gradient
        # the head's forward pass: its input, and the temporaries of its adapter
        yield N * d * (not head.keeps_x) + forward_temporaries(head, N) + capped, 0
        yield capped + backward_temporaries(head, N, True) * reaches, gradients
        held = 2 * N * d
    gradients += d * structure.norm_trained
    yield (held + N * d) * reaches, gradients
    for i, (sublayer, need_dx) in reversed(list(enumerate(structure.sublayers()))):
        if not (need_dx or sublayer.trainable):
            break
        layers = (*sublayer.input_layers, sublayer.output_layer)
        gradients += sum(layer.gradients for layer in layers) + d * sublayer.norm_trained
        gradients += 2 * prefix.v * prefix.kv if prefix and sublayer.prefix_trained else 0
        peak = attention_peak if sublayer.is_attention else mlp_peak
        recomputed = step.saved_by_block(structure.blocks[i // 2]) * checkpointing
        yield held + recomputed + peak(step, sublayer, need_dx), gradients
    if (
        prefix and prefix.trained
    ):  # the layers' gradients in one array, and then its reordered copy or the MLP's gradients
        yield max(prefix.v * prefix.width, prefix.gradients), gradients
    if structure.embedding_trained:  # dE becomes the gradient, or is added to the gradient of the tied head
        yield held + structure.vocabulary * d, gradients


def last_mlp_forward(step: TrainingStep) -> int:
    """Return the number of floats that the last MLP's forward pass allocates and does not save.

    If only the output head is trained, the step needs the most memory during this forward pass.
    """
    N, d, mlp = step.tokens, step.structure.hidden, step.structure.blocks[-1][-1]
    normed = N * d * (not any(layer.keeps_x for layer in mlp.input_layers))
    inner = N * mlp.output_layer.in_ * (not mlp.output_layer.keeps_x)
    output = max(product_peak(mlp.output_layer, N * d), N * d + forward_temporaries(mlp.output_layer, N))
    return normed + inner + output


def mlp_peak(step: TrainingStep, sublayer: Sublayer, need_dx: bool) -> int:
    """Return the largest number of temporary floats during the backward pass of an MLP."""
    N, d, f = step.tokens, step.structure.hidden, sublayer.output_layer.in_
    if not (need_dx or sublayer.inner_trainable):
        return backward_temporaries(sublayer.output_layer, N, False)
    output = backward_temporaries(sublayer.output_layer, N, True)
    layers = enumerate(sublayer.input_layers)
    inputs = max(need_dx * i * N * d + backward_temporaries(layer, N, need_dx) for i, layer in layers)
    if sum(layer.out for layer in sublayer.input_layers) == f:  # without a gate: dh and du
        return max(output, 2 * N * f + inputs, need_dx * 3 * N * d)
    few = rows_at_once(f, arrays=5)
    rows = N if few >= N else min(few, step.seq)
    activation = N * f + 2 * rows * f  # dh, and σ and its slope for a few rows; dgate and dup overwrite gate and up
    return max(output, activation, inputs, need_dx * 3 * N * d)


def attention_peak(step: TrainingStep, sublayer: Sublayer, need_dx: bool) -> int:
    """Return the largest number of temporary floats during the backward pass of an attention."""
    N, d, q, structure = step.tokens, step.structure.hidden, sublayer.output_layer.in_, step.structure
    held = 2 * N * d  # dx of the MLP and of its norm
    if not (need_dx or sublayer.inner_trainable):
        return held + backward_temporaries(sublayer.output_layer, N, False)
    kv = structure.kv_heads * structure.head_dim
    output = backward_temporaries(sublayer.output_layer, N, True)
    inner = 2 * N * q + 2 * step.batch * (structure.virtual_tokens + step.seq) * kv  # do, dq, dk, dv
    rotation = max(2 * N * q, N * (q + 2 * kv))  # dq is rotated in two buffers; then dk is rotated
    inputs = [
        N * layer.out + need_dx * i * N * d + backward_temporaries(layer, N, need_dx)
        for i, layer in enumerate(sublayer.input_layers)
    ]
    return held + max(output, inner + max(scores_peak(step, sublayer), rotation, *inputs), need_dx * 2 * N * d)


def scores_peak(step: TrainingStep, sublayer: Sublayer) -> int:
    """Return the largest number of temporary floats in `attention_backward`, over its blocks of queries.

    dz is the gradient of a block's scores. Besides dz of the current block, one of two arrays is in memory: dz of the
    previous block, or the current block's part of dk.
    """
    structure, largest, previous = step.structure, 0, 0
    for start in range(0, step.seq, BLOCK):
        stop = min(start + BLOCK, step.seq)
        first = 0 if sublayer.window is None else max(0, structure.virtual_tokens + start + 1 - sublayer.window)
        rows, keys = step.batch * structure.heads * (stop - start), structure.virtual_tokens + stop - first
        dz, queries = rows * keys, rows * structure.head_dim  # the block's do has the size of its queries
        dk = step.batch * structure.kv_heads * keys * structure.head_dim
        largest = max(largest, dz + queries + max(previous, queries + dk, dz * sublayer.softcapped))
        previous = dz
    return largest


def product_peak(layer: Layer, product: int) -> int:
    """Return the largest number of temporary floats in a product with W; the result has `product` floats.

    A quantised W is decoded first, in chunks. For each byte of codes, decoding a chunk allocates an index of 8 bytes,
    which is the size of two floats.
    """
    W = layer.out * layer.in_ * layer.quantized
    return max(W + 2 * min(CHUNK, (W + 1) // 2), W + product)


def forward_temporaries(layer: Layer, N: int) -> int:
    """Return the number of temporary floats of the layer's adapter in the forward pass; 0 without an adapter."""
    return layer.adapter.forward_temporaries(N, layer.out, layer.in_) if layer.adapter else 0


def backward_temporaries(layer: Layer, N: int, need_dx: bool) -> int:
    """Return the largest number of temporary floats in the backward pass of a layer; dy is not counted."""
    frozen = product_peak(layer, N * layer.in_) if need_dx else 0
    return layer.adapter.backward_temporaries(N, layer.out, layer.in_, need_dx, frozen) if layer.adapter else frozen


def update_peak(step: TrainingStep) -> int:
    """Return the number of temporary floats of AdamW: two buffers of the size of the largest trained array."""
    structure = step.structure
    sizes = [layer.largest_array for layer in structure.layers()]
    sizes += [structure.prefix.largest_array if structure.prefix else 0]
    return 2 * max(*sizes, structure.vocabulary * structure.hidden * structure.embedding_trained)
