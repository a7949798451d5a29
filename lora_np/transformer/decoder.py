"""The Llama decoder: an embedding, blocks of attention and MLP with their norms, and a last norm.

    tokens → embedding → [ + attention(norm) → + MLP(norm) ] × layers → norm → hidden states

The backward pass runs through the layers in reverse order. The backward pass stops when no earlier layer is trainable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .. import ops
from ..backend import Array
from ..nn import Cache, Context, Embedding, Linear, Module, RMSNorm
from ..nn.norms import IDENTITY, Identity
from ..ops.attention import AttentionCache
from ..ops.norm import RMSNormCache
from ..ops.rotary import RotaryCache
from .cache import KeyValueCache, LayerCache
from .checkpointing import BlockInput, forward_and_forget

# Cache is the cache of a layer. The last entry of each tuple is the key/value cache if it has a trainable prefix.
SelfAttentionCache: TypeAlias = tuple[Cache, tuple[Any, Any], RotaryCache, AttentionCache, Cache, LayerCache | None]
MLPCache: TypeAlias = tuple[Cache, tuple[Array, Array], Cache]
BlockCache: TypeAlias = tuple[RMSNormCache, SelfAttentionCache, RMSNormCache, MLPCache, LayerCache | None]
# embedding; the BlockCache of each block, after a backward pass followed by USED; last norm; the key/value cache
DecoderCache: TypeAlias = tuple[Any, list[Any], RMSNormCache, KeyValueCache | None]

USED = "used"  # marks caches of blocks that a backward pass has overwritten

Past = TypeVar("Past", LayerCache, KeyValueCache)


class Attention(Module):
    """Grouped-query causal attention with rotary positions: three input projections and one output projection.

    `scores` contains keyword arguments of `ops.attention_forward`: a window, a soft cap or a scale, in families that
    need them.
    """

    def __init__(
        self,
        q_proj: Linear,
        k_proj: Linear,
        v_proj: Linear,
        o_proj: Linear,
        head_dim: int,
        q_norm: RMSNorm | Identity = IDENTITY,
        k_norm: RMSNorm | Identity = IDENTITY,
        scores: Mapping[str, Any] | None = None,
    ) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.head_dim, self.scores = head_dim, scores or {}

    def forward(
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, SelfAttentionCache]:
        """Compute y (b, t, d) from x (b, t, d). With `past`, the t tokens follow the cached tokens and are added to the cache."""
        (q, k, v), input_cache = self.project(x, context)
        # (b, t, h·d) → (b, h, t, d) and (b, t, g·d) → (b, g, t, d); most families have no q_norm and k_norm
        q, q_norm_cache = self.q_norm.forward(self.split_heads(q), context)
        k, k_norm_cache = self.k_norm.forward(self.split_heads(k), context)
        q, rotary_cache = ops.rotary_forward(q, *rotary)
        k, _ = ops.rotary_forward(k, *rotary)
        k, v = (k, self.split_heads(v)) if past is None else past.extend(k, self.split_heads(v))  # (b, g, s, d)
        o, attention_cache = ops.attention_forward(q, k, v, context.attention_mask, **self.scores)
        y, o_cache = self.o_proj.forward(self.join_heads(o), context)
        norm_caches = q_norm_cache, k_norm_cache
        return y, (input_cache, norm_caches, rotary_cache, attention_cache, o_cache, _trained(past))

    def backward(self, dy: Array, cache: SelfAttentionCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dy (b, t, d), or return None if no earlier layer needs dx."""
        input_cache, (q_norm_cache, k_norm_cache), rotary_cache, attention_cache, o_cache, past = cache
        inner = need_dx or self.inputs_trainable or self.q_norm.trainable or self.k_norm.trainable
        do = self.o_proj.backward(dy, o_cache, need_dx=inner or past is not None)
        if do is None:
            return None
        dq, dk, dv = ops.attention_backward(self.split_heads(do), attention_cache)
        if past is not None:
            past.add_grad(dk, dv)  # the prefix was never rotated, so its gradient is not rotated back
        if not inner:
            return None
        t = dy.shape[1]
        dk, dv = dk[:, :, -t:], dv[:, :, -t:]  # the tokens of this call; earlier tokens are constants
        dq, dk = ops.rotary_backward(dq, rotary_cache), ops.rotary_backward(dk, rotary_cache)
        below_norms = need_dx or self.inputs_trainable
        dq_proj = self.q_norm.backward(dq, q_norm_cache, below_norms)
        dk_proj = self.k_norm.backward(dk, k_norm_cache, below_norms)
        if dq_proj is None or dk_proj is None:
            return None
        return self.project_backward(dq_proj, dk_proj, dv, input_cache, need_dx)

    @property
    def inputs_trainable(self) -> bool:
        """True if an input projection has a trainable parameter."""
        return self.q_proj.trainable or self.k_proj.trainable or self.v_proj.trainable

    def project(self, x: Array, context: Context) -> tuple[tuple[Array, Array, Array], Cache]:
        """Compute q (b, t, h·d), k (b, t, g·d) and v (b, t, g·d) from x (b, t, d)."""
        q, q_cache = self.q_proj.forward(x, context)
        k, k_cache = self.k_proj.forward(x, context)
        v, v_cache = self.v_proj.forward(x, context)
        return (q, k, v), (q_cache, k_cache, v_cache)

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Cache, need_dx: bool) -> Array | None:
        """Compute dx (b, t, d) from dq (b, h, t, d) and dk, dv (b, g, t, d).

        In the forward pass x is the input of three projections, so dx is the sum of their gradients.
        """
        q_cache, k_cache, v_cache = cache
        dx = self.q_proj.backward(self.join_heads(dq), q_cache, need_dx)
        dx_k = self.k_proj.backward(self.join_heads(dk), k_cache, need_dx)
        dx_v = self.v_proj.backward(self.join_heads(dv), v_cache, need_dx)
        if dx is None or dx_k is None or dx_v is None:
            return None
        dx += dx_k
        dx += dx_v
        return dx

    def split_heads(self, x: Array) -> Array:
        """Split the features into heads: the shape changes from (b, t, n·d) to (b, n, t, d). Returns a view."""
        b, t, _ = x.shape
        return x.reshape(b, t, -1, self.head_dim).transpose(0, 2, 1, 3)

    def join_heads(self, x: Array) -> Array:
        """Join the heads: the shape changes from (b, n, t, d) to (b, t, n·d). This is the inverse of `split_heads`.

        The arrays of `ops.attention_forward` and `ops.attention_backward` are stored so that the result is a view.
        """
        b, n, t, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, t, n * d)


class Activation(NamedTuple):
    """The gated activation h = act(gate) ∘ up of an MLP."""

    forward: Callable[[Array, Array], tuple[Array, tuple[Array, Array]]]
    backward: Callable[[Array, tuple[Array, Array], bool], tuple[Array, Array]]  # the last argument: overwrite


SWIGLU = Activation(ops.swiglu_forward, ops.swiglu_backward)


class MLP(Module):
    """The gated MLP: y = down(act(gate(x)) ∘ up(x)). With the activation SiLU, this MLP is called SwiGLU."""

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear, activation: Activation = SWIGLU) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.activation = activation

    def forward(self, x: Array, context: Context) -> tuple[Array, MLPCache]:
        """Compute y (b, t, d) from x (b, t, d)."""
        (gate, up), input_cache = self.project(x, context)
        h, activation_cache = self.activation.forward(gate, up)
        y, down_cache = self.down_proj.forward(h, context)
        return y, (input_cache, activation_cache, down_cache)

    def backward(self, dy: Array, cache: MLPCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dy (b, t, d), or return None if no earlier layer needs dx. Overwrites gate and up."""
        input_cache, activation_cache, down_cache = cache
        dh = self.down_proj.backward(dy, down_cache, need_dx=need_dx or self.inputs_trainable)
        if dh is None:
            return None
        dgate, dup = self.activation.backward(dh, activation_cache, True)
        del dh  # before the products need memory
        return self.project_backward(dgate, dup, input_cache, need_dx)

    @property
    def inputs_trainable(self) -> bool:
        """True if an input projection has a trainable parameter."""
        return self.gate_proj.trainable or self.up_proj.trainable

    def project(self, x: Array, context: Context) -> tuple[tuple[Array, Array], Cache]:
        """Compute gate and up, both (b, t, f), from x (b, t, d)."""
        gate, gate_cache = self.gate_proj.forward(x, context)
        up, up_cache = self.up_proj.forward(x, context)
        return (gate, up), (gate_cache, up_cache)

    def project_backward(self, dgate: Array, dup: Array, cache: Cache, need_dx: bool) -> Array | None:
        """Compute dx (b, t, d), the sum of the gradients of the two projections."""
        gate_cache, up_cache = cache
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

    @property
    def sublayers(self) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
        """The attention and the MLP, each with the norm of its input and the norm of its output."""
        return (
            (self.input_layernorm, self.self_attn, IDENTITY),
            (self.post_attention_layernorm, self.mlp, IDENTITY),
        )


class Decoder(Module):
    """The module that computes hidden states from tokens: the embedding, the blocks and the last norm. Hugging Face
    calls this module `model`."""

    def __init__(self, embed_tokens: Embedding, layers: list[Block], norm: RMSNorm) -> None:
        self.embed_tokens, self.layers, self.norm = embed_tokens, layers, norm

    def forward(
        self,
        tokens: Array,
        positions: Array,
        rotary: list[tuple[Array, Array]],
        context: Context,
        past: KeyValueCache | None = None,
    ) -> tuple[Array, DecoderCache]:
        """Compute the hidden states x (b, t, d) of tokens (b, t) at positions (b or 1, t).

        `rotary` contains the cosines and sines of each layer.
        """
        x, embed_cache = self.embed(tokens, positions, context)
        block_caches: list[Any] = []
        for i, block in enumerate(self.layers):
            layer_past = None if past is None else past.layers[i]
            run: Any = partial(forward_and_forget, block) if context.gradient_checkpointing else block.forward
            x, cache = run(x, rotary[i], context, layer_past)
            block_caches.append(cache)
        x, norm_cache = self.norm.forward(x, context)
        return x, (embed_cache, block_caches, norm_cache, _trained(past))

    def reaches(self, cache: DecoderCache) -> bool:
        """Return True if the decoder needs a backward pass: a parameter is trainable, or the cache has a trainable prefix."""
        return self.trainable or cache[-1] is not None

    def backward(self, dx: Array, cache: DecoderCache) -> None:
        """Add the gradients of the trainable parameters, given the gradient dx (b, t, d) of the hidden states.

        The pass stops when no earlier layer is trainable. The blocks overwrite arrays of their caches.
        Raises RuntimeError if the cache was already used.
        """
        embed_cache, block_caches, norm_cache, past = cache
        if block_caches[-1:] == [USED]:
            raise RuntimeError("a cache allows only one backward pass; run the forward pass again")
        block_caches.append(USED)
        below = [self.embedding_trainable]  # below[i]: does a layer before block i need a gradient?
        for block in self.layers:
            below.append(below[-1] or block.trainable or past is not None)
        dz = self.norm.backward(dx, norm_cache, need_dx=below[-1])
        for i in reversed(range(len(self.layers))):
            if dz is None:
                return
            kept: Any = block_caches[i]
            if isinstance(kept, BlockInput):
                kept = kept.cache(self.layers[i])
            dz = self.layers[i].backward(dz, kept, need_dx=below[i])
            del kept  # before the cache of the next block is computed
        if dz is not None:
            self.embed_backward(dz, embed_cache)

    @property
    def embedding_trainable(self) -> bool:
        """True if the embedding is trainable."""
        return self.embed_tokens.trainable

    def embed(self, tokens: Array, positions: Array, context: Context) -> tuple[Array, Any]:
        """Compute x (b, t, d), the vectors of the tokens. Only GPT-2 uses the positions."""
        return self.embed_tokens.forward(tokens, context)

    def embed_backward(self, dx: Array, cache: Any) -> None:
        """Add the gradient of the embedding."""
        self.embed_tokens.backward(dx, cache)


def _trained(past: Past | None) -> Past | None:
    """Return the cache if it has a trainable prefix, else None."""
    return past if past is not None and past.trainable else None
