"""DoRA in one layer: the length of each row of W + ΔW is a trained parameter (Liu et al. 2024, arXiv 2402.09353).

    y = g ∘ (x Wᵀ + s·(x Aᵀ) Bᵀ) + bias        g = m/n, n the lengths of the rows of W + s·B A

In training with dropout, the difference between DoRA and the base is computed from the dropped input x̃, as in PEFT:

    y = x Wᵀ + bias + (DoRA(x̃) − x̃ Wᵀ)        x̃ = drop(x); without dropout y = DoRA(x) + bias
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ... import ops
from ...backend import Array
from ...nn import Cache, Context, Linear, Parameter
from ...ops.dora import DoraCache, RowNormCache
from ...quantization import Quantized4bit
from ..adapter import add_gradients, dense, parameter_like
from ..cost import Products, linear_products
from .config import LoraConfig
from .layer import LoraAdapter, LoraCost

# The cache of `ops.row_norm_forward`: W (out, in), or None if W is dequantised again; A, B, P, n, scaling
NormCache: TypeAlias = tuple[Array | None, Array, Array, Array, Array, float]
# The base layer for x, the dropout mask, and (the base layer for x̃, the row norms, DoRA)
DoraLayerCache: TypeAlias = tuple[Cache, Array | None, tuple[Cache, NormCache | None, DoraCache]]


class DoraAdapter(LoraAdapter):
    """The DoRA adapter of one layer: LoRA's A and B, and the trained row lengths m (out,).

    m always has the base's dtype, because rounding m to 16 bits would rescale W.
    """

    depends_on_weight = True

    def __init__(self, config: LoraConfig, A: Parameter, B: Parameter, m: Parameter) -> None:
        super().__init__(config, A, B)
        self.lora_magnitude_vector = m

    @classmethod
    def build(
        cls, config: LoraConfig, base: Linear, factors: Collection[np.ndarray], dtype: np.dtype | None = None
    ) -> DoraAdapter:
        """Return an adapter with the given arrays A, B and m (in host memory).

        If m is not given, m is set to the row lengths of W + s·B A.
        """
        A, B, *m = factors
        plain = LoraAdapter.build(config, base, (A, B), dtype)
        if m:
            return cls(config, plain.lora_A, plain.lora_B, parameter_like(base, m[0]))
        norm, _ = row_norm(base, *plain.factors(base.weight.value.dtype), config.scaling)
        return cls(config, plain.lora_A, plain.lora_B, Parameter(norm))

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, DoraLayerCache]:
        """Compute y (…, out) for x (…, in).

        At the start m = n and B = 0, so y equals the base's output exactly.
        """
        y, base_cache = base.forward(x, context)
        adapted, own_cache = self.row_forward(x, y, base, context)
        return adapted, (base_cache, *own_cache)

    def backward(self, dy: Array, cache: DoraLayerCache, base: Linear, need_dx: bool) -> Array | None:
        """Return dx (…, in) for dy (…, out), or None if dx is not needed.

        This method also adds dA, dB and dm to the gradients of A, B and m. If `dora_norm` is "true", the row lengths n
        have a gradient too. Raises RuntimeError if the base is trained.
        """
        base_cache, *own_cache = cache
        dy, dx = self.row_backward(dy, own_cache, base, need_dx)
        if not need_dx:
            return None
        dx_frozen = base.backward(dy, base_cache)
        assert dx is not None and dx_frozen is not None
        dx += dx_frozen
        return dx

    def prepare(self, base: Linear, dtype: DTypeLike) -> tuple[Array, Array, Array, NormCache | None]:
        """Return A, B, the row lengths n (out,) of W + s·B A, and the cache for the gradient of n.

        The cache is None if `dora_norm` is "detached".
        """
        norm_cache: NormCache | None
        A, B = self.factors(dtype)
        n, norm_cache = row_norm(base, A, B, self.config.scaling)
        if self.config.dora_norm == "detached":
            norm_cache = None
        elif isinstance(base.weight.value, Quantized4bit):
            norm_cache = (None, *norm_cache[1:])  # the dequantised W is not saved
        return A, B, n, norm_cache

    def row_forward(
        self, x: Array, y: Array, base: Linear, context: Context, prepared: Any = None
    ) -> tuple[Array, Any]:
        """Compute the output (…, out) for x (…, in) and y = base(x)."""
        dropped, mask = ops.dropout_forward(x, self.dropout, context.rng)
        u, dropped_cache = (y, None) if mask is None else base.forward(dropped, context)
        has_bias = hasattr(base, "bias")
        if has_bias:
            u = u - base.bias.value
        A, B, n, norm_cache = self.prepare(base, x.dtype) if prepared is None else prepared
        m = self.lora_magnitude_vector.value
        adapted, cache = ops.dora_forward(dropped, u, A, B, m, n, self.config.scaling, self.lora_A.trainable)
        if has_bias or mask is not None:  # otherwise y is u, and both operations cancel
            adapted -= u
            adapted += y
        return adapted, (mask, (dropped_cache, norm_cache, cache))

    def row_backward(self, dz: Array, cache: Any, base: Linear, need_dx: bool) -> tuple[Array, Array | None]:
        """Return the gradient of y = base(x), and the part of dx that does not come from this gradient.

        In the forward pass the output is y − u + DoRA(x̃, u), with u = base(x̃) − bias. Without dropout, y − u is the
        bias, so the gradient of y is du. With dropout, the gradient of y is dz, and the gradient of base(x̃) is du − dz.
        """
        if base.trainable:
            raise RuntimeError("DoRA does not compute dW, because the row norms depend on W; freeze the base")
        mask, (dropped_cache, norm_cache, dora_cache) = cache
        dx, du, dA, dB, dm, dn = ops.dora_backward(dz, dora_cache, need_dx)
        if norm_cache is not None and (self.lora_A.trainable or self.lora_B.trainable):
            dA_norm, dB_norm = row_norm_backward(base, dn, norm_cache, need_dA=dA is not None)
            dB += dB_norm
            if dA is not None:
                dA += dA_norm
        add_gradients((self.lora_A, self.lora_B, self.lora_magnitude_vector), (dA, dB, dm))
        if mask is None or not need_dx:
            return du, dx
        du -= dz
        dx_dropped = base.backward(du, dropped_cache)
        assert dx is not None and dx_dropped is not None
        dx += dx_dropped
        return dz, ops.dropout_backward(dx, mask)

    def delta_weight(self, base: Linear) -> Array:
        """Return ΔW = g ∘ (W + s·B A) − W (out, in)."""
        m = self.lora_magnitude_vector.value
        W = dense(base.weight.value, m.dtype)
        g = m / row_norm(base, *self.factors(m.dtype), self.config.scaling)[0]
        return g[:, None] * (W + self.scaled_product(m.dtype)) - W


def check_rows(name: str, base: Linear) -> None:
    """Raise ValueError if all elements of a row of W are zero, because m/n would be 0/0."""
    weight = base.weight.value
    if not dense(weight, weight.dtype).any(axis=1).all():
        raise ValueError(f"{name} has a row of zeros; DoRA divides by the length of each row, so no row can be zero")


def row_norm(base: Linear, A: Array, B: Array, scaling: float) -> tuple[Array, RowNormCache]:
    """Return the row lengths n (out,) of W + s·B A, and the cache for `row_norm_backward`."""
    return ops.row_norm_forward(dense(base.weight.value, A.dtype), A, B, scaling)


def row_norm_backward(base: Linear, dn: Array, cache: NormCache, need_dA: bool) -> tuple[Array | None, Array]:
    """Return dA and dB for dn (out,).

    Only dA needs the dequantised W. The dequantised W is freed before dx is computed.
    """
    W = dense(base.weight.value, dn.dtype) if need_dA else base.weight.value  # only the shape of W is used without dA
    return ops.row_norm_backward(dn, (W, *cache[1:]), need_dA)


@dataclass(frozen=True)
class DoraCost(LoraCost):
    """The cost of LoRA plus the cost of three arrays: the trained m, the row lengths n, and z.

    The array z (N, out) is the output before the multiplication by g = m/n.
    """

    true_norm: bool = False  # True if n has a gradient; PEFT detaches it

    name = "DoRA"

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the sizes of LoRA's trained arrays and of m."""
        return [*super().trained_sizes(out, in_), out]

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs of LoRA's products and of the products that compute n.

        To compute n, DoRA needs the products W Aᵀ, A Aᵀ and B (A Aᵀ), and also their gradients if n has a gradient.
        These FLOPs do not depend on the number N of tokens. With dropout, the base layer also computes x̃ Wᵀ.
        """
        norm = 2 * self.r * (out * in_ + self.r * (in_ + out))
        found = super().products(N, out, in_, need_dx) + Products(norm, 0, norm * (self.true_norm and self.A_trained))
        return found + linear_products(N, out, in_, need_dx, False) if self.dropout else found

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of saved floats.

        DoRA saves the same arrays as LoRA, and also z (N, out) and n (out,). If n has a gradient, P = (W + s·B A) Aᵀ
        (out, r) is saved too.
        """
        return super().saved_for_backward(N, out, in_) + N * out + out + self.true_norm * out * self.r

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Return the number of temporary floats of g ∘ z and, with dropout, of x̃ Wᵀ."""
        return (1 + self.dropout) * N * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats.

        The temporary arrays are dz (N, out), the dx of the bypass, and the temporary arrays of the frozen layer.
        """
        return N * out + (N * in_ + max(frozen, N * self.r) if need_dx else N * self.r)
