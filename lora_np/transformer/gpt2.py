"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, an MLP without a gate, and Hugging Face's module names.

The classes below compute the same functions as the classes of the other families. An `Alias` gives a module the name that it has in
GPT-2, so that `transformer.h.0.attn.c_attn` selects the same layer here, in transformers and in PEFT.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from .. import ops
from ..backend import Array
from ..nn import Cache, Context, Embedding, Linear, Module
from ..nn.norms import LayerNorm
from ..ops.activation import GeluCache
from ..ops.embedding import EmbeddingCache
from .decoder import Block, Decoder
from .fused import FusedAttention

GPT2MLPCache: TypeAlias = tuple[Cache, GeluCache, Cache]


class Alias:
    """An attribute with another name: `norm = Alias("ln_f")` reads and writes the attribute `ln_f`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else getattr(owner, self.name)

    def __set__(self, owner: Any, value: Any) -> None:
        setattr(owner, self.name, value)


class GPT2Attention(FusedAttention):
    """Attention with the names `c_attn` for q, k and v, and `c_proj` for o."""

    qkv_proj, o_proj = Alias("c_attn"), Alias("c_proj")


class GPT2MLP(Module):
    """The MLP without a gate: y = c_proj(gelu(c_fc(x)))."""

    def __init__(self, c_fc: Linear, c_proj: Linear) -> None:
        self.c_fc, self.c_proj = c_fc, c_proj

    def forward(self, x: Array, context: Context) -> tuple[Array, GPT2MLPCache]:
        """Compute y (b, t, d) from x (b, t, d)."""
        u, fc_cache = self.c_fc.forward(x, context)
        h, gelu_cache = ops.gelu_forward(u)
        y, proj_cache = self.c_proj.forward(h, context)
        return y, (fc_cache, gelu_cache, proj_cache)

    def backward(self, dy: Array, cache: GPT2MLPCache, need_dx: bool = True) -> Array | None:
        """Compute dx (b, t, d) from dy (b, t, d), or return None if no earlier layer needs dx."""
        fc_cache, gelu_cache, proj_cache = cache
        dh = self.c_proj.backward(dy, proj_cache, need_dx=need_dx or self.c_fc.trainable)
        if dh is None:
            return None
        return self.c_fc.backward(ops.gelu_backward(dh, gelu_cache), fc_cache, need_dx)


class GPT2Block(Block):
    """One block with the names `ln_1`, `attn`, `ln_2` and `mlp`."""

    input_layernorm, self_attn, post_attention_layernorm = Alias("ln_1"), Alias("attn"), Alias("ln_2")


class GPT2Decoder(Decoder):
    """The embeddings `wte` of tokens and `wpe` of positions, the blocks `h`, and the last norm `ln_f`."""

    embed_tokens, layers, norm = Alias("wte"), Alias("h"), Alias("ln_f")

    def __init__(self, wte: Embedding, wpe: Embedding, h: list[Block], ln_f: LayerNorm) -> None:
        self.wte, self.wpe, self.h, self.ln_f = wte, wpe, h, ln_f

    @property
    def embedding_trainable(self) -> bool:
        """True if one of the two embeddings is trainable."""
        return self.wte.trainable or self.wpe.trainable

    def embed(self, tokens: Array, positions: Array, context: Context) -> tuple[Array, Any]:
        """Compute x (b, t, d), the sum of the vectors of the tokens and of their positions."""
        x, token_cache = self.wte.forward(tokens, context)
        p, position_cache = self.wpe.forward(positions, context)  # (b or 1, t, d)
        x += p
        return x, (token_cache, position_cache, len(p))

    def embed_backward(self, dx: Array, cache: tuple[EmbeddingCache, EmbeddingCache, int]) -> None:
        """Add the gradients of both tables.

        If all rows of the batch share the position vectors, the gradient of a position vector is the sum over the rows.
        """
        token_cache, position_cache, rows = cache
        self.wte.backward(dx, token_cache)
        self.wpe.backward(dx.sum(axis=0, keepdims=True) if rows < len(dx) else dx, position_cache)
