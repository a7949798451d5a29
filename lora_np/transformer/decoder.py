"""The Llama decoder: an embedding, blocks of attention and MLP with their norms, and a last norm.

    tokens → embedding → [ + attention(norm) → + MLP(norm) ] × layers → norm → hidden states

The backward pass runs through the layers in reverse order. The backward pass stops when no earlier layer is trainable.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from .. import ops
from ..backend import Array
from ..nn import Cache, Context, Embedding, Linear, Module, RMSNorm
from ..ops.activation import SwigluCache
from ..ops.attention import AttentionCache
from ..ops.embedding import EmbeddingCache
from ..ops.norm import RMSNormCache
from ..ops.rotary import RotaryCache
from .cache import KeyValueCache, LayerCache

# Cache is the cache of one projection. The last entry of each tuple is the key/value cache if it has a trainable prefix.
SelfAttentionCache: TypeAlias = tuple[Cache, Cache, Cache, RotaryCache, AttentionCache, Cache, LayerCache | None]
MLPCache: TypeAlias = tuple[Cache, Cache, SwigluCache, Cache]
BlockCache: TypeAlias = tuple[RMSNormCache, SelfAttentionCache, RMSNormCache, MLPCache, LayerCache | None]
DecoderCache: TypeAlias = tuple[EmbeddingCache, list[BlockCache], RMSNormCache, KeyValueCache | None]

Past = TypeVar("Past", LayerCache, KeyValueCache)


class Attention(Module):
    """Grouped-query causal attention with rotary positions: three input projections and one output projection."""

    def __init__(self, q_proj: Linear, k_proj: Linear, v_proj: Linear, o_proj: Linear, head_dim: int) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim = head_dim

    def forward(
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, SelfAttentionCache]:
        """Compute y (b, t, d) from x (b, t, d). With `past`, the t tokens follow the cached tokens and are added to the cache."""
        b, t, _ = x.shape
        q, q_cache = self.q_proj.forward(x, context)
        k, k_cache = self.k_proj.forward(x, context)
        v, v_cache = self.v_proj.forward(x, context)
        q, rotary_cache = ops.rotary_forward(self._heads(q), *rotary)  # (b, t, h·d) → (b, h, t, d)
        k, _ = ops.rotary_forward(self._heads(k), *rotary)  # (b, t, g·d) → (b, g, t, d)
        k, v = (k, self._heads(v)) if past is None else past.extend(k, self._heads(v))  # (b, g, s, d)
        o, attention_cache = ops.attention_forward(q, k, v, context.attention_mask)
        o = o.transpose(0, 2, 1, 3).reshape(b, t, -1)  # (b, h, t, d) → (b, t, h·d)
        y, o_cache = self.o_proj.forward(o, context)
        return y, (q_cache, k_cache, v_cache, rotary_cache, attention_cache, o_cache, _trained(past))

    def backward(self, dy: Array, cache: SelfAttentionCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dy (b, t, d), or return None if no earlier layer needs dx."""
        q_cache, k_cache, v_cache, rotary_cache, attention_cache, o_cache, past = cache
        inner = need_dx or self.q_proj.trainable or self.k_proj.trainable or self.v_proj.trainable
        do = self.o_proj.backward(dy, o_cache, need_dx=inner or past is not None)
        if do is None:
            return None
        dq, dk, dv = ops.attention_backward(self._heads(do), attention_cache)
        if past is not None:
            past.add_grad(dk, dv)  # the prefix was never rotated, so its gradient is not rotated back
        if not inner:
            return None
        t = dy.shape[1]
        dk, dv = dk[:, :, -t:], dv[:, :, -t:]  # the tokens of this call; earlier tokens are constants
        dq, dk = ops.rotary_backward(dq, rotary_cache), ops.rotary_backward(dk, rotary_cache)
        # In the forward pass x is the input of three projections, so its gradient is the sum of their three gradients.
        dx = self.q_proj.backward(self._rows(dq), q_cache, need_dx)
        dx_k = self.k_proj.backward(self._rows(dk), k_cache, need_dx)
        dx_v = self.v_proj.backward(self._rows(dv), v_cache, need_dx)
        if dx is None or dx_k is None or dx_v is None:
            return None
        dx += dx_k
        dx += dx_v
        return dx

    def _heads(self, x: Array) -> Array:
        """Split the features into heads: the shape changes from (b, t, n·d) to (b, n, t, d). Returns a view."""
        b, t, _ = x.shape
        return x.reshape(b, t, -1, self.head_dim).transpose(0, 2, 1, 3)

    def _rows(self, x: Array) -> Array:
        """Join the heads: the shape changes from (b, n, t, d) to (b, t, n·d). The inverse of `_heads`."""
        b, n, t, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, t, n * d)


class MLP(Module):
    """The SwiGLU MLP: y = down(silu(gate(x)) ∘ up(x))."""

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Array, context: Context) -> tuple[Array, MLPCache]:
        """Compute y (b, t, d) from x (b, t, d)."""
        gate, gate_cache = self.gate_proj.forward(x, context)
        up, up_cache = self.up_proj.forward(x, context)
        h, swiglu_cache = ops.swiglu_forward(gate, up)
        y, down_cache = self.down_proj.forward(h, context)
        return y, (gate_cache, up_cache, swiglu_cache, down_cache)

    def backward(self, dy: Array, cache: MLPCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dy (b, t, d), or return None if no earlier layer needs dx."""
        gate_cache, up_cache, swiglu_cache, down_cache = cache
        inner = need_dx or self.gate_proj.trainable or self.up_proj.trainable
        dh = self.down_proj.backward(dy, down_cache, need_dx=inner)
        if dh is None:
            return None
        dgate, dup = ops.swiglu_backward(dh, swiglu_cache)
        dx = self.gate_proj.backward(dgate, gate_cache, need_dx)
        dx_up = self.up_proj.backward(dup, up_cache, need_dx)
        if dx is None or dx_up is None:
            return None
        dx += dx_up
        return dx


class Block(Module):
    """One decoder block: y = x + attention(norm(x)), then z = y + MLP(norm(y))."""

    def __init__(
        self, input_layernorm: RMSNorm, self_attn: Attention, post_attention_layernorm: RMSNorm, mlp: MLP
    ) -> None:
        self.input_layernorm, self.self_attn = input_layernorm, self_attn
        self.post_attention_layernorm, self.mlp = post_attention_layernorm, mlp

    def forward(
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, BlockCache]:
        """Compute z (b, t, d) from x (b, t, d)."""
        normed, norm1_cache = self.input_layernorm.forward(x, context)
        y, attention_cache = self.self_attn.forward(normed, rotary, context, past)
        y += x  # the residual, added in place to y; x must not change, because the norm's cache holds it
        normed, norm2_cache = self.post_attention_layernorm.forward(y, context)
        z, mlp_cache = self.mlp.forward(normed, context)
        z += y
        return z, (norm1_cache, attention_cache, norm2_cache, mlp_cache, _trained(past))

    def backward(self, dz: Array, cache: BlockCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dz (b, t, d), or return None if no earlier layer needs dx. Overwrites dz."""
        norm1_cache, attention_cache, norm2_cache, mlp_cache, past = cache
        below_mlp = need_dx or self.self_attn.trainable or self.input_layernorm.trainable
        below_mlp = below_mlp or past is not None
        below_norm2 = below_mlp or self.post_attention_layernorm.trainable
        # forward: z = y + mlp(norm(y)), so dy = dz + the gradient through the MLP
        dy = dz
        dnormed = self.mlp.backward(dz, mlp_cache, need_dx=below_norm2)
        if dnormed is None:
            return None
        dy_mlp = self.post_attention_layernorm.backward(dnormed, norm2_cache, need_dx=below_mlp)
        if dy_mlp is None:
            return None
        dy += dy_mlp
        # forward: y = x + attention(norm(x)), so dx = dy + the gradient through attention
        dx = dy
        below_norm1 = need_dx or self.input_layernorm.trainable
        dnormed = self.self_attn.backward(dy, attention_cache, need_dx=below_norm1)
        if dnormed is None:
            return None
        dx_attention = self.input_layernorm.backward(dnormed, norm1_cache, need_dx)
        if dx_attention is None:
            return None
        dx += dx_attention
        return dx


class Decoder(Module):
    """The module that computes hidden states from tokens: the embedding, the blocks and the last norm. Hugging Face
    calls this module `model`."""

    def __init__(self, embed_tokens: Embedding, layers: list[Block], norm: RMSNorm) -> None:
        self.embed_tokens, self.layers, self.norm = embed_tokens, layers, norm

    def forward(
        self, tokens: Array, rotary: tuple[Array, Array], context: Context, past: KeyValueCache | None = None
    ) -> tuple[Array, DecoderCache]:
        """Compute the hidden states x (b, t, d) of tokens (b, t)."""
        x, embed_cache = self.embed_tokens.forward(tokens, context)
        block_caches = []
        for i, block in enumerate(self.layers):
            x, cache = block.forward(x, rotary, context, None if past is None else past.layers[i])
            block_caches.append(cache)
        x, norm_cache = self.norm.forward(x, context)
        return x, (embed_cache, block_caches, norm_cache, _trained(past))

    def reaches(self, cache: DecoderCache) -> bool:
        """Return True if the decoder needs a backward pass: a parameter is trainable, or the cache has a trainable prefix."""
        return self.trainable or cache[-1] is not None

    def backward(self, dx: Array, cache: DecoderCache) -> None:
        """Add the gradients of the trainable parameters, given the gradient dx (b, t, d) of the hidden states.

        The pass stops when no earlier layer is trainable.
        """
        embed_cache, block_caches, norm_cache, past = cache
        below = [self.embed_tokens.trainable]  # below[i]: does a layer before block i need a gradient?
        for block in self.layers:
            below.append(below[-1] or block.trainable or past is not None)
        dz = self.norm.backward(dx, norm_cache, need_dx=below[-1])
        for i in reversed(range(len(self.layers))):
            if dz is None:
                return
            dz = self.layers[i].backward(dz, block_caches[i], need_dx=below[i])
        if dz is not None:
            self.embed_tokens.backward(dz, embed_cache)


def _trained(past: Past | None) -> Past | None:
    """Return the cache if it has a trainable prefix, else None."""
    return past if past is not None and past.trainable else None
