"""Fused input projections (Phi-3, GPT-2): one matrix computes q, k and v, and one matrix computes gate and up.

The fused layers have the names of Hugging Face, so that `target_modules` selects the same matrices here and in PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backend import Array, array_module
from ..nn import Cache, Context, Linear
from ..nn.norms import IDENTITY
from .decoder import MLP, SWIGLU, Activation, Attention


class FusedAttention(Attention):
    """Attention with one input projection, whose output is q, k and v, one after the other."""

    def __init__(
        self, qkv_proj: Linear, o_proj: Linear, head_dim: int, scores: Mapping[str, Any] | None = None
    ) -> None:
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.q_norm = self.k_norm = IDENTITY
        self.head_dim, self.scores = head_dim, scores or {}

    @property
    def inputs_trainable(self) -> bool:
        """True if the input projection has a trainable parameter."""
        return self.qkv_proj.trainable

    def project(self, x: Array, context: Context) -> tuple[tuple[Array, Array, Array], Cache]:
        """Compute q (b, t, h·d), k (b, t, g·d) and v (b, t, g·d) from x (b, t, d)."""
        qkv, cache = self.qkv_proj.forward(x, context)
        q = self.o_proj.in_features
        kv = (qkv.shape[-1] - q) // 2
        v = qkv[..., q + kv :].copy()  # a copy, because the attention keeps v, and a view would keep all of qkv
        return (qkv[..., :q], qkv[..., q : q + kv], v), cache

    def project_backward(self, dq: Array, dk: Array, dv: Array, cache: Cache, need_dx: bool) -> Array | None:
        """Compute dx (b, t, d) from dq (b, h, t, d) and dk, dv (b, g, t, d)."""
        dqkv = array_module(dq).concatenate([self.join_heads(dq), self.join_heads(dk), self.join_heads(dv)], axis=-1)
        return self.qkv_proj.backward(dqkv, cache, need_dx)


class FusedMLP(MLP):
    """The gated MLP with one input projection, whose output is gate and up, one after the other."""

    def __init__(self, gate_up_proj: Linear, down_proj: Linear, activation: Activation = SWIGLU) -> None:
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.activation = activation

    @property
    def inputs_trainable(self) -> bool:
        """True if the input projection has a trainable parameter."""
        return self.gate_up_proj.trainable

    def project(self, x: Array, context: Context) -> tuple[tuple[Array, Array], Cache]:
        """Compute gate and up, both (b, t, f), from x (b, t, d)."""
        gate_up, cache = self.gate_up_proj.forward(x, context)
        f = gate_up.shape[-1] // 2
        return (gate_up[..., :f], gate_up[..., f:]), (gate_up, cache)

    def project_backward(self, dgate: Array, dup: Array, cache: Cache, need_dx: bool) -> Array | None:
        """Compute dx (b, t, d). The gradients dgate and dup have overwritten the two parts of gate_up."""
        dgate_up, projection_cache = cache
        return self.gate_up_proj.backward(dgate_up, projection_cache, need_dx)
