"""Gemma 2 and 3: embeddings multiplied by √d, a norm also after each sublayer, and a soft cap of the logits.

The model computes

    x = √d · E[tokens],    y = x + norm(attention(norm(x))),    z = y + norm(MLP(norm(y))),    logits = c·tanh(head(z)/c)
"""

from __future__ import annotations

from typing import TypeAlias

from .. import ops
from ..backend import Array
from ..nn import Cache, Context, Embedding, Linear, RMSNorm
from ..nn.context import EVALUATION
from ..ops.embedding import EmbeddingCache
from ..ops.norm import RMSNormCache
from .cache import LayerCache
from .decoder import MLP, Attention, Block, MLPCache, SelfAttentionCache

GemmaCache: TypeAlias = tuple[
    tuple[RMSNormCache, SelfAttentionCache, RMSNormCache], tuple[RMSNormCache, MLPCache, RMSNormCache], bool
]


class ScaledEmbedding(Embedding):
    """An embedding whose vectors are multiplied by √d. A tied output head uses the table without this factor."""

    @property
    def scale(self) -> float:
        """√d."""
        return self.weight.value.shape[1] ** 0.5

    def forward(self, ids: Array, context: Context = EVALUATION) -> tuple[Array, EmbeddingCache]:
        """Look up the vectors of token ids and multiply them by √d."""
        y, cache = super().forward(ids, context)
        y *= self.scale
        return y, cache

    def backward(self, dy: Array, cache: EmbeddingCache, need_dx: bool = False) -> None:
        """Add the gradient of the table. In the forward pass y = √d · E[ids], so the gradient of E[ids] is √d · dy."""
        super().backward(dy * self.scale, cache, need_dx)


class GemmaBlock(Block):
    """One block with four norms: y = x + norm(attention(norm(x))), then z = y + norm(MLP(norm(y)))."""

    def __init__(
        self,
        input_layernorm: RMSNorm,
        self_attn: Attention,
        post_attention_layernorm: RMSNorm,
        pre_feedforward_layernorm: RMSNorm,
        mlp: MLP,
        post_feedforward_layernorm: RMSNorm,
    ) -> None:
        self.input_layernorm, self.self_attn = input_layernorm, self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.pre_feedforward_layernorm, self.mlp = pre_feedforward_layernorm, mlp
        self.post_feedforward_layernorm = post_feedforward_layernorm

    def forward(  # type: ignore[override]  # its cache has four norms
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, GemmaCache]:
        """Compute z (b, t, d) from x (b, t, d)."""
        normed, norm1_cache = self.input_layernorm.forward(x, context)
        a, attention_cache = self.self_attn.forward(normed, rotary, context, past)
        y, norm2_cache = self.post_attention_layernorm.forward(a, context)
        y += x
        normed, norm3_cache = self.pre_feedforward_layernorm.forward(y, context)
        m, mlp_cache = self.mlp.forward(normed, context)
        z, norm4_cache = self.post_feedforward_layernorm.forward(m, context)
        z += y
        prefix = past is not None and past.trainable
        return z, ((norm1_cache, attention_cache, norm2_cache), (norm3_cache, mlp_cache, norm4_cache), prefix)

    def backward(self, dz: Array, cache: GemmaCache, need_dx: bool = True) -> Array | None:  # type: ignore[override]
        """Compute dx (b, t, d) from dz (b, t, d), or return None if no earlier layer needs dx. Overwrites dz."""
        (norm1_cache, attention_cache, norm2_cache), (norm3_cache, mlp_cache, norm4_cache), prefix = cache
        below_attention = need_dx or self.input_layernorm.trainable
        below_norm2 = below_attention or self.self_attn.trainable or prefix
        below_norm3 = below_norm2 or self.post_attention_layernorm.trainable
        below_mlp = below_norm3 or self.pre_feedforward_layernorm.trainable
        # forward: z = y + norm(mlp(norm(y))), so dy = dz + the gradient through the two norms and the MLP
        dm = self.post_feedforward_layernorm.backward(dz, norm4_cache, need_dx=below_mlp or self.mlp.trainable)
        dnormed = None if dm is None else self.mlp.backward(dm, mlp_cache, need_dx=below_mlp)
        if dnormed is None:
            return None
        dy = self.pre_feedforward_layernorm.backward(dnormed, norm3_cache, need_dx=below_norm3)
        if dy is None:
            return None
        dy += dz
        # forward: y = x + norm(attention(norm(x)))
        da = self.post_attention_layernorm.backward(dy, norm2_cache, need_dx=below_norm2)
        dnormed = None if da is None else self.self_attn.backward(da, attention_cache, need_dx=below_attention)
        if dnormed is None:
            return None
        dx = self.input_layernorm.backward(dnormed, norm1_cache, need_dx)
        if dx is None:
            return None
        dx += dy
        return dx

    @property
    def sublayers(self) -> tuple[tuple[RMSNorm, Attention, RMSNorm], tuple[RMSNorm, MLP, RMSNorm]]:
        """The attention and the MLP, each with the norm of its input and the norm of its output."""
        return (
            (self.input_layernorm, self.self_attn, self.post_attention_layernorm),
            (self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm),
        )


class SoftcappedHead:
    """An output head whose logits z become c·tanh(z/c). It has the interface of Linear and adds no parameters."""

    def __init__(self, head: Linear, cap: float) -> None:
        self.head, self.cap = head, cap

    @property
    def out_features(self) -> int:
        """The number of tokens in the vocabulary."""
        return self.head.out_features

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Cache]:
        """Compute the logits (…, v) of x (…, d)."""
        z, head_cache = self.head.forward(x, context)
        y, softcap_cache = ops.softcap_forward(z, self.cap)
        return y, (head_cache, softcap_cache)

    def backward(self, dy: Array, cache: Cache, need_dx: bool = True) -> Array | None:
        """Compute dx (…, d) from the gradient of the logits (…, v), or return None if no earlier layer needs dx."""
        head_cache, softcap_cache = cache
        return self.head.backward(ops.softcap_backward(dy, softcap_cache), head_cache, need_dx)
