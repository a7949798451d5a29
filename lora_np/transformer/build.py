"""Build the modules of a model from its configuration. The family decides which modules are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import ops
from ..backend import Array
from ..nn import Embedding, Linear, RMSNorm
from ..nn.norms import IDENTITY, GemmaRMSNorm, LayerNorm
from .config import SLIDING, TransformerConfig
from .decoder import MLP, SWIGLU, Activation, Attention, Block, Decoder
from .fused import FusedAttention, FusedMLP
from .gemma import GemmaBlock, ScaledEmbedding
from .gpt2 import GPT2MLP, GPT2Attention, GPT2Block, GPT2Decoder

GEGLU = Activation(ops.geglu_forward, ops.geglu_backward)


class Builder:
    """Builds the modules of one model.

    `matrix(out, in, writes)` makes a weight. `writes` is True for a layer that adds to the residual stream.
    `vector(n, value)` makes a vector of n equal numbers.
    """

    def __init__(
        self,
        config: TransformerConfig,
        matrix: Callable[[int, int, bool], Array],
        vector: Callable[[int, float], Array],
    ) -> None:
        self.config, self.family, self.matrix, self.vector = config, config.family, matrix, vector

    def linear(self, out: int, in_: int, bias: bool = False, writes: bool = False) -> Linear:
        """Return a linear layer, with a bias of zeros if `bias` is True."""
        return Linear(self.matrix(out, in_, writes), self.vector(out, 0) if bias else None)

    def norm(self, width: int) -> Any:
        """Return a norm over `width` features."""
        if self.family.gpt2:
            return LayerNorm(self.vector(width, 1), self.vector(width, 0), self.config.rms_norm_eps)
        if self.family.gemma:
            return GemmaRMSNorm(self.vector(width, 0), self.config.rms_norm_eps)
        return RMSNorm(self.vector(width, 1), self.config.rms_norm_eps)

    def attention(self, kind: str) -> Attention:
        """Return the attention of one layer; `kind` is an entry of `config.kinds`."""
        config, family, d = self.config, self.family, self.config.hidden_size
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        bias = config.attention_bias or family.qkv_bias
        scores: dict[str, float | None] = {"window": config.sliding_window} if kind == SLIDING else {}
        if config.attn_logit_softcapping is not None:
            scores["softcap"] = config.attn_logit_softcapping
        if config.query_pre_attn_scalar is not None:
            scores["scale"] = config.query_pre_attn_scalar**-0.5
        if family.gpt2:
            return GPT2Attention(self.linear(3 * d, d, True), self.linear(d, d, True, writes=True), config.head_dim)
        if family.fused:
            qkv_proj, o_proj = self.linear(q + 2 * kv, d, bias), self.linear(d, q, bias, writes=True)
            return FusedAttention(qkv_proj, o_proj, config.head_dim, scores)
        q_proj, k_proj, v_proj = (self.linear(out, d, bias) for out in (q, kv, kv))
        o_proj = self.linear(d, q, config.attention_bias, writes=True)
        q_norm, k_norm = (self.norm(config.head_dim) if family.qk_norm else IDENTITY for _ in "qk")
        return Attention(q_proj, k_proj, v_proj, o_proj, config.head_dim, q_norm, k_norm, scores)

    def mlp(self) -> Any:
        """Return the MLP of one layer."""
        d, f, bias = self.config.hidden_size, self.config.intermediate_size, self.config.mlp_bias
        if self.family.gpt2:
            return GPT2MLP(self.linear(f, d, True), self.linear(d, f, True, writes=True))
        gated = SWIGLU if self.config.hidden_act == "silu" else GEGLU
        if self.family.fused:
            return FusedMLP(self.linear(2 * f, d, bias), self.linear(d, f, bias, writes=True), gated)
        return MLP(self.linear(f, d, bias), self.linear(f, d, bias), self.linear(d, f, bias, writes=True), gated)

    def block(self, kind: str) -> Block:
        """Return one block."""
        d = self.config.hidden_size
        if self.family.gemma:
            return GemmaBlock(self.norm(d), self.attention(kind), self.norm(d), self.norm(d), self.mlp(), self.norm(d))
        kind_of_block = GPT2Block if self.family.gpt2 else Block
        return kind_of_block(self.norm(d), self.attention(kind), self.norm(d), self.mlp())

    def decoder(self) -> Decoder:
        """Return the embedding, the blocks and the last norm. It calls `matrix` in the order of the model's weights."""
        config, d = self.config, self.config.hidden_size
        tokens = (ScaledEmbedding if self.family.gemma else Embedding)(self.matrix(config.vocab_size, d, False))
        if self.family.gpt2:
            positions = Embedding(self.matrix(config.max_position_embeddings, d, False))
            return GPT2Decoder(tokens, positions, [self.block(kind) for kind in config.kinds], self.norm(d))
        return Decoder(tokens, [self.block(kind) for kind in config.kinds], self.norm(d))

    def head(self) -> Linear | None:
        """Return the output head, or None if the embedding is also the head."""
        config = self.config
        return None if config.tie_word_embeddings else self.linear(config.vocab_size, config.hidden_size)
