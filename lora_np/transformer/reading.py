"""Read tokens without a backward pass: the forward pass of the decoder, for generation.

The functions compute the same results as the `forward` methods of decoder.py and of the families. They keep no caches
for a backward pass, so the memory of a block is free before the next block runs. If each row has a single new token,
the shorter function `ops.attention_step` computes the attention.
"""

from __future__ import annotations

from .. import ops
from ..backend import Array, array_module
from ..nn import Context
from .cache import KeyValueCache, LayerCache
from .decoder import Attention, Decoder


def read(
    decoder: Decoder,
    tokens: Array,
    positions: Array,
    rotary: list[tuple[Array, Array]],
    context: Context,
    past: KeyValueCache,
) -> Array:
    """Return the hidden states x (b, t, d), the first result of `Decoder.forward` for the same arguments."""
    x, _ = decoder.embed(tokens, positions, context)
    for i, block in enumerate(decoder.layers):
        for norm, sublayer, norm_after in block.sublayers:
            y, _ = norm.forward(x, context)
            if isinstance(sublayer, Attention):
                y = attend(sublayer, y, rotary[i], context, past.layers[i])
            else:
                y, _ = sublayer.forward(y, context)
            y, _ = norm_after.forward(y, context)
            y += x  # the residual
            x = y
    return decoder.norm.forward(x, context)[0]


def attend(attention: Attention, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache) -> Array:
    """Return y (b, t, d), the first result of `Attention.forward` for the same arguments."""
    projected, _ = attention.project(x, context)
    q, k, v = map(attention.split_heads, projected)  # (b, h or g, t, d)
    q, _ = attention.q_norm.forward(q, context)
    k, _ = attention.k_norm.forward(k, context)
    h = q.shape[1]
    rotated, _ = ops.rotary_forward(array_module(q).concatenate([q, k], axis=1), *rotary)  # one call for q and k
    k, v = past.extend(rotated[:, h:], v)  # (b, g, s, d)
    if x.shape[1] == 1:
        o = ops.attention_step(rotated[:, :h], k, v, context.attention_mask, **attention.scores)
    else:
        o, _ = ops.attention_forward(rotated[:, :h], k, v, context.attention_mask, **attention.scores)
    return attention.o_proj.forward(attention.join_heads(o), context)[0]
