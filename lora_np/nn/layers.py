"""The layers with parameters: Linear, Embedding and RMSNorm, each around its pair of functions in `ops`."""

from __future__ import annotations

from .. import ops
from ..backend import Array
from ..ops.embedding import EmbeddingCache
from ..ops.norm import RMSNormCache
from .context import EVALUATION, Context
from .module import Cache, Module, Parameter


class Linear(Module):
    """y = x Wᵀ + b, with `weight` (out, in) and an optional `bias` (out,). Frozen, it computes no dW and keeps no x."""

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        self.weight = Parameter(weight)
        if bias is not None:
            self.bias = Parameter(bias)

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={hasattr(self, 'bias')}"

    @property
    def out_features(self) -> int:
        return self.weight.value.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.value.shape[1]

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Cache]:
        """x (…, in) → y (…, out). The cache is a LinearCache of `ops`; a subclass has its own."""
        bias = self.bias.value if hasattr(self, "bias") else None
        y, (kept, W, has_bias) = ops.linear_forward(x, self.weight.value, bias)
        has_bias = has_bias and self.bias.trainable
        return y, (kept if self.weight.trainable else None, W, has_bias)

    def backward(self, dy: Array, cache: Cache, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it. Raises RuntimeError after a forward that ran frozen."""
        dx, dW, db = ops.linear_backward(dy, cache, need_dx)
        if self.weight.trainable:
            self.weight.add_grad(dW)
        if hasattr(self, "bias") and self.bias.trainable:
            self.bias.add_grad(db)
        return dx


class Embedding(Module):
    """A table of token vectors, `weight` (vocabulary, d)."""

    def __init__(self, weight: Array) -> None:
        self.weight = Parameter(weight)

    def extra_repr(self) -> str:
        """The vocabulary's size, and d."""
        return "{}, {}".format(*self.weight.value.shape)

    def forward(self, ids: Array) -> tuple[Array, EmbeddingCache]:
        """ids (…) → y (…, d)."""
        return ops.embedding_forward(ids, self.weight.value)

    def backward(self, dy: Array, cache: EmbeddingCache) -> None:
        """Adds to the table's gradient if it is trainable. There is no dx: an id has no derivative."""
        if self.weight.trainable:
            self.weight.add_grad(ops.embedding_backward(dy, cache))


class RMSNorm(Module):
    """y = w ∘ x / rms(x), with `weight` (d,)."""

    def __init__(self, weight: Array, eps: float = 1e-5) -> None:
        self.weight = Parameter(weight)
        self.eps = eps

    def extra_repr(self) -> str:
        """d, and ε."""
        return f"{self.weight.value.size}, eps={self.eps}"

    def forward(self, x: Array) -> tuple[Array, RMSNormCache]:
        """x (…, d) → y (…, d)."""
        return ops.rms_norm_forward(x, self.weight.value, self.eps)

    def backward(self, dy: Array, cache: RMSNormCache, need_dx: bool = True) -> Array | None:
        """dy (…, d) → dx (…, d), or None where nothing below needs it."""
        dx, dw = ops.rms_norm_backward(dy, cache, need_dx, need_dw=self.weight.trainable)
        if dw is not None:
            self.weight.add_grad(dw)
        return dx
